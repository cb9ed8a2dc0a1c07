"""Media in, uint8 frames out: the only package that opens videos and images.

Names are loaded when first used, so that the sampling arithmetic can be imported without a decoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featlib.media.decode import decode_item
    from featlib.media.limits import Limits
    from featlib.media.process import DecodeProcess

__all__ = ["DecodeProcess", "Limits", "decode_item"]

_HOMES = {"DecodeProcess": "process", "Limits": "limits", "decode_item": "decode"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
