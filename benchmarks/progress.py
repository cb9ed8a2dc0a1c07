"""What a person sees while it runs: minutes pass between two rows of the table."""

import sys
import time

_STARTED = time.monotonic()


def say(text: str) -> None:
    """A line with the minutes so far, not part of the table."""
    seconds = int(time.monotonic() - _STARTED)
    print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)
