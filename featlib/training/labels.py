"""Which media are learned from: their labels, and which part of the training each is for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featlib.errors import ConfigError
from featlib.manifest.labels import SPLITS, LabelRow, Split, split_named
from featlib.training.media import Media


@dataclass(frozen=True)
class Labelled:
    """One media item with its class; ``split`` is as it was written, None when nobody said one."""

    media_id: str
    label: str
    split: str | None


def labels_of_manifest(media: Mapping[str, Media]) -> list[Labelled]:
    """What the manifest said, of the media that have a label."""
    return [Labelled(name, m.label, m.split) for name, m in media.items() if m.label is not None]


def labels_of_file(rows: Iterable[LabelRow], media: Mapping[str, Media]) -> tuple[list[Labelled], int]:
    """What a file says of ``media``, and how many of its rows name none of them; ``media_id`` counts before ``uri``.

    Raises:
        ConfigError: Two rows say different things of one item.
    """
    by_uri: dict[str, list[str]] = {}
    for media_id, known in media.items():
        by_uri.setdefault(known.uri, []).append(media_id)
    found: dict[str, tuple[LabelRow, Labelled]] = {}
    unknown = 0
    for row in rows:
        named = [row.media_id] if row.media_id is not None else by_uri.get(row.uri or "", [])
        named = [media_id for media_id in named if media_id in media]
        unknown += not named
        for media_id in named if row.label is not None else ():
            mine = Labelled(media_id, str(row.label), row.split)
            first, before = found.setdefault(media_id, (row, mine))
            if before != mine:
                raise ConfigError(
                    f"--labels: media {media_id} is {before.label!r} ({before.split}) in row {first.row} and "
                    f"{mine.label!r} ({mine.split}) in row {row.row}; leave one of them"
                )
    return [mine for _, mine in found.values()], unknown


def split_media(
    labelled: Sequence[Labelled], *, share: float, seed: int, pairs: bool
) -> dict[Split, tuple[Labelled, ...]]:
    """Media by what they are for, sorted by id.

    A split that was given is obeyed; where it names no validation, or there is none, each class gives ``share`` of its
    training media to it, drawn by ``seed``.

    Args:
        pairs: The head learns from pairs: validation needs two media of a class.

    Raises:
        ConfigError: A split is unknown or only some media have one; or there is nothing to train or to validate on.
    """
    parts: dict[Split, list[Labelled]] = {name: [] for name in SPLITS}
    unsplit = next((m for m in labelled if m.split is None), None)
    split = next((m for m in labelled if m.split is not None), None)
    if unsplit is not None and split is not None:
        raise ConfigError(
            f"split: media {split.media_id} has {split.split!r}, media {unsplit.media_id} has none; give every "
            "labelled media one, or none"
        )
    for mine in sorted(labelled, key=lambda m: m.media_id):
        parts["train" if mine.split is None else _split(mine)].append(mine)
    if not parts["val"]:
        parts["train"], parts["val"] = _held_out(parts["train"], share, seed, 2 if pairs else 1)
    _check(parts, pairs)
    return {name: tuple(part) for name, part in parts.items() if part}


def _split(mine: Labelled) -> Split:
    try:
        return split_named(str(mine.split))
    except ValueError as error:
        raise ConfigError(f"media {mine.media_id}: {error}") from None


def _held_out(
    media: Sequence[Labelled], share: float, seed: int, at_least: int
) -> tuple[list[Labelled], list[Labelled]]:
    """Some of each class for validation; a class too small to be in both stays where it is learned from."""
    random = np.random.default_rng(seed)
    held: set[str] = set()
    for label in sorted({m.label for m in media}):
        mine = [m.media_id for m in media if m.label == label]
        count = max(at_least, round(share * len(mine)))
        order = random.permutation(len(mine))
        if len(mine) - count >= at_least:
            held.update(mine[i] for i in order[:count])
    return [m for m in media if m.media_id not in held], [m for m in media if m.media_id in held]


def _check(parts: Mapping[Split, Sequence[Labelled]], pairs: bool) -> None:
    needed: tuple[Split, ...] = ("train", "val")
    for name in needed:
        counts = Counter(m.label for m in parts[name])
        if not counts:
            raise ConfigError(f"split: no media for {name}; label more media of each class, or give a split column")
        if (pairs or name == "train") and len(counts) < 2:
            raise ConfigError(f"label: {name} has one class ({next(iter(counts))!r}); a head tells at least two apart")
        if pairs and max(counts.values()) < 2:
            raise ConfigError(f"label: no class has two media in {name}; pairs of one class are what is learned from")


def check_classes(parts: Mapping[Split, Sequence[Labelled]]) -> None:
    """Refuses media of classes that are not learned: a classifier can only be wrong on them.

    Raises:
        ConfigError: Names one.
    """
    known = {m.label for m in parts["train"]}
    for name, media in parts.items():
        strange = next((m for m in media if m.label not in known), None)
        if strange is not None:
            raise ConfigError(
                f"label: {strange.label!r} of media {strange.media_id} is in {name}, but not in train; move some of "
                "its media to train or take its label away"
            )
