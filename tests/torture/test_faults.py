"""A part of ``make torture``: the job without Ray on stores that answer wrongly, and two drivers on one output."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.others import OtherServer, is_installed
from tests.servers.swift import SwiftServer
from tests.torture import flips
from tests.torture.faulty import Weather, outage, spoilt
from tests.torture.publishing import Stage, Tellers, stage_in

_SEED = 23


@pytest.fixture(scope="module")
def swift_stage(s3_env: SwiftServer, tellers: Tellers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("faults") / "stage"
    with stage_in(folder, f"s3://{s3_env.bucket()}", s3_env.endpoint_url, tellers) as stage:
        yield stage


@pytest.mark.s3
@pytest.mark.parametrize("phase", ["changed"])
def test_a_tenth_of_faults_costs_nothing(swift_stage: Stage, s3_env: SwiftServer, phase: str) -> None:
    weather = Weather(_SEED, 0.1)
    faults, runs, wrong = spoilt(swift_stage, s3_env.endpoint_url, _SEED, phase, weather)
    assert not wrong, f"python -m tests.torture faults --seed {_SEED} --share 0.1 --stories 1: {wrong}"
    assert runs == 1
    assert faults > 3


@pytest.mark.s3
def test_a_third_of_faults_loses_nothing(swift_stage: Stage, s3_env: SwiftServer) -> None:
    weather = Weather(_SEED, 0.3)
    faults, _, wrong = spoilt(swift_stage, s3_env.endpoint_url, _SEED, "grown", weather)
    assert not wrong, f"python -m tests.torture faults --seed {_SEED} --share 0.3 --stories 1: {wrong}"
    assert faults > 20


@pytest.mark.s3
def test_a_store_that_is_away_for_a_while_is_waited_for(swift_stage: Stage, s3_env: SwiftServer) -> None:
    """Three seconds here; a minute in ``make torture``."""
    tally, stops = outage(swift_stage, s3_env.endpoint_url, _SEED, 3.0, ("first",))
    assert not tally.failures
    assert stops == 0
    assert tally.count > 1


@pytest.mark.s3
def test_bits_flipped_on_the_way_are_read_and_written_again(s3_env: SwiftServer) -> None:
    tally = flips.in_flight(f"s3://{s3_env.bucket()}/flips", s3_env.endpoint_url, 40, _SEED)
    assert not tally.failures
    assert tally.count == 40


def test_bits_flipped_at_rest_are_found(tmp_path: Path, tellers: Tellers) -> None:
    with stage_in(tmp_path / "stage", tellers=tellers) as stage:
        tally = flips.at_rest(stage, tmp_path / "rest", 60, _SEED)
    assert not tally.failures
    assert tally.count == 60


_STORES = pytest.mark.parametrize("store", ["disk", "moto", pytest.param("swift", marks=pytest.mark.s3)])
Place = tuple[str | None, str | None]
"""Where outputs are made, and the endpoint of the store there."""


@pytest.fixture
def place(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    if store == "moto" and not is_installed("moto"):
        pytest.skip("moto is not installed")
    if store == "swift":
        server: SwiftServer = request.getfixturevalue("s3_env")
        yield f"s3://{server.bucket()}", server.endpoint_url
    elif store == "moto":
        request.getfixturevalue("user_environment")
        with OtherServer("moto", tmp_path / "moto") as moto:
            yield f"s3://{moto.bucket()}", moto.endpoint_url
    else:
        yield None, None


@_STORES
def test_of_two_drivers_one_works(store: str, place: Place, tmp_path: Path, tellers: Tellers, rival: Tellers) -> None:
    with stage_in(tmp_path / "stage", *place, tellers) as stage:
        wrong = stage.play_rivals(stage.scene(_SEED, "grown"), rival, 0.3)
    assert not wrong, f"python -m tests.torture rivals --store {store}: {wrong}"


@_STORES
def test_a_driver_that_slept_while_another_took_over_leaves(
    store: str, place: Place, tmp_path: Path, tellers: Tellers, rival: Tellers
) -> None:
    with stage_in(tmp_path / "stage", *place, tellers) as stage:
        scene = stage.scene(_SEED, "grown")
        assert scene.num_features_put > 2
        wrong = stage.play_sleeper(scene, rival, 1)
    assert not wrong, f"python -m tests.torture sleepers --store {store}: {wrong}"
