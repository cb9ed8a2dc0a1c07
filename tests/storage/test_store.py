"""The promises of a store, on a disk and in S3 alike, and the local ones of their own."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlib.errors import ConfigError, StoppedError
from featlib.storage import Store, check_key, local

KEY = "features/dataset=d/model=m/part-00000.parquet"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "out"))
    return Store(f"s3://{request.getfixturevalue('s3_env').bucket()}/out")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_put_get_stat_open(store: Store) -> None:
    store.put(KEY, memoryview(b"0123456789"))
    info = store.stat(KEY)
    assert info is not None
    assert (info.key, info.size) == (KEY, 10)
    assert info.etag
    assert info.modified > 1e9
    assert store.get(KEY) == b"0123456789"
    with store.open(KEY) as file:
        assert file.seek(-3, os.SEEK_END) == 7
        assert file.read() == b"789"
        assert file.seek(2) == 2
        assert file.read(3) == b"234"


def test_missing_objects(store: Store) -> None:
    assert store.list("") == []
    assert store.list("features") == []
    assert store.stat(KEY) is None
    store.put(KEY, b"x")
    assert store.stat("features") is None
    for read in (store.get, store.open):
        with pytest.raises(FileNotFoundError):
            read("features/nothing")
    store.delete(["features/nothing", "a/b/c"])
    assert keys(store) == [KEY]


def test_list_is_fresh_sorted_and_by_whole_folders(store: Store) -> None:
    names = ["f/b/2", "f/b-c/1", "f/a", "f/b.x", "fg/1", "f/b/.hidden"]
    for seen, name in enumerate(names, start=1):
        store.put(name, b"x")
        assert len(store.list("")) == seen
    assert keys(store) == sorted(names)
    assert keys(store, "f") == keys(store, "f/") == sorted(name for name in names if name.startswith("f/"))
    assert keys(store, "f/b") == ["f/b/.hidden", "f/b/2"]


def test_put_replaces_whole_objects(store: Store) -> None:
    store.put(KEY, b"old" * 1000)
    first = store.stat(KEY)
    store.put(KEY, b"new")
    second = store.stat(KEY)
    assert store.get(KEY) == b"new"
    assert first is not None
    assert second is not None
    assert first.etag != second.etag
    assert keys(store) == [KEY]


def test_put_file_keeps_its_source(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc" * 1000)
    store.put_file(KEY, source)
    assert store.get(KEY) == source.read_bytes()


def test_delete(store: Store) -> None:
    names = [f"a/b/{i}" for i in range(3)] + ["a/c", "d"]
    for name in names:
        store.put(name, b"x")
    store.delete(iter(names[:4]))
    assert keys(store) == ["d"]
    if store.is_local:
        assert not Path(store.url, "a").exists()
        store.delete(["d"])
        assert Path(store.url).is_dir()


def test_a_pickled_store_and_its_arrow_file_system_work(store: Store) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2, 3]}), buffer)
    store.put(KEY, buffer.getvalue())
    copy = pickle.loads(pickle.dumps(store))
    filesystem, root = pickle.loads(pickle.dumps(copy.arrow()))
    assert pq.read_table(f"{root}/{KEY}", filesystem=filesystem, partitioning=None)["x"].to_pylist() == [1, 2, 3]
    with store.open(KEY) as file:
        assert pq.ParquetFile(file).metadata.num_rows == 3
    assert b"testing" not in pickle.dumps((store, filesystem))


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "a/./b", "a\0b", "a\\b", "a\nb", "x" * 256, "x/" * 600 + "x"]
)
def test_keys_that_leave_or_break_the_root_are_refused(key: str, tmp_path: Path) -> None:
    for use in (lambda s: s.put(key, b"x"), lambda s: s.get(key), lambda s: s.stat(key), lambda s: s.delete([key])):
        with pytest.raises(ConfigError):
            use(Store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@given(parts=st.lists(st.text(st.characters(), max_size=12), min_size=1, max_size=3), escape=st.booleans())
def test_no_name_gets_out_of_the_root(parts: list[str], escape: bool) -> None:
    """Whatever stands in an id, a dataset or a label: the key is refused, or lies below the root."""
    names = [part if not escape else f"../{part}/.." for part in parts]
    key = "/".join(f"{field}{name}" for field, name in zip(("dataset=", "model=", ""), names, strict=False))
    try:
        checked = check_key(key)
    except ConfigError:
        return
    root = "/srv/out"
    path = os.path.normpath(f"{root}/{checked}")
    assert path.startswith(root + "/")
    assert path == f"{root}/{checked}"


def test_a_failing_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.put(KEY, b"old")
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(local.os, step, _raise_no_space)
            with pytest.raises(StoppedError, match="No space left"):
                store.put(KEY, b"new" * 10_000)
            with pytest.raises(StoppedError, match="No space left"):
                store.put("other", b"new")
        assert store.get(KEY) == b"old"
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part-00000.parquet"]


def _raise_no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


_KILLED = """
import os, signal, sys
from featlib.storage import Store, local
sync = os.fsync
def killed(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)
local.os.fsync = killed
Store(sys.argv[1]).put(sys.argv[2], b"n" * (8 << 20))
"""


def test_a_kill_in_the_middle_of_a_put_shows_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put(KEY, b"old")
    for key in (KEY, "features/dataset=d/model=m/new.parquet"):
        ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), key], timeout=60, check=False)
        assert ended.returncode == -signal.SIGKILL
    assert keys(store) == [KEY]
    assert store.get(KEY) == b"old"
    assert {path.name for path in tmp_path.rglob("*.parquet")} == {"part-00000.parquet"}
    left = list((tmp_path / "_featlib" / ".tmp").iterdir())
    assert len(left) == 2
    store.sweep_temporary(older_than_s=3600)
    assert len(list((tmp_path / "_featlib" / ".tmp").iterdir())) == 2
    store.sweep_temporary(older_than_s=-1)
    assert not (tmp_path / "_featlib" / ".tmp").exists()
    assert store.get(KEY) == b"old"


def test_a_rename_of_which_the_reply_was_lost_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS: the server is asked again, and then knows the temporary file no more."""
    store, rename, asked = Store(str(tmp_path)), os.replace, list[str]()

    def lost(source: str, target: str) -> None:
        asked.append(target)
        rename(source, target)
        raise FileNotFoundError(2, "No such file or directory", source)

    store.put(KEY, b"old")
    monkeypatch.setattr(os, "replace", lost)
    store.put(KEY, b"new")
    assert store.get(KEY) == b"new"
    assert len(asked) == 1


def test_a_file_that_was_removed_before_its_rename_is_not_taken_for_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older object of the same size stands there."""
    store, rename = Store(str(tmp_path)), os.replace

    def removed(source: str, target: str) -> None:
        os.unlink(source)
        rename(source, target)

    store.put(KEY, b"old")
    monkeypatch.setattr(os, "replace", removed)
    with pytest.raises(StoppedError, match=r"somebody removed .*/_featlib/\.tmp/") as caught:
        store.put(KEY, b"new")
    assert "\n" not in str(caught.value)
    assert store.get(KEY) == b"old"


def test_readers_see_one_version_or_the_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    versions = [bytes([i]) * 300_000 for i in range(2)]
    store.put(KEY, versions[0])
    stop, written = threading.Event(), list[int]()

    def write() -> None:
        try:
            for i in range(1, 200):
                store.put(KEY, versions[i % 2])
                written.append(i)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        assert store.get(KEY) in versions
    writer.join()
    assert len(written) == 199


def test_puts_and_deletes_of_one_folder_do_not_collide(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    errors: list[BaseException] = []

    def repeat(step: Callable[[int], None]) -> threading.Thread:
        def loop() -> None:
            try:
                for i in range(150):
                    step(i)
            except BaseException as error:
                errors.append(error)
                raise

        return threading.Thread(target=loop)

    threads = [
        repeat(lambda i: store.put("a/b/x", b"x")),
        repeat(lambda i: store.put("a/b/y", b"y")),
        repeat(lambda i: store.delete(["a/b/x", "a/b/y"])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("out/")
    assert store.url == str(tmp_path / "out")
    assert Store(f"file://{tmp_path}/out").url == store.url
    assert Store("s3://b/out/").url == "s3://b/out"


_LOCAL_ONLY = """
import sys
from featlib.storage import Store, list_files, open_media
store = Store(sys.argv[1])
store.put("a", b"x")
store.list("")
open_media(sys.argv[1] + "/a").read()
heavy = {"fsspec", "s3fs", "botocore", "pyarrow", "numpy", "torch", "ray", "av"}
sys.exit(",".join(heavy & set(sys.modules)))
"""


def test_local_files_load_neither_s3fs_nor_arrow(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LOCAL_ONLY, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr.strip() == ""
