"""The benchmarks at their smallest: that equal work is compared, and that the table says what was measured."""

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import __main__ as command
from benchmarks import breakdown, cpu, gpu, pipelines, progress, scale
from benchmarks import table as tables
from benchmarks.clips import Clip, choose, inspected, make_clips, repeated, write
from benchmarks.features import NO_ROWS, Rows, UnequalError, check_equal, read_rows
from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from benchmarks.jobs import Job
from benchmarks.limit import Limit, Parts
from benchmarks.limit_worker import Worker
from benchmarks.machine import this_machine
from benchmarks.processes import watched
from benchmarks.programs import DAFT, FEATLIB, LOOP, Program, Ran, run


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    return choose(make_clips(tmp_path_factory.mktemp("clips"), 2, 24, small=True), 2)


@pytest.fixture
def setting(clips: tuple[Clip, ...], ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Of a small workload whose programs join the session's Ray."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    # A plain ray.init takes 127.0.0.1 for an address to be looked for; so it takes it as it is, when it is imported.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    sizes = {"decode_workers": "1", "extract_workers": "1", "extract_threads": "1"}
    return Setting(clips[0].path.parent, tmp_path, rounds=1, is_small=True, options=sizes)


@pytest.mark.long
@pytest.mark.ray
def test_peers_and_featlib_write_equal_features_of_the_same_frames(setting: Setting) -> None:
    outcome = pipelines.resnet50(setting)
    measured = {f.subject for f in outcome.figures if f.rounds}
    absent = {"Daft program"} if DAFT.lacks else set()
    assert measured == {"loop", "Ray Data program", "Daft program", "featlib fp32"} - absent
    assert [check.split(":")[0] for check in outcome.checks] == [
        f"{peer} and featlib fp32" for peer in ("loop", "Ray Data program", "Daft program") if peer not in absent
    ]
    assert all("7 rows equal" in check for check in outcome.checks)
    assert outcome.targets[0].measured > 0


@pytest.mark.skipif(importlib.util.find_spec("daft") is None, reason="daft is not installed")
def test_daft_writes_what_the_loop_writes(clips: tuple[Clip, ...], tmp_path: Path) -> None:
    job = Job("resnet18", repeated(clips, 1), str(tmp_path / "loop"))
    loop = run(LOOP, job).rows
    assert "7 rows" in check_equal(run(DAFT, Job(**{**vars(job), "output": str(tmp_path / "daft")})).rows, loop, "daft")


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"peer failed over 0 clips: [\s\S]*No module named benchmarks.gone"):
        run(Program("peer", "benchmarks.gone"), Job("resnet18", (), str(tmp_path / "out")))


def test_the_limits_decoders_see_the_same_rows_and_its_forward_counts_them(
    clips: tuple[Clip, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.limit_worker.FORWARD_S", 0.0)
    for network, frames, rows in (("resnet18", 0, 7), ("r3d_18", 16, 3)):
        worker = Worker(Job(network, repeated(clips, 1), "", clip_frames=frames), compiles=False)
        assert worker.decode("plain")["rows"] == worker.decode("featlib")["rows"] == rows
        assert worker.decode("plain")["seconds"] > 0
        if not frames:
            worker.prepare("bf16")
            assert worker.forward("bf16")["rows"] == 16


def test_the_limit_takes_the_faster_decoder_and_all_cores() -> None:
    answers = {"decode plain": (4.0, 10), "decode featlib": (2.0, 10), "forward fp32": (5.0, 20)}

    class Answering(Limit):
        def ask(self, order: str) -> list[dict[str, float]]:
            seconds, rows = answers[order]
            return [{"seconds": seconds, "rows": rows}] * 2

    parts = Answering([], cores=2).parts("fp32")
    assert parts == Parts(decode_s=0.2, forward_s=0.25, decoder="featlib")
    assert parts.rate(2) == pytest.approx(2 / 0.45)


def test_the_engine_and_the_bare_loop_of_the_gpu_rows_do_equal_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_SECONDS", 0.0)
    outcome = gpu.engine_and_loop("squeezenet1_1", "bf16", "cpu", rounds=1)
    assert [f.subject for f in outcome.figures] == ["featlib", "bare autocast loop"]
    assert outcome.targets[0].measured == outcome.figures[0].value / outcome.figures[1].value
    assert "relative L2" in outcome.checks[0]


def rows(features: list[list[float]], names: str = "abc") -> Rows:
    keys = tuple((name, 0) for name in names[: len(features)])
    return Rows(keys, np.array(features, np.float32))


def test_equal_features_pass_and_say_how_equal() -> None:
    line = check_equal(rows([[3.0, 4.0]]), rows([[3.0, 4.00001]]), "peer")
    assert line == "peer: 1 rows equal, relative L2 2e-06 in the worst (bound 1e-05)"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (rows([[3.0, 4.0], [1.0, 1.0]]), "1 are too many"),
        (NO_ROWS, "1 rows are missing"),
        (rows([[3.0, 4.1]]), "relative L2 0.02"),
        (rows([[3.0, math.nan]]), "relative L2 nan"),
    ],
)
def test_unequal_work_raises(found: Rows, says: str) -> None:
    with pytest.raises(UnequalError, match=says):
        check_equal(found, rows([[3.0, 4.0]]), "peer")


def test_nothing_written_and_rows_written_twice_raise(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UnequalError, match="nothing was written"):
        read_rows(tmp_path)
    pq.write_table(
        pa.table({"media_id": ["a"] * 2, "clip_index": [1, 1], "feature": [[1.0]] * 2}), tmp_path / "x.parquet"
    )
    with pytest.raises(UnequalError, match="rows come twice"):
        read_rows(tmp_path)


def test_clips_are_chosen_by_what_they_are(tmp_path: Path) -> None:
    make_clips(tmp_path, 2, 10, small=True)
    write(tmp_path / "many-lines.mp4", "libx264", (640, 480), 20)
    (tmp_path / "text.json").write_text("{}")
    chosen = choose(tmp_path, 2)
    assert [(c.path.name, c.codec, c.height, c.num_frames) for c in chosen] == [
        ("generated01.avi", "mpeg4", 240, 18),
        ("generated00.avi", "mpeg4", 240, 10),
    ]
    with pytest.raises(ValueError, match=r"2 clips .* 3 are needed"):
        choose(tmp_path, 3)
    assert inspected(tmp_path / "text.json") is None


def test_a_list_given_again_begins_with_the_same_ids(clips: tuple[Clip, ...]) -> None:
    once, thrice = repeated(clips, 1), repeated(clips, 3)
    assert thrice[: len(once)] == once
    assert len({name for name, _ in thrice}) == 3 * len(clips)


def ran(count: int, whole_s: float, **told: object) -> Ran:
    return Ran(rows([[1.0]] * count), whole_s, 100.0, told)


def test_the_rate_is_what_the_long_run_does_more() -> None:
    subject = pipelines.Subject(FEATLIB, "featlib fp32", Job("", (), ""), Job("", (), ""))
    subject.short_runs, subject.long_runs = [ran(1, 10.0)], [ran(3, 14.0)]
    assert pipelines._rate(subject.short_runs[0], subject.long_runs[0]) == 0.5
    assert subject.note([0.5]) == "start 8.0 s"
    with pytest.raises(RuntimeError, match="the clips are too few"):
        pipelines._rate(ran(1, 10.0), ran(3, 10.0))


def test_runs_with_other_workers_make_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job("", (), output) for output in ("short", "long")]
    pools = {"short": "1 x [a] on cpu (2 threads)", "long": "2 x [a] on cpu (1 threads)"}
    monkeypatch.setattr(pipelines, "run", lambda _, job, cache: ran(len(job.output), 9.0, pools=pools[job.output]))
    with pytest.raises(RuntimeError, match=r"featlib fp32: .* other workers: .*1 threads"):
        pipelines.Subject(FEATLIB, "featlib fp32", *jobs).measure()


@pytest.mark.parametrize(("cores", "times"), [(1, (2, 6)), (2, (2, 6)), (4, (4, 12))])
def test_a_machine_of_more_cores_gets_longer_lists(
    clips: tuple[Clip, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, times: tuple[int, int]
) -> None:
    monkeypatch.setattr(pipelines, "this_machine", lambda: replace(this_machine(), cores=cores))
    subject = pipelines._one_featlib(pipelines.R3D_18, Setting(tmp_path, tmp_path), clips, "fp32")
    assert subject._short is not None
    assert (len(subject._short.clips), len(subject.long.clips)) == tuple(n * len(clips) for n in times)


def test_peers_begin_their_runs_with_the_same_clip(clips: tuple[Clip, ...], tmp_path: Path) -> None:
    subject = pipelines._peers(pipelines.R3D_18, Setting(tmp_path, tmp_path), clips)[0]
    assert subject._short is not None
    assert subject._short.clips == subject.long.clips[:1]
    assert subject.long.clips[0][1] == str(clips[-1].path.absolute())
    assert sorted(subject.long.clips) == sorted(repeated(clips, 1))


@pytest.mark.parametrize("theirs", [[0.0, 1.0, float("nan")], [0.0, 1.0, 2.1], [0.0, 1.0]])
def test_other_features_of_stub_rows_raise(tmp_path: Path, theirs: list[float]) -> None:
    for name, values in (("mine/features", [0.0, 1.0, 2.0]), ("theirs", theirs)):
        (tmp_path / name).mkdir(parents=True)
        features = pa.array([[v] for v in values], pa.list_(pa.float32(), 1))
        table = pa.table({"uri": [f"{i}" for i in range(len(values))], "feature": features})
        pq.write_table(table, tmp_path / name / "part.parquet")
    (tmp_path / "same").mkdir()
    shutil.copy(tmp_path / "mine/features/part.parquet", tmp_path / "same")
    assert "each once" in scale._same_rows(tmp_path / "mine", tmp_path / "same", 3)
    with pytest.raises(RuntimeError, match="3 rows: "):
        scale._same_rows(tmp_path / "mine", tmp_path / "theirs", 3)


def made_up_run(program: Program, job: Job, *, cache: Path | None = None) -> Ran:
    """10 s of start and then 4 rows a second, or twice and four times that; two rows a clip, always the same.

    A first compilation takes 30 s more.
    """
    rate = 4 * (2 if program is FEATLIB else 1) * (2 if job.precision == "bf16" else 1)
    keys = tuple(sorted((name, i) for name, _ in job.clips for i in range(2)))
    whole_s = 10.0 + len(keys) / rate
    if cache and job.settings.get("compile") == "on" and not (cache / job.precision).exists():
        (cache / job.precision).mkdir(parents=True)
        whole_s += 30
    moments = [("reading weights", 101.0), ("extracting", 102.0), ("result", 109.0)]
    told = {"started": 100.5, "moments": moments, "extracted": 99.0 + whole_s}
    return Ran(Rows(keys, np.ones((len(keys), 3), np.float32)), whole_s, 100.0, told)


class MadeUpLimit(Limit):
    def ask(self, order: str) -> list[dict[str, float]]:
        return [{"seconds": {"decode plain": 1.0, "decode featlib": 2.0}.get(order, 1.5), "rows": 16.0}]


def test_a_whole_measurement_gives_rates_targets_and_the_short_job(
    clips: tuple[Clip, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "choose", lambda folder: clips)
    monkeypatch.setattr(pipelines, "run", made_up_run)
    monkeypatch.setattr(pipelines, "PEERS", (LOOP,))
    monkeypatch.setattr(pipelines, "limit_of", lambda job, scratch: nullcontext(MadeUpLimit([], cores=1)))
    monkeypatch.setattr(pipelines, "this_machine", lambda: replace(this_machine(), bf16=("avx512_bf16",)))
    outcome = pipelines.resnet50(Setting(tmp_path, tmp_path, rounds=2))
    figures = {(f.workload, f.subject): f for f in outcome.figures}
    rates = {subject: f.rounds for (title, subject), f in figures.items() if title == "ResNet-50"}
    assert rates == {
        "loop": pytest.approx((4, 4)),
        "featlib fp32": pytest.approx((8, 8)),
        "featlib bf16": pytest.approx((16, 16)),
        "limit fp32": pytest.approx((6.4, 6.4)),
        "limit bf16": pytest.approx((6.4, 6.4)),
    }
    assert figures["ResNet-50", "featlib fp32"].note == "start 10.0 s, and once 30 s to compile"
    assert "decode 62.5 ms (plain), forward 93.8 ms" in figures["ResNet-50", "limit fp32"].note
    assert figures[breakdown.TITLE, "loop"].rounds == (11.0, 11.0)
    assert [(t.workload, t.measured, t.wanted) for t in outcome.targets] == [
        ("ResNet-50 fp32", pytest.approx(2), 1.7),
        ("ResNet-50 fp32", pytest.approx(1.25), 0.9),
        ("ResNet-50 bf16", pytest.approx(4), 3.2),
        ("ResNet-50 bf16", pytest.approx(2.5), 0.9),
    ]
    assert [check.split(",")[0].split(":")[0] for check in outcome.checks] == [
        "loop and featlib fp32",
        "featlib bf16 and featlib fp32",
        "featlib fp32",
        "featlib bf16",
    ]


def test_a_peer_that_writes_other_features_stops_the_measurement(
    clips: tuple[Clip, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(program: Program, job: Job, *, cache: Path | None = None) -> Ran:
        ran = made_up_run(program, job, cache=cache)
        return (
            ran if program is FEATLIB else replace(ran, rows=Rows(ran.rows.keys, ran.rows.features * np.float32(1.1)))
        )

    monkeypatch.setattr(pipelines, "choose", lambda folder: clips)
    monkeypatch.setattr(pipelines, "run", other)
    monkeypatch.setattr(pipelines, "PEERS", (LOOP,))
    monkeypatch.setattr(pipelines, "limit_of", lambda job, scratch: nullcontext(MadeUpLimit([], cores=1)))
    with pytest.raises(UnequalError, match=r"loop and featlib fp32: relative L2 0\.1 "):
        pipelines.r3d_18(Setting(tmp_path, tmp_path, rounds=1))


@pytest.mark.parametrize("missing", ["all rows of a clip", "a copy", "another feature in a copy"])
def test_featlibs_own_rows_must_all_be_there(clips: tuple[Clip, ...], missing: str) -> None:
    job = Job("", repeated(clips, 2), "")
    names = [name for name, _ in job.clips]
    gone = {"all rows of a clip": {n for n, path in job.clips if path == job.clips[0][1]}, "a copy": {names[-1]}}
    keys = tuple((name, 0) for name in sorted(names) if name not in gone.get(missing, ()))
    features = np.ones((len(keys), 2), np.float32)
    pipelines._check_all_there(Rows(tuple((n, 0) for n in sorted(names)), np.ones((len(names), 2), np.float32)), job)
    if missing == "another feature in a copy":
        features[-1] = 2
    with pytest.raises(UnequalError):
        pipelines._check_all_there(Rows(keys, features), job)


def test_a_peer_that_leaves_a_clip_out_stops_the_measurement(
    clips: tuple[Clip, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(program: Program, job: Job, *, cache: Path | None = None) -> Ran:
        ran = made_up_run(program, job, cache=cache)
        return ran if program is FEATLIB else replace(ran, rows=ran.rows.of(frozenset([job.clips[0][0]])))

    monkeypatch.setattr(pipelines, "choose", lambda folder: clips)
    monkeypatch.setattr(pipelines, "run", lazy)
    monkeypatch.setattr(pipelines, "PEERS", (LOOP,))
    monkeypatch.setattr(pipelines, "limit_of", lambda job, scratch: nullcontext(MadeUpLimit([], cores=1)))
    with pytest.raises(UnequalError, match="rows are missing"):
        pipelines.r3d_18(Setting(tmp_path, tmp_path, rounds=1))


@pytest.mark.parametrize("name", ["decode", "forward"])
def test_small_workloads_do_equal_work(clips: tuple[Clip, ...], tmp_path: Path, name: str) -> None:
    outcome = command.workload(name)(Setting(clips[0].path.parent, tmp_path, rounds=1, is_small=True))
    assert outcome.checks
    assert all("the same to the bit" in check or "relative L2" in check for check in outcome.checks)
    assert {f.subject for f in outcome.figures if f.rounds} >= {"featlib"}


@pytest.mark.long
@pytest.mark.ray
def test_small_decoding_once_for_all_networks(setting: Setting) -> None:
    outcome = command.workload("three_models")(setting)
    assert "frames decoded once" in outcome.checks[0]
    assert all(f.value > 0 for f in outcome.figures)


def test_the_steps_of_a_short_job_are_all_of_it() -> None:
    moments = [("reading weights", 102.0), ("extracting", 103.0), ("result", 107.0), ("result", 110.0)]
    steps = breakdown.steps(ran(1, 13.0, started=101.5, moments=moments, extracted=112.0))
    assert dict(steps) == {
        "Python and imports": 1.5,
        "before the first stage": 0.5,
        "reading weights": 1.0,
        "until the first result": 4.0,
        "until the last result": 3.0,
        "publishing and summary": 2.0,
        "exit": 1.0,
    }
    assert sum(seconds for _, seconds in steps) == 13.0


FIGURES = (
    Figure("net", "loop", "frames/s", (10.0, 8.0, 9.0)),
    Figure("net", "featlib", "frames/s", (18.0,)),
    Figure("net", "limit", "frames/s", (20.0,)),
    Figure("net", "daft", "frames/s", (), "not here"),
    Figure("start", "loop", "s", (5.0,)),
    Figure("start", "featlib", "s", (20.0,)),
    Figure("start", "other", "CPU s", (10.0,)),
)


def test_ratios_are_to_the_best_of_the_same_unit_that_is_no_limit() -> None:
    known = [r for r in tables.ratios(FIGURES) if not math.isnan(r)]
    assert known == pytest.approx([0.5, 1.0, 20 / 18, 1.0, 0.25])
    parts = [Figure("sum", name, "s", (1.0,), is_part=True) for name in "ab"]
    assert all(map(math.isnan, tables.ratios(parts)))


def test_the_table_shows_medians_ratios_targets_and_checks() -> None:
    targets = (Target("net", "featlib over the best peer", 2.0, 1.7), Target("net", "over the limit", 0.5, 0.9))
    text = tables.text([Outcome(FIGURES, targets, ("all equal",))])
    cells = [line.split() for line in text.splitlines()]
    assert ["net", "loop", "9", "frames/s", "0.5", "10", "8", "9"] in cells
    assert ["net", "daft", "n/a", "frames/s", "n/a", "not", "here"] in cells
    assert ["net", "featlib", "over", "the", "best", "peer", "2", "1.7", "reached"] in cells
    assert ["net", "over", "the", "limit", "0.5", "0.9", "NOT", "REACHED"] in cells
    assert text.endswith("checked: all equal")


def test_subjects_take_turns() -> None:
    called: list[str] = []

    def call(name: str) -> Callable[[], float]:
        return lambda: called.append(name) or float(len(called))  # type: ignore[func-returns-value]

    assert interleaved([("a", call("a")), ("b", call("b"))], 2) == {"a": (1.0, 3.0), "b": (2.0, 4.0)}
    assert called == ["a", "b", "a", "b"]


@pytest.mark.parametrize("name", sorted(command.WORKLOADS))
def test_every_workload_is_where_the_command_looks_for_it(name: str) -> None:
    assert callable(command.workload(name))


def half(setting: Setting) -> Outcome:
    return Outcome((Figure("half", setting.scratch.name, "s", (1.0,)),), checks=("half",))


def whole(setting: Setting) -> Outcome:
    return Outcome((Figure("whole", setting.scratch.name, "s", (2.0,)),), checks=("whole",))


def test_a_module_runs_all_its_workloads_each_in_its_own_scratch(tmp_path: Path) -> None:
    assert command.workloads_of(sys.modules[__name__]) == [half, whole]
    outcome = command._one_after_the_other([half, whole], Setting(tmp_path, tmp_path))
    assert [(f.workload, f.subject) for f in outcome.figures] == [("half", "0"), ("whole", "1")]
    assert outcome.checks == ("half", "whole")
    with pytest.raises(ValueError, match=r"benchmarks.progress has no function"):
        command.workloads_of(progress)


def test_an_unknown_workload_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SystemExit, match="no workload resnet5; there are resnet50, "):
        command.main(["resnet5"])


def test_the_command_prints_the_machine_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "workload", lambda name: lambda setting: Outcome(FIGURES, (), (f"{setting.rounds}",)))
    target = tmp_path / "more" / "results.json"
    assert command.main(["gpu", "--small", "--rounds", "2", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "cores" in printed.splitlines()[0]
    assert "checked: 2" in printed
    written = json.loads(target.read_text())
    assert written["machine"]["cores"] >= 1
    assert written["workloads"]["gpu"]["figures"][0]["rounds"] == [10.0, 8.0, 9.0]


def test_a_workload_that_fails_leaves_the_others_and_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(setting: Setting) -> Outcome:
        if setting.scratch.name == "gpu":
            raise UnequalError("daft: 1 rows are missing")
        return Outcome(FIGURES)

    monkeypatch.setattr(command, "workload", lambda name: measure)
    assert command.main(["gpu", "quality", "--small", "--json", str(tmp_path / "results.json")]) == 1
    printed = capsys.readouterr().out
    assert "FAILED gpu: UnequalError: daft: 1 rows are missing" in printed
    assert "NOT" not in printed
    written = json.loads((tmp_path / "results.json").read_text())
    assert (list(written["workloads"]), list(written["failures"])) == (["quality"], ["gpu"])


def test_a_missing_package_is_named_with_the_way_to_it() -> None:
    assert (
        Program("x", "y", "no_such_package").lacks
        == "no no_such_package here: pip install no_such_package, or make bench"
    )
    assert not Program("x", "y", "numpy").lacks


def test_the_steps_of_decoding_are_told_apart(clips: tuple[Clip, ...]) -> None:
    steps = cpu._decoding_steps(clips)
    assert steps.keys() == {"to RGB", "resize, crop and store", "opening, reading, decoding"}
    assert all(seconds > 0 for seconds in steps.values())


def test_cpu_seconds_are_added_up_by_what_a_process_is_for() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}, 'nursery'], check=True); print(7)"
    spent = watched([sys.executable, "-c", child])
    assert (spent.returncode, spent.stdout) == (0, "7\n")
    assert spent.cpu_s["decoding process"] > 0.2
    assert spent.cpu_s.keys() == {"driver", "decoding process"}
