"""Outputs with given features, labels and splits, published as a job publishes them; and heads made by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from featlib.config import fingerprint, validated
from featlib.heads.saved import HeadSpec, Stream, build, to_bytes
from featlib.heads.training import Videos
from featlib.items import ItemReport, ModelReport
from featlib.plan import grow, read_plan
from featlib.shards.schema import to_json
from featlib.shards.staging import feature_rows, stage
from featlib.spec import MediaFacts, Segment, Status
from featlib.storage import Store
from featlib.train_config import TrainConfig
from featlib.unit import CLIPS
from tests.shards.make import KEYS, batch, publisher

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """One video under one model.

    Args:
        features: (num_rows, *shape).
        keys: (clip_index, region_index) of each row; None: clip 0, 1, 2 ...
    """

    features: Floats
    keys: Sequence[tuple[int, int]] | None = None
    etag: str = "e0"
    status: Status = "ok"

    def rows(self, label: str, media_id: str) -> pa.Table:
        keys = self.keys or [(clip, 0) for clip in range(len(self.features))]
        clips = [
            {"item": 0, "clip_index": c, "start_s": c / 2, "end_s": (c + 1) / 2, "frame_s": [c / 2], "padded_frames": 0}
            for c, _ in keys
        ]
        return feature_rows(
            label,
            [media_id],
            [uri_of(media_id)],
            pa.array(clips, CLIPS.value_type),
            self.features.reshape(len(keys), -1),
            self.features.shape[1:],
            {"region_index": pa.array([region for _, region in keys], pa.int32())},
        )

    def report(self, label: str, media_id: str) -> ItemReport:
        facts = MediaFacts(1.0, 8, 6, "h264", 10, self.etag)
        reason = None if self.status == "ok" else "timeout"
        models = {label: ModelReport(self.status, len(self.features), reason, reason)}
        return ItemReport(media_id, uri_of(media_id), Segment(0, 1), facts, 1, 1.0, models)


def uri_of(media_id: str) -> str:
    return f"/v/{media_id}.mp4"


@dataclass(frozen=True)
class Manifest:
    """What the manifest says of media: their labels and splits, by id."""

    labels: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)


def output(
    folder: Path,
    models: Mapping[str, Mapping[str, Given | Floats]],
    manifest: Manifest = Manifest(),
    *,
    shard_items: int = 100,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> Store:
    """An output of dataset ``d`` with these features by label and media id.

    Args:
        settings: By label, what made the features, beside ``network``.
    """
    store = Store(str(folder))
    ids = list(dict.fromkeys(media_id for videos in models.values() for media_id in videos))
    rows = [{"media_id": i, "label": manifest.labels.get(i), "split": manifest.splits.get(i)} for i in ids]
    plan, *_ = grow(store, KEYS, read_plan(store, KEYS), [batch(rows)], shard_items)
    for label, videos in models.items():
        if settings and label in settings:
            semantics = {"network": label, **settings[label]}
            body = {"fingerprint": fingerprint(semantics), "semantics": semantics, "record": {}}
            store.put(KEYS.model(label), to_json(body).encode())
        for number, shard in enumerate(sorted(set(plan.shards.tolist()))):
            part = ids[number * shard_items : (number + 1) * shard_items]
            stage_videos(store, label, {i: videos[i] for i in part if i in videos}, shard)
            publisher(store, [label]).publish(shard)
    return store


def stage_videos(store: Store, label: str, videos: Mapping[str, Given | Floats], shard: int = 0) -> str:
    given = {i: v if isinstance(v, Given) else Given(v) for i, v in videos.items()}
    return stage(
        store,
        KEYS,
        shard=shard,
        unit=f"u-{label}",
        rows=[v.rows(label, i) for i, v in given.items() if len(v.features)],
        reports=[v.report(label, i) for i, v in given.items()],
        fingerprints={label: f"print-{label}"},
    )


def of_videos(parts: Mapping[str, Videos], names: Sequence[str]) -> tuple[dict[str, Floats], Manifest]:
    """Labelled videos by split as features by id, with the manifest that says so."""
    features: dict[str, Floats] = {}
    labels, splits = {}, {}
    for split, videos in parts.items():
        for i, (steps, label) in enumerate(zip(videos.steps, videos.labels, strict=True)):
            media_id = f"{split}-{i:04d}"
            features[media_id], labels[media_id], splits[media_id] = steps, names[label], split
    return features, Manifest(labels, splits)


def config(folder: Path, **settings: object) -> TrainConfig:
    values = {"output": str(folder), "dataset": "d", "features": ["a"], "out": str(folder / "head"), **settings}
    return validated(TrainConfig, values)


def spec(kind: str, streams: Mapping[str, tuple[tuple[int, ...], int]], **settings: object) -> HeadSpec:
    """Of a head over partitions that ``output`` made: by label, the shape of a row and the size of a step."""
    own = TrainConfig.model_validate(
        {"output": "o", "dataset": "d", "features": list(streams), "head": kind, "out": "h"}
    )
    features = [
        Stream(label=label, fingerprint=fingerprint({"network": label}), shape=shape, size=size)
        for label, (shape, size) in streams.items()
    ]
    values = {
        **own.model_dump(include={"head", "layers", "embedding_size", "fuse", "loss", "seed"}),
        "hidden": None if own.hidden is None else 5,
        "features": features,
        "classes": ("x", "y", "z"),
        "settings": {},
        "featlib": "0",
        **settings,
    }
    return HeadSpec.model_validate(values)


def random_head(path: Path, made: HeadSpec, seed: int = 0) -> nn.Module:
    """Writes a head with random weights to ``path``; gives its module. Those that begin as 0 are drawn too."""
    torch.manual_seed(seed)
    module = build(made).eval()
    for name, weight in module.named_parameters():
        if name.endswith("weigh.weight") or name.startswith("fc."):
            nn.init.normal_(weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(made, module))
    return module
