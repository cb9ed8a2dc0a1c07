"""Names of objects: whatever somebody writes for a dataset, a label or an id, nothing leaves the output."""

import os
from pathlib import Path

import pytest
from hypothesis import given
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
ANY = st.one_of(st.text(max_size=200), st.sampled_from(NASTY), st.text("./\\%~a", max_size=12))


def keys_of(dataset: str, label: str, shard: int) -> list[str]:
    keys = Keys(dataset)
    return [
        f"{keys.features(label)}/{PartName(shard)}", f"{keys.outcomes(label)}/{PartName(shard, 1, 2)}",
        f"{keys.plan}/gen-00000.plan", f"{keys.stage_shard(shard)}/x.piece", f"{keys.units}/x.units",
        f"{keys.drivers}/x.claim", f"{keys.runs}/x.json", keys.model(label),
    ]  # fmt: skip


@given(dataset=ANY, label=ANY, shard=st.integers(0, 10**9))
def test_names_that_are_taken_stay_below_their_own_folders(dataset: str, label: str, shard: int) -> None:
    try:
        names = check_name(dataset), check_name(label)
    except ValueError:
        return
    for key in keys_of(*names, shard):
        path = f"{ROOT}/{check_key(key)}"
        assert os.path.normpath(path) == path
        assert f"dataset={dataset}/" in key or key.startswith(f"_featlib/{dataset}/")


@given(text=ANY)
def test_ids_that_are_taken_are_one_part_of_a_path(text: str) -> None:
    if is_media_id(text):
        assert os.path.normpath(f"{ROOT}/{text}.piece") == f"{ROOT}/{text}.piece"
        assert os.path.dirname(f"{ROOT}/{text}.piece") == ROOT


@given(uri=ANY, start=st.none() | st.floats(0, 1e9), end=st.none() | st.floats(0, 1e9))
def test_ids_that_are_made_are_taken(uri: str, start: float | None, end: float | None) -> None:
    try:
        made = media_id(uri, start, end)
    except UnicodeEncodeError:  # refused before: no valid UTF-8
        return
    assert is_media_id(made)


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
