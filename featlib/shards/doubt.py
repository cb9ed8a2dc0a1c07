"""Items in doubt: between the first object that a publish puts for them and its commit, their outcomes speak of other
rows than a reader finds.

A publish that replaces rows, or adds those of a retry, writes down beforehand of which items. Where it is cut, every
later run takes them for not done, whatever it was asked for: else rows of one version of a file would go on standing
under the outcome of another, with nothing in the output that tells.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator

from featlib.layout import Keys
from featlib.shards.commit import Committed, read_committed
from featlib.shards.schema import to_json
from featlib.storage import Store


def write_doubt(
    store: Store, keys: Keys, label: str, shard: int, committed: Committed, media_ids: Iterable[str]
) -> None:
    """Says that a publish behind ``committed`` is about to put objects with rows of these items."""
    body = to_json({"media_ids": sorted(media_ids), "rounds": committed.rounds})
    digest = hashlib.sha256(body.encode()).hexdigest()
    store.put(keys.doubt(label, shard), f"{digest} {body}".encode())


def read_doubt(store: Store, keys: Keys, label: str, shard: int, committed: Committed) -> frozenset[str]:
    """Items of a shard whose outcomes in ``committed`` are in doubt: all, where a bit of what says so was flipped."""
    if not committed.rounds:
        return frozenset()
    try:
        told = _told(store.get(keys.doubt(label, shard)))
    except FileNotFoundError:
        return frozenset()
    if told is None:
        return committed.media_ids
    rounds, media_ids = told
    return committed.media_ids & media_ids if rounds == committed.rounds else frozenset()


def items_in_doubt(store: Store, keys: Keys, label: str) -> Iterator[tuple[int, frozenset[str]]]:
    """Shards of a label, each with its items in doubt."""
    for shard, _ in _listed(store, keys, label):
        media_ids = read_doubt(store, keys, label, shard, read_committed(store, keys, label, shard))
        if media_ids:
            yield shard, media_ids


def remove_settled(store: Store, keys: Keys, labels: Iterable[str], confirm: Callable[[], None]) -> None:
    """Removes what stands there of doubts that a commit has settled since.

    Args:
        confirm: Called before objects are removed; raises when this process may not.
    """
    settled = [
        key
        for label in labels
        for shard, key in _listed(store, keys, label)
        if not read_doubt(store, keys, label, shard, read_committed(store, keys, label, shard))
    ]
    if settled:
        confirm()
        store.delete(settled)


def _listed(store: Store, keys: Keys, label: str) -> Iterator[tuple[int, str]]:
    for info in store.list(keys.doubts(label)):
        name = info.key.rpartition("/")[2]
        if name.isdecimal():
            yield int(name), info.key


def _told(data: bytes) -> tuple[int, frozenset[str]] | None:
    """The number of commits before, and the items; None when it is not what was written."""
    digest, _, body = data.partition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    fields = json.loads(body)
    return fields["rounds"], frozenset(fields["media_ids"])
