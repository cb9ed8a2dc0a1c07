"""One fingerprint a partition; dropping one leaves the others."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from featlib import partition
from featlib.config import fingerprint
from featlib.errors import ConfigError, DamagedError, StoppedError
from featlib.layout import Keys
from featlib.plan import read_plan
from featlib.shards import staging
from featlib.shards.commit import read_committed
from featlib.shards.schema import Provenance, to_json
from featlib.storage import Store
from tests.servers.faults import flipped
from tests.shards.make import CrashError, CrashingStore, Item, planned, provenance, publish, staged, visible

KEYS = Keys("d")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def _made(**semantics: str) -> dict[str, Provenance]:
    return {"m": Provenance("d", "m", fingerprint(semantics), semantics, {})}


def test_a_new_partition_is_welcome(store: Store) -> None:
    partition.check(store, KEYS, _made(layer="logits"))
    assert partition.registered(store, KEYS, "m") is None
    assert store.list("") == []


def test_the_same_settings_go_on(store: Store) -> None:
    partition.register(store, KEYS, _made(layer="logits"))
    partition.check(store, KEYS, _made(layer="logits"))
    assert partition.registered(store, KEYS, "m") == {"layer": "logits"}


def test_other_settings_are_refused_with_both_ways_out(store: Store) -> None:
    partition.register(store, KEYS, _made(layer="logits", precision="fp32", network="n"))
    store.put(f"{KEYS.outcomes('m')}/part-00000.parquet", b"an object")
    with pytest.raises(ConfigError) as caught:
        partition.check(store, KEYS, _made(layer="penultimate", precision="bf16", network="n"))
    text = str(caught.value)
    assert "layer was logits, is now penultimate" in text
    assert "precision was fp32, is now bf16" in text
    assert "network" not in text
    assert "--model NEWLABEL=" in text
    assert f"featlib drop --output {store.url} --dataset d --model m" in text
    assert "\n" not in text


def test_a_run_that_made_nothing_does_not_bind_its_label(store: Store) -> None:
    partition.register(store, KEYS, _made(layer="logits"))
    partition.check(store, KEYS, _made(layer="penultimate"))
    partition.register(store, KEYS, _made(layer="penultimate"))
    assert partition.registered(store, KEYS, "m") == {"layer": "penultimate"}


def test_registering_again_changes_nothing(store: Store) -> None:
    partition.register(store, KEYS, _made(layer="logits"))
    before = store.get(KEYS.model("m"))
    changed = {label: replace(p, record={"torch": "9"}) for label, p in _made(layer="logits").items()}
    partition.register(store, KEYS, changed)
    assert store.get(KEYS.model("m")) == before


@pytest.mark.parametrize("by_record", [True, False], ids=["written down and staged", "published"])
def test_settings_of_what_was_made_are_never_written_over(store: Store, by_record: bool) -> None:
    """Whoever wrote them down worked meanwhile, or what it wrote was written over already."""
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    mine = Provenance("d", "a", "x", {"network": "z"}, {})
    if by_record:
        partition.register(store, KEYS, {"a": _made(network="a")["m"]})
    else:
        publish(store)
        store.put(
            KEYS.model("a"), to_json({"fingerprint": fingerprint(mine.semantics), "semantics": mine.semantics}).encode()
        )
    before = store.get(KEYS.model("a"))
    with pytest.raises(ConfigError, match=r"network was a, is now z\); use another label \(--label B\)") as caught:
        partition.register(store, KEYS, {"a": mine}, another="--label B")
    assert "\n" not in str(caught.value)
    assert store.get(KEYS.model("a")) == before


def test_files_of_others_beside_shards_do_not_speak_for_them(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    store.put(f"{KEYS.outcomes('a')}/_SUCCESS", b"")
    partition.register(store, KEYS, provenance(("a",)))
    assert partition.registered(store, KEYS, "a") == {"network": "a"}


def test_shards_speak_for_themselves_where_the_register_is_gone(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    assert partition.registered(store, KEYS, "a") == {"network": "a"}
    with pytest.raises(ConfigError, match="network was a, is now z"):
        partition.check(store, KEYS, {"a": Provenance("d", "a", "x", {"network": "z"}, {})})


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"fingerprint": "0", "semantics": {"layer": "logits"}}'])
def test_a_damaged_register_is_not_believed(store: Store, content: bytes) -> None:
    store.put(KEYS.model("a"), content)
    with pytest.raises(DamagedError, match=r"a\.json: is damaged"):
        partition.registered(store, KEYS, "a")
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    assert partition.registered(store, KEYS, "a") == {"network": "a"}, "shards speak for themselves"


def test_a_damaged_shard_is_not_believed_where_the_register_is_gone(store: Store) -> None:
    """Its footer says what made it, and no checksum of Parquet covers that."""
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    key = f"{KEYS.outcomes('a')}/part-00000.parquet"
    whole = store.get(key)
    said = whole.index(b'{"network":"a"}')
    for place in (said, said + 3, said + 12):  # no JSON, another name, another value
        store.put(key, flipped(whole, 8 * place))
        with pytest.raises(ConfigError, match=f"{key}: is damaged"):
            partition.registered(store, KEYS, "a")
    store.put(key, whole)
    assert partition.registered(store, KEYS, "a") == {"network": "a"}


def _two_labels(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")], ("a", "b"))
    publish(store, ("a", "b"))
    partition.register(store, KEYS, provenance(("a", "b")))


def test_drop_removes_its_own_label_only(store: Store) -> None:
    _two_labels(store)
    others = {i.key: i.etag for i in store.list("") if "model=a" not in i.key and not i.key.endswith("/a.json")}
    assert partition.drop(store, KEYS, "a") == 3
    assert set(visible(store)) == {"b"}
    assert {i.key: i.etag for i in store.list("")} == others
    assert store.list(KEYS.plan)


def test_drop_of_the_last_label_takes_the_plan_along(store: Store) -> None:
    _two_labels(store)
    store.put(f"{KEYS.drivers}/me.claim", b"{}")
    store.put("features/dataset=dd/model=a/part-00000.parquet", b"other dataset")
    partition.drop(store, KEYS, "a")
    partition.drop(store, KEYS, "b")
    left = ["_featlib/d/drivers/me.claim", "features/dataset=dd/model=a/part-00000.parquet"]
    assert [i.key for i in store.list("")] == left


@pytest.mark.parametrize("after", [False, True])
def test_a_drop_that_is_cut_anywhere_loses_nothing_that_counts_as_done(tmp_path: Path, *, after: bool) -> None:
    """The next job makes anew what it does not find done; so all that counts as done must be there."""
    for at in count():
        store = Store(str(tmp_path / str(at)))
        _two_labels(store)
        cut = CrashingStore(store.url, at=at, after=after)
        try:
            partition.drop(cut, KEYS, "a")
            break
        except CrashError:
            done = set(read_committed(store, KEYS, "a", 0).media_ids)
        assert done <= visible(store).get("a", {}).keys(), cut.calls
        staged(store, "s-0", [Item("v0"), Item("v1")], ("a",))
        publish(store, ("a",))
        assert visible(store)["a"].keys() == {"v0", "v1"}, cut.calls
    assert len(cut.calls) == 3


def test_a_drop_that_is_cut_takes_the_newest_generation_of_the_plan_first(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for ids in (["v0"], ["v0", "v1"], ["v0", "v1", "v2"]):
        planned(store, ids)
    cut = CrashingStore(store.url, at=1, after=False)
    with pytest.raises(CrashError):
        partition.drop(cut, KEYS, "a")
    assert len(read_plan(store, KEYS).ids) == 2


def test_a_drop_that_is_cut_anywhere_can_be_asked_for_again(tmp_path: Path) -> None:
    """Of the last partition: else its plan would bind the dataset for good."""
    for at in count():
        store = Store(str(tmp_path / str(at)))
        planned(store, ["v0"])
        partition.register(store, KEYS, {"a": _made(layer="logits")["m"]})
        staged(store, "s-0", [Item("v0")], ("a",))
        publish(store, ("a",))
        cut = CrashingStore(store.url, at=at, after=True)
        try:
            partition.drop(cut, KEYS, "a")
        except CrashError:
            if store.list(""):
                assert partition.registered(store, KEYS, "a") is not None, cut.calls
                partition.drop(store, KEYS, "a")
        assert not store.list("")
        if len(cut.calls) <= at:
            break
    assert at > 3


def test_a_drop_leaves_the_plan_while_there_are_outcomes_of_another(store: Store) -> None:
    """Even where somebody removed what was written down of it."""
    _two_labels(store)
    store.delete([KEYS.model("b")])
    partition.drop(store, KEYS, "a")
    assert store.list(KEYS.plan)
    assert store.stat(KEYS.model("a")) is None


def test_a_drop_asks_before_each_object_whether_it_still_may(store: Store) -> None:
    _two_labels(store)
    before = store.list("features")

    def buried() -> None:
        raise StoppedError("another driver took over")

    with pytest.raises(StoppedError):
        partition.drop(store, KEYS, "a", buried)
    with pytest.raises(StoppedError):
        partition.drop(store, KEYS, "a", confirm=buried)
    assert store.list("features") == before


def test_drop_removes_staged_pieces_of_its_label(store: Store) -> None:
    _two_labels(store)
    mine = staged(store, "s-0", [Item("v0")], ("a",))
    shared = staged(store, "s-1", [Item("v1")], ("a", "b"))
    partition.drop(store, KEYS, "a")
    assert store.stat(mine) is None
    assert store.stat(shared) is None, "kept for b, it would bring a back"


def test_staged_pieces_are_read_a_few_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was killed may have left many, and each says much of its items."""
    monkeypatch.setattr(staging, "_PIECES_AT_ONCE", 2)
    at_once, read = list[int](), staging.read_heads

    def counting(store: Store, keys: Sequence[str]) -> list[staging.Piece]:
        at_once.append(len(keys))
        return read(store, keys)

    monkeypatch.setattr(staging, "read_heads", counting)
    keys = [staged(store, f"r-{shard}", [Item("v0")], ("a",), shard) for shard in range(6)]
    partition.register(store, KEYS, {"a": _made(layer="logits")["m"]})
    with pytest.raises(ConfigError, match="layer was logits"):
        partition.check(store, KEYS, {"a": _made(layer="penultimate")["m"]})
    assert at_once == [2], "the first tells"
    assert partition.drop(store, KEYS, "a") == len(keys) + 1
    assert at_once == [2] * 4
    assert not store.list("")


def test_after_drop_the_label_is_free_for_other_settings(store: Store) -> None:
    partition.register(store, KEYS, _made(layer="logits"))
    partition.drop(store, KEYS, "m")
    partition.check(store, KEYS, _made(layer="penultimate"))
