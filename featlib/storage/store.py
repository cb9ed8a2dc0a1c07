"""One output root: whole objects under relative keys, the same on a disk and in an object store."""

import builtins
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, TypeVar, cast

from featlib.errors import ConfigError, StoppedError
from featlib.redaction import redact
from featlib.storage import local, s3
from featlib.storage.files import remote_file
from featlib.storage.objects import DEFAULT_OPTIONS, ObjectInfo, StoreOptions
from featlib.storage.retry import retrying
from featlib.storage.urls import check_url, is_s3

T = TypeVar("T")

TEMPORARY_KEY = "_featlib/.tmp"
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


def check_key(key: str) -> str:
    """A key that stays below its root in every store.

    Raises:
        ConfigError: It is empty, starts with ``/``, has an empty part, ``.`` or ``..``, a backslash or control
            characters, a part above 255 bytes, or 1024 bytes in all.
    """
    parts = key.split("/")
    if _FORBIDDEN.search(key) or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"key {key!r}: names a place below the output only, with parts that are not empty, . or ..")
    encoded = key.encode("utf-8", "replace")
    if len(encoded) > 1024 or any(len(part) > 255 for part in encoded.split(b"/")):
        raise ConfigError(f"key {key[:80]!r}…: at most 255 bytes between slashes and 1024 in all")
    return key


class Store:
    """The objects below one folder or prefix; cheap to make and to pickle.

    Every operation is repeated while the store gives no proper answer, then raises ``TransientError``. What no
    repetition mends (no space left) is a ``StoppedError``, and missing rights are a ``ConfigError``.
    """

    def __init__(self, url: str, options: StoreOptions = DEFAULT_OPTIONS) -> None:
        checked = check_url(url)
        if "::" in checked:  # fsspec, by which tables are read elsewhere, would take it for two
            raise ConfigError(f"{redact(url)!r}: an output with '::' in its name is read by few; take another")
        self.is_local = not is_s3(checked)
        self.url = (os.path.abspath(checked) if self.is_local else checked).rstrip("/") or "/"
        self.options = options

    def __repr__(self) -> str:
        return f"Store({redact(self.url)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Puts a whole object, over an old one if there is one; nobody ever sees a part of it."""
        path = self._path(key)
        if self.is_local:
            self._local("write", path, lambda: local.put(path, data, self._path(TEMPORARY_KEY)))
        else:
            self._remote("write", path, lambda: s3.put(path, data, self.options))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """The same with the bytes of a local file, which stays."""
        target, source = self._path(key), os.fspath(path)
        if self.is_local:
            self._local("write", target, lambda: local.put_file(target, source, self._path(TEMPORARY_KEY)))
        else:
            with builtins.open(source, "rb") as file:
                self.put(key, file.read())

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: There is no such object.
        """
        path = self._path(key)
        if not self.is_local:
            return self._remote("read", path, lambda: s3.get(path, self.options))
        return self._local("read", path, lambda: _read_file(path))

    def open(self, key: str) -> BinaryIO:
        """The object as a seekable file, read in ranges.

        Raises:
            FileNotFoundError: There is no such object.
        """
        path = self._path(key)
        if self.is_local:
            return self._local("read", path, lambda: cast(BinaryIO, builtins.open(path, "rb")))
        info = self._remote("read", path, lambda: s3.head(path, self.options))
        return cast(BinaryIO, remote_file(info, self.options))

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, time and etag; None when there is no such object."""
        path = self._path(key)
        try:
            if self.is_local:
                info = local.info_of(key, self._local("look up", path, lambda: os.stat(path)))
                return None if os.path.isdir(path) else info
            found = self._remote("look up", path, lambda: s3.head(path, self.options))
        except FileNotFoundError:
            return None
        return ObjectInfo(key, found.size, found.modified, found.etag)

    def list(self, prefix: str) -> list[ObjectInfo]:
        """All objects below the folder ``prefix`` (``""``: the root), asked afresh, sorted by key.

        The way to ``prefix`` may lead over links; folders below it that are links are left out.
        """
        folder = self._path(prefix.rstrip("/")) if prefix.rstrip("/") else self.url
        if self.is_local:
            found = self._local("list", folder, lambda: list(local.walk(folder, hidden=True, follow_links=False)))
        else:
            found = self._remote("list", folder, lambda: list(s3.listing(folder + "/", self.options)))
        start = len(self.url.rstrip("/")) + 1
        keyed = [ObjectInfo(info.key[start:], info.size, info.modified, info.etag) for info in found]
        return sorted((i for i in keyed if not i.key.startswith(TEMPORARY_KEY + "/")), key=lambda info: info.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error. Folders left empty go too.

        Raises:
            ConfigError: A link below the root leads to one of them; then none is removed.
        """
        paths = [self._path(key) for key in keys]
        if self.is_local:
            self._local("delete below", self.url, lambda: local.delete(paths, self.url))
        elif paths:
            self._remote("delete below", self.url, lambda: s3.delete(paths, self.options))

    def sweep_temporary(self, older_than_s: float = 86_400.0) -> None:
        """Removes what processes killed in the middle of a local put left behind; S3 puts leave nothing."""
        if self.is_local:
            self._local("sweep", self.url, lambda: local.sweep(self._path(TEMPORARY_KEY), self.url, older_than_s))

    def arrow(self) -> tuple[Any, str]:
        """A picklable ``pyarrow.fs.FileSystem`` without keys in it, and the path of the root in it."""
        if not self.is_local:
            return s3.arrow_filesystem(self.url, self.options)
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.url

    def _path(self, key: str) -> str:
        return f"{self.url.rstrip('/')}/{check_key(key)}"

    def _local(self, verb: str, path: str, call: Callable[[], T]) -> T:
        try:
            return retrying(f"{verb} {path}", call, deadline_s=self.options.deadline_s)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise ConfigError(f"cannot {verb} {path}: permission denied; change its rights or take another") from error
        except OSError as error:
            raise StoppedError(f"cannot {verb} {path}: {error.strerror or error}") from error

    def _remote(self, verb: str, url: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except PermissionError as error:
            raise ConfigError(
                f"cannot {verb} {redact(url)}: permission denied; check the AWS credentials and their rights"
            ) from error


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
