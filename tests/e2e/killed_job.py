"""Jobs in processes of their own that kill themselves.

``python -m tests.e2e.killed_job`` imports what a job needs once and then forks a process for each request on its
standard input, a JSON object a line: ``config``, ``event`` (``none`` lets it live), ``nth``, ``whom`` (``driver`` or
``group``: with Ray and everything else it started), ``ray_address`` and ``log``. It answers with the exit status.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def run(request: dict[str, Any]) -> None:
    """The job itself; its summary goes to the log as the last line."""
    from featlib.config import ExtractConfig
    from featlib.job import extract

    seen = 0

    def on_event(name: str, what: str) -> None:
        nonlocal seen
        if name == request["event"]:
            seen += 1
            if seen == request["nth"]:
                if request["whom"] == "group":
                    os.killpg(os.getpgrp(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    summary = extract(ExtractConfig.model_validate(request["config"]), on_event=on_event)
    print(json.dumps(summary.to_dict()), flush=True)


def fork(request: dict[str, Any]) -> int:
    """Runs a request in a process group of its own; gives the exit status as ``subprocess`` would."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((null, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        os.environ["RAY_ADDRESS"] = request["ray_address"]
        status = 1
        try:
            run(request)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    # What every job loads anyway; no thread runs yet, so forking is safe.
    import featlib.extractors.registry
    import featlib.job

    featlib.extractors.registry.names()
    for line in sys.stdin:
        request = json.loads(line)
        Path(request["log"]).touch()
        print(json.dumps({"status": fork(request)}), flush=True)


if __name__ == "__main__":
    main()
