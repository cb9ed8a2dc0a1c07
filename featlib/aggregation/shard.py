"""One shard of an aggregation: its items read, made into vectors, and staged as one piece with their reports."""

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featlib.aggregation.rows import ShardRows, Video
from featlib.aggregation.sources import Source
from featlib.aggregation.vectors import Maker, NotFiniteError, StepsDifferError, VideoVector
from featlib.errors import ConfigError
from featlib.items import ItemReport, ModelReport, PlanItem
from featlib.layout import Keys, PartName
from featlib.shards.commit import Committed, read_committed
from featlib.shards.schema import FEATURES, reading
from featlib.shards.staging import feature_rows, stage
from featlib.spec import MediaFacts, Segment, Status
from featlib.storage import Store
from featlib.unit import CLIPS

FINAL = ("steps_differ", "no_feature", "not_finite")
"""Error classes of items that fail again while their sources are the same."""

_BY_SEVERITY: tuple[Status, ...] = ("ok", "partial", "skipped", "failed")

Outcome = Mapping[str, object]


@dataclass(frozen=True)
class ShardWork:
    """How the items of a shard are made into vectors.

    Args:
        label: Of the partition to write.
        fingerprint: Of it.
    """

    store: Store
    keys: Keys
    sources: Sequence[Source]
    maker: Maker
    label: str
    fingerprint: str

    def stage(
        self, shard: int, items: Sequence[PlanItem], objects: Mapping[str, Sequence[str]]
    ) -> tuple[str, list[ItemReport]]:
        """Makes the vectors of some items of a shard and stages them as one piece; gives its key and their reports.

        Args:
            objects: By label, the features objects of the shard that are listed; a listing may lag.

        Raises:
            ConfigError: The vectors have several sizes.
        """
        stands = {source.label: self._committed(source.label, shard) for source in self.sources}
        before = {label: {row["media_id"]: row for row in c.outcomes.to_pylist()} for label, c in stands.items()}
        keys_of = {
            label: sorted({*objects.get(label, ()), *(f"{self.keys.features(label)}/{name}" for name in c.hashes)})
            for label, c in stands.items()
        }
        reports: list[ItemReport] = []
        made: list[VideoVector] = []
        clips = []
        with ExitStack() as opened:
            rows = [opened.enter_context(ShardRows(self.store, keys_of[s.label])) for s in self.sources]
            for item in items:
                outcomes = [before[source.label].get(item.media_id) for source in self.sources]
                model, videos, vector = self._made(item, rows, outcomes)
                if vector is not None:
                    clips.append(_clip(len(reports), videos))
                    made.append(vector)
                reports.append(self._report(item, model, outcomes))
        table = self._table(shard, items, clips, made)
        unit = f"{uuid.uuid4().hex[:10]}-{self.label[:64]}"
        prints = {self.label: self.fingerprint}
        key = stage(self.store, self.keys, shard=shard, unit=unit, rows=[table], reports=reports, fingerprints=prints)
        return key, reports

    def _made(
        self, item: PlanItem, rows: Sequence[ShardRows], outcomes: Sequence[Outcome | None]
    ) -> tuple[ModelReport, list[Video], VideoVector | None]:
        """What becomes of one item, and its vector when every source has rows of it."""
        before = _worst(outcomes)
        if before.status in ("failed", "skipped"):  # rows of a retry that was cut before its commit do not count yet
            return before, [], None
        videos = []
        for source, mine, outcome in zip(self.sources, rows, outcomes, strict=True):
            video = mine.video(item.media_id, source.channel_axis, keep=self.maker.keeps_steps)
            if video is None:
                there = item.media_id in mine.media_ids
                wrong, what = ("no_feature", "no feature in the rows") if there else ("no_rows", "no rows")
                message = f"model={source.label} has {what} of this item to aggregate"
                found_nothing = before.status == "ok" and outcome is not None and not outcome["num_rows"]
                return ModelReport("skipped" if found_nothing else "failed", 0, wrong, message), [], None
            videos.append(video)
        names = " and ".join(f"model={source.label}" for source in self.sources)
        try:
            return replace(before, num_rows=1), videos, self.maker(videos)
        except NotFiniteError:
            message = f"{names}: this item has a feature that is no finite number"
            return ModelReport("failed", 0, "not_finite", message), [], None
        except StepsDifferError as error:
            message = f"{names} have other steps of this item ({error}); extract them with the same sampling"
            return ModelReport("failed", 0, "steps_differ", message), [], None

    def _report(self, item: PlanItem, model: ModelReport, outcomes: Sequence[Outcome | None]) -> ItemReport:
        facts, models = _facts(outcomes), {self.label: model}
        return ItemReport(item.media_id, item.uri, Segment(0, 1), facts, created=time.time(), models=models)

    def _table(
        self, shard: int, items: Sequence[PlanItem], clips: Sequence[object], made: Sequence[VideoVector]
    ) -> pa.Table:
        sizes = {len(v.vector) for v in made}
        if len(sizes) > 1:
            raise ConfigError(
                f"--features {' '.join(s.label for s in self.sources)}: the vectors of shard {shard} have several "
                f"sizes ({sorted(sizes)}); the partition holds features of several shapes, which cannot be pooled "
                "into one"
            )
        return feature_rows(
            self.label,
            [i.media_id for i in items],
            [i.uri for i in items],
            pa.array(clips, CLIPS.value_type),
            np.stack([v.vector for v in made]) if made else np.empty((0, 0), np.float32),
            sorted(sizes),
            {
                name: pa.array([getattr(v, name) for v in made], FEATURES.field(name).type)
                for name in ("labels", "probabilities", "attention")
            },
        )

    def _committed(self, label: str, shard: int) -> Committed:
        with reading(f"{self.keys.outcomes(label)}/{PartName(shard)}"):
            return read_committed(self.store, self.keys, label, shard)


def _worst(outcomes: Sequence[Outcome | None]) -> ModelReport:
    """What the sources say of an item; the worst of several."""
    known = [o for o in outcomes if o is not None]
    worst = max(known, key=lambda o: _BY_SEVERITY.index(_status(o)))
    return ModelReport(
        _status(worst), 0, _text(worst["error_class"]), _text(worst["error_message"]), bool(worst["retryable"])
    )


def _status(outcome: Outcome) -> Status:
    return next(s for s in _BY_SEVERITY if s == outcome["status"])


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _facts(outcomes: Sequence[Outcome | None]) -> MediaFacts:
    """Of the media, from the first source that knows it; nothing was decoded for this."""
    names = ("duration_s", "width", "height", "codec", "size", "etag")
    first = next(o for o in outcomes if o is not None)
    return MediaFacts(**{name: first[name] for name in names})  # type: ignore[arg-type]


def _clip(place: int, rows: Sequence[Video]) -> dict[str, object]:
    starts = [r.start_s for r in rows if r.start_s is not None]
    ends = [r.end_s for r in rows if r.end_s is not None]
    return {
        "item": place,
        "clip_index": 0,
        "start_s": min(starts) if starts else None,
        "end_s": max(ends) if ends else None,
        "frame_s": sorted({t for r in rows for t in r.frame_s}),
        "padded_frames": 0,
        "frame_idx": [],
    }
