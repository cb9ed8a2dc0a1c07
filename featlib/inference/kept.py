"""Compiled networks kept on this machine, in a folder that only its owner can write to.

An entry is machine code that runs in this process. So it is loaded only from a folder and a file that belong to the
user and that nobody else may write to, and only when its bytes have the SHA-256 that was written down beside it.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from featlib.errors import FeatlibError

MOST_BYTES = 4 << 30
"""Of all packages together; beyond it those that were not used for longest go."""

BUILDING = ".build"
"""Ending of a folder in which an entry is made."""

_DAY_S, _HOUR_S = 86_400.0, 3600.0
_PACKAGE, _NOTE, _LOCK, _UNDER_WAY = ".pt2", ".json", ".lock", ".tmp"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NotKeptError(FeatlibError):
    """There is no folder in which compiled networks can be kept safely."""


@dataclass(frozen=True)
class Found:
    """What is known of a network.

    Args:
        path: Its package; None when it is not to be compiled.
        refused: Why it is not.
        is_slow: It is right, but no faster.
    """

    path: Path | None
    refused: str = ""
    is_slow: bool = False


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/featlib/compiled``, by default under ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "featlib" / "compiled"


def is_marked(name: str) -> bool:
    """Whether ``Kept.mark`` was called with ``name``, as far as this user can see; makes no folder."""
    return os.path.exists(default_folder() / f"{name}.mark")  # Path.exists raises where the home cannot be looked into


class Kept:
    """The folder of kept networks.

    Raises:
        NotKeptError: It cannot be made, or somebody else could write to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise NotKeptError(f"{self.folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME") from error
        is_safe = _is_mine(self.folder, stat.S_IFDIR) and all(map(_is_trusted, self.folder.resolve().parents))
        if not is_safe or not os.access(self.folder, os.W_OK):
            raise NotKeptError(
                f"{self.folder} is no folder of this user that others cannot write to; remove it or set XDG_CACHE_HOME"
            )

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Alone with one entry among all processes of this machine; the lock ends with the process that holds it."""
        descriptor = os.open(self.folder / f"{key}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def find(self, key: str) -> Found | None:
        """The entry; None when there is none that can be trusted."""
        package, note = self._path(key, _PACKAGE), self._path(key, _NOTE)
        if not _is_mine(note, stat.S_IFREG):
            return None
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
            if said["key"] != key:
                return None
            if said["refused"]:
                is_over = time.time() > float(said.get("until") or math.inf)
                return None if is_over else Found(None, str(said["refused"]), bool(said.get("is_slow")))
            if not _is_mine(package, stat.S_IFREG) or _sha256(package) != said["sha256"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(note)
        return Found(package)

    def keep(self, key: str, package: Path) -> Path:
        """Takes a package over: whole under its name, or not at all; the note that makes it valid comes last."""
        kept, sha256 = self._path(key, _PACKAGE), _sha256(package)
        package.chmod(0o600)
        os.replace(package, kept)
        self._note(key, {"key": key, "sha256": sha256, "refused": ""})
        with suppress(OSError):  # others tidy up, too
            self._make_room(key)
        return kept

    def refuse(self, key: str, reason: str, *, is_slow: bool = False, for_s: float = math.inf) -> None:
        """Writes down that a network is not to be compiled, so that nobody tries again, or not within ``for_s``."""
        until = None if math.isinf(for_s) else time.time() + for_s
        self._note(key, {"key": key, "sha256": "", "refused": reason, "is_slow": is_slow, "until": until})

    def mark(self, name: str) -> None:
        """Notes that something was kept; of use for a guess what it costs to have it again, and never trusted."""
        (self.folder / f"{name}.mark").touch(mode=0o600)

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / f"{key}{ending}"

    def _note(self, key: str, said: dict[str, object]) -> None:
        descriptor, temporary = mkstemp(dir=self.folder, suffix=_UNDER_WAY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(said, file)
        os.replace(temporary, self._path(key, _NOTE))

    def _make_room(self, key: str) -> None:
        """Removes what was not used for longest, and what killed processes left.

        A process that has loaded an entry keeps it: the file is mapped.
        """
        notes = sorted(self.folder.glob(f"*{_NOTE}"), key=lambda note: note.stat().st_mtime, reverse=True)
        for left in self.folder.glob(f"*{BUILDING}"):
            if _age_s(left) > _DAY_S:
                shutil.rmtree(left, ignore_errors=True)
        # What has no note yet: another process may be about to write it.
        bare = [p for p in self.folder.glob(f"*{_PACKAGE}") if not p.with_suffix(_NOTE).exists()]
        for left in (*bare, *self.folder.glob(f"*{_UNDER_WAY}")):
            if _age_s(left) > _HOUR_S:
                left.unlink(missing_ok=True)
        total = sum(package.stat().st_size for package in bare if package.exists())
        for note in notes:
            package = note.with_suffix(_PACKAGE)
            total += package.stat().st_size if package.exists() else 0
            if total > MOST_BYTES and note.stem != key:
                note.unlink(missing_ok=True)
                package.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _is_mine(path: Path, kind: int) -> bool:
    """Whether it is a thing of that kind, no link, of this user, that nobody else may write to."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_MAY_WRITE


def _is_trusted(folder: Path) -> bool:
    """Whether only this user and root can put other things in the place of what lies in a folder."""
    found = folder.stat()
    is_shared = bool(found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, os.geteuid()) and not is_shared


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
