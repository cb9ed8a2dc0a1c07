"""The summary: numbers, exit code, text."""

from typing import Any

import pytest

from featlib.summary import Seconds, Summary


def _summary(media: dict[str, int], **changes: Any) -> Summary:
    values: dict[str, Any] = {
        "dataset": "d",
        "media": media,
        "classes": {},
        "rows": {"m": 7},
        "features": {"m": "out/features/dataset=d/model=m"},
        "outcomes": {"m": "out/outcomes/dataset=d/model=m"},
        "max_failed": 0.05,
    }
    return Summary(**{**values, **changes})


@pytest.mark.parametrize(
    ("media", "max_failed", "code"),
    [
        ({"ok": 100}, 0.0, 0),
        ({"ok": 95, "failed": 5}, 0.05, 0),
        ({"ok": 95, "failed": 5, "partial": 1}, 0.05, 3),
        ({"ok": 95, "partial": 6}, 0.05, 3),
        ({"ok": 1, "skipped": 99}, 0.0, 0),
        ({"failed": 3}, 1.0, 0),
        ({"failed": 3}, 0.99, 3),
        ({}, 0.0, 0),
    ],
)
def test_exit_code(media: dict[str, int], max_failed: float, code: int) -> None:
    summary = _summary(media, max_failed=max_failed)
    assert summary.exit_code == code
    assert summary.to_dict()["exit_code"] == code
    assert ("more than --max-failed" in summary.text()) == (code == 3)


def test_text_says_where_and_what() -> None:
    seconds = Seconds(wall=12.0, start=3.0)
    seconds.workers = {"decode": 2, "extract m": 1}
    seconds.add({"decode_s": 8.0, "frames_decoded": 99.0, "extract_s.m": 5.0, "stage_s": 0.5})
    text = _summary(
        {"ok": 9, "failed": 1},
        classes={"timeout": 1},
        seconds=seconds,
        pools="2 decode",
        frames_decoded=99,
        max_failed=1,
    ).text()
    assert "dataset d: 10 media: 9 ok, 1 failed" in text
    assert "what went wrong: 1 timeout" in text
    assert "m: 7 rows in out/features/dataset=d/model=m" in text
    assert "outcomes: out/outcomes/dataset=d" in text
    assert "99 frames decoded" in text
    assert "held back by extract" in text


def test_nothing_to_do_is_said() -> None:
    assert "nothing to do" in _summary({"ok": 1}, did_work=False).text()
    assert "it was published" in _summary({"ok": 1}, seconds=Seconds(wall=1.0)).text()


def test_busy_seconds_are_shared_by_the_workers_of_a_pool() -> None:
    seconds = Seconds(workers={"decode": 4, "extract a": 2, "extract b": 2})
    for _ in range(2):
        seconds.add({"decode_s": 4.0, "extract_s.a": 1.0, "extract_s.b": 2.0})
    assert seconds.busy == {"decode": 8.0, "extract a": 2.0, "extract b": 4.0}
    assert seconds.loads() == {"decode": 2.0, "extract": 3.0}
    assert seconds.held_back_by == "extract"
    assert Seconds().held_back_by == ""


def test_labels_with_any_character_keep_their_name() -> None:
    seconds = Seconds()
    seconds.add({"extract_s.my_small_net.v2_s": 1.0})
    assert seconds.busy == {"extract my_small_net.v2_s": 1.0}
