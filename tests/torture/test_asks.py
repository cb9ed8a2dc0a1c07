"""What a driver asks before it changes an output for good: whether its claim still stands."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from featlib.drivers import Claim
from featlib.storage import Store
from tests.torture.publishing import KEYS
from tests.torture.story import PHASES, Story
from tests.torture.without_ray import run_story

_SEED = 11
_PLACES = {
    KEYS.plan: "plan",
    f"{KEYS.own}/models": "models",
    KEYS.units: "units",
    KEYS.stage: "stage",
    "features": "features",
    "outcomes": "outcomes",
}
_SURE = ["confirm", "guard"]  # the one calls the other
_ASKED = {
    "put outcomes": _SURE,
    "put plan": _SURE,
    "put models": _SURE,
    "delete stage": _SURE,
    "delete units": ["guard"],  # mostly its own
    "put features": ["guard"],
    "put units": ["guard"],
}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """By thread: each look at the claim, and each change of the output but those of the heart and of workers."""
    found: dict[int, list[str]] = {}

    def say(what: str) -> None:
        found.setdefault(threading.get_ident(), []).append(what)

    def asking(name: str) -> None:
        method = getattr(Claim, name)

        def ask(claim: Claim) -> None:
            say(name)
            method(claim)

        monkeypatch.setattr(Claim, name, ask)

    def changing(name: str) -> None:
        method = getattr(Store, name)

        def change(store: Store, keys: str | Iterable[str], *rest: Any) -> Any:
            keys = [keys] if isinstance(keys, str) else list(keys)
            for key in keys:
                place = next((place for prefix, place in _PLACES.items() if key.startswith(prefix)), None)
                if place is not None and (place != "stage" or name == "delete"):
                    say(f"{name.removesuffix('_file')} {place}")
            return method(store, keys[0] if name != "delete" else keys, *rest)

        monkeypatch.setattr(Store, name, change)

    for name in ("guard", "confirm"):
        asking(name)
    for name in ("put", "put_file", "delete"):
        changing(name)
    return found


def test_a_driver_asks_before_each_step_that_lasts(events: dict[int, list[str]], tmp_path: Path) -> None:
    """A step: one or several changes of one kind. A commit or a removal needs a look at the store, other objects one at
    the clocks."""
    done = set[str]()
    for phase in PHASES:
        story = Story(_SEED, phase, str(tmp_path / "media"), str(tmp_path / "out"))
        story.tell()
        for number in range(2):  # what a broken run left, in the second
            if number:
                store = Store(story.output)
                store.put(f"{KEYS.units}/broken.units", b"")
                store.put(f"{KEYS.stage_shard(0)}/broken-0.piece", b"")
            events.clear()
            run_story(story, str(tmp_path / "log"))
            for thread in events.values():
                for i, change in enumerate(thread):
                    if change in _ASKED and thread[i - 1 : i] != [change]:
                        done.add(change)
                        assert thread[:i][-len(_ASKED[change]) :] == _ASKED[change], (phase, change, thread)
    assert done == _ASKED.keys()
