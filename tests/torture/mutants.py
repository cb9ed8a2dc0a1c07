"""Sound files with bytes changed by a seed, each decoded in a process that may die of it."""

import time
from collections import Counter
from pathlib import Path

import numpy as np

from featlib.media import DecodeProcess, Limits
from featlib.sampling import ClipSampling, FrameSampling
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.torture import measured
from tests.torture.hostile import LAWFUL_CLASSES, mutant, sound
from tests.torture.tally import Tally

MOST_S = 30.0
_MEMORY = 1 << 30
_LIMITS = Limits(memory_bytes=_MEMORY, deadline_s=MOST_S, stall_s=10)
_SMALL = PixelSpec((64,), (56, 56))
_WANTS = (
    Want("frames", FrameSampling.parse("uniform:4"), _SMALL),
    Want("clips", ClipSampling(8), _SMALL),
)
_CLASSES = LAWFUL_CLASSES - {"not_found", "not_a_file", "permission_denied", "empty_file", "extractor_error"}
_COSTLY = ("timeout", "worker_died", "out_of_memory")


class Outcomes:
    """What became of the mutants, and what they took at most."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.num_sound = 0
        self._costly: list[str] = []
        self._num_ended = 0
        self._longest_s = 0.0
        self._most_bytes = 0

    def add(self, ending: str, seed: int, decoded: Decoded) -> None:
        self.classes[decoded.error_class or decoded.status] += 1
        if decoded.error_class in _COSTLY:
            self._costly.append(f"  --seed {seed} --kills 1: {ending}: {decoded.error_class}: {decoded.error_message}")

    def took(self, wall_s: float, calls: list[measured.Measured], unended: list[str]) -> None:
        self._num_ended += len(unended)
        self._longest_s = max(self._longest_s, wall_s)
        self._most_bytes = max([self._most_bytes, *(call.grown_bytes for call in calls)])

    def text(self) -> str:
        classes = ", ".join(f"{count} {name}" for name, count in self.classes.most_common())
        costly = ", ".join(f"{self.classes[name]} {name}" for name in _COSTLY)
        lines = [
            f"mutants: {classes}",
            f"  among them {costly}; between them a sound file {self.num_sound} times",
            f"  processes that ended under an item: {self._num_ended}",
            f"  an item took {self._longest_s:.1f} s at most, a process {self._most_bytes >> 20} MiB beyond its start",
        ]
        return "\n".join([*lines, *self._costly])


def torture(folder: Path, total: int, first_seed: int) -> tuple[Tally, Outcomes]:
    """Decodes ``total`` mutants, of each kind of file in turn; and, once in a round, a sound file, which must come
    out as from a process that has met no mutant."""
    tally, outcomes = Tally("mutants of sound files"), Outcomes()
    files = sorted(sound(folder / "sound").items())
    with _Decoder(folder, outcomes) as fresh:
        expected = {ending: fresh.decode("sound", source)[0] for ending, source in files}
    path = folder / "mutants" / "mutant"
    path.parent.mkdir()
    with _Decoder(folder, outcomes) as decoder:
        for seed in range(first_seed, first_seed + total):
            ending, source = files[seed % len(files)]
            path.write_bytes(mutant(source.read_bytes(), seed))
            decoded, wrong = decoder.decode(f"m{seed}", path)
            if decoded is not None:
                outcomes.add(ending, seed, decoded)
                wrong += _wrong(decoded)
            before = f"mutants --seed {first_seed} --kills {seed - first_seed + 1}"
            if wrong:
                wrong[-1] += f"; where that alone shows nothing: python -m tests.torture {before}"
            tally.add(f"mutants --seed {seed} --kills 1", 1, _of(ending, wrong))
            if seed % len(files) == seed // len(files) % len(files):  # once in a round, of another kind each round
                outcomes.num_sound += 1
                decoded, wrong = decoder.decode("sound", source)
                wrong += _unlike(decoded, expected[ending])
                tally.add(before, 0, _of(f"{ending}, the sound file", wrong))
    return tally, outcomes


class _Decoder:
    """A decoding process, and what it takes.

    Args:
        folder: Two levels above all media.
    """

    def __init__(self, folder: Path, outcomes: Outcomes) -> None:
        self._place = folder / measured.NAME
        self._outcomes = outcomes
        self._process = DecodeProcess(_LIMITS, StoreOptions(), measured.DECODE)

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def decode(self, media_id: str, path: Path) -> tuple[Decoded | None, list[str]]:
        """What came of a file, None where it was an exception, and what was wrong with the way."""
        self._place.unlink(missing_ok=True)
        started_s = time.monotonic()
        decoded, wrong = None, []
        try:
            decoded = self._process.decode(MediaItem(media_id, str(path), None, None), _WANTS, Segment(0, 0))
        except Exception as error:  # noqa: BLE001 - a failure of this one; the others have a new process
            wrong.append(f"raised {type(error).__name__}: {error}")
            self._process.close()
        wall_s = time.monotonic() - started_s
        if wall_s > MOST_S:
            wrong.append(f"took {wall_s:.1f} s")
        calls, unended = measured.read(self._place)
        self._outcomes.took(wall_s, calls, unended)
        return decoded, [*wrong, *measured.excesses(calls, MOST_S, _MEMORY)]


def _of(what: str, wrong: list[str]) -> list[str]:
    return [f"{what}: {line}" for line in wrong]


def _wrong(decoded: Decoded) -> list[str]:
    wrong = []
    if (decoded.status == "ok") != (decoded.error_class is None):
        wrong.append(f"{decoded.status} with the class {decoded.error_class}")
    classes = {decoded.error_class, *(error_class for error_class, _ in decoded.label_errors.values())} - {None}
    if not classes <= _CLASSES:
        wrong.append(f"class {decoded.error_class}, of labels {decoded.label_errors}: {decoded.error_message}")
    if "\n" in (decoded.error_message or ""):
        wrong.append("a message of several lines")
    return wrong


def _unlike(decoded: Decoded | None, expected: Decoded | None) -> list[str]:
    """What is wrong with a sound file that was decoded between mutants."""
    if decoded is None or expected is None:
        return ["no outcome" if decoded is None else "no outcome without mutants, either"]
    if decoded.status != "ok" or not any(len(frames) for frames in decoded.frames.values()):
        return [f"{decoded.status}, {decoded.error_class}, {decoded.error_message}"]
    is_same = decoded.frames.keys() == expected.frames.keys() and all(
        np.array_equal(frames, expected.frames[key]) for key, frames in decoded.frames.items()
    )
    return [] if is_same and decoded.clips == expected.clips else ["other frames than without mutants"]
