"""Objects as files of a local or mounted file system; a file is put whole or not at all."""

import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import BinaryIO, TypeVar

from featlib.errors import ConfigError, StoppedError
from featlib.storage.objects import ObjectInfo

_T = TypeVar("_T")
_PUT_TRIES = 20  # each loses only to a deletion of the same empty folder at the same moment


def info_of(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, status.st_mtime, f"{status.st_mtime_ns}-{status.st_size}")


def put(path: str, data: bytes | memoryview, temporary_folder: str) -> None:
    """Writes ``data`` whole: first a synced file in ``temporary_folder`` (same file system), then one rename."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    _put_with(path, write, temporary_folder)


def put_file(path: str, source: str, temporary_folder: str) -> None:
    """The same with the bytes of the file ``source``, which stays."""

    def write(file: BinaryIO) -> None:
        with open(source, "rb") as opened:
            shutil.copyfileobj(opened, file, 1 << 20)

    _put_with(path, write, temporary_folder)


def _put_with(path: str, write: Callable[[BinaryIO], None], temporary_folder: str) -> None:
    temporary = os.path.join(temporary_folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with _in_folder(temporary_folder, lambda: open(temporary, "xb")) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            written = os.fstat(file.fileno())
        _in_folder(os.path.dirname(path), lambda: _rename(temporary, path, written))
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def _rename(temporary: str, path: str, written: os.stat_result) -> None:
    """A mount whose server's reply is lost asks again, and is told that there is no such file: it is renamed."""
    try:
        os.replace(temporary, path)
    except FileNotFoundError:
        if os.path.lexists(temporary):  # then it is the folder that is gone
            raise
        with suppress(OSError), open(path, "rb") as file:  # opened, since a mount may still show an older one
            if os.path.samestat(os.fstat(file.fileno()), written):
                return
        raise StoppedError(
            f"cannot write {path}: somebody removed {temporary} meanwhile; run the same command again"
        ) from None


def _in_folder(folder: str, step: Callable[[], _T]) -> _T:
    """Does ``step`` with ``folder`` there; others may remove it, or one above it, at any moment while it is empty."""
    for _ in range(_PUT_TRIES - 1):
        with suppress(FileNotFoundError, FileExistsError):  # makedirs says the latter when it loses in between
            os.makedirs(folder, exist_ok=True)
            return step()
    os.makedirs(folder, exist_ok=True)
    return step()


def _sync_folder(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # deleted by another process since: then so is the object
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(paths: Sequence[str], root: str) -> None:
    """Removes files, and the folders below ``root`` that this leaves empty.

    Raises:
        ConfigError: One lies behind a link below ``root``, perhaps among somebody's other files; none is removed.
    """
    folders = set()
    for folder in sorted({os.path.dirname(path) for path in paths}):
        if _is_behind_link(folder, root):
            raise ConfigError(
                f"{folder}: a link leads there, and behind links below {root} nothing is removed; put the folder "
                "itself in place of the link, or remove the link"
            )
    for path in paths:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        folders.add(os.path.dirname(path))
    for folder in sorted(folders, key=len, reverse=True):
        _remove_empty(folder, root)


def _remove_empty(folder: str, root: str) -> None:
    while folder.startswith(root.rstrip("/") + "/"):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:  # not empty, or in use
            return
        folder = os.path.dirname(folder)


def _is_behind_link(folder: str, root: str) -> bool:
    """Whether a link below ``root``, which itself may be one, leads to ``folder``."""
    root = root.rstrip("/")
    return os.path.realpath(folder) != os.path.realpath(root or "/").rstrip("/") + folder.removeprefix(root)


def sweep(temporary_folder: str, root: str, older_than_s: float) -> None:
    """Removes what killed processes left in ``temporary_folder``, unless a link below ``root`` leads there."""
    before = time.time() - older_than_s
    if _is_behind_link(temporary_folder, root):
        return
    for info in walk(temporary_folder, hidden=True, follow_links=False):
        if info.modified < before:
            delete([info.key], os.path.dirname(temporary_folder))


def walk(
    folder: str,
    *,
    hidden: bool,
    max_depth: int | None = None,
    matches: Callable[[str], bool] | None = None,
    follow_links: bool = True,
) -> Iterator[ObjectInfo]:
    """Every file below ``folder``, in the order of its path; a missing folder has none.

    Args:
        folder: Keys are this and the path below it.
        hidden: Also names that start with a dot.
        max_depth: Levels to look at; None: all.
        matches: Asked with the path below ``folder``, so that only fitting files cost a stat.
        follow_links: Also into folders that are links; ``folder`` itself may be one in any case.

    Raises:
        ConfigError: A folder may not be read.
    """
    entries = partial(_entries, hidden=hidden, follow_links=follow_links)
    yield from _walk(folder.rstrip("/"), "", entries, max_depth, matches or (lambda _: True), ())


def _walk(
    root: str,
    below: str,
    entries: Callable[[str], list[tuple[str, bool]]],
    levels: int | None,
    matches: Callable[[str], bool],
    above: tuple[tuple[int, int], ...],
) -> Iterator[ObjectInfo]:
    for name, is_folder in entries(f"{root}/{below}"):
        path = f"{root}/{below}{name}"
        if not is_folder:
            if matches(below + name):
                yield from _file(path)
        elif levels is None or levels > 1:
            identity = _identity(path)
            if identity is not None and identity not in above:  # a link to a folder above would never end
                deeper = None if levels is None else levels - 1
                yield from _walk(root, f"{below}{name}", entries, deeper, matches, (*above, identity))


def _entries(folder: str, *, hidden: bool, follow_links: bool) -> list[tuple[str, bool]]:
    """Names in a folder, folders with a closing ``/`` so that sorting gives the order of whole paths."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (f"{e.name}/", True) if e.is_dir(follow_symlinks=follow_links) else (e.name, False) for e in entries
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise _unreadable(folder) from None
    return sorted(entry for entry in found if hidden or not entry[0].startswith("."))


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise _unreadable(folder) from None
    return status.st_dev, status.st_ino


def _file(path: str) -> Iterator[ObjectInfo]:
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):  # dangling: listed, so that it becomes an outcome instead of nothing
            yield ObjectInfo(path, 0, 0.0, None)
        elif isinstance(error, PermissionError):  # names may be read there, and nothing else
            raise _unreadable(os.path.dirname(path)) from None
        elif not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        return
    if stat.S_ISREG(status.st_mode):
        yield info_of(path, status)


def _unreadable(folder: str) -> ConfigError:
    return ConfigError(f"{folder}: this folder may not be read; change its rights or leave it out")


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: ``*`` and ``?`` stay within a level, ``**/`` is any number of levels."""
    out, i = "", 0
    while i < len(pattern):
        char = pattern[i]
        closing = pattern.find("]", i + 2) if char == "[" else -1
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif closing > 0:
            inside = pattern[i + 1 : closing].replace("\\", r"\\")
            out, i = out + f"[{'^' + inside[1:] if inside.startswith('!') else inside}]", closing + 1
        else:
            out, i = out + {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)), i + 1
    return re.compile(out, re.DOTALL)
