"""Sound files with bytes changed by a seed, each decoded in a process that may die of it."""

import time
from pathlib import Path

import numpy as np

from featlib.errors import MEDIA_ERROR_CLASSES
from featlib.media import DecodeProcess, Limits
from featlib.sampling import ClipSampling, FrameSampling
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.torture.hostile import mutant, sound
from tests.torture.tally import Tally

MOST_S = 30.0
_MEMORY = 1 << 30
_SMALL = PixelSpec((64,), (56, 56))
_WANTS = (
    Want("frames", FrameSampling.parse("uniform:4"), _SMALL),
    Want("clips", ClipSampling(8), _SMALL),
)


def torture(folder: Path, total: int, first_seed: int) -> Tally:
    """Decodes ``total`` mutants, of each kind of file in turn; and, with every twelfth, a sound file as at first."""
    tally = Tally("mutants of sound files")
    files = sorted(sound(folder / "sound").items())
    limits = Limits(memory_bytes=_MEMORY, deadline_s=MOST_S, stall_s=10)
    path = folder / "mutant"
    at_first: dict[str, Decoded] = {}
    with DecodeProcess(limits, StoreOptions()) as process:
        for seed in range(first_seed, first_seed + total):
            ending, source = files[seed % len(files)]
            path.write_bytes(mutant(source.read_bytes(), seed))
            item = MediaItem(f"m{seed}", str(path), None, None)
            started = time.monotonic()
            decoded = process.decode(item, _WANTS, Segment(0, 0))
            took_s = time.monotonic() - started
            tally.add(f"mutants --seed {seed} --kills 1 ({ending})", 1, _wrong(decoded, took_s))
            if seed % len(files) == seed // len(files) % len(files):  # once in a round, of another kind each round
                item = MediaItem("sound", str(source), None, None)
                decoded = process.decode(item, _WANTS, Segment(0, 0))
                wrong = _unlike(decoded, at_first.setdefault(ending, decoded))
                tally.add(f"mutants --seed {first_seed} --kills {seed - first_seed + 1} ({ending})", 0, wrong)
    return tally


def _wrong(decoded: Decoded, took_s: float) -> list[str]:
    wrong = []
    if took_s > MOST_S:
        wrong.append(f"took {took_s:.1f} s")
    if (decoded.status == "ok") != (decoded.error_class is None):
        wrong.append(f"{decoded.status} with the class {decoded.error_class}")
    if decoded.error_class is not None and decoded.error_class not in MEDIA_ERROR_CLASSES:
        wrong.append(f"class {decoded.error_class}")
    if "\n" in (decoded.error_message or ""):
        wrong.append("a message of several lines")
    return wrong


def _unlike(decoded: Decoded, at_first: Decoded) -> list[str]:
    """What is wrong with a sound file that was decoded between mutants."""
    if decoded.status != "ok" or not any(len(frames) for frames in decoded.frames.values()):
        return [f"the sound file: {decoded.status}, {decoded.error_class}, {decoded.error_message}"]
    is_same = decoded.frames.keys() == at_first.frames.keys() and all(
        np.array_equal(frames, at_first.frames[key]) for key, frames in decoded.frames.items()
    )
    return [] if is_same else ["the sound file gave other frames than at first"]
