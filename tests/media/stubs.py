"""Decoders that misbehave as their item's id says, and otherwise decode."""

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from featlib.media.decode import decode_item
from featlib.spec import Decoded, MediaItem, Segment, Want


def decode(item: MediaItem, wants: tuple[Want, ...], segment: Segment, **keys: Any) -> Decoded:
    """``decode_item`` with a fault before it: crash, hang, spin, eat, raise, exit once."""
    fault, _, argument = item.media_id.partition(":")
    if fault == "crash":
        ctypes.string_at(0)
    if fault == "hang":
        if argument:
            Path(argument).write_text(str(os.getpid()))
        threading.Event().wait()
    if fault == "spin":
        while True:
            keys["progress"]()
    if fault == "eat":
        held = []
        while True:
            held.append(bytearray(16 << 20))
    if fault == "raise":
        raise KeyError("an unforeseen case")
    if fault == "once" and not Path(argument).exists():
        Path(argument).touch()
        os._exit(3)
    if fault == "fill":  # comes near the limit, but not over it
        Path(argument).write_text(str(os.getpid()))
        bytearray(keys["limits"].memory_bytes * 31 // 32)
    if fault == "deadline":
        Path(argument).write_text(str(keys["store_options"].deadline_s))
    if fault == "pid":
        Path(argument).write_text(f"{os.getpid()} {os.getppid()}")
    return decode_item(item, wants, segment, **keys)
