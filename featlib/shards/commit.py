"""The commit of a shard: its outcomes object, and in the footer what it stands for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from featlib.errors import StoppedError
from featlib.layout import Keys, PartName
from featlib.sealed import read_sealed, sealed
from featlib.shards.schema import OUTCOMES, Provenance, read_footer, to_json, with_footer
from featlib.shards.staging import StagedItem
from featlib.storage import Store


@dataclass(frozen=True)
class Committed:
    """The outcomes object of one shard and label, as it is in the store; empty when there is none.

    Args:
        hashes: SHA-256 of each features object, by the last component of its key.
        rounds: How often it was put.
        pieces: Keys of the pieces that are history: what of them was to be published is.
        used: Of these, the keys of those whose rows or reports were published.
    """

    outcomes: pa.Table
    hashes: Mapping[str, str]
    rounds: int
    pieces: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()

    def has(self, staged: StagedItem, media_id: str) -> bool:
        """Whether these very pieces made the outcome that stands: a cut publish is being repeated."""
        return all(key in self.used for key, _ in staged.pieces.values()) and media_id in self.media_ids

    @cached_property
    def media_ids(self) -> frozenset[str]:
        """Items with an outcome."""
        return frozenset(self.outcomes["media_id"].to_pylist())


def read_committed(store: Store, keys: Keys, label: str, shard: int) -> Committed:
    """The outcomes object of a shard, or an empty one.

    Raises:
        DamagedError: It is not what was put.
    """
    key = f"{keys.outcomes(label)}/{PartName(shard)}"
    if store.stat(key) is None:
        return Committed(OUTCOMES.empty_table(), {}, 0)
    table = read_outcomes(store, key)
    footer = read_footer(table.schema.metadata)
    hashes, *names = (json.loads(footer[f"featlib.{name}"]) for name in ("features", "pieces", "used"))
    pieces, used = (frozenset(f"{keys.stage_shard(shard)}/{name}" for name in those) for those in names)
    return Committed(table, hashes, int(footer["featlib.rounds"]), pieces, used)


def put_committed(store: Store, keys: Keys, label: str, shard: int, stands: Committed, provenance: Provenance) -> None:
    """Puts the outcomes object of a shard: from then on its rows stand."""
    footer = {
        **provenance.footer(),
        "featlib.features": to_json(stands.hashes),
        "featlib.rounds": str(stands.rounds),
        "featlib.pieces": _names(stands.pieces),
        "featlib.used": _names(stands.used),
    }
    table = stands.outcomes.replace_schema_metadata(with_footer(OUTCOMES, footer).metadata)
    store.put(f"{keys.outcomes(label)}/{PartName(shard)}", sealed(table))


def _names(pieces: Iterable[str]) -> str:
    return to_json(sorted(key.rpartition("/")[2] for key in pieces))


def read_outcomes(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one outcomes object, or only ``columns`` of them.

    Raises:
        DamagedError: It is not what was put.
        StoppedError: It is gone.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        raise StoppedError(f"{key}: somebody has just removed it; run the same command again") from None
    return read_sealed(data, key, columns)
