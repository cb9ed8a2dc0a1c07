"""Kill points: this process dies, by SIGKILL, before or after one of its operations on a store."""

import os
import signal
import threading
from collections.abc import Iterable
from typing import Any

from featlib.storage import Store


class Doom:
    """Counts every mutating or listing operation of every store of this process, and dies at one of them.

    Deleting several objects is an operation an object, and so is each rename within a put to a disk: a file that
    is written but not yet renamed is a place to die, too.

    Args:
        at: Number of the operation, from 0; None: never.
        is_after: Dies when it has been done, else when it is about to be.
    """

    def __init__(self, at: int | None = None, *, is_after: bool = False) -> None:
        self._at, self._is_after = at, is_after
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
        with self._lock:
            number = len(self.operations)
            self.operations.append(what)
        if number == self._at and not self._is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if number == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
