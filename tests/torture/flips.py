"""Flipped bits: at rest in published objects, and in flight between a process and an object store."""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

import pyarrow as pa

from featlib import sealed
from featlib.items import ItemReport, ModelReport
from featlib.manifest import SCHEMA, read_manifest
from featlib.plan import PlanItems, grow, read_plan
from featlib.shards.staging import read_heads, read_piece, stage
from featlib.shards.verify import verify
from featlib.spec import MediaFacts, Segment
from featlib.storage import ObjectInfo, Store, StoreOptions, retry
from featlib.work import Unit, UnitItem, units_table
from featlib.workers import UnitsReader
from tests.servers.faults import Fault, FaultProxy, Turns, flipped
from tests.torture.publishing import KEYS, Stage
from tests.torture.story import LABELS, PHASES
from tests.torture.tally import Tally

_FLIPS_AN_OUTPUT = 50
_SHORT_WAIT_S = 0.01


def at_rest(stage: Stage, folder: Path, total: int, seed: int) -> Tally:
    """Flips a bit of an object of a finished output each time; ``featlib verify`` must call that object damaged.

    So many flips in one output, then in that of another story; ``seed`` is the number of the first flip.
    """
    tally = Tally("bits flipped at rest in features and outcomes")
    output = _Output(stage, folder, -1)
    for number in range(seed, seed + total):
        if output.number != number // _FLIPS_AN_OUTPUT:
            output = _Output(stage, folder, number // _FLIPS_AN_OUTPUT)
        random = Random(f"flip {number}")
        label, key = random.choice(output.objects)
        path = folder / key
        whole = path.read_bytes()
        bit = random.randrange(8 * len(whole))
        path.write_bytes(flipped(whole, bit))
        found = verify(read_manifest(output.manifest), Store(str(folder)), KEYS, label, max_failed=1.0)
        path.write_bytes(whole)
        is_seen = not found.complete and any(text.startswith(key) for text in found.damaged)
        wrong = [] if is_seen else [f"bit {bit} of {key} was not seen: {found.text()}"]
        tally.add(f"flips --seed {number} --kills 1", 1, wrong)
    return tally


@dataclass
class _Output:
    """A finished output in ``folder``; -1: none yet."""

    stage: Stage
    folder: Path
    number: int
    objects: list[tuple[str, str]] = field(default_factory=list)
    manifest: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.number < 0:
            return
        scene = self.stage.scene(self.number, PHASES[-1 - self.number % len(PHASES)])
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(scene.story.output, self.folder)
        store = Store(str(self.folder))
        self.manifest = tuple(scene.story.config()["manifest"])
        self.objects = [(label, info.key) for label in LABELS for info in _published(store, label)]


def _published(store: Store, label: str) -> list[ObjectInfo]:
    return [*store.list(KEYS.features(label)), *store.list(KEYS.outcomes(label))]


@dataclass(frozen=True)
class _Way:
    """A way of bytes between a process and a store.

    Args:
        fault: ``flip_request`` or ``flip_answer``.
        method: Of the requests that are spoilt.
        cross: Sends or fetches something, by the store that is asked; gives what must be the same with and without
            a flipped bit.
        is_whole: Whether every bit that crosses matters. Else some are of no use to who asked for them.
    """

    name: str
    fault: Fault
    method: str
    cross: Callable[[Store, "_Goods"], object]
    is_whole: bool = True


@dataclass(frozen=True)
class _Goods:
    """What lies in a store to be read, and what is to be put.

    Args:
        there: The store, without a proxy.
    """

    there: Store
    data: bytes
    folder: Path

    @classmethod
    def laid(cls, there: Store, number: int, folder: Path) -> "_Goods":
        random = Random(f"goods {number}")
        goods = cls(there, random.randbytes(random.randint(1, 200_000)), folder)
        there.delete([info.key for info in there.list("")])
        for key in ("old", "over"):
            there.put(key, goods.data)
        there.put("large", sealed.sealed(pa.table({"n": [random.random() for _ in range(random.randint(1, 9000))]})))
        names = [f"v{i}" for i in range(random.randint(1, 400))]
        stage(there, KEYS, shard=0, unit="r-0", rows=(), reports=[_report(name) for name in names], fingerprints={})
        rows = [{"media_id": name, "uri": f"/v/{name}", "size": i, "label": name[-1]} for i, name in enumerate(names)]
        batch = pa.RecordBatch.from_pylist([{n: row.get(n) for n in SCHEMA.names} for row in rows], schema=SCHEMA)
        grow(there, KEYS, read_plan(there, KEYS), [batch], 100)
        units = [Unit(i, ("a",), (UnitItem(name, f"/v/{name}"),)) for i, name in enumerate(names[:100])]
        there.put("units", sealed.sealed(units_table(units, 0)))
        return goods


def _report(name: str) -> ItemReport:
    models = {label: ModelReport("ok", 3) for label in LABELS}
    facts = MediaFacts(1.0, 8, 6, "h264", 10, "e0", 4, 0, 0.5)
    return ItemReport(name, f"/v/{name}", Segment(0, 1), facts, 1, 1.0, models)


def _put(store: Store, goods: _Goods) -> object:
    store.put("new", goods.data)
    return goods.there.get("new")


def _put_over(store: Store, goods: _Goods) -> object:
    path = goods.folder / "data"
    path.write_bytes(goods.data[::-1])
    store.put_file("over", path)
    return goods.there.get("over")


def _delete(store: Store, goods: _Goods) -> object:
    goods.there.put("gone", b"")
    store.delete(["gone", "never"])
    return [info.key for info in goods.there.list("") if info.key != "new"]


def _large(store: Store, goods: _Goods) -> object:
    with mock.patch.object(sealed, "_READ_WHOLE", 0):

        def read() -> bytes:
            with sealed.open_sealed(store, "large") as file:
                return file.read()

        return sealed.reread("large", read)


def _heads(store: Store, goods: _Goods) -> object:
    return read_heads(store, [info.key for info in goods.there.list(KEYS.stage)])


def _piece(store: Store, goods: _Goods) -> object:
    table = read_piece(store, goods.there.list(KEYS.stage)[0].key)
    return table is not None and table.num_rows


def _plan_items(store: Store, goods: _Goods) -> object:
    return PlanItems(store, read_plan(goods.there, KEYS)).shard(0)


def _units(store: Store, goods: _Goods) -> object:
    with mock.patch.object(sealed, "_READ_WHOLE", 0):
        read = UnitsReader(store.url, store.options, "units")
        return [table.to_pylist() for table in read(pa.table({"group": [0]}))]


_WAYS = (
    _Way("put", "flip_request", "PUT", _put),
    _Way("put over another", "flip_request", "PUT", _put_over),
    _Way("delete", "flip_request", "POST", _delete),
    _Way("get", "flip_answer", "GET", lambda store, goods: store.get("old")),
    _Way("get a piece", "flip_answer", "GET", _piece),
    _Way("large sealed object", "flip_answer", "GET", _large),
    _Way("heads of pieces", "flip_answer", "GET", _heads, is_whole=False),
    _Way("items of a plan", "flip_answer", "GET", _plan_items, is_whole=False),
    _Way("units of a group", "flip_answer", "GET", _units, is_whole=False),
)
_FLIPS_OF_GOODS = 5 * len(_WAYS)


class _Once:
    """A fault for the next request of a method."""

    def __init__(self) -> None:
        self.way: _Way | None = None

    def __call__(self, method: str, path: str) -> Fault | None:
        if self.way is None or method != self.way.method:
            return None
        fault, self.way = self.way.fault, None
        return fault


def in_flight(url: str, upstream: str, folder: Path, total: int, seed: int) -> tuple[Tally, str]:
    """Flips a bit of the first try of a write, or of the first answer to a read, in each way that bytes take.

    What is put, removed or read must come out right; and the request must have been repeated, where that bit matters.
    ``seed`` is the number of the first flip. Gives also a line that says how many requests were repeated.
    """
    tally = Tally("bits flipped in flight")
    there, repeated, flips = Store(url, StoreOptions(upstream)), Counter[str](), Counter[str]()
    script, goods_number = _Once(), -1
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(retry, "FIRST_WAIT_S", _SHORT_WAIT_S))
        proxy = stack.enter_context(FaultProxy(upstream, script))
        here = Store(url, StoreOptions(proxy.endpoint_url))
        for number in range(seed, seed + total):
            if goods_number != number // _FLIPS_OF_GOODS:
                goods_number = number // _FLIPS_OF_GOODS
                goods = _Goods.laid(there, goods_number, folder)
                calm = {way.name: _crossed(way, here, goods, proxy) for way in _WAYS}
            way = _WAYS[number % len(_WAYS)]
            expected, num_calm, _ = calm[way.name]
            script.way, proxy.places = way, Turns(number)
            found, num_requests, num_flipped = _crossed(way, here, goods, proxy)
            script.way = None
            flips[way.name] += 1
            repeated[way.name] += num_requests > num_calm
            wrong = [] if found == expected else [f"{way.name}: something else came than lies there"]
            if num_flipped != 1:
                wrong.append(f"{way.name}: {num_flipped} bits were flipped")
            if way.is_whole and num_requests <= num_calm:
                wrong.append(f"{way.name}: the request was not repeated")
            tally.add(f"flips --seed {number} --kills 1", 1, wrong)
    wrong = [f"{name}: no request was repeated" for name, n in flips.items() if n > 3 and not repeated[name]]
    tally.add(f"flips --seed {seed} --kills {total}", 0, wrong)
    return tally, "repeated: " + ", ".join(f"{name} {repeated[name]} of {n}" for name, n in flips.items())


def _crossed(way: _Way, store: Store, goods: _Goods, proxy: FaultProxy) -> tuple[object, int, int]:
    """What came of it, how many requests it took, and how many bits were flipped."""
    num_requests, num_flipped = len(proxy.requests), proxy.num_flipped
    found = way.cross(store, goods)
    return found, len(proxy.requests) - num_requests, proxy.num_flipped - num_flipped
