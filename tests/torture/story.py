"""What a run of the torture is about: media that change as it goes on, and what each gives, all from one seed."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from featlib.items import ItemReport, ModelReport
from featlib.manifest import read_manifest
from featlib.shards.schema import FEATURES
from featlib.shards.staging import feature_rows
from featlib.spec import MediaFacts, Segment
from featlib.storage.media import stat_media
from featlib.unit import CLIPS
from featlib.work import Unit, UnitItem

PHASES = ("first", "grown", "retried", "changed")
SHAPES: dict[str, tuple[int, ...]] = {"a": (4,), "b": (2, 3)}
LABELS = tuple(SHAPES)
_KINDS = ("ok", "long", "bad", "never", "part", "none")
_VALUES = tuple(name for name in FEATURES.names if name not in ("media_id", "clip_index"))


@dataclass(frozen=True)
class Story:
    """Media in ``folder`` and the jobs that run over them.

    Args:
        phase: Of ``PHASES``: the job over half of the media; over all; after bad files were mended; after sound
            ones were replaced.
        output: Path or URL.
        endpoint_url: Of the store, when it is not a disk.
        is_plain: The job asks for nothing but what is open, whatever the phase.
    """

    seed: int
    phase: str
    folder: str
    output: str
    endpoint_url: str | None = None
    is_plain: bool = False

    @classmethod
    def from_json(cls, text: str) -> "Story":
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def _random(self) -> Random:
        return Random(f"story {self.seed}")

    @property
    def names(self) -> list[str]:
        """Media of this phase's manifest; a name says what becomes of the file."""
        random = self._random
        kinds = random.choices(_KINDS, (6, 2, 2, 1, 2, 2), k=random.randint(9, 16))
        names = [f"{kind}-{i:02d}.mp4" for i, kind in enumerate(kinds)]
        return names[: len(names) // 2] if self.phase == "first" else names

    def tell(self) -> None:
        """Makes the media what they are in this phase, and their manifest."""
        folder = Path(self.folder)
        folder.mkdir(exist_ok=True)
        random = self._random
        for name in self.names:
            is_mended = self.phase in ("retried", "changed") and name.startswith("bad")
            is_replaced = self.phase == "changed" and name.startswith(("ok", "long")) and random.random() < 0.5
            content = f"{name} {'mended' if is_mended else 'first'} {'replaced' if is_replaced else ''}".encode()
            path = folder / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        (folder / "list.csv").write_text("uri\n" + "".join(f"{folder / name}\n" for name in self.names))

    def config(self) -> dict[str, Any]:
        """Of ``ExtractConfig``."""
        random = self._random
        return {
            "manifest": [str(Path(self.folder) / "list.csv")],
            "output": self.output,
            "dataset": "d",
            "models": [
                {"label": label, "network": "squeezenet1_1", "weights": f"random:{i}"} for i, label in enumerate(LABELS)
            ],
            "shard_items": random.randint(2, 5),
            "shard_mb": 1,
            "unit_items": random.randint(1, 3),
            "compile": "off",
            "device": "cpu",
            "max_failed": 1.0,
            "retry_failed": self.phase == "retried" and not self.is_plain,
            "changed": self.phase == "changed" and not self.is_plain,
            "endpoint_url": self.endpoint_url,
        }

    def expected(self) -> "Expected":
        """What must stand in the output once the job of this phase is done, reckoned without featlib, but for ids."""
        rows: dict[tuple[str, str, int], Values] = {}
        statuses: dict[tuple[str, str], str] = {}
        for batch in read_manifest(tuple(self.config()["manifest"])):
            for row in batch.to_pylist():
                item = UnitItem(row["media_id"], row["uri"])
                parts = [_Part(item, k, n) for n in (num_segments(item),) for k in range(n)]
                for label in LABELS:
                    statuses[label, item.media_id] = parts[0].status(label)
                    for part in parts:
                        rows |= {(label, item.media_id, i): part.values(label, i) for i in part.clips(label)}
        return Expected(rows, statuses)


Values = tuple[Any, ...]
"""What stands in a row of features, column by column, without ``media_id`` and ``clip_index``."""


def values_of(row: Mapping[str, Any]) -> Values:
    """What is missing is null."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in map(row.get, _VALUES))


@dataclass(frozen=True)
class Expected:
    """Rows by label, media id and clip; statuses by label and media id."""

    rows: dict[tuple[str, str, int], Values]
    statuses: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Done:
    """What a unit gave.

    Args:
        later: Units that must follow.
    """

    reports: list[ItemReport]
    tables: list[pa.Table]
    later: list[Unit]


def done(unit: Unit) -> Done:
    """Stands for decoding and the networks: what comes out follows from the file's bytes."""
    parts, later = [], []
    for item in unit.items:
        segments = num_segments(item)
        parts.append(_Part(item, unit.k, segments))
        if not unit.n:
            later += [Unit(unit.shard, unit.labels, (item,), k, segments) for k in range(1, segments)]
    tables = [part.rows(label) for label in unit.labels for part in parts]
    return Done([part.report(unit.labels) for part in parts], [t for t in tables if t.num_rows], later)


def num_segments(item: UnitItem) -> int:
    return 3 if _kind(item) == "long" else 1


def _kind(item: UnitItem) -> str:
    return os.path.basename(item.uri).partition("-")[0]


class _Part:
    """An item, or segment ``k`` of ``n`` of it."""

    def __init__(self, item: UnitItem, k: int, n: int) -> None:
        self._item, self._segment, self._content = item, Segment(k, n), Path(item.uri).read_bytes()

    def clips(self, label: str) -> Sequence[int]:
        kind = _kind(self._item)
        if kind in ("none", "never") or (kind == "bad" and b"mended" not in self._content):
            return ()
        count = 1 + hashlib.sha256(self._content + label.encode()).digest()[0] % 4
        first = self._segment.k * 10
        return range(first, first + count)

    def report(self, labels: Sequence[str]) -> ItemReport:
        info = stat_media(self._item.uri)
        facts = MediaFacts(1.0, 8, 6, "h264", info.size, info.etag, 4, 0, 0.5)
        return ItemReport(
            self._item.media_id, self._item.uri, self._segment, facts, self._item.attempt, time.time(),
            {label: self._model(label) for label in labels},
        )  # fmt: skip

    def status(self, label: str) -> str:
        if _kind(self._item) in ("bad", "never") and not self.clips(label):
            return "failed"
        return "partial" if _kind(self._item) == "part" else "ok"

    def _model(self, label: str) -> ModelReport:
        num_rows = len(self.clips(label))
        if self.status(label) == "partial":
            return ModelReport("partial", num_rows, "truncated", "cut short", retryable=False)
        if self.status(label) == "failed":
            return ModelReport("failed", 0, "timeout", "nothing came", retryable=True)
        return ModelReport("ok", num_rows)

    def rows(self, label: str) -> pa.Table:
        numbers = self.clips(label)
        clips = [
            {"item": 0, "clip_index": i, "start_s": i / 2, "end_s": (i + 1) / 2, "frame_s": [i / 2], "padded_frames": 0}
            for i in numbers
        ]
        features = np.array([self.value(label, i) for i in numbers], np.float32)
        size = int(np.prod(SHAPES[label]))
        return feature_rows(
            label, [self._item.media_id], [self._item.uri], pa.array(clips, CLIPS.value_type),
            features.reshape(len(clips), size), SHAPES[label],
        )  # fmt: skip

    def values(self, label: str, clip: int) -> Values:
        return values_of({
            "uri": self._item.uri, "region_index": 0, "start_s": clip / 2, "end_s": (clip + 1) / 2,
            "frame_s": [clip / 2], "padded_frames": 0, "feature": self.value(label, clip),
            "feature_shape": list(SHAPES[label]),
        })  # fmt: skip

    def value(self, label: str, clip: int) -> list[float]:
        seed = hashlib.sha256(f"{label} {clip} ".encode() + self._content).digest()
        return [float(np.float32(b) / 7) for b in seed[: int(np.prod(SHAPES[label]))]]
