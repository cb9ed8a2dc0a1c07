"""Compiles one exported network in a process of its own; run as a script, it knows nothing else of featlib.

    python -P compiler.py EXPORTED.pt2 COMPILED.pt2 THREADS PARENT

So what a compiler takes of memory goes with it, its settings touch nobody, and it can be given up when it hangs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def main(exported: str, compiled: str, threads: str, parent: str) -> None:
    """Reads the network from ``exported`` and writes machine code with its weights to ``compiled``."""
    _die_with(int(parent))
    import torch
    import torch._inductor
    import torchvision  # noqa: F401 - a network may use its operators

    torch.set_num_threads(int(threads))
    settings = {"freezing": True, "compile_threads": 1}
    with torch.no_grad():
        # It pickles; the file was written a moment ago, by the parent, into a folder of its own.
        program = torch.export.load(exported)
        # Freezing is asked for where a graph is lowered as well as where it is made.
        with torch._inductor.config.patch(settings):
            torch._inductor.aoti_compile_and_package(program, package_path=compiled, inductor_configs=dict(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
