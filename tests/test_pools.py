"""How a machine is divided: arithmetic, and what is refused."""

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featlib.errors import ConfigError
from featlib.pools import TASKS_CPUS, Machine, Pools, Sizes, plan_pools
from featlib.spec import Kind

FRAME: dict[str, Kind] = {"cnn": "frame"}
BOTH: dict[str, Kind] = {"cnn": "frame", "c3d": "clip"}


def _plan(cores: int, kinds: dict[str, Kind], *, cpus: float | None = None, gpus: int = 0, **sizes: Any) -> Pools:
    return plan_pools(Machine(cores, cpus, gpus), Sizes(**sizes), kinds)


def test_two_cores_without_gpu() -> None:
    pools = _plan(2, BOTH)
    assert pools.decode_workers == 1
    (pool,) = pools.extract
    assert (pool.labels, pool.workers, pool.device, pool.threads, pool.num_gpus) == (("cnn", "c3d"), 2, "cpu", 1, 0.0)
    assert str(pools) == "1 decode, 2 x [cnn c3d] on cpu (1 threads)"


def test_few_units_get_fewer_actors_of_more_threads() -> None:
    pools = _plan(8, FRAME)
    assert [(p.workers, p.threads) for p in pools.extract] == [(8, 1)]
    few, some, many = (pools.for_units(units).extract[0] for units in (3, 14, 24))
    assert [(p.workers, p.threads, p.num_cpus) for p in (few, some)] == [(1, 8, 8.0), (4, 2, 2.0)]
    assert many is pools.extract[0]


@pytest.mark.parametrize(
    ("first", "then", "shapes"),
    [
        (24, 3, [(8, 1), (8, 1)]),
        (14, 3, [(4, 2), (4, 2)]),
        (3, 1000, [(1, 8), (1, 8)]),
        (9, 100, [(3, 2), (4, 2)]),
    ],
)
def test_threads_that_an_earlier_pass_settled_stay(first: int, then: int, shapes: list[tuple[int, int]]) -> None:
    pools = _plan(8, FRAME)
    before = pools.for_units(first)
    assert before.threads({"other"}) == {}
    after = pools.for_units(then, before.threads({"cnn"}))
    assert [(p.workers, p.threads) for p in (*before.extract, *after.extract)] == shapes
    assert after.extract[0].num_cpus == after.extract[0].threads


def test_threads_are_those_of_each_pool() -> None:
    pools = _plan(32, BOTH, layout="separate")
    assert [(p.workers, p.threads) for p in pools.extract] == [(8, 2), (8, 2)]
    assert pools.for_units(12).threads(BOTH) == {"c3d": 4, "cnn": 4}
    assert pools.for_units(12).threads({"c3d"}) == {"c3d": 4}
    assert [p.threads for p in pools.for_units(3, {"c3d": 4}).extract] == [4, 16]


def test_a_network_that_fills_the_memory_gets_fewer_actors_of_more_threads() -> None:
    def shape(
        network_mb: float, memory_mb: float, kinds: dict[str, Kind] = FRAME, cores: int = 8
    ) -> list[tuple[int, int]]:
        sizes = dict.fromkeys(kinds, network_mb)
        pools = plan_pools(Machine(cores, memory_mb=memory_mb), Sizes(), kinds, network_mb=sizes)
        return [(p.workers, p.threads) for p in pools.extract]

    assert shape(100, 64_000) == [(8, 1)]
    assert shape(100, 16_000) == [(4, 2)]
    assert shape(2_500, 16_000) == [(1, 8)]
    assert shape(2_500, 4_000) == [(1, 8)]
    assert shape(100, 32_000, BOTH, cores=32) == [(4, 4), (4, 4)]


def test_few_units_change_nothing_that_the_user_fixed_nor_a_gpu() -> None:
    for pools in (
        _plan(8, FRAME, extract_workers=4),
        _plan(8, FRAME, extract_threads=2),
        _plan(16, FRAME, cpus=16.0, gpus=2),
    ):
        assert pools.for_units(1).extract == pools.extract


def test_an_actor_of_many_threads_fits_one_node() -> None:
    pool = _plan(8, FRAME, cpus=32.0).for_units(1).extract[0]
    assert (pool.workers, pool.threads) == (1, 8)


@given(st.integers(1, 128), st.integers(1, 12))
def test_workers_that_the_user_fixed_share_the_cores(cores: int, workers: int) -> None:
    (pool,) = _plan(cores, FRAME, extract_workers=workers).extract
    assert pool.workers == workers
    assert pool.threads == max(1, cores // workers)


def test_one_core() -> None:
    pools = _plan(1, FRAME)
    assert (pools.decode_workers, pools.extract[0].workers, pools.extract[0].threads) == (1, 1, 1)


def test_many_cores_separate_the_kinds_clips_first() -> None:
    pools = _plan(32, BOTH)
    assert [p.labels for p in pools.extract] == [("c3d",), ("cnn",)]
    assert sum(p.workers * p.threads for p in pools.extract) <= 32
    assert len(_plan(32, BOTH, layout="together").extract) == 1
    assert len(_plan(32, FRAME, layout="separate").extract) == 1


def test_one_gpu_holds_all_networks() -> None:
    pools = _plan(16, BOTH, cpus=16.0, gpus=1)
    (pool,) = pools.extract
    assert (pool.labels, pool.workers, pool.device, pool.num_gpus) == (("cnn", "c3d"), 1, "cuda", 1.0)
    assert pools.decode_workers == 13
    assert "cuda" in str(pools)


def test_four_gpus_are_shared_by_two_pools() -> None:
    pools = _plan(32, BOTH, cpus=32.0, gpus=4)
    assert [(p.labels, p.workers) for p in pools.extract] == [(("c3d",), 2), (("cnn",), 2)]
    assert sum(p.workers * p.num_gpus for p in pools.extract) == 4
    odd = _plan(32, BOTH, cpus=32.0, gpus=3)
    assert [p.workers for p in odd.extract] == [2, 1]


def test_flow_of_a_network_shares_the_gpus_and_what_cannot_fit_is_refused() -> None:
    one = plan_pools(Machine(16, 16.0, 1), Sizes(), BOTH, "network")
    assert one.flow is not None
    assert (one.flow.workers, one.flow.num_gpus, one.extract[0].num_gpus) == (1, 0.5, 0.5)
    with pytest.raises(ConfigError, match=r"flow_workers \(8\) and extract_workers \(1\) want 4.5 GPUs.*has 1"):
        plan_pools(Machine(16, 16.0, 1), Sizes(flow_workers=8), BOTH, "network")
    on_cpus = plan_pools(Machine(16, 16.0, 1), Sizes(flow_workers=8), BOTH, "opencv")
    assert on_cpus.flow is not None
    assert (on_cpus.flow.device, on_cpus.flow.num_gpus, on_cpus.extract[0].num_gpus) == ("cpu", 0.0, 1.0)
    assert "8 flow on cpu" in str(on_cpus)
    assert plan_pools(Machine(2), Sizes(), BOTH).flow is None


def test_gpus_may_be_left_alone() -> None:
    assert _plan(8, FRAME, cpus=8.0, gpus=2, device="cpu").extract[0].device == "cpu"


def test_a_small_cluster_scales_logical_cpus_until_all_fit() -> None:
    pools = _plan(4, FRAME, cpus=4.0, decode_workers=4, extract_workers=1, extract_threads=4)
    used = pools.decode_workers * pools.decode_cpus + sum(p.workers * p.num_cpus for p in pools.extract)
    assert used <= 4.0 - TASKS_CPUS
    assert pools.decode_cpus < 1


def test_what_the_user_fixed_is_kept() -> None:
    pools = _plan(8, FRAME, decode_workers=3, extract_workers=2, extract_threads=5)
    assert (pools.decode_workers, pools.extract[0].workers, pools.extract[0].threads) == (3, 2, 5)


@pytest.mark.parametrize(
    ("machine", "sizes", "text"),
    [
        (Machine(8, 8.0), Sizes(device="cuda"), "--device cuda: the Ray cluster has no GPU; use --device auto or cpu"),
        (Machine(8, 8.0, 1), Sizes(layout="separate"), "layout separate needs 2 GPUs"),
        (Machine(8, 8.0, 2), Sizes(extract_workers=2), "extract_workers (2 in each of 2 pools) must not exceed"),
        (Machine(8, 8.0), Sizes(decode_workers=99), "99 decode and 8 extract workers want 108.5 logical CPUs"),
        (Machine(1, 1.0), Sizes(), "the Ray cluster has 1"),
    ],
)
def test_what_cannot_fit_is_refused_in_one_line(machine: Machine, sizes: Sizes, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        plan_pools(machine, sizes, BOTH)
    assert "\n" not in str(caught.value)


@given(
    cores=st.integers(1, 256),
    gpus=st.integers(0, 16),
    nodes=st.integers(0, 8),
    layout=st.sampled_from(["auto", "together", "separate"]),
    kinds=st.sampled_from([FRAME, BOTH]),
    memory_mb=st.none() | st.floats(1e3, 4e4),
    network_mb=st.floats(0, 5e3),
    passes=st.lists(st.integers(1, 2000), max_size=3),
)
def test_every_machine_with_room_gets_a_plan_that_fits(
    cores: int,
    gpus: int,
    nodes: int,
    layout: Any,
    kinds: dict[str, Kind],
    memory_mb: float | None,
    network_mb: float,
    passes: list[int],
) -> None:
    """``nodes`` is 0 where featlib starts Ray itself; each of ``passes`` keeps the threads of the one before."""
    assume(layout != "separate" or gpus != 1 or kinds is FRAME)  # refused
    cpus = float(max(nodes * cores, 2 * gpus + 4)) if nodes else None
    machine = Machine(cores, cpus, gpus, memory_mb)
    planned = plan_pools(machine, Sizes(layout=layout), kinds, network_mb=dict.fromkeys(kinds, network_mb))
    assert len(planned.extract) == len(kinds) or layout != "separate"
    if memory_mb is not None and not gpus:
        mb = [-(-p.workers // machine.nodes) * (1000 + 4 * network_mb * len(p.labels)) for p in planned.extract]
        assert sum(mb) <= memory_mb / 2 or all(p.threads == p.most_threads for p in planned.extract)
    _check_fits(planned, kinds, gpus, cpus)
    threads: dict[str, int] = {}
    for num_units in passes:
        pools = planned.for_units(num_units, threads)
        _check_fits(pools, kinds, gpus, cpus)
        assert all(p.threads <= cores for p in pools.extract)
        if threads:
            assert pools.threads(kinds) == threads
        threads = pools.threads(kinds)


def _check_fits(pools: Pools, kinds: dict[str, Kind], gpus: int, cpus: float | None) -> None:
    assert pools.decode_workers >= 1
    assert sorted(label for p in pools.extract for label in p.labels) == sorted(kinds)
    assert all(p.workers >= 1 and p.threads >= 1 for p in pools.extract)
    assert sum(p.workers * p.num_gpus for p in pools.extract) <= gpus
    if cpus is not None:
        used = pools.decode_workers * pools.decode_cpus + sum(p.workers * p.num_cpus for p in pools.extract)
        assert used <= cpus - TASKS_CPUS + 1e-6
