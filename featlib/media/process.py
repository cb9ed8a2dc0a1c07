"""Decoding in a process that may crash, hang or grow: what happens to it becomes the outcome of one item."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from featlib.errors import MediaErrorClass, StoppedError
from featlib.media.limits import Limits
from featlib.media.wire import ReceivedPixels, Shared, receive, send
from featlib.spec import Decoded, MediaFacts, MediaItem, Segment, Want
from featlib.storage import StoreOptions

_ITEMS_A_WORKER = 1000  # a fresh process now and then, so that no leak can add up to the memory limit
_EXIT_WAIT_S = 2.0
_START_WAIT_S = 300.0
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[4]); from featlib.media.nursery import main; "
_BOOT += "main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class _WorkerDiedError(Exception):
    """The decoding process is gone; the message says how it ended."""


class _Worker:
    """A decoding process: its id, known to the nursery that is its parent, and the socket to it."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self.pixels = ReceivedPixels()
        self.num_items = 0


class DecodeProcess:
    """Decodes items one after the other in a child process, which is replaced when it dies.

    Nothing is started before the first item. Not for use by several threads at once.

    Args:
        limits: Of each item; memory is counted from what the child takes at its start.
        store_options: Where media are read from; no read is tried for longer than half of ``limits.stall_s``.
        decode: ``module:function`` with the signature of ``featlib.media.decode.decode_item``.
    """

    def __init__(
        self, limits: Limits, store_options: StoreOptions, decode: str = "featlib.media.decode:decode_item"
    ) -> None:
        self._limits = limits
        # A read that waits for its store makes no progress: the store's own error must come before that is noticed,
        # also where the last try ends by its own time-out.
        deadline_s = min(store_options.deadline_s, limits.stall_s / 2)
        self._store_options = replace(store_options, deadline_s=deadline_s)
        self._decode = decode
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._worker: _Worker | None = None

    def decode(self, item: MediaItem, wants: tuple[Want, ...], segment: Segment) -> Decoded:
        """As ``decode_item``; a child that dies is replaced and the item tried once more.

        The same goes for one that runs out of memory and has decoded others before: what those left behind in it must
        not count against this one.

        Returns:
            Frames are the caller's: later calls do not touch them.

        Raises:
            StoppedError: Decoding cannot be started at all.
        """
        how = ""
        for _ in range(2):
            is_fresh = self._worker is None
            try:
                decoded = self._ask(item, wants, segment)
            except _WorkerDiedError as error:
                how = str(error)
                continue
            if decoded.error_class != "out_of_memory" or is_fresh:
                return decoded
        return _failed(segment, "worker_died", f"decoding this item ended its process twice ({how})")

    def _ask(self, item: MediaItem, wants: tuple[Want, ...], segment: Segment) -> Decoded:
        worker = self._ready_worker()
        worker.num_items += 1
        try:
            send(worker.sock, (item, wants, segment))
            verb, argument, descriptors = self._reply(worker)
        except (EOFError, OSError):
            raise _WorkerDiedError(self._end_worker(_EXIT_WAIT_S)) from None
        if verb == "done":
            decoded, shared, is_full = argument
            return self._finished(worker, decoded, shared, is_full, descriptors)
        if verb == "internal_error":
            return _failed(segment, "internal_error", argument)
        self._end_worker(0.0)
        if verb == "timeout":
            return _failed(segment, "timeout", argument)
        return _failed(segment, "out_of_memory", self._memory_message())

    def _finished(
        self, worker: _Worker, decoded: Decoded, shared: Shared | None, is_full: bool, descriptors: list[int]
    ) -> Decoded:
        if shared is not None:
            decoded.frames.update(worker.pixels.arrays(shared, descriptors))
        if is_full or decoded.error_class == "out_of_memory":  # what it took would count against the next item
            self._end_worker(0.0)
        return decoded

    def _reply(self, worker: _Worker) -> tuple[str, Any, list[int]]:
        limits = self._limits
        start_s = last_s = time.monotonic()
        poll = select.poll()  # not select(): that one fails for descriptors from 1024 on
        poll.register(worker.sock, select.POLLIN)
        while True:
            wait_s = min(last_s + limits.stall_s, start_s + limits.deadline_s) - time.monotonic()
            if wait_s <= 0:
                return "timeout", _timeout_message(limits, start_s), []
            if poll.poll(wait_s * 1000 + 1):
                (verb, argument), descriptors = receive(worker.sock)
                if verb != "tick":
                    return verb, argument, descriptors
                last_s = time.monotonic()

    def _memory_message(self) -> str:
        megabytes = self._limits.memory_bytes >> 20
        return f"decoding took more than the limit of {megabytes} MiB; raise the limit or convert the file"

    def _ready_worker(self) -> _Worker:
        if self._worker is not None and self._worker.num_items >= _ITEMS_A_WORKER:
            self._end_worker(0.0)
        if self._worker is None:
            ours, theirs = socket.socketpair()
            with theirs:
                pid = self._nursery_does(("spawn", (self._limits, self._store_options)), (theirs.fileno(),))
            self._worker = _Worker(pid, ours)
        return self._worker

    def _end_worker(self, wait_s: float) -> str:
        """Waits for the child's end, or kills it; says how it ended."""
        if self._worker is None:
            return "it was not running"
        worker, self._worker = self._worker, None
        worker.sock.close()
        worker.pixels.close()
        return _ending(self._nursery_does(("reap", (worker.pid, wait_s))))

    def _nursery_does(self, request: tuple[str, Any], descriptors: tuple[int, ...] = ()) -> int:
        for _ in range(2):
            control = self._control or self._start_nursery()
            try:
                send(control, request, descriptors)
                return int(receive(control)[0][1])
            except (EOFError, OSError):
                self._stop_nursery()
                if request[0] == "reap":  # its children died with it
                    return int(signal.SIGKILL)
        raise StoppedError("the process that starts decoding ended twice; look for its message above")

    def _start_nursery(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), self._decode, json.dumps(sys.path)]
            self._nursery = subprocess.Popen(
                # -P: what lies in the current folder is media, whatever the names of its files.
                [sys.executable, "-P", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_ONE_THREAD, "MALLOC_ARENA_MAX": "2"},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._control = ours
        ours.settimeout(_START_WAIT_S)
        try:
            (verb, why), _ = receive(ours)
        except (EOFError, OSError) as error:
            verb, why = "cannot start", str(error)
        if verb != "ready":
            self._stop_nursery()
            raise StoppedError(f"decoding cannot start: {self._decode} ({why})")
        ours.settimeout(None)
        return ours

    def _stop_nursery(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._nursery is not None:
            try:
                self._nursery.wait(_EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                self._nursery.kill()
                self._nursery.wait()
            self._nursery = None

    def close(self) -> None:
        """Ends the child processes; a later ``decode`` starts new ones."""
        if self._worker is not None:
            self._end_worker(0.0)
        self._stop_nursery()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _failed(segment: Segment, error_class: MediaErrorClass, message: str) -> Decoded:
    whole = Segment(segment.k, max(segment.n, 1), segment.by)
    retryable = error_class != "internal_error"
    return Decoded(whole, "failed", MediaFacts(), error_class, " ".join(message.split()), retryable)


def _timeout_message(limits: Limits, start_s: float) -> str:
    if time.monotonic() - start_s >= limits.deadline_s:
        return f"decoding was not done after {limits.deadline_s:g} s"
    return f"decoding made no progress for {limits.stall_s:g} s"


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return f"{name}, often the kernel's out-of-memory killer" if number == signal.SIGKILL else name
    return f"exit status {os.waitstatus_to_exitcode(status)}"
