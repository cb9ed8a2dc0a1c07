"""``python -m tests.torture.story_server``: runs stories, each in a process forked from this one, with torch loaded.

A request is a line of JSON: ``story``, ``point`` (where it dies; null: it lives), ``is_alone``, ``hold_s``, ``log``,
``stopped`` (a file; where it would die it writes its pid there and stops, until it is told to go on) and ``said``, a
file for what it has to say. The answer is the exit status; one that hangs is ended by SIGALRM. Before the first of
them the line ``READY`` says that all is loaded.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

READY = "ready"
_MOST_S = 600


def serve(request: dict[str, Any]) -> None:
    """The job itself; a file with the operations it took."""
    from tests.torture.doom import Doom, Point
    from tests.torture.story import Story
    from tests.torture.without_ray import run_story

    doom = Doom(request["point"] and Point.parse(request["point"]), stopped=request["stopped"])
    doom.install()
    story = Story.from_json(request["story"])
    summary = run_story(story, request["log"], is_alone=request["is_alone"], hold_s=request["hold_s"])
    said = {"operations": doom.operations, "media": dict(summary.media)}
    Path(request["said"]).write_text(json.dumps(said))


def fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(_MOST_S)
        try:
            serve(request)
            status = 0
        except BaseException:  # noqa: BLE001 - told of by the exit status, with the reason
            Path(request["said"]).write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Loads what every job loads, once; no thread may run here, because they do not survive forking."""
    import torch

    import tests.torture.without_ray  # noqa: F401 - loaded for the children
    from featlib.config import ModelConfig
    from featlib.extractors.resolve import resolve
    from featlib.storage import StoreOptions

    torch.set_num_threads(1)
    resolve(ModelConfig(network="squeezenet1_1", weights="random:0"), StoreOptions())
    print(READY, flush=True)
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
