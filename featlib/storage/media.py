"""Media and manifests wherever they lie: open, look up, list, read, write."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from featlib.errors import ConfigError, MediaError, StoppedError, TransientError
from featlib.redaction import redact
from featlib.storage import local, s3
from featlib.storage.files import RangeFile, local_file, remote_file
from featlib.storage.objects import DEFAULT_OPTIONS, ObjectInfo, StoreOptions
from featlib.storage.retry import retrying
from featlib.storage.urls import check_url, is_s3, split_s3

MediaFile = RangeFile
T = TypeVar("T")

_MAGIC = re.compile(r"[*?[]")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def open_media(uri: str, options: StoreOptions = DEFAULT_OPTIONS) -> MediaFile:
    """The bytes of one media item: seekable and nameless, with ``size`` and ``etag``.

    Raises:
        MediaError: not_found, not_a_file, permission_denied or empty_file; while reading: corrupt, when the object
            was replaced.
        TransientError: The store did not answer within the deadline; also raised while reading.
    """
    url = _checked_media(uri)
    if is_s3(url):
        info = stat_media(url, options)
        if info.size == 0:
            raise MediaError("empty_file", f"{redact(url)}: no bytes")
        file = remote_file(info, options)
    else:
        file = _in_media_words(url, lambda: _open_local(url, options))
    return RangeFile(
        lambda start, stop: _in_media_words(url, lambda: _read_at(file, start, stop)),
        file.size,
        file.etag,
        file.close,
        file.expect,
    )


def stat_media(uri: str, options: StoreOptions = DEFAULT_OPTIONS) -> ObjectInfo:
    """Size and etag of one media item, under its whole path or URL.

    Raises:
        MediaError: not_found, not_a_file or permission_denied.
        TransientError: The store did not answer within the deadline.
    """
    url = _checked_media(uri)
    if is_s3(url):
        return _in_media_words(url, lambda: s3.head(url, options))
    status = _in_media_words(
        url, lambda: retrying(f"look up {url}", lambda: os.stat(url), deadline_s=options.deadline_s)
    )
    _require_regular(url, status)
    return local.info_of(url, status)


def _checked_media(uri: str) -> str:
    try:
        url = check_url(uri)
    except ConfigError as error:
        raise MediaError("not_found", str(error)) from error
    if is_s3(url) and (url.endswith("/") or not split_s3(url)[1]):
        raise MediaError("not_a_file", f"{redact(url)}: a prefix, not an object")
    return url


def _open_local(path: str, options: StoreOptions) -> RangeFile:
    def open_once() -> int:
        _require_regular(path, os.stat(path))  # opening a device or a pipe may already do something
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    descriptor = retrying(f"open {path}", open_once, deadline_s=options.deadline_s)
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        if status.st_size == 0:
            raise MediaError("empty_file", f"{path}: no bytes")
    except BaseException:
        os.close(descriptor)
        raise
    return local_file(descriptor, local.info_of(path, status), options)


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
        raise MediaError("not_a_file", f"{path}: {kind}, not a file")


def _read_at(file: RangeFile, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _in_media_words(url: str, call: Callable[[], T]) -> T:
    """Turns what concerns this one item into MediaError; TransientError passes."""
    where = redact(url)
    try:
        return call()
    except PermissionError:
        raise MediaError("permission_denied", f"{where}: permission denied") from None
    except FileNotFoundError:
        raise MediaError("not_found", f"{where}: no such object") from None
    except s3.StaleObjectError:
        raise MediaError("corrupt", f"{where}: was replaced while it was read", retryable=True) from None
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise MediaError("not_found", f"{where}: {error.strerror}") from None
        raise MediaError("store_unavailable", f"{where}: {error.strerror or error}", retryable=True) from error
    except TransientError:
        raise
    except StoppedError as error:
        raise MediaError("store_unavailable", str(error)) from error
    except s3.NoBucketError:
        raise MediaError("not_found", f"{where}: no such bucket") from None


def read_bytes(url: str, options: StoreOptions = DEFAULT_OPTIONS) -> bytes:
    """A whole file or object.

    Raises:
        MediaError: As ``open_media``, but an empty file is empty bytes.
        TransientError: The store did not answer within the deadline.
    """
    try:
        with open_media(url, options) as file:
            return file.read()
    except MediaError as error:
        if error.error_class == "empty_file":
            return b""
        raise


def list_files(url_or_glob: str, options: StoreOptions = DEFAULT_OPTIONS) -> Iterator[ObjectInfo]:
    """Files below a folder or prefix (all levels), fitting a glob, or the one file named; keys are whole paths.

    Sorted by path and given while the listing still goes on. Names below the folder that start with a dot are left
    out. In globs ``*`` and ``?`` stay within a level and ``**/`` is any number of levels.

    Raises:
        ConfigError: There is no such bucket, or a folder may not be read.
        TransientError: The store did not answer within the deadline.
    """
    url = check_url(url_or_glob)
    if not is_s3(url):
        url = os.path.abspath(url) + ("/" if url.endswith("/") and url.strip("/") else "")
    if not url.endswith("/"):
        single = _single(url, options)
        if single is not None:
            yield single
            return
    magic = None if not is_s3(url) and os.path.isdir(url) else _MAGIC.search(url)
    folder = url[: url.rindex("/", 0, magic.start())] if magic else url.rstrip("/")
    pattern = url[len(folder) + 1 :] if magic else "**"
    if not is_s3(url):
        yield from _local_files(folder, pattern)
        return
    matches = local.glob_pattern(pattern).fullmatch
    for info in s3.listing(_with_literal_start(folder, pattern), options):
        below = info.key[len(folder) + 1 :]
        if matches(below) and not below.startswith(".") and "/." not in below:
            yield info


def _local_files(folder: str, pattern: str) -> Iterator[ObjectInfo]:
    levels = None if "**" in pattern else pattern.count("/") + 1
    matches = local.glob_pattern(pattern).fullmatch
    try:
        yield from local.walk(folder, hidden=False, max_depth=levels, matches=lambda path: bool(matches(path)))
    except OSError as error:
        raise StoppedError(f"cannot list {folder}: {error.strerror or error}") from error


def _with_literal_start(folder: str, pattern: str) -> str:
    magic = _MAGIC.search(pattern)
    return f"{folder}/{pattern[: magic.start()] if magic else pattern}"


def _single(url: str, options: StoreOptions) -> ObjectInfo | None:
    try:
        return stat_media(url, options)
    except MediaError as error:
        if error.error_class == "permission_denied":
            raise ConfigError(f"{redact(url)}: permission denied; check the rights or the AWS credentials") from error
        return None


def write_file(url: str, path: str | os.PathLike[str], options: StoreOptions = DEFAULT_OPTIONS) -> None:
    """Puts the bytes of the local file ``path`` at ``url``, whole or not at all, over an old file.

    Raises:
        ConfigError: Missing rights, or no such bucket.
        StoppedError: No space left.
        TransientError: The store did not answer within the deadline.
    """
    from featlib.storage.store import Store

    checked = check_url(url)
    if is_s3(checked):
        folder, _, name = checked.rpartition("/")
        Store(folder, options).put_file(name, path)
        return
    target = os.path.abspath(checked)
    try:
        local.put_file(target, os.fspath(path), os.path.dirname(target))
    except PermissionError as error:
        raise ConfigError(f"cannot write {target}: permission denied; change its rights or take another") from error
    except OSError as error:
        raise StoppedError(f"cannot write {target}: {error.strerror or error}") from error
