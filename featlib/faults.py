"""Exceptions that no clip is to blame for. Those of torch are told by their names: not all who ask have loaded it."""

import errno
import logging
import os
from typing import NoReturn

log = logging.getLogger("featlib")

# torch's allocator on a CPU, C++, the CUDA driver, OpenCV.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "CUDA error: out of memory", "Insufficient memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine; few libraries raise MemoryError for it."""
    is_said = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_said or getattr(error, "errno", None) == errno.ENOMEM or any(text in str(error) for text in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU failed so that whatever this process asks of it from now on fails, too."""
    return type(error).__name__ == "AcceleratorError" and not is_out_of_memory(error)


def is_of_no_clip(error: BaseException) -> bool:
    """Whether another clip would have fared no better."""
    return is_out_of_memory(error) or is_device_lost(error)


def memory_reason(error: Exception) -> str:
    """What was said, in a line, where memory ran out. A lost device ends the process.

    Raises:
        Exception: ``error`` itself, where it is another.
    """
    if is_device_lost(error):
        end_process(error)
    if not is_out_of_memory(error):
        raise error
    return in_a_line(error)


def in_a_line(error: BaseException) -> str:
    """What an exception says, as the reason within a message."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def end_process(error: BaseException) -> NoReturn:
    """Ends the process of an actor whose device is lost: Ray starts another, and only this unit is tried again."""
    log.error("%s: %s; this process ends", type(error).__name__, " ".join(str(error).split())[:300])
    os._exit(1)
