"""Opening, looking up and listing media, on a disk and in S3 alike."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featlib.errors import ConfigError, MediaError
from featlib.storage import RangeFile, Store, list_files, open_media, read_bytes, s3, stat_media, write_file
from tests.servers.swift import SwiftServer


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "videos"))
    return Store(f"s3://{request.getfixturevalue('s3_env').bucket()}/videos")


def error_class(call: Callable[[], object]) -> str:
    with pytest.raises(MediaError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.error_class


def listed(store: Store, pattern: str) -> list[str]:
    return [info.key.removeprefix(store.url + "/") for info in list_files(f"{store.url}/{pattern}")]


def test_reads_and_seeks_agree_with_the_bytes(store: Store) -> None:
    data = os.urandom(3 * (1 << 20) + 17)
    store.put("a.mp4", data)
    with open_media(f"{store.url}/a.mp4") as file:
        assert file.size == len(data)
        assert file.etag
        assert not hasattr(file, "name")
        assert file.read(100) == data[:100]
        assert file.tell() == 100
        file.seek(-50, os.SEEK_END)
        assert file.read() == data[-50:]
        assert file.read(10) == b""
        file.seek(5, os.SEEK_SET)
        file.seek(10, os.SEEK_CUR)
        buffer = bytearray(1 << 21)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == data[15 : 15 + len(buffer)]
        file.seek(10**9)
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="seek"):
            file.seek(-1)
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    assert read_bytes(f"{store.url}/a.mp4") == data


def test_etags_agree_and_change_with_the_content(store: Store) -> None:
    url = f"{store.url}/a.mp4"
    store.put("a.mp4", b"one")
    first = stat_media(url)
    assert (first.key, first.size) == (url, 3)
    assert first.etag == open_media(url).etag == next(list_files(url)).etag
    store.put("a.mp4", b"two!")
    assert stat_media(url).etag != first.etag


def test_what_cannot_be_opened_says_why(store: Store) -> None:
    store.put("folder.mp4/a.mp4", b"x")
    store.put("empty.mp4", b"")
    assert error_class(lambda: open_media(f"{store.url}/nothing.mp4")) == "not_found"
    assert error_class(lambda: stat_media(f"{store.url}/nothing.mp4")) == "not_found"
    assert error_class(lambda: open_media(f"{store.url}/empty.mp4")) == "empty_file"
    assert error_class(lambda: open_media(f"{store.url}/folder.mp4/")) == "not_a_file"
    assert error_class(lambda: open_media("https://host/a.mp4")) == "not_found"
    assert read_bytes(f"{store.url}/empty.mp4") == b""


def test_local_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.mp4"))
        for name in ("folder.mp4", "pipe.mp4", "s.mp4"):
            assert error_class(lambda name=name: open_media(f"{tmp_path}/{name}")) == "not_a_file"
    assert error_class(lambda: open_media("/dev/zero")) == "not_a_file"
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name in ("loop.mp4", "a.mp4/b.mp4", "x" * 300):
        assert error_class(lambda name=name: open_media(f"{tmp_path}/{name}")) == "not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.mp4").chmod(0)
    assert error_class(lambda: open_media(f"{tmp_path}/a.mp4")) == "permission_denied"


def test_open_descriptors_are_given_back(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "empty.mp4").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_media(f"{tmp_path}/a.mp4").close()
        error_class(lambda: open_media(f"{tmp_path}/empty.mp4"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_that_the_kernel_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives at most 2 GiB at once; here it is 1000 bytes."""
    data = os.urandom(4567)
    (tmp_path / "large.bin").write_bytes(data)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, start: pread(descriptor, min(size, 1000), start))
    assert read_bytes(str(tmp_path / "large.bin")) == data
    with open_media(str(tmp_path / "large.bin")) as file:
        file.seek(100)
        assert file.read(3000) == data[100:3100]
        assert file.read(10_000) == data[3100:]
        assert file.read() == b""


@pytest.mark.s3
@pytest.mark.parametrize("heeds", [True, False], ids=["If-Match", "no If-Match"])
def test_an_object_replaced_while_it_is_read_is_noticed(
    s3_env: SwiftServer, monkeypatch: pytest.MonkeyPatch, *, heeds: bool
) -> None:
    """Also by a store that heeds no conditions, as if it had not been told of any."""
    read_body = s3._read_body

    async def heedless(client: Any, request: dict[str, Any]) -> Any:
        return await read_body(client, {name: value for name, value in request.items() if name != "IfMatch"})

    if not heeds:
        monkeypatch.setattr(s3, "_read_body", heedless)
    store = Store(f"s3://{s3_env.bucket()}")
    store.put("a.mp4", os.urandom(4 << 20))
    with open_media(f"{store.url}/a.mp4") as file:
        file.read(10)
        store.put("a.mp4", os.urandom(4 << 20))
        file.seek((3 << 20) + 5)
        with pytest.raises(MediaError, match="replaced") as caught:
            file.read(10)
    assert caught.value.retryable


def _failing_stat(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError, times: int) -> None:
    real, left = os.stat, [error] * times

    def stat(path: Any, *args: Any, **keys: Any) -> os.stat_result:
        if str(path).endswith(name) and left:
            raise left.pop()
        return real(path, *args, **keys)

    monkeypatch.setattr(os, "stat", stat)


def test_a_file_that_a_disk_cannot_show_now_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, a claim or a plan would be missing that stands."""
    store = Store(str(tmp_path))
    store.put("a/x", b"x")
    store.put("a/y", b"y")
    _failing_stat(monkeypatch, "/x", OSError(errno.ESTALE, "Stale file handle"), 1)
    assert [info.key for info in store.list("a")] == ["a/x", "a/y"]


@pytest.mark.parametrize("name", ["/sub/a.mp4", "/sub/more/"])
def test_a_folder_of_names_that_may_not_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It may be read, but not entered: its media would be missing without a word."""
    Store(str(tmp_path)).put("sub/a.mp4", b"x")
    Store(str(tmp_path)).put("sub/more/b.mp4", b"x")
    _failing_stat(monkeypatch, name, PermissionError(errno.EACCES, "Permission denied"), 9)
    with pytest.raises(ConfigError, match=r"/sub.*: this folder may not be read"):
        list(list_files(str(tmp_path)))


def test_folders_are_listed_at_all_levels_in_order(store: Store) -> None:
    names = ["b.mp4", "a/x.mp4", "a.mp4", "a/y/z.avi", "a-b/x.mp4", ".hidden.mp4", ".git/x.mp4", "a/.cache/x.mp4"]
    for name in names:
        store.put(name, b"x")
    visible = sorted(name for name in names if not name.startswith(".") and "/." not in name)
    assert listed(store, "") == visible
    assert [info.key for info in list_files(store.url)] == [f"{store.url}/{name}" for name in visible]
    assert listed(store, "a") == listed(store, "a/") == ["a/x.mp4", "a/y/z.avi"]
    assert listed(store, "a.mp4") == ["a.mp4"]
    assert listed(store, "nothing") == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.mp4", ["v1.mp4", "v2.mp4"]),
        ("*/*.mp4", ["a/v3.mp4"]),
        ("**/*.mp4", ["a/b/v4.mp4", "a/v3.mp4", "v1.mp4", "v2.mp4"]),
        ("a/**", ["a/b/v4.mp4", "a/c.txt", "a/v3.mp4"]),
        ("v?.mp4", ["v1.mp4", "v2.mp4"]),
        ("v[!1].mp4", ["v2.mp4"]),
        ("v[1-2].mp4", ["v1.mp4", "v2.mp4"]),
        ("a/b/v[4].mp4", ["a/b/v4.mp4"]),
        ("z*", []),
    ],
)
def test_globs(pattern: str, found: list[str], tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("v1.mp4", "v2.mp4", "a/v3.mp4", "a/b/v4.mp4", "a/c.txt", ".v9.mp4"):
        store.put(name, b"x")
    assert listed(store, pattern) == found


@pytest.mark.s3
def test_globs_in_s3_and_names_that_look_like_globs(s3_env) -> None:  # type: ignore[no-untyped-def]
    store = Store(f"s3://{s3_env.bucket()}")
    for name in ("v1.mp4", "a/v3.mp4", "a/b/v4.mp4", "v[1].mp4"):
        store.put(name, b"x")
    assert listed(store, "**/*.mp4") == ["a/b/v4.mp4", "a/v3.mp4", "v1.mp4", "v[1].mp4"]
    assert listed(store, "*/v?.mp4") == ["a/v3.mp4"]
    assert listed(store, "v[1].mp4") == ["v[1].mp4"]


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "videos [2024]"))
    store.put("a/b.mp4", b"x")
    assert listed(store, "") == ["a/b.mp4"]
    assert listed(store, "a") == ["a/b.mp4"]


def test_links_are_followed_once_and_dangling_ones_listed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.mp4").write_bytes(b"x")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(".")
    (root / "gone.mp4").symlink_to("nothing")
    os.mkfifo(root / "pipe.mp4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "y.mp4").write_bytes(b"yy")
    (root / "b").symlink_to(tmp_path / "other")
    found = [(info.key.removeprefix(f"{root}/"), info.size) for info in list_files(str(root))]
    assert ("a/x.mp4", 1) in found
    assert ("b/y.mp4", 2) in found
    assert ("gone.mp4", 0) in found
    assert not any("pipe" in name for name, _ in found)
    assert not any(name.count("up/") > 1 or name.count("self/") > 1 for name, _ in found)


@pytest.mark.s3
def test_big_prefixes_are_listed_page_by_page(s3_env, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from featlib.storage import s3

    store = Store(f"s3://{s3_env.bucket()}")
    for i in range(7):
        store.put(f"k{i}", b"x")
    calls: list[dict[str, object]] = []
    real = s3._call

    def small_pages(*args, **request):  # type: ignore[no-untyped-def]
        calls.append(request)
        return real(*args, **request, MaxKeys=3)

    monkeypatch.setattr(s3, "_call", small_pages)
    pages = s3.listing(store.url + "/", store.options)
    assert next(pages).key.endswith("/k0")
    assert len(calls) == 1
    assert [info.key[-2:] for info in pages] == [f"k{i}" for i in range(1, 7)]
    assert len(calls) == 3


@pytest.mark.s3
def test_missing_buckets_are_the_users_mistake(s3_env) -> None:  # type: ignore[no-untyped-def]
    gone = Store("s3://no-such-bucket-here/out")
    for call in (lambda: gone.list(""), lambda: gone.put("a", b"x"), lambda: list(list_files(gone.url))):
        with pytest.raises(ConfigError, match="no bucket"):
            call()
    assert error_class(lambda: open_media(f"{gone.url}/a.mp4")) == "not_found"


def test_write_file_replaces_and_leaves_nothing_beside_it(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for content in (b"one", b"two!"):
        source.write_bytes(content)
        write_file(f"{store.url}/m/out.csv", source)
        assert store.get("m/out.csv") == content
    assert listed(store, "m") == ["m/out.csv"]
    if store.is_local:
        assert os.listdir(f"{store.url}/m") == ["out.csv"]


def test_a_range_file_ends_where_the_source_does() -> None:
    data = bytes(range(100))
    file = RangeFile(lambda start, stop: data[start : min(stop, 60)], 100, None)
    assert file.read(50) == data[:50]
    assert file.read(50) == data[50:60]
