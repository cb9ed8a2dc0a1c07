"""What a person sees: counts, rates and the time left."""

import logging

import pytest

from featlib import progress
from featlib.progress import BarReporter, Counts, LogReporter, SilentReporter, reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_counts_and_time_left(clock: list[float]) -> None:
    counts = Counts()
    counts.begin(10)
    assert counts.left == "-:--:--"
    clock[0] += 3600
    counts.advance(2, 50, 1)
    counts.advance(0, 22, 0)
    assert (counts.items, counts.clips, counts.failed) == (2, 72, 1)
    assert counts.clips_per_s == pytest.approx(0.02)
    assert counts.left == "4:00:00"


def test_a_log_line_every_ten_seconds_and_at_the_end(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("featlib")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    with LogReporter() as shown:
        shown.stage("extracting")
        shown.begin(4)
        for seconds in (4, 4, 4):
            clock[0] += seconds
            shown.advance(1, 10, 0)
        assert messages[1:] == ["3 of 4 media, 30 clips, 2.5 clips/s, 0 failed, 0:00:04 left"]
        shown.advance(1, 0, 1)
    assert messages[0] == "extracting"
    assert messages[-1].startswith("4 of 4 media, 30 clips")
    assert len(messages) == 3


def test_the_bar_shows_counts() -> None:
    with BarReporter() as bar:
        bar.stage("extracting")
        bar.begin(4)
        bar.advance(3, 30, 1)
        (task,) = bar._progress.tasks
        assert (task.total, task.completed, task.description) == (4, 3, "extracting")
        assert "30 clips" in task.fields["detail"]
        assert "1 failed" in task.fields["detail"]


def test_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(reporter(), LogReporter)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(reporter(), BarReporter)


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentReporter() as shown:
        shown.stage("x")
        shown.begin(1)
        shown.advance(1, 1, 1)
    assert capsys.readouterr() == ("", "")
