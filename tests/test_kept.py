"""What is kept is loaded only when it is whole and nobody else can have written it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featlib.inference import kept as module
from featlib.inference.kept import Found, Kept, NotKeptError


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "cache" / "compiled")


def package(kept: Kept, content: bytes = b"machine code") -> Path:
    path = kept.folder / "made.tmp"
    path.write_bytes(content)
    return path


def test_what_was_kept_is_found(kept: Kept) -> None:
    assert kept.find("k") is None
    path = kept.keep("k", package(kept))
    assert kept.find("k") == Found(path)
    assert path.read_bytes() == b"machine code"


def test_a_refusal_is_found_too(kept: Kept) -> None:
    kept.refuse("k", "no faster")
    assert kept.find("k") == Found(None, "no faster")


def test_a_refusal_may_be_for_slowness_or_for_a_while(kept: Kept) -> None:
    kept.refuse("slow", "no faster", is_slow=True)
    assert kept.find("slow") == Found(None, "no faster", is_slow=True)
    kept.refuse("now", "no compiler", for_s=3600)
    assert kept.find("now") == Found(None, "no compiler")
    kept.refuse("then", "no compiler", for_s=-1)
    assert kept.find("then") is None


def test_a_folder_in_one_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(NotKeptError, match="others cannot write to"):
        Kept(parent / "featlib" / "compiled")
    parent.chmod(0o1777)
    assert Kept(parent / "featlib" / "compiled").find("k") is None


def test_other_bytes_than_were_kept_are_not_trusted(kept: Kept) -> None:
    path = kept.keep("k", package(kept))
    path.write_bytes(b"machine cod3")
    assert kept.find("k") is None


def test_an_entry_under_the_name_of_another_is_not_trusted(kept: Kept) -> None:
    kept.keep("a", package(kept))
    for ending in (".pt2", ".json"):
        os.rename(kept.folder / f"a{ending}", kept.folder / f"b{ending}")
    assert kept.find("b") is None


@pytest.mark.parametrize("name", ["k.pt2", "k.json"])
def test_a_file_that_others_may_write_is_not_trusted(kept: Kept, name: str) -> None:
    kept.keep("k", package(kept))
    (kept.folder / name).chmod(0o666)
    assert kept.find("k") is None


@pytest.mark.parametrize("name", ["k.pt2", "k.json"])
def test_a_link_is_not_trusted(kept: Kept, name: str) -> None:
    kept.keep("k", package(kept))
    path = kept.folder / name
    path.rename(kept.folder / "elsewhere")
    path.symlink_to(kept.folder / "elsewhere")
    assert kept.find("k") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "refused": "", "sha256": 1}'])
def test_a_torn_note_is_no_entry(kept: Kept, text: str) -> None:
    kept.keep("k", package(kept))
    (kept.folder / "k.json").write_text(text)
    assert kept.find("k") is None


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(NotKeptError, match="others cannot write to"):
        Kept(folder)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "compiled").symlink_to(tmp_path / "real")
    with pytest.raises(NotKeptError):
        Kept(tmp_path / "compiled")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotKeptError, match="set XDG_CACHE_HOME"):
        Kept(tmp_path / "file" / "compiled")


def test_one_at_a_time_also_when_the_other_is_killed(kept: Kept) -> None:
    """A process that holds the lock keeps others out, and its death lets them in."""
    script = (
        "import sys, time; from pathlib import Path; sys.path.append(sys.argv[2]); from kept import Kept\n"
        "with Kept(Path(sys.argv[1])).locked('k'):\n    print('in', flush=True); time.sleep(600)"
    )
    beside = Path(module.__file__).parent  # imported alone, without the networks of its package
    command = [sys.executable, "-c", script, str(kept.folder), str(beside)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with open(kept.folder / "k.lock", "rb") as lock, pytest.raises(BlockingIOError):
            module.fcntl.flock(lock, module.fcntl.LOCK_EX | module.fcntl.LOCK_NB)
        other.kill()
        with kept.locked("k"):
            pass


def test_room_is_made_by_what_was_not_used_for_longest(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 350)
    for i, key in enumerate("abc"):
        kept.keep(key, package(kept, bytes(100)))
        os.utime(kept.folder / f"{key}.json", (i, i))
    assert kept.find("a") is not None  # used: now the newest
    for name, age_s in (("old.build", 1e6), ("young.build", 0)):
        (kept.folder / name).mkdir()
        os.utime(kept.folder / name, (time.time() - age_s,) * 2)
    kept.keep("d", package(kept, bytes(100)))
    assert [path.name for path in kept.folder.glob("*.build")] == ["young.build"]
    assert [key for key in "abcd" if kept.find(key)] == ["a", "c", "d"]


def test_what_killed_processes_left_goes_and_what_is_being_written_counts(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 350)
    kept.keep("a", package(kept, bytes(100)))
    os.utime(kept.folder / "a.json", (1, 1))
    for name, age_s in (("old.pt2", 4000), ("young.pt2", 3000), ("old.tmp", 4000), ("young.tmp", 3000)):
        (kept.folder / name).write_bytes(bytes(100))
        os.utime(kept.folder / name, (time.time() - age_s,) * 2)
    kept.keep("b", package(kept, bytes(100)))
    assert kept.find("a") is not None, "300 bytes: the old package without a note is not among them"
    left = {path.name for path in kept.folder.iterdir()}
    assert left == {"a.pt2", "a.json", "b.pt2", "b.json", "young.pt2", "young.tmp"}
    os.utime(kept.folder / "a.json", (1, 1))
    kept.keep("c", package(kept, bytes(100)))
    assert [key for key in "abc" if kept.find(key)] == ["b", "c"], "the young one counts"


def test_a_home_that_cannot_be_looked_into_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /root for another user; root itself may look into everything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Kept().mark("m")
    assert module.is_marked("m")
    plain_stat = os.stat

    def refused(path: str | Path, **settings: bool) -> os.stat_result:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return plain_stat(path, **settings)

    monkeypatch.setattr(os, "stat", refused)
    assert not module.is_marked("m")


def test_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not module.is_marked("m")
    assert not list(tmp_path.iterdir())
    Kept().mark("m")
    assert module.is_marked("m")
