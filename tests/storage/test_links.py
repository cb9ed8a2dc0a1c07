"""Links inside an output lead nowhere that anything is removed from; whoever may write there may have planted them."""

import os
from pathlib import Path

import pytest

from featlib import partition
from featlib.errors import ConfigError
from featlib.layout import Keys
from featlib.storage import Store
from featlib.storage.store import TEMPORARY_KEY

MODEL = Keys("d").features("m")
LONG_AGO = 1e9


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's files, beside the output."""
    folder = tmp_path / "home"
    for name in ("thesis/chapter1.tex", "notes.txt", ".key"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def link(store: Store, key: str, target: Path | str) -> None:
    path = Path(store.url, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def is_whole(home: Path) -> bool:
    files = {path.relative_to(home).as_posix(): path.read_text() for path in home.rglob("*") if path.is_file()}
    return files == dict.fromkeys(("thesis/chapter1.tex", "notes.txt", ".key"), "precious")


@pytest.mark.parametrize("where", [f"{TEMPORARY_KEY}/x", f"{TEMPORARY_KEY}/a/x", TEMPORARY_KEY])
@pytest.mark.parametrize("relative", [True, False])
def test_a_sweep_stays_in_its_folder(tmp_path: Path, home: Path, where: str, relative: bool) -> None:
    store = Store(str(tmp_path / "out"))
    path = Path(store.url, where)
    link(store, where, os.path.relpath(home, path.parent) if relative else home)
    store.sweep_temporary(older_than_s=-1)
    assert is_whole(home)


def test_a_sweep_does_not_go_through_a_link_above_its_folder(tmp_path: Path, home: Path) -> None:
    store = Store(str(tmp_path / "out"))
    link(store, "_featlib", home)
    (home / ".tmp").symlink_to("thesis")
    store.sweep_temporary(older_than_s=-1)
    (home / ".tmp").unlink()
    (home / "thesis").rename(home / ".tmp")
    store.sweep_temporary(older_than_s=-1)
    (home / ".tmp").rename(home / "thesis")
    assert is_whole(home)


def test_dropping_a_partition_removes_nothing_behind_a_link_in_it(tmp_path: Path, home: Path) -> None:
    store, keys = Store(str(tmp_path / "out")), Keys("d")
    mine = [f"{MODEL}/part-00000.parquet", f"{keys.outcomes('m')}/part-00000.parquet", keys.model("m")]
    for key in mine:
        store.put(key, b"x")
    for folder in (MODEL, keys.outcomes("m"), keys.plan, keys.units, keys.runs):
        link(store, f"{folder}/x", home)
    assert partition.drop(store, keys, "m") == len(mine)
    assert store.list("") == []
    assert is_whole(home)


@pytest.mark.parametrize("where", ["features", "features/dataset=d", MODEL])
def test_a_partition_behind_a_link_is_read_and_written_and_never_removed(
    tmp_path: Path, home: Path, where: str
) -> None:
    store, keys = Store(str(tmp_path / "out")), Keys("d")
    store.put(keys.model("m"), b"{}")
    link(store, where, home)
    key = f"{MODEL}/part-00000.parquet"
    store.put(key, b"x")
    assert key in [info.key for info in store.list(MODEL)]
    assert store.list("features") == [] or where == "features"
    assert store.get(key) == b"x"
    with pytest.raises(ConfigError, match=r"a link leads there, .* nothing is removed; put the folder itself") as told:
        partition.drop(store, keys, "m")
    assert "\n" not in str(told.value)
    assert store.get(key) == b"x"
    Path(store.url, key).unlink()
    for folder in ("dataset=d/model=m", "dataset=d", "model=m"):
        if (home / folder).is_dir():
            (home / folder).rmdir()
    assert is_whole(home)


def test_of_several_keys_none_is_removed_when_one_is_behind_a_link(tmp_path: Path, home: Path) -> None:
    store = Store(str(tmp_path / "out"))
    store.put("a/x", b"x")
    link(store, "b", home)
    with pytest.raises(ConfigError, match="/b: a link leads there"):
        store.delete(["a/x", "b/notes.txt"])
    assert store.get("a/x") == b"x"
    assert is_whole(home)


def test_a_link_to_a_file_goes_and_the_file_stays(tmp_path: Path, home: Path) -> None:
    store = Store(str(tmp_path / "out"))
    link(store, "a/x", home / "notes.txt")
    assert [info.key for info in store.list("")] == ["a/x"]
    store.delete(["a/x"])
    assert store.list("") == []
    assert is_whole(home)


@pytest.mark.parametrize("levels", [0, 1])
def test_the_output_itself_and_folders_above_it_may_be_links(tmp_path: Path, levels: int) -> None:
    real = tmp_path / "disk" / "out"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to((real, real.parent)[levels])
    store = Store(str(tmp_path / "link") + "/out" * levels)
    store.put("a/b/x", b"x")
    store.put("top", b"x")
    Path(store.url, TEMPORARY_KEY, "left").write_bytes(b"x")
    assert [info.key for info in store.list("")] == ["a/b/x", "top"]
    store.sweep_temporary(older_than_s=-1)
    store.delete(["a/b/x", "top"])
    assert [path for path in real.rglob("*") if not path.is_dir()] == []
