"""What came of it: how many, and each failure with the words that bring it back."""

import sys
import threading
import traceback
from collections.abc import Callable, Sequence


class Tally:
    """Kills, and what was wrong after them; several threads may add.

    Args:
        what: What was done so many times.
        total: How many are wanted; None: as many as come.
        step: After each so many a line says how far it is.
    """

    def __init__(self, what: str, total: int | None = None, step: int = 50) -> None:
        self._what, self._total, self._step = what, total, step
        self._lock = threading.Lock()
        self.count = 0
        self.failures: list[str] = []

    @property
    def is_full(self) -> bool:
        return self._total is not None and self.count >= self._total

    def trial(self, how: str, play: Callable[[], tuple[int, Sequence[str]]]) -> None:
        """Plays one trial, which gives the kills that came about and what was wrong, and takes it; an exception that
        leaves it is wrong, too."""
        try:
            count, wrong = play()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next trials are worth playing
            place = traceback.extract_tb(error.__traceback__)[-1]
            count, wrong = 0, [f"{type(error).__name__} in {place.name}, line {place.lineno}: {error}"]
        self.add(how, count, wrong)

    def add(self, how: str, count: int, wrong: Sequence[str]) -> None:
        """Takes one trial.

        Args:
            how: The arguments that repeat it.
            count: Kills that came about in it.
            wrong: What was not as promised.
        """
        with self._lock:
            before = self.count
            self.count += count
            if wrong:
                self.failures.append(f"python -m tests.torture {how}: {'; '.join(wrong)}")
                print(self.failures[-1], file=sys.stderr, flush=True)
            if before // self._step < self.count // self._step:
                print(f"  {self._what}: {self.count}", file=sys.stderr, flush=True)

    def text(self) -> str:
        lines = [f"{self._what}: {self.count}; {len(self.failures)} with lost, doubled or other rows", *self.failures]
        return "\n".join(lines)
