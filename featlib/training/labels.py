"""Which media are learned from: their labels, and which part of the training each is for."""

from collections.abc import Iterable, Mapping, Sequence

from featlib.errors import ConfigError
from featlib.manifest.labels import SPLITS, LabelRow, Split
from featlib.manifest.splits import Labelled, choose_splits
from featlib.training.media import Media


def labels_of_manifest(media: Mapping[str, Media]) -> list[Labelled]:
    """What the manifest said, of the media that have a label."""
    return [Labelled(name, m.uri, m.label, m.split) for name, m in media.items() if m.label is not None]


def labels_of_file(rows: Iterable[LabelRow], media: Mapping[str, Media]) -> tuple[list[Labelled], int]:
    """What a file says of ``media``, and how many of its rows name none of them; ``media_id`` counts before ``uri``.

    Where it says no split, that of the manifest counts.

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
            known = media[media_id]
            mine = Labelled(media_id, known.uri, str(row.label), row.split or known.split)
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
    """Media by what they are for, sorted by id; the arguments and errors are those of ``choose_splits``."""
    ordered = sorted(labelled, key=lambda m: m.media_id)
    splits = choose_splits(ordered, share, seed, pairs=pairs)
    parts = {name: tuple(m for m, s in zip(ordered, splits, strict=True) if s == name) for name in SPLITS}
    return {name: part for name, part in parts.items() if part}
