"""A decoder that takes its process along: what a defect in a library of decoders does."""

import ctypes
from pathlib import PurePath
from typing import Any

from featlib.media.decode import decode_item


def decode(item: Any, *arguments: Any, **named: Any) -> Any:
    """Decodes, unless the name of the file says what happens instead."""
    name = PurePath(item.uri).name
    if name.startswith("segv"):
        ctypes.string_at(0)
    if name.startswith("hoard"):
        hoard = []
        while True:
            hoard.append(bytes(b"x" * (32 << 20)))
    return decode_item(item, *arguments, **named)
