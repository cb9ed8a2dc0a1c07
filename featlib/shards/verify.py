"""Shards held against the manifest: is every item there, once, whole?"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from featlib import partition
from featlib.errors import DamagedError
from featlib.layout import Keys, PartName
from featlib.sealed import check_seal
from featlib.shards.commit import read_outcomes
from featlib.shards.schema import KEY, read_footer
from featlib.storage import Store

_SHOWN = 5
_DAMAGE = (DamagedError, pa.ArrowException, OSError, KeyError, ValueError)


@dataclass(frozen=True)
class Verification:
    """What was found in one partition.

    Args:
        media: Items in the manifest.
        statuses: Items of the manifest by status.
        missing: Ids of the manifest without an outcome.
        duplicate: Ids with two outcomes, rows in two shards, or a key that is there twice.
        damaged: Objects that are absent, not those that were committed, made with other settings than the partition,
            or cannot be read.
        wrong_rows: Ids with another number of rows than their outcome says.
        uncommitted: Features objects that no outcome mentions yet: a publish that was cut; run the job again.
    """

    media: int
    rows: int
    statuses: Counter[str]
    missing: tuple[str, ...]
    duplicate: tuple[str, ...]
    damaged: tuple[str, ...]
    wrong_rows: tuple[str, ...]
    uncommitted: tuple[str, ...]
    max_failed: float = 0.05

    @property
    def complete(self) -> bool:
        """Nothing missing, twice or damaged, and no more failures than allowed."""
        bad = self.statuses["failed"] + self.statuses["partial"]
        wrong = self.missing or self.duplicate or self.damaged or self.wrong_rows or self.uncommitted
        return not wrong and bad <= self.max_failed * self.media

    def text(self) -> str:
        """For a person, a line a finding."""
        by_status = ", ".join(f"{n} {name}" for name, n in self.statuses.most_common()) or "none"
        lines = [f"{self.media} media in the manifest, {self.rows} rows in the shards; outcomes: {by_status}"]
        for name in ("missing", "duplicate", "damaged", "wrong_rows", "uncommitted"):
            found: Sequence[str] = getattr(self, name)
            more = f" … (+{len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
            shown = f": {', '.join(found[:_SHOWN])}{more}" if found else ""
            lines.append(f"  {name.replace('_', ' ')}: {len(found)}{shown}")
        lines.append("complete" if self.complete else "NOT complete")
        return "\n".join(lines)


@dataclass
class _Findings:
    """As it grows.

    Args:
        fingerprint: Of all objects; None: that of the first.
    """

    fingerprint: str | None
    rows: int = 0
    outcomes: dict[str, str] = field(default_factory=dict)
    homes: dict[str, int] = field(default_factory=dict)
    duplicate: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    wrong_rows: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)


def verify(
    batches: Iterable[pa.RecordBatch], store: Store, keys: Keys, label: str, *, max_failed: float = 0.05
) -> Verification:
    """Reads every byte of a partition once and holds it against the manifest."""
    found = _Findings(partition.recorded(store, keys, label))
    objects = _by_shard(store, keys.features(label))
    committed = _by_shard(store, keys.outcomes(label))
    for shard in sorted({*objects, *committed}):
        _check_shard(store, found, shard, keys.features(label), objects.get(shard, []), committed.get(shard, []))
    media, statuses, missing = 0, Counter[str](), []
    for media_id in _ids(batches):
        media += 1
        status = found.outcomes.get(media_id)
        if status is None:
            missing.append(media_id)
        else:
            statuses[status] += 1
    return Verification(
        media,
        found.rows,
        statuses,
        tuple(missing),
        tuple(dict.fromkeys(found.duplicate)),
        tuple(found.damaged),
        tuple(found.wrong_rows),
        tuple(found.uncommitted),
        max_failed,
    )


def _ids(batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
    for batch in batches:
        yield from batch.column("media_id").to_pylist()


def _by_shard(store: Store, prefix: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for info in store.list(prefix):
        name = PartName.parse(info.key)
        if name is not None:
            found.setdefault(name.shard, []).append(info.key)
    return found


def _check_shard(
    store: Store, found: _Findings, shard: int, folder: str, objects: Sequence[str], outcomes: Sequence[str]
) -> None:
    """Takes one shard into ``found``; ``folder`` is that of its features objects, and the rest is as listed."""
    damaged_before = len(found.damaged)
    hashes: dict[str, str] = {}
    promised: dict[str, int] = {}
    for key in outcomes:
        try:
            table = read_outcomes(store, key, ["media_id", "status", "num_rows"])
            hashes.update(json.loads(read_footer(table.schema.metadata)["featlib.features"]))
            _check_settings(found, key, table)
        except _DAMAGE as error:
            found.damaged.append(_told(key, error))
            continue
        for media_id, status, rows in zip(*(c.to_pylist() for c in table.columns), strict=True):
            if media_id in found.outcomes:
                found.duplicate.append(media_id)
            found.outcomes[media_id] = status
            promised[media_id] = rows or 0
    counts: Counter[str] = Counter()
    seen: set[tuple[str, int, int]] = set()
    named = {f"{folder}/{name}": sha256 for name, sha256 in hashes.items()}
    for key in sorted({*objects, *named}):  # a listing may lag behind what was put and what was dropped
        try:
            table = _read(store, found, key, named.get(key), list(KEY))
        except FileNotFoundError:
            if key in named:
                found.damaged.append(f"{key.rpartition('/')[2]} (absent)")
            continue
        if key not in named:
            found.uncommitted.append(key)
        if table is not None:
            found.rows += table.num_rows
            _check_settings(found, key, table)
            _count_rows(found, shard, table, counts, seen)
    if len(found.damaged) == damaged_before:
        found.wrong_rows.extend(m for m in {*promised, *counts} if promised.get(m, 0) != counts[m])


def _check_settings(found: _Findings, key: str, table: pa.Table) -> None:
    mine = read_footer(table.schema.metadata).get("featlib.fingerprint")
    found.fingerprint = found.fingerprint or mine
    if mine != found.fingerprint:
        found.damaged.append(f"{key} (made with other settings than the partition)")


def _count_rows(
    found: _Findings, shard: int, table: pa.Table, counts: Counter[str], seen: set[tuple[str, int, int]]
) -> None:
    for row in zip(*(table[name].to_pylist() for name in KEY), strict=True):
        media_id = row[0]
        if row in seen or found.homes.setdefault(media_id, shard) != shard:
            found.duplicate.append(media_id)
        seen.add(row)
        counts[media_id] += 1


def _read(store: Store, found: _Findings, key: str, sha256: str | None, columns: list[str]) -> pa.Table | None:
    try:
        data = store.get(key)
        if sha256 is None:
            check_seal(data, key)
        elif hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedError(key)
        return pq.read_table(io.BytesIO(data), columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        found.damaged.append(_told(key, error))
        return None


def _told(key: str, error: Exception) -> str:
    return key if isinstance(error, DamagedError) else f"{key} ({' '.join(str(error).split())[:80]})"
