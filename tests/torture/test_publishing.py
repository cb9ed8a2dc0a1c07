"""A part of ``make torture``: the job without Ray, killed at operations on its output and taken up again."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.storage import Store
from tests.torture import __main__ as torture_main
from tests.torture.doom import Point, named, points
from tests.torture.kills import Coverage, kills, torture
from tests.torture.publishing import Kill, Scene, Stage, Tellers, stage_in, wrong_at_end
from tests.torture.story import PHASES
from tests.torture.tally import Tally

_SEED = 11
_KILLS = 12


@pytest.fixture(scope="module")
def stage(tellers: Tellers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage_in(tmp_path_factory.mktemp("torture") / "stage", tellers=tellers) as stage:
        yield stage


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    return Coverage()


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_operation_and_run_again_nothing_is_lost_or_twice(
    stage: Stage, coverage: Coverage, phase: str
) -> None:
    scene, random, tally = stage.scene(_SEED, phase), Random(_SEED), Tally(phase, _KILLS)
    chosen = kills(scene, random, coverage)
    assert len({kill.at.kind for kill in chosen[:_KILLS]}) == _KILLS, "each is of another kind"
    torture(stage, scene, chosen, random, tally, coverage)
    assert not tally.failures
    assert tally.count == _KILLS, "kills came about"


def test_what_was_staged_right_before_the_kill_is_not_done_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that is there but was not told of would be missed by a look at what runs tell."""
    scene = stage.scene(_SEED, "first")
    of = next(of for of in scene.operations if of.startswith("rename stage"))
    assert not stage.play(scene, Kill(_SEED, "first", Point(of, 0, is_after=True))).wrong
    monkeypatch.setattr("tests.torture.publishing._staged", lambda store: [f"{_one_id(scene)} 0"])
    played = stage.play(scene, Kill(_SEED, "first", Point(of, 0, is_after=False)))
    assert any("done again though it was staged" in line for line in played.wrong)


def _one_id(scene: Scene) -> str:
    return next(media_id for _, media_id in scene.truth.outcomes)


def test_what_is_lost_or_twice_would_be_seen(stage: Stage, tmp_path: Path) -> None:
    """The torture itself: an output that was tampered with does not pass."""
    scene = stage.scene(_SEED, "first")
    calm = Path(scene.story.output)
    objects = sorted(calm.glob("features/**/*.parquet"))
    copy = objects[0].with_name("part-00099.parquet")
    copy.write_bytes(objects[0].read_bytes())
    assert any("twice" in line for line in wrong_at_end(Store(str(calm)), scene))
    copy.unlink()
    table = pq.ParquetFile(objects[0]).read()
    nulls = pa.nulls(table.num_rows, pa.float64())
    pq.write_table(table.set_column(table.column_names.index("end_s"), "end_s", nulls), objects[0])
    assert any("other values" in line for line in wrong_at_end(Store(str(calm)), scene))
    objects[0].unlink()
    assert any("is lost" in line for line in wrong_at_end(Store(str(calm)), scene))


def test_what_ends_a_trial_early_is_a_failure_with_its_command() -> None:
    def play() -> tuple[int, list[str]]:
        raise ValueError("not a Parquet file")

    tally = Tally("kills")
    tally.trial("publishing --seed 3", play)
    assert len(tally.failures) == 1
    assert tally.failures[0].startswith("python -m tests.torture publishing --seed 3: ValueError")


def test_a_part_that_breaks_off_is_a_failure_and_the_next_is_played(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(given: object, folder: Path) -> list[Tally]:
        raise ValueError("no store came up")

    monkeypatch.setattr(torture_main, "_PARTS", {"first": breaks, "second": lambda given, folder: [Tally("kills")]})
    assert torture_main.main(["all", "--seed", "3"]) == 1
    said = capsys.readouterr().out
    assert "python -m tests.torture first --seed 3: ValueError: no store came up" in said
    assert "kills: 0; 0 with lost" in said


def test_a_kill_is_named_so_that_it_can_be_repeated() -> None:
    kill = Kill(1, "grown", Point("put stage/00003/", 2, is_after=False), Point("list plan", 0, is_after=True))
    assert str(kill) == "--seed 1 --phase grown --at 'before put stage/00003/ 2' --again 'after list plan 0'"
    assert [Point.parse(str(point)) for point in (kill.at, kill.again)] == [kill.at, kill.again]
    assert named("put", "_featlib/d/stage/00003/0b-00000001-ff.piece") == "put stage/00003/"
    assert named("rename", "/tmp/x/_featlib/d/drivers/0b.claim") == "rename drivers/.claim"
    assert named("list", "_featlib/d/stage") == "list stage"
    assert [str(point) for point in points(["list plan", "list plan"])] == [
        "before list plan 0", "after list plan 0", "before list plan 1", "after list plan 1",
    ]  # fmt: skip


def test_operations_are_of_every_kind(stage: Stage) -> None:
    scene = stage.scene(_SEED, "grown")
    assert len(scene.operations) > 40
    verbs: dict[str, set[str]] = {}
    for what in scene.operations:
        verb, place = what.split(" ")
        verbs.setdefault(place.partition("/")[0], set()).add(verb)
    assert verbs == {
        "plan": {"list", "put_file", "rename"},
        "stage": {"list", "put", "rename", "delete", "rmdir"},
        "units": {"list", "put_file", "rename", "delete", "rmdir"},
        "drivers": {"list", "put", "rename", "delete", "rmdir"},
        "doubt": {"list"},
        "features": {"list", "put_file", "rename"},
        "outcomes": {"list", "put", "rename"},
        "runs": {"put", "rename"},
        "temporary": {"sweep"},
        ".": {"rmdir"},
    }
    first = stage.scene(_SEED, "first")
    assert {what.partition("/")[0] for what in first.operations} >= {"put models", "rename models"}
