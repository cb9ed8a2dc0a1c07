"""Every error featlib raises on purpose.

    FeatlibError
    ├── ConfigError       the command, the configuration or the manifest is wrong: exit 2, nothing was read
    ├── StoppedError      the job cannot go on now; the same command goes on later: exit 1
    │   ├── TransientError    a store did not answer within the deadline
    │   └── DamagedError      an object holds other bytes than were written
    └── MediaError        one media item cannot be used: an outcome row, never the end of a job

Messages are one line: what, which value, which rule, what to do. Keys in them are blotted out, and what a file makes of
them without end is cut.
"""

from typing import Literal, get_args

from featlib.redaction import redact

_LONGEST = 10_000  # characters of a message

MediaErrorClass = Literal[
    "not_found",  # no such object
    "not_a_file",  # a directory, a device, a pipe
    "permission_denied",
    "empty_file",  # zero bytes
    "unknown_format",  # not a media file, or not one of the formats that are opened
    "no_video_stream",  # audio only
    "unsupported_codec",
    "no_frames",  # the container opened, nothing could be decoded
    "truncated",  # fewer bytes or frames than the container promises
    "corrupt",  # decoding broke off
    "too_large",  # more pixels in a frame than allowed
    "empty_range",  # start_s .. end_s holds no frame
    "timeout",  # decoding made no progress
    "out_of_memory",  # decoding went over the worker's memory limit
    "worker_died",  # decoding killed its process, twice
    "extractor_error",  # the network raised on this item's frames
    "image_under_clip_model",  # skipped: an image has no motion
    "store_unavailable",  # the object store did not answer
    "internal_error",  # a defect of featlib met while reading this item
]
MEDIA_ERROR_CLASSES: tuple[str, ...] = get_args(MediaErrorClass)


class FeatlibError(Exception):
    """Root of all errors that featlib raises on purpose."""

    def __init__(self, message: str) -> None:
        shown = redact(message)  # before it is cut: half a key looks like none
        super().__init__(shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…")


class ConfigError(FeatlibError):
    """The command, the configuration or the manifest is wrong; nothing was read and nothing written."""


class StoppedError(FeatlibError):
    """The job stopped before it was done; the same command goes on where it stopped."""


class TransientError(StoppedError):
    """A store did not answer properly within the retry deadline."""


class DamagedError(StoppedError):
    """An object of the output does not hold the bytes that were written.

    Args:
        what: Its key or URL.
        how: What is wrong with it.
    """

    def __init__(self, what: str, how: str = "is damaged: it holds other bytes than were written") -> None:
        super().__init__(f"{what}: {how}; {_way_out(what)}")
        self.what, self.how = what, how

    def __reduce__(self) -> tuple[object, ...]:
        return DamagedError, (self.what, self.how)


def _way_out(what: str) -> str:
    if "/plan/" in what:
        return "put it back from a copy, or extract under another --dataset"
    if "features/" in what or "outcomes/" in what:
        return "`featlib verify` names every such object; `featlib drop` and a new run make the partition anew"
    return "put it back from a copy, or remove it and run the same command again"


class MediaError(FeatlibError):
    """One media item cannot be used; becomes an outcome row.

    Args:
        error_class: One of ``MEDIA_ERROR_CLASSES``.
        message: One line for a person.
        retryable: Whether the same item may succeed later without being changed.
    """

    def __init__(self, error_class: MediaErrorClass, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error_class: MediaErrorClass = error_class
        self.message = " ".join(str(self).split())
        self.retryable = retryable

    def __reduce__(self) -> tuple[object, ...]:
        return _media_error, (self.error_class, self.message, self.retryable)


def _media_error(error_class: MediaErrorClass, message: str, retryable: bool) -> MediaError:
    return MediaError(error_class, message, retryable=retryable)


class FeatlibWarning(UserWarning):
    """Something works, but not as the user may expect."""
