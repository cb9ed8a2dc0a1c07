"""What a program of the benchmark is told and what it tells: plain values that cross a process border as JSON.

Nothing heavy is imported here: a peer's start-up is its own.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOADED_S = time.time()
"""When the program began to run its own lines."""


@dataclass(frozen=True)
class Job:
    """Features of some clips by one network, written as Parquet with ``media_id``, ``clip_index``, ``feature``.

    Args:
        clips: (media id, path) of each.
        every: A frame network reads one frame in so many.
        clip_frames: Frames in a clip of a clip network, one clip behind the other, what is left at the end dropped;
            0 for a frame network.
        output: An empty folder.
        models: Settings of several models, for featlib alone; else ``network`` is the only one.
        sizes: Numbers of workers, for programs that can be told; empty for their own choice.
    """

    network: str
    clips: tuple[tuple[str, str], ...]
    output: str
    every: int = 8
    clip_frames: int = 0
    precision: str = "fp32"
    models: tuple[dict[str, Any], ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Rows in a batch of the peers."""
        return 4 if self.clip_frames else 32

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> "Job":
        values = json.loads(path.read_text())
        return cls(**{**values, "clips": tuple((name, clip) for name, clip in values["clips"])})


def run(work: Callable[[Job], dict[str, Any]]) -> None:
    """The main function of a program: reads the job that the command line names, works, prints one line of JSON.

    ``work`` gives what it has to say besides, such as ``start_s``.
    """
    job = Job.load(Path(sys.argv[1]))
    told = work(job)
    print(json.dumps({"loaded": LOADED_S, "done": time.time(), **told}), flush=True)
