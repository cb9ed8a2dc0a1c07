"""Whole pipelines, files to Parquet: featlib beside the programs that people write instead, and beside the limit."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks import breakdown
from benchmarks.clips import Clip, choose, inspected, repeated
from benchmarks.features import FP32_BOUND, Rows, UnequalError, check_equal
from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from benchmarks.jobs import Job
from benchmarks.limit import Limit, Parts, limit_of
from benchmarks.machine import this_machine
from benchmarks.programs import FEATLIB, PEERS, Program, Ran, run
from benchmarks.progress import say

BF16_BOUND = 0.05
"""Relative L2 of a row between fp32 and bf16: 8 bits of mantissa through dozens of layers of random weights."""
_PASSES = (1, 3)
"""How often a core featlib, the fastest, gets the list in its short and its long run; fewer clips get other pools."""


@dataclass(frozen=True)
class Plan:
    """A network, what is read of the clips, and what is aimed at.

    Args:
        most_clips: Of the real ones; clip networks are slow.
        over_peer: featlib over the best peer, by precision.
        is_short_job: Whether the time from command to exit over all clips is a row of the table, too.
    """

    title: str
    network: str
    unit: str
    clip_frames: int = 0
    most_clips: int = 8
    over_peer: dict[str, float] = field(default_factory=dict)
    over_limit: float = 0.9
    is_short_job: bool = False


RESNET50 = Plan("ResNet-50", "resnet50", "frames/s", over_peer={"fp32": 1.7, "bf16": 3.2}, is_short_job=True)
R3D_18 = Plan("r3d_18", "r3d_18", "clips/s", 16, 3, {"fp32": 1.15, "bf16": 2.3})
R2PLUS1D_18 = Plan("r2plus1d_18", "r2plus1d_18", "clips/s", 16, 3, {"fp32": 1.4, "bf16": 2.6})
SMALL = Plan("ResNet-18, small", "resnet18", "frames/s", over_peer={"fp32": 0.0}, over_limit=0.0)


def resnet50(setting: Setting) -> Outcome:
    """One frame in 8 through ResNet-50, and the short job of the same clips."""
    return measure(SMALL if setting.is_small else RESNET50, setting)


def r3d_18(setting: Setting) -> Outcome:
    """Clips of 16 frames through r3d_18."""
    return measure(replace(R3D_18, most_clips=2) if setting.is_small else R3D_18, setting)


def r2plus1d_18(setting: Setting) -> Outcome:
    """Clips of 16 frames through r2plus1d_18."""
    return measure(replace(R2PLUS1D_18, most_clips=2) if setting.is_small else R2PLUS1D_18, setting)


class Subject:
    """One program in one precision: the runs it made, and the rate of each round.

    Args:
        short, long: The two lists of clips; what the long run does more, in the time that it takes more, is the rate.
        usual: A job as a person types it, timed from command to exit.
        cache: Where the program keeps what it may use again.
    """

    def __init__(
        self, program: Program, name: str, short: Job | None, long: Job, usual: Job | None = None,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.program, self.name, self.long = program, name, long
        self._short, self._usual, self._cache = short, usual, cache
        self._first_s = 0.0
        self.short_runs: list[Ran] = []
        self.long_runs: list[Ran] = []
        self.usual_runs: list[Ran] = []

    def prepare(self) -> None:
        """A first run, which nobody measures: it compiles the network and keeps it."""
        if self._short is not None and self._cache is not None:
            self._first_s = run(self.program, self._short, cache=self._cache).whole_s
            say(f"  {self.name}: the first run took {self._first_s:.1f} s")

    def measure(self) -> float:
        """Rows a second of one round.

        Raises:
            RuntimeError: The long run was not longer, or had other pools; nothing can be said.
        """
        if self._usual is not None:
            self.usual_runs.append(run(self.program, self._usual, cache=self._cache))
        if self._short is not None:
            self.short_runs.append(run(self.program, self._short, cache=self._cache))
        self.long_runs.append(run(self.program, self.long, cache=self._cache))
        self._check_pools()
        rate = _rate(self.short_runs[-1] if self._short else None, self.long_runs[-1])
        say(f"  {self.name}: {rate:.2f} rows/s, {self.long_runs[-1].whole_s:.1f} s for {len(self.long_runs[-1].rows)}")
        return rate

    def _check_pools(self) -> None:
        """The difference of two runs is a rate only when both had the same workers."""
        pools = {ran.told.get("pools") for ran in (*self.short_runs[-1:], self.long_runs[-1])}
        if len(pools) > 1:
            raise RuntimeError(
                f"{self.name}: the short and the long run had other workers: {'; '.join(map(str, pools))}"
            )

    def all_runs(self) -> list[tuple[Job, Ran]]:
        """Every run that was measured, with its job; the last long one comes last."""
        runs = ((self._usual, self.usual_runs), (self._short, self.short_runs), (self.long, self.long_runs))
        return [(job, ran) for job, made in runs if job is not None for ran in made]

    def note(self, rates: Sequence[float]) -> str:
        """The seconds of a run that are not work at the steady rate."""
        if not self.short_runs:
            return f"{self.long_runs[-1].whole_s:.1f} s in all"
        starts = (r.whole_s - len(r.rows) / rate for r, rate in zip(self.short_runs, rates, strict=True))
        compiled = max(0.0, self._first_s - median(r.whole_s for r in self.short_runs))
        return f"start {median(starts):.1f} s" + (f", and once {compiled:.0f} s to compile" if self._first_s else "")


def _rate(short: Ran | None, long: Ran) -> float:
    if short is None:
        return len(long.rows) / long.whole_s
    seconds = long.whole_s - short.whole_s
    if seconds <= 0:
        took = f"{len(long.rows)} rows took {long.whole_s:.1f} s, {len(short.rows)} took {short.whole_s:.1f} s"
        raise RuntimeError(f"{took}: this machine was busy with other things, or the clips are too few")
    return (len(long.rows) - len(short.rows)) / seconds


def chosen_clips(plan: Plan, setting: Setting) -> tuple[Clip, ...]:
    """The longest clips but for the last, which is the shortest: the short run of the slow programs."""
    if setting.is_small:
        found = (inspected(path) for path in sorted(setting.clips.iterdir()))
        return tuple(clip for clip in found if clip)[:2]
    clips = choose(setting.clips)
    return (*clips[:-1][: plan.most_clips - 1], clips[-1])


def measure(plan: Plan, setting: Setting) -> Outcome:
    """Runs everybody ``setting.rounds`` times, interleaved, and compares what they wrote.

    Raises:
        UnequalError: Somebody's features are not those of the others.
    """
    clips = chosen_clips(plan, setting)
    subjects = [*_peers(plan, setting, clips), *_featlib(plan, setting, clips)]
    precisions = [s.name.split()[-1] for s in subjects if s.program is FEATLIB]
    parts: dict[str, list[Parts]] = {p: [] for p in precisions}
    for subject in subjects:
        subject.prepare()
    with _limit(plan, setting, clips, precisions) as limit:
        measured = interleaved(
            [(s.name, s.measure) for s in subjects]
            + [(f"limit {p}", _limit_call(limit, p, parts[p])) for p in precisions if limit is not None],
            setting.rounds,
        )
    checks = _checks(subjects)
    figures = [*_figures(plan, subjects, measured, parts), *_absent(plan, precisions)]
    targets = [t for p in precisions for t in _targets(plan, p, subjects, measured)]
    if plan.is_short_job:
        figures += breakdown.figures(subjects)
        checks += breakdown.lines(subjects)
    return Outcome(tuple(figures), tuple(targets), tuple(checks))


def _job(plan: Plan, setting: Setting, name: str, clips: Sequence[Clip], times: int, precision: str = "fp32") -> Job:
    sizes = {key: int(value) for key, value in setting.options.items() if key.endswith(("_workers", "_threads"))}
    return Job(
        plan.network, repeated(clips, times), str(setting.scratch / f"{plan.network}-{name}"),
        clip_frames=plan.clip_frames, precision=precision, settings=sizes,
    )  # fmt: skip


def _peers(plan: Plan, setting: Setting, clips: Sequence[Clip]) -> list[Subject]:
    """Slow programs: their short run is over the shortest clip, their long run over the list once."""
    found = []
    for i, program in enumerate(p for p in PEERS if not p.lacks):
        once = _job(plan, setting, f"peer{i}-long", clips, 1)
        # Both begin with the same clip: until the first one is decoded, networks have nothing to do.
        long = replace(once, settings={}, clips=(once.clips[-1], *once.clips[:-1]))
        short = replace(long, clips=long.clips[:1], output=long.output.replace("long", "short"))
        found.append(Subject(program, program.name, None if setting.is_small else short, long))
    return found


def _featlib(plan: Plan, setting: Setting, clips: Sequence[Clip]) -> list[Subject]:
    """featlib in each precision: the list ``_PASSES`` times, with the networks compiled, as it does by itself
    where a job is long; and, for the short job, the list once as a person types it."""
    precisions = ["fp32", *(["bf16"] if this_machine().bf16 and not setting.is_small else [])]
    return [_one_featlib(plan, setting, clips, p) for p in precisions]


def _one_featlib(plan: Plan, setting: Setting, clips: Sequence[Clip], precision: str) -> Subject:
    usual = _job(plan, setting, f"featlib-{precision}", clips, 1, precision)
    name = f"featlib {precision}"
    if setting.is_small:
        return Subject(FEATLIB, name, None, usual)
    settings = {**usual.settings, "compile": "on"}
    short, long = (
        replace(usual, settings=settings, clips=repeated(clips, times), output=f"{usual.output}-{times}")
        for times in (max(2, this_machine().cores) * passes for passes in _PASSES)
    )
    cache = Path(setting.options.get("cache") or setting.scratch / "cache")
    return Subject(FEATLIB, name, short, long, usual if plan.is_short_job else None, cache)


def _limit(
    plan: Plan, setting: Setting, clips: Sequence[Clip], precisions: Sequence[str]
) -> AbstractContextManager[Limit | None]:
    if setting.is_small:
        return nullcontext()
    return _PreparedLimit(limit_of(_job(plan, setting, "limit", clips, 1), setting.scratch), precisions)


class _PreparedLimit(AbstractContextManager["Limit | None"]):
    """The limit's processes with their networks compiled, before anything is measured."""

    def __init__(self, made: AbstractContextManager[Limit], precisions: Sequence[str]) -> None:
        self._made, self._precisions = made, precisions

    def __enter__(self) -> Limit:
        limit = self._made.__enter__()
        for precision in self._precisions:
            seconds = max(a["seconds"] for a in limit.ask(f"prepare {precision}"))
            say(f"  limit {precision}: compiled in {seconds:.1f} s")
        return limit

    def __exit__(self, *error: object) -> None:
        self._made.__exit__(None, None, None)


def _limit_call(limit: Limit, precision: str, kept: list[Parts]) -> Callable[[], float]:
    def call() -> float:
        kept.append(limit.parts(precision))
        rate = kept[-1].rate(limit.cores)
        say(f"  limit {precision}: {rate:.2f} rows/s")
        return rate

    return call


def _figures(
    plan: Plan, subjects: Sequence[Subject], measured: dict[str, tuple[float, ...]], parts: dict[str, list[Parts]]
) -> list[Figure]:
    figures = [Figure(plan.title, s.name, plan.unit, measured[s.name], s.note(measured[s.name])) for s in subjects]
    for precision, costs in parts.items():
        if costs:
            note = (f"a row: decode {1e3 * median(c.decode_s for c in costs):.1f} ms ({costs[-1].decoder}), "
                    f"forward {1e3 * median(c.forward_s for c in costs):.1f} ms of a core")  # fmt: skip
            name = f"limit {precision}"
            figures.append(Figure(plan.title, name, plan.unit, measured[name], note))
    return figures


def _absent(plan: Plan, precisions: Sequence[str]) -> list[Figure]:
    """Rows of what this machine cannot run."""
    lacking = [Figure(plan.title, p.name, plan.unit, (), p.lacks) for p in PEERS if p.lacks]
    if "bf16" not in precisions and plan is not SMALL:
        lacking.append(Figure(plan.title, "featlib bf16", plan.unit, (), "no bf16 in this processor"))
    return lacking


def _targets(
    plan: Plan, precision: str, subjects: Sequence[Subject], measured: dict[str, tuple[float, ...]]
) -> list[Target]:
    mine = median(measured[f"featlib {precision}"])
    peers = [median(measured[s.name]) for s in subjects if s.program is not FEATLIB]
    title = f"{plan.title} {precision}"
    found = [Target(title, "featlib over the best peer", mine / max(peers), plan.over_peer[precision])]
    if f"limit {precision}" in measured:
        limit = median(measured[f"limit {precision}"])
        found.append(Target(title, "featlib over the limit", mine / limit, plan.over_limit))
    return found


def _checks(subjects: Sequence[Subject]) -> list[str]:
    """Everybody's features, in every run, against those of featlib's last long one in fp32."""
    first = next(s for s in subjects if s.name == "featlib fp32")
    reference = first.long_runs[-1].rows
    _check_all_there(reference, first.long)
    checks = []
    for subject in subjects:
        bound = BF16_BOUND if subject.name.endswith("bf16") else FP32_BOUND
        for job, ran in subject.all_runs():
            wanted = reference.of(frozenset(name for name, _ in job.clips))
            line = check_equal(ran.rows, wanted, f"{subject.name} and featlib fp32", bound)
        if subject is not first:
            checks.append(line)
    return checks


def _check_all_there(rows: Rows, job: Job) -> None:
    """Every clip of the job gave rows, and a clip that is in the list several times gave the same ones each time.

    Raises:
        UnequalError: One did not.
    """
    by_path: dict[str, list[str]] = {}
    for name, path in job.clips:
        by_path.setdefault(path, []).append(name)
    for path, (name, *copies) in by_path.items():
        once = rows.of(frozenset([name]))
        if not len(once):
            raise UnequalError(f"featlib gave no row of {Path(path).name}")
        for copy in copies:
            again = rows.of(frozenset([copy]))
            renamed = Rows(tuple((name, i) for _, i in again.keys), again.features)
            check_equal(renamed, once, f"{Path(path).name} once and again")
