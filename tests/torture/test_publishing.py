"""A part of ``make torture``: the job without Ray, killed at operations on its output and taken up again."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from featlib.storage import Store
from tests.torture.publishing import KEYS, Kill, Stage, Tellers, _end, kills, stage_in
from tests.torture.story import LABELS, PHASES

_SEED = 11
_KILLS = 12


@pytest.fixture(scope="module")
def stage(tellers: Tellers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage_in(tmp_path_factory.mktemp("torture") / "stage", tellers=tellers) as stage:
        yield stage


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_operation_and_run_again_nothing_is_lost_or_twice(stage: Stage, phase: str) -> None:
    scene = stage.scene(_SEED, phase)
    count, order = 0, kills(scene, Random(_SEED))
    for _, kill in zip(range(_KILLS), order, strict=False):
        num_kills, wrong = stage.play(scene, kill)
        assert not wrong, f"python -m tests.torture publishing {kill}: {wrong}"
        count += num_kills
    assert count >= _KILLS, "kills came about"


def test_what_is_lost_or_twice_would_be_seen(stage: Stage, tmp_path: Path) -> None:
    """The torture itself: an output that was tampered with does not pass."""
    scene = stage.scene(_SEED, "first")
    calm = Path(scene.story.output)
    objects = sorted(calm.glob("features/**/*.parquet"))
    copy = objects[0].with_name("part-00099.parquet")
    copy.write_bytes(objects[0].read_bytes())
    assert any("twice" in line for line in _end(Store(str(calm)), scene))
    copy.unlink()
    objects[0].unlink()
    assert any("is lost" in line for line in _end(Store(str(calm)), scene))


def test_operations_are_of_every_kind(stage: Stage) -> None:
    scene = stage.scene(_SEED, "grown")
    assert scene.num_operations > 40
    assert {what.partition(" ")[0] for what in scene.operations} == {"put", "put_file", "list", "delete", "rename"}
    changes = {
        KEYS.plan: {"put_file", "rename"},
        KEYS.stage: {"put", "rename", "delete"},
        KEYS.units: {"put_file", "rename", "delete"},
        KEYS.drivers: {"put", "rename", "delete"},
        **{KEYS.features(label): {"put_file", "rename"} for label in LABELS},
        **{KEYS.outcomes(label): {"put", "rename"} for label in LABELS},
    }
    for place, verbs in changes.items():
        assert {what.partition(" ")[0] for what in scene.operations if place in what} - {"list"} == verbs, place
    assert str(Kill(1, "grown", 3, is_after=True, again=5)) == "--seed 1 --phase grown --at 3 --after --again 5"
