"""A part of ``make torture``: the job without Ray on stores that answer wrongly, and two drivers on one output."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.buckets import Buckets
from tests.servers.others import MotoServer
from tests.servers.swift import SwiftServer, user_environment
from tests.torture import flips, resumes
from tests.torture.faulty import Weather, outage, spoilt, through
from tests.torture.publishing import Scene, Stage, Tellers, stage_in

_SEED = 23


@pytest.fixture(scope="module")
def swift_stage(s3_env: SwiftServer, tellers: Tellers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("faults") / "stage"
    with stage_in(folder, f"s3://{s3_env.bucket()}", s3_env.endpoint_url, tellers) as stage:
        yield stage


@pytest.mark.s3
@pytest.mark.parametrize("phase", ["changed"])
def test_a_tenth_of_faults_costs_nothing(swift_stage: Stage, s3_env: SwiftServer, phase: str) -> None:
    weather = Weather(f"{_SEED} {phase}", 0.1)
    faults, runs, wrong = spoilt(swift_stage, s3_env.endpoint_url, _SEED, phase, weather)
    assert not wrong, f"python -m tests.torture faults --seed {_SEED} --share 0.1 --stories 1: {wrong}"
    assert runs == 1
    assert faults > 3


@pytest.mark.s3
def test_a_store_that_is_away_for_a_while_is_waited_for(swift_stage: Stage, s3_env: SwiftServer) -> None:
    """Three seconds here; a minute in ``make torture``."""
    tally, stops = outage(swift_stage, s3_env.endpoint_url, _SEED, 3.0, ("first",))
    assert not tally.failures
    assert stops == 0
    assert tally.count > 1


@pytest.mark.s3
def test_bits_flipped_on_the_way_are_read_and_written_again(s3_env: SwiftServer, tmp_path: Path) -> None:
    url = f"s3://{s3_env.bucket()}/flips"
    tally, line = flips.in_flight(url, s3_env.endpoint_url, tmp_path, 45, _SEED)
    assert not tally.failures
    assert tally.count == 45
    assert "put 5 of 5, " in line


def test_bits_flipped_at_rest_are_found(tmp_path: Path, tellers: Tellers) -> None:
    """In outputs of two stories."""
    with stage_in(tmp_path / "stage", tellers=tellers) as stage:
        tally = flips.at_rest(stage, tmp_path / "rest", 60, 120)
    assert not tally.failures
    assert tally.count == 60


def test_bits_flipped_in_what_a_killed_run_left_are_not_believed(tmp_path: Path, tellers: Tellers) -> None:
    """But in claims, for which the next run waits."""
    with stage_in(tmp_path / "stage", tellers=tellers) as stage:
        tally, ends = resumes.after_kills(stage, 5, 7, without=("claim", "alive", "runs"))
    assert not tally.failures
    assert tally.count == ends.total() == 5


@dataclass(frozen=True)
class Grown:
    """A scene of the phase ``grown`` on a store; what plays it copies it."""

    store: str
    stage: Stage
    scene: Scene
    endpoint_url: str | None = None


@pytest.fixture(scope="module", params=["disk", "moto", pytest.param("swift", marks=pytest.mark.s3)])
def grown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tellers: Tellers
) -> Iterator[Grown]:
    """Made once for each store."""
    store: str = request.param
    folder = tmp_path_factory.mktemp(store)
    with ExitStack() as stack:
        server: Buckets | None = None
        if store == "swift":
            server = request.getfixturevalue("s3_env")
        elif store == "moto":
            if not MotoServer.is_installed():
                pytest.skip("moto is not installed")
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in user_environment().items():
                patch.setenv(name, value)
            server = stack.enter_context(MotoServer(folder / "moto"))
        output, endpoint_url = (f"s3://{server.bucket()}", server.endpoint_url) if server else (None, None)
        stage = stack.enter_context(stage_in(folder / "stage", output, endpoint_url, tellers))
        yield Grown(store, stage, stage.scene(_SEED, "grown"), endpoint_url)


def test_of_two_drivers_one_works(grown: Grown, rival: Tellers) -> None:
    has_met, wrong = grown.stage.play_rivals(grown.scene, rival, 0.3)
    assert not wrong, f"on {grown.store}, --seed {_SEED} --phase grown, 0.3 s apart: {wrong}"
    assert has_met


def test_a_driver_that_slept_while_another_took_over_leaves(grown: Grown, rival: Tellers) -> None:
    point = [point for point in grown.scene.committed if "features" in point.of][1]
    wrong = grown.stage.play_sleeper(grown.scene, rival, point)
    assert not wrong, f"on {grown.store}, --seed {_SEED} --phase grown, asleep {point}: {wrong}"


@pytest.mark.long
@pytest.mark.parametrize("grown", [pytest.param("swift", marks=pytest.mark.s3)], indirect=True)
def test_a_third_of_faults_loses_nothing(grown: Grown) -> None:
    assert grown.endpoint_url is not None
    weather = Weather(f"{_SEED} grown", 0.3)
    _, wrong = through(grown.stage, grown.scene, grown.endpoint_url, weather)
    assert not wrong, f"python -m tests.torture faults --seed {_SEED} --share 0.3 --stories 1: {wrong}"
    assert weather.faults > 20
