"""The passes of a run, without Ray: what each is given."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featlib.pools import Machine, Pools, Sizes, plan_pools
from featlib.progress import SilentReporter
from featlib.run import Run
from featlib.storage import Store


@dataclass(frozen=True)
class _Flow:
    run: str = ""
    is_apart: bool = False


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
        "_has_lost": False,
    }
    run.__dict__["_task"] = SimpleNamespace(models=[model], store=store, keys=keys)
    monkeypatch.setattr("featlib.dataflow.results", results)
    monkeypatch.setattr(run, "_count_workers", lambda _pools: None)
    monkeypatch.setattr(run, "_take", lambda _row: None)
    for number, num_units in enumerate((14, 3, 100)):
        run._pass(_Units(num_units, tmp_path / "units"), number)  # type: ignore[arg-type]
    assert seen == threads


def test_after_a_loss_an_actor_holds_one_unit_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in an actor dies with it, and could end as if it had been what the actor died of."""
    apart: list[bool] = []
    lost: list[int] = []

    def results(flow: _Flow, pools: Pools, key: str, num_units: int) -> Iterator[dict[str, int]]:
        apart.append(flow.is_apart)
        yield from ({"seq": seq} for seq in range(num_units - (len(apart) == 2)))

    class Units(_Units):
        def read(self, lost: np.ndarray) -> Iterator[Any]:
            return iter(np.flatnonzero(lost).tolist())

    (tmp_path / "units").write_bytes(b"")
    run = Run.__new__(Run)
    store, keys = Store(str(tmp_path / "out")), SimpleNamespace(units="units")
    flow = SimpleNamespace(output="", store_options=None)
    monkeypatch.setattr("featlib.run.replace", lambda _flow, **changed: SimpleNamespace(**vars(flow), **changed))
    pools = plan_pools(Machine(8), Sizes(), {"cnn": "frame"})
    run.__dict__ |= {"_id": "r", "_shown": SilentReporter(), "_threads": {}, "_ray": (flow, pools), "_has_lost": False}
    run.__dict__["_task"] = SimpleNamespace(models=[], store=store, keys=keys)
    monkeypatch.setattr("featlib.dataflow.results", results)
    monkeypatch.setattr("featlib.nodes.check_nodes", lambda *_: None)
    monkeypatch.setattr(run, "_count_workers", lambda _pools: None)
    monkeypatch.setattr(run, "_take", lambda _row: None)
    monkeypatch.setattr(run, "_lost", lambda unit, _run: lost.append(unit))
    for number in range(4):
        run._pass(Units(5, tmp_path / "units"), number)  # type: ignore[arg-type]
    assert lost == [4]
    assert apart == [False, False, True, True]
