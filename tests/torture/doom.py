"""Kill points: this process dies, by SIGKILL, before or after one of its operations on a store."""

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featlib.storage import Store

_BELOW_OUTPUT = re.compile(r".*?(?=_featlib/|features/|outcomes/)")
_OWN = re.compile(r"_featlib/(?:\.tmp|[^/]+/)?")
_BY_CHANCE = re.compile(r"((?:stage/\d+|units|runs)/|drivers/(?=[^/]+\.)).*?(?=\.claim|$)")


def named(verb: str, key: str) -> str:
    """What an operation is called, without what is another in each run: ids of runs and drivers, and folders above
    the output."""
    place = _OWN.sub("", _BELOW_OUTPUT.sub("", key, count=1), count=1)
    return f"{verb} {_BY_CHANCE.sub(lambda match: match[1], place) or '.'}"


@dataclass(frozen=True)
class Point:
    """Where a run dies.

    Args:
        of: An operation, as ``named`` calls it.
        at: How many of that name come before it, whichever thread does them.
        is_after: When it has been done, else when it is about to be.
    """

    of: str
    at: int
    is_after: bool

    @classmethod
    def parse(cls, text: str) -> "Point":
        """Of ``str``."""
        when, *of, at = text.split(" ")
        return cls(" ".join(of), int(at), when == "after")

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} {self.of} {self.at}"

    @property
    def kind(self) -> str:
        """Without what tells one shard, model or piece from another."""
        return str(self).rpartition(" ")[0].partition("/")[0]


def points(operations: Sequence[str]) -> Iterator[Point]:
    """Before and after each operation of a run."""
    seen = Counter[str]()
    for of in operations:
        yield Point(of, seen[of], is_after=False)
        yield Point(of, seen[of], is_after=True)
        seen[of] += 1


class Doom:
    """Counts every mutating or listing operation of every store of this process, and dies at one of them.

    Deleting several objects is an operation an object, and so are each rename within a put to a disk and each folder
    that is removed: a file that is written but not yet renamed is a place to die, too.

    Args:
        point: Where; None: never.
        stopped: A file: instead of dying, the process writes its pid there and stops until it is told to go on.
    """

    def __init__(self, point: Point | None = None, *, stopped: str | None = None) -> None:
        self._point, self._stopped = point, stopped
        self._lock = threading.Lock()
        self.operations: list[str] = []

    def install(self) -> None:
        """For the rest of this process."""
        for name in ("put", "put_file", "list"):
            setattr(Store, name, self._deadly(getattr(Store, name)))
        delete, sweep = Store.delete, Store.sweep_temporary

        def one_by_one(store: Store, keys: Iterable[str]) -> None:
            for key in keys:
                self._do("delete", key, lambda key=key: delete(store, [key]))

        Store.delete = one_by_one  # type: ignore[method-assign]
        Store.sweep_temporary = lambda store: self._do("sweep", "temporary", lambda: sweep(store))  # type: ignore[method-assign, assignment, misc]
        replace, remove_folder = os.replace, os.rmdir
        os.replace = lambda source, target: self._on_disk("rename", target, lambda: replace(source, target))  # type: ignore[assignment]
        os.rmdir = lambda folder, **how: self._on_disk("rmdir", f"{folder}/", lambda: remove_folder(folder, **how))  # type: ignore[assignment]
        # What is cut here is a process, not the power.
        os.fsync = lambda descriptor: None  # type: ignore[assignment]

    def _deadly(self, method: Any) -> Any:
        def call(store: Store, key: str, *rest: Any) -> Any:
            return self._do(method.__name__, key, lambda: method(store, key, *rest))

        return call

    def _on_disk(self, verb: str, path: str, call: Any) -> Any:
        """Of paths elsewhere, as those of temporary files, nothing is counted."""
        return self._do(verb, path, call) if _BELOW_OUTPUT.match(path) else call()

    def _do(self, verb: str, key: str, call: Any) -> Any:
        if key.endswith(".alive"):  # a beat may come at any time
            return call()
        what = named(verb, key)
        with self._lock:
            is_it = self._point is not None and (what, self.operations.count(what)) == (self._point.of, self._point.at)
            self.operations.append(what)
        if is_it and self._point is not None and not self._point.is_after:
            self._end()
        try:
            return call()
        finally:  # a folder that is not empty stays: that is an end, too
            if is_it and self._point is not None and self._point.is_after:
                self._end()

    def _end(self) -> None:
        if self._stopped is None:
            os.kill(os.getpid(), signal.SIGKILL)
            return
        Path(f"{self._stopped}.new").write_text(str(os.getpid()))
        os.rename(f"{self._stopped}.new", self._stopped)
        os.kill(os.getpid(), signal.SIGSTOP)
