"""What decoding takes, measured: a decoder that writes it down, and what of that is over a bound.

``decode`` is for ``DecodeProcess`` and ``run_job``; it runs in the decoding process. A line for the beginning and one
for the end of each call: where the end is missing, the process died or was ended.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featlib.media.decode import decode_item
from featlib.spec import MediaItem

DECODE = "tests.torture.measured:decode"
NAME = "measured.jsonl"
_AT_START_BYTES = 1 << 20  # what a process may take between its start, from which featlib counts, and its first item


@dataclass(frozen=True)
class Measured:
    """One call of the decoder.

    Args:
        wall_s: From its beginning to its end.
        grown_bytes: The most address space (VmPeak) that its process has ever had, beyond what it had (VmSize) before
            its first item.
    """

    media_id: str
    pid: int
    wall_s: float
    grown_bytes: int


_at_start: tuple[int, int] | None = None
"""A process and its address space before its first item, in bytes; the process that forks it has none here."""


def place_of(media: Path) -> Path:
    """The file for what media in the folder of ``media``, and in the folders beside that one, take."""
    return media.parents[1] / NAME


def decode(item: MediaItem, *arguments: Any, **named: Any) -> Any:
    """Decodes as ``decode_item`` and writes down what it took."""
    global _at_start
    place, pid = place_of(Path(item.uri)), os.getpid()
    if _at_start is None or _at_start[0] != pid:
        _at_start = pid, _bytes_of("VmSize")
    _append(place, {"begun": item.media_id, "pid": pid})
    started_s = time.monotonic()
    try:
        return decode_item(item, *arguments, **named)
    finally:
        wall_s = time.monotonic() - started_s
        _append(place, asdict(Measured(item.media_id, pid, wall_s, _bytes_of("VmPeak") - _at_start[1])))


def _bytes_of(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _append(place: Path, values: dict[str, Any]) -> None:
    with place.open("a") as file:  # one write of a line: those of other processes stay whole
        file.write(json.dumps(values) + "\n")


def read(place: Path) -> tuple[list[Measured], list[str]]:
    """The calls that came to their end, and the ids of the media of those that did not; none where no file is."""
    ended: list[Measured] = []
    unended: list[str] = []
    begun: dict[int, str] = {}
    for line in place.read_text().splitlines() if place.exists() else ():
        values = json.loads(line)
        if "begun" not in values:
            ended.append(Measured(**values))
            del begun[values["pid"]]
            continue
        if values["pid"] in begun:  # the id of a process that died was given out again
            unended.append(begun[values["pid"]])
        begun[values["pid"]] = values["begun"]
    return ended, [*unended, *begun.values()]


def excesses(calls: Iterable[Measured], most_s: float, most_bytes: int) -> list[str]:
    """The media that took over ``most_s`` in all their calls, or whose process grew by over ``most_bytes``."""
    wall_s: dict[str, float] = defaultdict(float)
    grown: dict[str, int] = defaultdict(int)
    for call in calls:
        wall_s[call.media_id] += call.wall_s
        grown[call.media_id] = max(grown[call.media_id], call.grown_bytes)
    slow = [f"{media_id} took {seconds:.1f} s" for media_id, seconds in wall_s.items() if seconds > most_s]
    large = {media_id: size for media_id, size in grown.items() if size > most_bytes + _AT_START_BYTES}
    return slow + [f"the process of {media_id} grew by {size >> 20} MiB" for media_id, size in large.items()]
