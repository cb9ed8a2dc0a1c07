"""Long files that are still being written, and a store that does not keep what it is given, without Ray."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featlib.errors import StoppedError
from featlib.shards.staging import stage
from featlib.storage import Store
from featlib.work import Unit
from tests.torture.publishing import KEYS, Rows, brief
from tests.torture.story import LABELS, Done, Story, done
from tests.torture.without_ray import run_story

_LONG = "long-03.mp4"


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(8, "grown", str(tmp_path / "media"), str(tmp_path / "out"))
    story.tell()
    return story


def _grows(unit: Unit) -> Done:
    made = done(unit)
    for item in unit.items:
        if os.path.basename(item.uri) == _LONG:
            with Path(item.uri).open("ab") as file:
                file.write(b".")
    return made


def test_a_file_that_grows_while_it_is_read_costs_that_file_alone(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(story.output)
    monkeypatch.setattr("tests.torture.without_ray.done", _grows)
    summary = run_story(story, str(tmp_path / "log"))
    found, expected = Rows.of(store), story.expected()
    assert summary.classes == {"timeout": 6, "truncated": 2, "corrupt": 1}
    (grown,) = {media_id for (_, media_id), said in found.outcomes.items() if said[1] == "corrupt"}
    assert {brief(found.outcomes[label, grown]) for label in LABELS} == {("failed", "corrupt", 0, 4)}
    others = {key: status for key, (status, *_) in found.outcomes.items() if key[1] != grown}
    assert others == {key: status for key, status in expected.statuses.items() if key[1] != grown}
    assert found.features == {key: row for key, row in expected.rows.items() if key[1] != grown}

    monkeypatch.undo()
    later = replace(story, phase="retried")
    later.tell()
    run_story(later, str(tmp_path / "log"))
    found, expected = Rows.of(store), later.expected()
    assert found.features == expected.rows
    assert {key: status for key, (status, *_) in found.outcomes.items()} == expected.statuses
    assert [info.key for info in store.list(KEYS.stage)] == []


def test_what_cannot_be_read_back_again_and_again_stops_the_run(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment 1 is lost each time; the file is what it was."""

    def forgetful(store: Store, *given: Any, **how: Any) -> str:
        key = stage(store, *given, **how)
        if any(r.segment.k == 1 and os.path.basename(r.uri) == _LONG for r in how["reports"]):
            store.delete([key])
        return key

    monkeypatch.setattr("tests.torture.without_ray.stage", forgetful)
    with pytest.raises(StoppedError, match="what was staged of it could not be read back 4 times; look whether"):
        run_story(story, str(tmp_path / "log"))
