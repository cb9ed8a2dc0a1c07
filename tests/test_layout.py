"""Names of objects: whatever somebody writes for a dataset, a label or an id, nothing leaves the output."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featlib.config import check_name
from featlib.layout import Keys, PartName
from featlib.manifest.ids import is_media_id, media_id
from featlib.storage import Store, check_key

ROOT = "/srv/out"
NASTY = [
    "..",
    ".",
    "/",
    "../../etc/passwd",
    "a/../..",
    "a\0b",
    "a\\..\\b",
    "%2e%2e%2f",
    "~",
    "-rf",
    "a=b",
    "a?b",
    "a:b",
]
INTRUDERS = ["/", "\\", "\0", "\n", " ", "%", "=", "?", ":", "~", "é", "/../", "/./", "//"]
ANY = st.one_of(st.text(max_size=200), st.sampled_from(NASTY), st.text("./\\%~a", max_size=12))
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,127}", fullmatch=True)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


@st.composite
def near_misses(draw: st.DrawFn, sound: st.SearchStrategy[str]) -> str:
    """A sound name but for one stretch that has no place in any, or for its first character, or for its length."""
    name = draw(sound)
    at = draw(st.integers(0, len(name)))
    head = draw(st.sampled_from("._-"))
    within = name[:at] + draw(st.sampled_from(INTRUDERS)) + name[at:]
    return draw(st.sampled_from([within, head + name, name.ljust(129, "a")]))


def or_nearly(sound: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return sound | near_misses(sound)


def keys_of(dataset: str, label: str, shard: int) -> list[str]:
    keys = Keys(dataset)
    return [
        f"{keys.features(label)}/{PartName(shard)}", f"{keys.outcomes(label)}/{PartName(shard, 1, 2)}",
        f"{keys.plan}/gen-00000.plan", f"{keys.stage_shard(shard)}/x.piece", f"{keys.units}/x.units",
        f"{keys.drivers}/x.claim", f"{keys.runs}/x.json", keys.model(label),
    ]  # fmt: skip


def is_name(text: str) -> bool:
    try:
        return check_name(text) == text
    except ValueError:
        return False


@given(dataset=or_nearly(NAMES), label=or_nearly(NAMES), shard=st.integers(0, 10**9))
def test_names_that_are_taken_stay_below_their_own_folders(dataset: str, label: str, shard: int) -> None:
    """A near miss gets here only when it is taken by mistake."""
    assume(is_name(dataset) and is_name(label))
    keys = keys_of(dataset, label, shard)
    for key in keys:
        path = f"{ROOT}/{check_key(key)}"
        assert os.path.normpath(path) == path
        assert f"/dataset={dataset}/model={label}/" in key or key.startswith(f"_featlib/{dataset}/")
    assert [key.count("/") for key in keys] == [key.count("/") for key in keys_of("d", "m", shard)]


@given(text=or_nearly(IDS))
def test_ids_that_are_taken_are_one_part_of_a_path(text: str) -> None:
    assume(is_media_id(text))
    assert os.path.normpath(f"{ROOT}/{text}.piece") == f"{ROOT}/{text}.piece"
    assert os.path.dirname(f"{ROOT}/{text}.piece") == ROOT


@given(text=near_misses(NAMES) | near_misses(IDS) | ANY)
def test_whatever_breaks_the_rule_is_refused(text: str) -> None:
    assume(not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text))
    assert not is_name(text)
    assert not is_media_id(text)


@given(uri=ANY, start=st.none() | st.floats(0, 1e9), end=st.none() | st.floats(0, 1e9))
def test_ids_that_are_made_are_taken(uri: str, start: float | None, end: float | None) -> None:
    assert is_media_id(media_id(uri, start, end))


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_refused_and_touch_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        check_name(name)
    assert not is_media_id(name)
    output = tmp_path / "deep" / "out"
    store = Store(str(output))
    for key in keys_of(name, name, 0):
        try:
            store.put(key, b"x")
        except Exception:  # noqa: BLE001 - whatever it is: what counts is what lies where
            continue
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(output)]
    assert outside == []
