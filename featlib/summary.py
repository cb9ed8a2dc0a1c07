"""What a job did: the value that ``featlib.extract`` gives and the text that the command prints."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seconds:
    """Where the time of a run went.

    Args:
        wall: Seconds of the whole run, its start included.
        start: Seconds until Ray stood.
        busy: By stage (``decode``, ``extract LABEL``, ``stage``), seconds summed over its workers.
        workers: By stage, how many worked.
    """

    wall: float = 0.0
    start: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)

    def add(self, stats: Mapping[str, float]) -> None:
        """Takes the stats of one unit, of which the names with ``_s`` are seconds."""
        for name, value in stats.items():
            stage, seconds, label = name.partition("_s")
            if seconds:
                stage = f"{stage} {label[1:]}" if label else stage
                self.busy[stage] = self.busy.get(stage, 0.0) + value

    def loads(self) -> dict[str, float]:
        """Busy seconds of one worker in each pool; networks of one pool add up."""
        loads: dict[str, float] = {}
        for stage, seconds in self.busy.items():
            pool = stage.split(" ")[0]
            loads[pool] = loads.get(pool, 0.0) + seconds / max(1, self.workers.get(stage, 1))
        return loads

    @property
    def held_back_by(self) -> str:
        """The pool whose workers were busy longest; empty when nothing ran."""
        loads = self.loads()
        return max(loads, key=loads.__getitem__) if loads else ""


@dataclass(frozen=True)
class Summary:
    """What a job did and what stands in the output now.

    Args:
        media: Media of this manifest by their worst status over the models.
        classes: What went wrong with those that are not ok, by class.
        rows: Published rows by label.
        frames_decoded: Source frames decoded in this run, once for all models.
        features: URL of each label's features.
        outcomes: URL of each label's outcomes.
        pools: The workers of this run; empty when nothing had to be decoded.
        did_work: False when everything had been published before.
        forward: How each network ran and why, a line each, and what workers had to say of it.
        can_retry: Whether the command takes failed media up again when it is told to.
    """

    dataset: str
    media: Mapping[str, int]
    classes: Mapping[str, int]
    rows: Mapping[str, int]
    features: Mapping[str, str]
    outcomes: Mapping[str, str]
    max_failed: float
    frames_decoded: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    pools: str = ""
    did_work: bool = True
    can_retry: bool = True
    forward: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Media of this manifest."""
        return sum(self.media.values())

    @property
    def bad(self) -> int:
        """Media that failed or broke off under at least one model."""
        return self.media.get("failed", 0) + self.media.get("partial", 0)

    @property
    def exit_code(self) -> int:
        """0, or 3 when more media than allowed failed or broke off."""
        return 3 if self.bad > self.max_failed * self.total else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dataset": self.dataset,
            "media": dict(self.media),
            "classes": dict(self.classes),
            "rows": dict(self.rows),
            "features": dict(self.features),
            "outcomes": dict(self.outcomes),
            "frames_decoded": self.frames_decoded,
            "wall_s": self.seconds.wall,
            "start_s": self.seconds.start,
            "busy_s": dict(self.seconds.busy),
            "held_back_by": self.seconds.held_back_by,
            "pools": self.pools,
            "forward": list(self.forward),
            "exit_code": self.exit_code,
        }

    def text(self) -> str:
        """The summary for a person, a few lines."""
        lines = [f"dataset {self.dataset}: {self.total} media: {_counts(self.media)}"]
        if self.classes:
            lines.append(f"  what went wrong: {_counts(self.classes)}")
        lines += [f"  {label}: {rows} rows in {self.features[label]}" for label, rows in self.rows.items()]
        lines += [f"  outcomes: {url}" for url in sorted({u.rpartition("/")[0] for u in self.outcomes.values()})]
        if not self.did_work:
            lines.append("  nothing to do: everything was published before")
        else:
            lines += self._time_lines()
        if self.exit_code == 3:
            retry = ", --retry-failed takes the failed ones up again" if self.can_retry else ""
            lines.append(
                f"  {self.bad} of {self.total} media failed or broke off, more than --max-failed {self.max_failed:g}; "
                f"the outcomes say why{retry}"
            )
        return "\n".join(lines)

    def _time_lines(self) -> list[str]:
        s = self.seconds
        if not self.pools:
            return [f"  {s.wall:.1f} s: everything had been staged before, it was published"]
        busy = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in s.busy.items())
        if "decode" not in s.busy:
            return [f"  {s.wall:.1f} s; busy: {busy}; workers: {self.pools}"]
        return [
            f"  {s.wall:.1f} s, of which {s.start:.1f} s start; busy: {busy}; held back by {s.held_back_by}",
            f"  {self.frames_decoded} frames decoded, once for all models; workers: {self.pools}",
            *(f"  {line}" for line in self.forward),
        ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in Counter(dict(counts)).most_common()) or "none"
