"""The process that loads everything decoding needs once, and forks a decoding process whenever its parent asks.

It runs no thread and decodes nothing itself, so a fork is safe and takes milliseconds. It is started as a fresh
interpreter, never by fork of the parent and never through the parent's main script.
"""

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from featlib.faults import is_out_of_memory
from featlib.media.limits import Limits
from featlib.media.wire import SharedPixels, receive, send
from featlib.redaction import redact
from featlib.spec import Decoded, MediaFacts

_TICK_S = 0.1
_PARENT_CHECK_MS = 1000
_KEPT_PART = 16  # of the memory limit, that pixels of one item may leave to the next
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc takes for the second
# What libav says of a file when one of its own allocations failed: not ENOMEM but that the data are bad.
_LOOKS_DAMAGED = ("corrupt", "no_frames", "no_video_stream", "truncated", "unknown_format", "unsupported_codec")
_libc = ctypes.CDLL(None)


def main(control_descriptor: int, parent_pid: int, decode: str) -> None:
    """Serves ``spawn`` and ``reap`` requests until the parent is gone.

    Args:
        control_descriptor: Unix socket to the parent.
        parent_pid: Of the parent; its death ends this process and with it all children.
        decode: ``module:function`` with the signature of ``decode_item``.
    """
    control = socket.socket(fileno=control_descriptor)
    control.set_inheritable(False)
    module, _, function = decode.partition(":")
    try:
        decoder = getattr(import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:
        send(control, ("cannot start", f"{type(error).__name__}: {error}"))
        sys.exit(1)
    _one_thread()
    keep_freed_memory()
    try:
        send(control, ("ready", None))
        while _parent_asks(control, parent_pid):
            (verb, argument), descriptors = receive(control)
            if verb == "spawn":
                send(control, ("spawned", _fork(control, descriptors[0], decoder, *argument)))
            else:
                send(control, ("reaped", _reap(*argument)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone; the kernel ends the children


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, up to two large pictures: the pages of each frame would come from the kernel anew,
    which costs as much as its decoding. Other C libraries have no such call."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _parent_asks(control: socket.socket, parent_pid: int) -> bool:
    """Waits for a request; False when the parent is gone, even if its end of the socket lives on in a fork of it."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(_PARENT_CHECK_MS):
        if os.getppid() != parent_pid:
            return False
    return True


def _fork(
    control: socket.socket, descriptor: int, decoder: Callable[..., Decoded], limits: Limits, store_options: Any
) -> int:
    nursery_pid = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        _guard(nursery_pid, limits)
        serve(socket.socket(fileno=descriptor), decoder, limits, store_options)
        status = 0
    finally:
        os._exit(status)


def _guard(nursery_pid: int, limits: Limits) -> None:
    """Dies with its parent, takes bounded memory, leaves no core dump."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != nursery_pid:  # it died before the line above
        os._exit(1)
    with open("/proc/self/statm", encoding="ascii") as statm:
        now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    most = now_bytes + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(sock: socket.socket, decoder: Callable[..., Decoded], limits: Limits, store_options: Any) -> None:
    """Decodes what is asked for until the other side is gone."""
    pixels = SharedPixels(min(2 * limits.unit_bytes, limits.memory_bytes // _KEPT_PART))
    while True:
        try:
            request, _ = receive(sock)
            _answer(sock, request, decoder, limits, store_options, pixels)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(
    sock: socket.socket,
    request: Any,
    decoder: Callable[..., Decoded],
    limits: Limits,
    store_options: Any,
    pixels: SharedPixels,
) -> None:
    last_s = time.monotonic()

    def progress() -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _TICK_S:
            last_s = now_s
            send(sock, ("tick", None))

    try:
        decoded = decoder(
            *request, store_options=store_options, limits=limits, allocate=pixels.allocate, progress=progress
        )
        is_full = _is_memory_used_up(limits, decoded.facts)
        if is_full and decoded.error_class in _LOOKS_DAMAGED:
            decoded = _blamed_on_memory(decoded, limits)
        _send_decoded(sock, decoded, pixels, is_full)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # noqa: BLE001 - becomes the item's outcome, internal_error
        send(sock, ("out_of_memory", None) if is_out_of_memory(error) else ("internal_error", _where(error)))
    finally:
        pixels.release()


def _is_memory_used_up(limits: Limits, facts: MediaFacts) -> bool:
    """Whether this process once came so close to its limit that a frame, or a part of the limit, did not fit in."""
    frame_bytes = 3 * (facts.width or 0) * (facts.height or 0)
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        peak_bytes = next((int(line.split()[1]) << 10 for line in status if line.startswith("VmPeak:")), 0)
    return most - peak_bytes < max(limits.memory_bytes // 16, 2 * frame_bytes, 1 << 20)


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno} in {last.name}"
    return redact(f"{type(error).__name__}: {error}, at {place}")


def _blamed_on_memory(decoded: Decoded, limits: Limits) -> Decoded:
    """Damage that was met while memory was short: without any row it is out of memory, else it may be."""
    if decoded.status == "failed":
        raise MemoryError
    megabytes = limits.memory_bytes >> 20
    message = f"{decoded.error_message}; decoding came near its limit of {megabytes} MiB, which may be the cause"
    return replace(decoded, error_message=message, retryable=True)


def _send_decoded(sock: socket.socket, decoded: Decoded, pixels: SharedPixels, is_full: bool) -> None:
    bare = replace(decoded, frames={})
    shared, descriptors = pixels.hand_over(decoded.frames) if decoded.frames else (None, ())
    send(sock, ("done", (bare, shared, is_full)), descriptors)


def _reap(pid: int, wait_s: float) -> int:
    """Waits for a child that is ending and kills it when it does not; gives its wait status."""
    end_s = time.monotonic() + wait_s
    while time.monotonic() < end_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
