"""The passes of a run, without Ray: what each is given."""

import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from featlib.drivers import Claim
from featlib.errors import StoppedError
from featlib.layout import Keys
from featlib.leftovers import clean_up, remove_units
from featlib.pools import Machine, Pools, Sizes, plan_pools
from featlib.progress import SilentReporter
from featlib.run import Run
from featlib.storage import Store
from featlib.summary import Seconds
from featlib.units_file import UnitsFile
from featlib.work import Unit, UnitItem, unit_from_row
from featlib.workers import STOP


@dataclass(frozen=True)
class _Flow:
    run: str = ""
    is_apart: bool = False
    output: str = ""
    store_options: None = None


class _Units:
    """The units of a pass, of which none is lost."""

    def __init__(self, num_units: int, path: Path) -> None:
        self.num_units, self.path = num_units, path

    def read(self, lost: np.ndarray) -> Iterator[Any]:
        assert not lost.any()
        return iter(())


@pytest.mark.parametrize(
    ("arithmetic", "threads"), [("compiled", [2, 2, 2]), ("plain", [2, 8, 1])], ids=["compiled", "plain"]
)
def test_networks_are_compiled_for_the_threads_of_one_pass(
    arithmetic: str, threads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def results(flow: _Flow, pools: Pools, key: str, num_units: int) -> Iterator[dict[str, int]]:
        seen.append(pools.extract[0].threads)
        yield from ({"seq": seq} for seq in range(num_units))

    pools = plan_pools(Machine(8), Sizes(), {"cnn": "frame"})
    (tmp_path / "units").write_bytes(b"")
    run = Run.__new__(Run)
    model = SimpleNamespace(label="cnn", arithmetic=arithmetic)
    store, keys = Store(str(tmp_path / "out")), SimpleNamespace(units="units")
    run.__dict__ |= {
        "_id": "r",
        "_shown": SilentReporter(),
        "_threads": {},
        "_ray": (_Flow(), pools),
    }
    run.__dict__["_task"] = SimpleNamespace(models=[model], store=store, keys=keys)
    run.__dict__["_claim"] = SimpleNamespace(check=lambda: None, guard=lambda: None)
    monkeypatch.setattr("featlib.dataflow.results", results)
    monkeypatch.setattr(run, "_count_workers", lambda _pools: None)
    monkeypatch.setattr(run, "_take", lambda _row: None)
    for number, num_units in enumerate((14, 3, 100)):
        run._pass(_Units(num_units, tmp_path / "units"), number, is_apart=False)  # type: ignore[arg-type]
    assert seen == threads


def test_what_was_lost_has_a_pass_of_its_own_of_one_unit_an_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in an actor dies with it, and could end as if it had been what the actor died of; what follows from
    other units is none of that."""
    passes: list[tuple[bool, list[str]]] = []
    items = [UnitItem(f"v{i}", f"v{i}.mp4") for i in range(3)]

    def results(flow: _Flow, pools: Pools, key: str, num_units: int) -> Iterator[dict[str, Any]]:
        units = [unit_from_row(row) for row in pq.read_table(io.BytesIO(store.get(key))).to_pylist()]
        passes.append((flow.is_apart, [item.media_id for unit in units for item in unit.items]))
        yield from ({"seq": seq, "unit": unit} for seq, unit in enumerate(units) if len(passes) != 1 or seq != 1)

    def take(row: dict[str, Any]) -> None:
        if len(passes) == 1:  # a video has further segments
            later = [replace(row["unit"], k=1, n=2)] if row["unit"].items[0].media_id == "v0" else []
            run._later.extend(later)

    store, keys = Store(str(tmp_path / "out")), Keys("d")
    flow = _Flow()
    run = Run.__new__(Run)
    publisher = SimpleNamespace(put=lambda _shard: None, wait=list, __enter__=None, __exit__=None)
    pools = plan_pools(Machine(8), Sizes(), {"cnn": "frame"})
    run.__dict__ |= {
        "_id": "r", "_shown": SilentReporter(), "_threads": {}, "_ray": (flow, pools), "_alone": [],
        "_publisher": nullcontext(publisher), "seconds": Seconds(),
        "_claim": SimpleNamespace(check=lambda: None, guard=lambda: None),
    }  # fmt: skip
    backlog = SimpleNamespace(
        units=lambda *_, **__: (Unit(0, ("cnn",), (item,)) for item in items),
        ready_shards=list, open_items=0, unpublished=0, shards=(),
    )  # fmt: skip
    run.__dict__["_task"] = SimpleNamespace(
        models=[], store=store, keys=keys, backlog=backlog, items=None, provenance={}
    )
    monkeypatch.setattr("featlib.dataflow.results", results)
    monkeypatch.setattr("featlib.nodes.check_nodes", lambda *_: None)
    monkeypatch.setattr("featlib.run._unit_items", lambda _task: 1)
    monkeypatch.setattr("featlib.run._unit_videos", lambda _task: 1)
    monkeypatch.setattr("featlib.run.clean_up", lambda *_: None)
    for name, what in (("_count_workers", lambda _: None), ("_take", take)):
        monkeypatch.setattr(run, name, what)
    monkeypatch.setattr(run, "_all_published", lambda: not run._later.num_units and not run._alone)
    run._work()
    assert passes == [(False, ["v0", "v1", "v2"]), (True, ["v1"]), (False, ["v0"])]


def test_who_is_buried_clears_nothing_up(tmp_path: Path) -> None:
    """What lies there is the other's."""

    def confirm() -> None:
        raise StoppedError("another driver took over")

    store, keys = Store(str(tmp_path)), Keys("d")
    claim = cast(Claim, SimpleNamespace(confirm=confirm))
    for clean, key in (
        (lambda: remove_units(store, keys, claim), f"{keys.units}/other.units"),
        (lambda: clean_up(store, keys, claim, [0], {}), f"{keys.stage_shard(0)}/other-0.piece"),
    ):
        store.put(key, b"")
        with pytest.raises(StoppedError, match="took over"):
            clean()
        assert store.stat(key)


def test_who_is_buried_is_told_so_when_workers_miss_what_the_other_removed() -> None:
    def check() -> None:
        raise StoppedError("another driver took over")

    row = {"seq": STOP, "stats": json.dumps({"fatal": "Ray's workers do not reach the output"})}
    run = Run.__new__(Run)
    for claimed, said in ((check, "took over"), (lambda: None, "do not reach")):
        run.__dict__["_claim"] = SimpleNamespace(check=claimed, guard=lambda: None)
        with pytest.raises(StoppedError, match=said):
            run._take(row)


def test_a_driver_that_was_buried_takes_no_result() -> None:
    def guard() -> None:
        raise StoppedError("another driver took over")

    row = {"seq": 0, "shard": 0, "stats": '{"frames_decoded": 1}', "later": "[]", "finished": "[]"}
    run = Run.__new__(Run)
    run.__dict__ |= {"_claim": SimpleNamespace(guard=guard), "frames_decoded": 0, "seconds": Seconds()}
    with pytest.raises(StoppedError, match="took over"):
        run._take(row)
    assert run.frames_decoded == 0


def test_units_of_the_next_pass_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only the last row group has fewer, by which workers find them."""
    monkeypatch.setattr("featlib.units_file.UNITS_A_GROUP", 3)
    units = [Unit(0, ("cnn",), (UnitItem(f"v{i}", f"v{i}.mp4"),), i, 9, "tables") for i in range(8)]
    file = UnitsFile(tmp_path / "units")
    for start in range(0, 8, 2):
        file.extend(units[start : start + 2])
        assert len(file._waiting) < 3
    file.close()
    groups = pq.ParquetFile(file.path)
    assert [groups.read_row_group(i)["seq"].to_pylist() for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(file.read(np.ones(8, dtype=bool))) == units
