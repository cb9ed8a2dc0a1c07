"""The media of some partitions as their outcomes have them, and their features in memory."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import numpy as np

from featlib.aggregation.rows import ShardRows, features_by_shard
from featlib.aggregation.sources import Source
from featlib.aggregation.vectors import StepsDifferError, fused_steps
from featlib.config import Fuse
from featlib.errors import ConfigError
from featlib.heads.pooling import Floats
from featlib.heads.training import most_padded
from featlib.layout import Keys
from featlib.manifest.rows import plain_text
from featlib.progress import Reporter
from featlib.shards.commit import read_outcomes
from featlib.shards.schema import reading
from featlib.storage import Store

_COLUMNS = ["media_id", "uri", "status", "num_rows", "size", "etag", "label", "split"]
_MB = 1 << 20


@dataclass(frozen=True)
class Media:
    """One media item under all partitions.

    Args:
        label: And ``split``: what the manifest said.
        num_rows: Under each partition; empty when it cannot be used: a partition lacks it, it failed, or the
            partitions saw different versions of the file.
    """

    uri: str
    label: str | None
    split: str | None
    num_rows: tuple[int, ...]


def read_media(store: Store, keys: Keys, labels: Sequence[str]) -> dict[str, Media]:
    """The media of the first partition, by id."""
    first, *others = (_outcomes(store, keys, label) for label in labels)
    found = {}
    for media_id, row in first.items():
        rows = [row, *(other.get(media_id) for other in others)]
        label, split = (plain_text(row[name]) for name in ("label", "split"))  # an older featlib kept blanks
        found[media_id] = Media(str(row["uri"]), label, split, _num_rows(rows))
    return found


def _outcomes(store: Store, keys: Keys, label: str) -> dict[str, Mapping[str, object]]:
    found = {}
    for info in store.list(keys.outcomes(label)):
        with reading(info.key):
            found.update({row["media_id"]: row for row in read_outcomes(store, info.key, _COLUMNS).to_pylist()})
    return found


def _num_rows(rows: Sequence[Mapping[str, object] | None]) -> tuple[int, ...]:
    usable = [r for r in rows if r is not None and r["status"] in ("ok", "partial") and r["num_rows"]]
    versions = {(r["size"], r["etag"]) for r in usable} - {(None, None)}
    if len(usable) < len(rows) or len(versions) > 1:
        return ()
    return tuple(int(str(r["num_rows"])) for r in usable)


def check_memory(
    media: Collection[Media], sources: Sequence[Source], *, pooled: bool, batch_size: int, memory_mb: int | None
) -> None:
    """Refuses, before a feature is read, what would not fit.

    Args:
        pooled: One vector of each video is held, not its steps.
        batch_size: Videos that are padded to the longest of them, beside what is held.
        memory_mb: Most megabytes of features; None: half of the machine's memory.

    Raises:
        ConfigError: Says how much there is and how much may be.
    """
    values = sum(
        (source.size or 0) if pooled else count * prod(source.shape)
        for m in media
        for source, count in zip(sources, m.num_rows, strict=True)
    )
    cells = prod(sources[0].shape) // (sources[0].size or 1)
    longest = 1 if pooled else cells * max((m.num_rows[0] for m in media), default=0)
    values += most_padded(len(media), longest, sum(source.size or 0 for source in sources), batch_size)
    needed, machine = -(-4 * values // _MB), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MB
    allowed = machine // 2 if memory_mb is None else memory_mb
    if needed > allowed:
        raise ConfigError(
            f"--memory-mb {allowed}: the features of {len(media)} labelled videos and a batch of them are {needed} MB; "
            "raise it, pool them first (featlib aggregate), take a head on their mean (linear, embedding), a smaller "
            "--batch-size, or label fewer"
        )


def read_features(
    store: Store,
    keys: Keys,
    sources: Sequence[Source],
    wanted: Collection[str],
    how: Fuse,
    *,
    pooled: bool,
    shown: Reporter,
) -> dict[str, Floats]:
    """What a head reads of each wanted video, by media id: (T, D) float32, fused. All of them are in memory.

    Raises:
        ConfigError: The partitions do not have the same steps of a video, a feature is not a finite number, or an
            object is damaged.
    """
    listed = [features_by_shard(store, keys, source.label) for source in sources]
    shown.begin(len(wanted))
    found: dict[str, Floats] = {}
    for shard in sorted(listed[0]):
        with ExitStack() as opened:
            rows = [opened.enter_context(ShardRows(store, by_shard.get(shard, ()))) for by_shard in listed]
            for media_id in [name for name in rows[0].media_ids if name in wanted]:
                found[media_id] = _steps(media_id, rows, sources, how, pooled)
                shown.advance(1, len(found[media_id]), 0)
    lacking = next((name for name in sorted(wanted) if name not in found), None)
    if lacking is not None:
        raise ConfigError(
            f"--features {sources[0].label}: the rows of media {lacking} are gone; featlib verify says what is damaged"
        )
    return found


def _steps(media_id: str, rows: Sequence[ShardRows], sources: Sequence[Source], how: Fuse, pooled: bool) -> Floats:
    videos = []
    for source, mine in zip(sources, rows, strict=True):
        video = mine.video(media_id, source.channel_axis, keep=not pooled)
        if video is None:
            raise ConfigError(
                f"--features {source.label}: no row of media {media_id} has a feature; take its label away"
            )
        videos.append(video)
    names = " and ".join(f"model={source.label}" for source in sources)
    try:
        steps = fused_steps(videos, how, pooled=pooled)
    except StepsDifferError as error:
        raise ConfigError(
            f"--features: {names} have other steps of media {media_id} ({error}); extract them with the same sampling, "
            "or take a head on the mean (linear, embedding)"
        ) from None
    if not np.isfinite(steps).all():
        raise ConfigError(f"--features: {names}: media {media_id} has a feature that is no finite number; leave it out")
    return steps
