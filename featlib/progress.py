"""What a person sees of a running job: a live bar on a terminal, a line every ten seconds in a log."""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Protocol

log = logging.getLogger("featlib")

LOG_EVERY_S = 10.0


class Reporter(Protocol):
    """Told of everything that a person may want to see; used as a context manager."""

    def __enter__(self) -> "Reporter": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, text: str) -> None: ...
    def begin(self, items: int) -> None: ...
    def advance(self, items: int, clips: int, failed: int) -> None: ...


class Counts:
    """Items, clips and failures so far, and the rates that follow from them."""

    def __init__(self) -> None:
        self.total = self.items = self.clips = self.failed = 0
        self.started = time.monotonic()

    def begin(self, total: int) -> None:
        self.total, self.started = total, time.monotonic()

    def advance(self, items: int, clips: int, failed: int) -> None:
        self.items += items
        self.clips += clips
        self.failed += failed

    @property
    def clips_per_s(self) -> float:
        return self.clips / max(time.monotonic() - self.started, 1e-9)

    @property
    def left(self) -> str:
        """Time left as h:mm:ss; a dash before the first item."""
        if not self.items:
            return "-:--:--"
        seconds = int((time.monotonic() - self.started) / self.items * (self.total - self.items))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


class SilentReporter:
    """Shows nothing; for use as a library."""

    def __enter__(self) -> "SilentReporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, text: str) -> None:
        """Ignores what the job is doing."""

    def begin(self, items: int) -> None:
        """Ignores how much there is to do."""

    def advance(self, items: int, clips: int, failed: int) -> None:
        """Ignores what was done."""


class LogReporter(SilentReporter):
    """One log line every ten seconds, and one whenever the job turns to something else."""

    def __init__(self, every_s: float = LOG_EVERY_S) -> None:
        self._every_s = every_s
        self._counts = Counts()
        self._last = 0.0
        self._stop = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="featlib-log", daemon=True)

    def __enter__(self) -> "LogReporter":
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._clock.join()

    def _tick(self) -> None:
        """A line also while nothing comes back: a unit may take longer than ten seconds."""
        while not self._stop.wait(self._every_s):
            if self._counts.items < self._counts.total and time.monotonic() - self._last >= self._every_s:
                self._last = time.monotonic()
                log.info("%s", self.line())

    def stage(self, text: str) -> None:
        log.info("%s", text)

    def begin(self, items: int) -> None:
        self._counts.begin(items)
        self._last = time.monotonic()

    def advance(self, items: int, clips: int, failed: int) -> None:
        self._counts.advance(items, clips, failed)
        now = time.monotonic()
        if now - self._last >= self._every_s or self._counts.items == self._counts.total:
            self._last = now
            log.info("%s", self.line())

    def line(self) -> str:
        """The state of the job in one line."""
        c = self._counts
        return (
            f"{c.items} of {c.total} media, {c.clips} clips, {c.clips_per_s:.1f} clips/s, "
            f"{c.failed} failed, {c.left} left"
        )


class BarReporter:
    """A live bar: items, clips, clips a second, failures, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._counts = Counts()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("media  {task.fields[detail]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, detail="")

    def __enter__(self) -> "BarReporter":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def begin(self, items: int) -> None:
        self._counts.begin(items)
        self._progress.update(self._task, total=items, completed=0)

    def advance(self, items: int, clips: int, failed: int) -> None:
        c = self._counts
        c.advance(items, clips, failed)
        detail = f"{c.clips} clips  {c.clips_per_s:.1f} clips/s  {c.failed} failed  {c.left} left"
        self._progress.update(self._task, completed=c.items, detail=detail)


def reporter() -> Reporter:
    """A bar when a person watches the terminal, log lines otherwise."""
    return BarReporter() if sys.stderr.isatty() else LogReporter()
