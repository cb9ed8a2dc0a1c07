"""Which part of a training each labelled media item is for; heads and backbones share these rules."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featlib.errors import ConfigError
from featlib.manifest.labels import SPLITS, Split, split_named
from featlib.redaction import redact


@dataclass(frozen=True)
class Labelled:
    """A media item with its class.

    Args:
        uri: Of its file. All parts of one file are one video, which is in one split only.
        split: As it was written; None when nobody said one.
    """

    media_id: str
    uri: str
    label: str
    split: str | None

    def __str__(self) -> str:
        return f"media {self.media_id} ({redact(self.uri)})"


def choose_splits(items: Sequence[Labelled], share: float, seed: int, *, pairs: bool) -> list[Split]:
    """The split of each item.

    A split that was given is obeyed; where it names no validation, or there is none, each class gives ``share`` of its
    training videos to it, drawn by ``seed``, and keeps at least one. A class too small to be in both is learned from.

    Args:
        pairs: The loss is one of pairs or triplets: each side of the draw needs two videos of a class.

    Raises:
        ConfigError: A split is unknown, only some items have one or a file is in two; or ``check_splits`` refuses them.
    """
    splits = _given(items)
    _check_not_torn(items, splits)
    if "val" not in splits:
        videos: dict[str, set[str]] = {}
        for item, split in zip(items, splits, strict=True):
            if split == "train":
                videos.setdefault(item.uri, set()).add(item.label)
        held = _drawn(videos, share, seed, 2 if pairs else 1)
        splits = ["val" if i.uri in held else split for i, split in zip(items, splits, strict=True)]
    check_splits(items, splits, pairs=pairs)
    return splits


def _given(items: Sequence[Labelled]) -> list[Split]:
    """The splits as written, in one spelling; ``train`` when no item has one."""
    without = next((i for i in items if i.split is None), None)
    having = next((i for i in items if i.split is not None), None)
    if without is not None and having is not None:
        raise ConfigError(
            f"split: {having} has {having.split!r}, {without} has none; give every labelled media one, or none"
        )
    return ["train" if i.split is None else _named(i, i.split) for i in items]


def _named(item: Labelled, text: str) -> Split:
    try:
        return split_named(text)
    except ValueError as error:
        raise ConfigError(f"{item}: {error}") from None


def _check_not_torn(items: Sequence[Labelled], splits: Sequence[Split]) -> None:
    seen: dict[str, Split] = {}
    for item, split in zip(items, splits, strict=True):
        if seen.setdefault(item.uri, split) != split:
            raise ConfigError(
                f"split: {redact(item.uri)} is in {seen[item.uri]} and in {split}; frames of one video are alike, so "
                "give all its rows one"
            )


def _drawn(videos: Mapping[str, set[str]], share: float, seed: int, at_least: int) -> set[str]:
    """Some of ``videos`` (the classes in each, by URI); every class keeps ``at_least`` of its own."""
    random = np.random.default_rng(seed)
    total = Counter(label for labels in videos.values() for label in labels)
    left = total.copy()
    drawn: set[str] = set()
    for label in sorted(total):
        mine = sorted(uri for uri, labels in videos.items() if label in labels)
        wanted = max(at_least, round(share * len(mine))) if len(mine) >= 2 * at_least else 0
        for place in random.permutation(len(mine)):
            uri = mine[place]
            if total[label] - left[label] >= wanted:
                break
            if uri not in drawn and all(left[name] > at_least for name in videos[uri]):
                drawn.add(uri)
                left.subtract(videos[uri])
    return drawn


def check_splits(items: Sequence[Labelled], splits: Sequence[str | None], *, pairs: bool) -> None:
    """Refuses splits from which nothing can be learned, or by which nothing can be judged.

    A classifier can only be wrong on a class that it does not learn; a loss of pairs means nothing without two videos
    of one class and one of another.

    Raises:
        ConfigError: Says what is missing in which split.
    """
    videos = {name: {(i.label, i.uri) for i, s in zip(items, splits, strict=True) if s == name} for name in SPLITS}
    needed: tuple[Split, ...] = ("train", "val")
    for name in needed:
        counts = Counter(label for label, _ in videos[name])
        if not counts:
            raise ConfigError(f"split: no media for {name}; label more videos of each class, or give a split column")
        if (pairs or name == "train") and len(counts) < 2:
            raise ConfigError(f"label: {name} has one class ({next(iter(counts))!r}); at least two are told apart")
        if pairs and max(counts.values()) < 2:
            raise ConfigError(f"label: no class has two videos in {name}; pairs of one class are what is learned from")
    known = {label for label, _ in videos["train"]}
    strange = next(((i, s) for i, s in zip(items, splits, strict=True) if i.label not in known), None)
    if strange is not None and not pairs:
        item, split = strange
        raise ConfigError(
            f"label: {item.label!r} of {item} is in {split}, but not in train; move some of its media to train or "
            "take its label away"
        )
