"""A file that kills the process which decodes it, or eats its memory, costs that file alone."""

import shutil
from pathlib import Path

import pytest

from featlib.config import ExtractConfig
from featlib.job import run_job
from featlib.progress import SilentReporter
from featlib.summary import Summary
from tests.e2e.clips import write_clips
from tests.e2e.rows import check_same_rows, plain_glob, rows_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

DEADLY = {"segv1.mp4": "worker_died", "hoard.mp4": "out_of_memory", "segv2.mp4": "worker_died"}


def extract(clips: Path, output: Path) -> Summary:
    config = ExtractConfig(
        manifest=[str(clips)], output=str(output), dataset="d", max_failed=1.0, decode_memory_mb=200,
        models=[{"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "every:3"}], **POOLS,
    )  # fmt: skip
    with SilentReporter() as shown:
        return run_job(config, shown, lambda name, what: None, decode="tests.e2e.deadly:decode")


def test_the_deadly_ones_are_outcomes_and_their_neighbours_are_untouched(ray_cluster: str, tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    write_clips(alone, 4)
    shutil.copytree(alone, beside)  # to the bit: the encoder gives the same pictures other bytes now and then
    for name in DEADLY:
        shutil.copy(beside / "clip00.mp4", beside / name)
    assert extract(alone, tmp_path / "out-alone").media == {"ok": 4}

    summary = extract(beside, tmp_path / "out")

    assert summary.media == {"ok": 4, "failed": 3}
    ended = {Path(row["uri"]).name: row for row in plain_glob(tmp_path / "out", "outcomes")}
    assert {name: ended[name]["error_class"] for name in DEADLY} == DEADLY
    assert "SIGSEGV" in ended["segv1.mp4"]["error_message"]
    check_same_rows(rows_by_key(tmp_path / "out"), rows_by_key(tmp_path / "out-alone"), tolerance=0.0)
