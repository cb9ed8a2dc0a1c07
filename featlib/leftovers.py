"""What runs that broke, or that slept while another worked, leave in an output: found, and removed."""

from collections.abc import Iterable, Mapping

from featlib.drivers import Claim
from featlib.layout import Keys
from featlib.publisher import is_spent
from featlib.shards.commit import read_committed
from featlib.shards.doubt import remove_settled
from featlib.shards.schema import Provenance
from featlib.shards.staging import piece_keys, read_shards
from featlib.storage import Store


def remove_units(store: Store, keys: Keys, claim: Claim) -> None:
    """Removes lists of units; workers of a driver that was buried stop at that.

    Raises:
        StoppedError: The claim is gone; so of all of these.
    """
    _remove(store, claim, [o.key for o in store.list(keys.units)])


def clean_up(
    store: Store, keys: Keys, claim: Claim, shards: Iterable[int], provenance: Mapping[str, Provenance]
) -> None:
    """Removes pieces of the published ``shards``, and of any shard those that came too late.

    Args:
        provenance: By label, of this run.
    """
    staged = piece_keys(store, keys)
    mine = {shard: staged[shard] for shard in shards if shard in staged}
    for shard, pieces in read_shards(store, mine):
        kept = {p.key for p in pieces if not is_spent(p, provenance)}
        _remove(store, claim, [key for key in mine[shard] if key not in kept])  # also those that nobody can read
    remove_late(store, keys, claim, provenance)


def remove_late(store: Store, keys: Keys, claim: Claim, provenance: Mapping[str, Provenance]) -> None:
    """Removes pieces that were staged for a driver that slept, after another had published, and doubts that are
    settled."""
    remove_settled(store, keys, provenance, claim.confirm)
    for shard, pieces in read_shards(store, piece_keys(store, keys)):
        made = {label for p in pieces for label in p.rounds if label in provenance}
        rounds = {label: read_committed(store, keys, label, shard).rounds for label in made}
        late = [p.key for p in pieces if p.rounds and all(rounds.get(m, n) != n for m, n in p.rounds.items())]
        _remove(store, claim, late)


def _remove(store: Store, claim: Claim, gone: list[str]) -> None:
    if gone:
        claim.confirm()
        store.delete(gone)
