"""Kill points: this process dies, by SIGKILL, before or after one of its operations on a store."""

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featlib.storage import Store


class Doom:
    """Counts every mutating or listing operation of every store of this process, and dies at one of them.

    Deleting several objects is an operation an object, and so is each rename within a put to a disk: a file that
    is written but not yet renamed is a place to die, too.

    Args:
        at: Number of the operation, from 0; None: never.
        of: Only operations that begin so count for ``at``.
        is_after: Dies when it has been done, else when it is about to be.
        stopped: A file: instead of dying, the process writes its pid there and stops until it is told to go on.
    """

    def __init__(
        self, at: int | None = None, *, of: str = "", is_after: bool = False, stopped: str | None = None
    ) -> None:
        self._at, self._of, self._is_after, self._stopped = at, of, is_after, stopped
        self._lock = threading.Lock()
        self.operations: list[str] = []

    def install(self) -> None:
        """For the rest of this process."""
        for name in ("put", "put_file", "list"):
            setattr(Store, name, self._deadly(getattr(Store, name)))
        delete = Store.delete

        def one_by_one(store: Store, keys: Iterable[str]) -> None:
            for key in keys:
                self._do(f"delete {key}", lambda key=key: delete(store, [key]))

        Store.delete = one_by_one  # type: ignore[method-assign]
        replace = os.replace
        os.replace = lambda source, target: self._do(f"rename {target}", lambda: replace(source, target))  # type: ignore[assignment]
        # What is cut here is a process, not the power.
        os.fsync = lambda descriptor: None  # type: ignore[assignment]

    def _deadly(self, method: Any) -> Any:
        def call(store: Store, key: str, *rest: Any) -> Any:
            return self._do(f"{method.__name__} {key}", lambda: method(store, key, *rest))

        return call

    def _do(self, what: str, call: Any) -> Any:
        if what.endswith(".alive"):  # a beat may come at any time, and would move all numbers behind it
            return call()
        with self._lock:
            number = sum(done.startswith(self._of) for done in self.operations) if what.startswith(self._of) else None
            self.operations.append(what)
        if number is None:
            return call()
        if number == self._at and not self._is_after:
            self._end()
        result = call()
        if number == self._at and self._is_after:
            self._end()
        return result

    def _end(self) -> None:
        if self._stopped is None:
            os.kill(os.getpid(), signal.SIGKILL)
            return
        Path(f"{self._stopped}.new").write_text(str(os.getpid()))
        os.rename(f"{self._stopped}.new", self._stopped)
        os.kill(os.getpid(), signal.SIGSTOP)
