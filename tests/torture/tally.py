"""What came of it: how many, and each failure with the words that bring it back."""

import sys
import threading
from collections.abc import Sequence


class Tally:
    """Kills, and what was wrong after them; several threads may add.

    Args:
        what: What was done so many times.
        step: After each so many a line says how far it is.
    """

    def __init__(self, what: str, step: int = 50) -> None:
        self._what, self._step = what, step
        self._lock = threading.Lock()
        self.count = 0
        self.failures: list[str] = []

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
