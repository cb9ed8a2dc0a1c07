"""The main job, as ``ray job submit`` runs it: ``python jobs/extract.py MANIFEST... --output URL ...``."""

import sys

from featlib.cli import main

if __name__ == "__main__":
    main(["extract", *sys.argv[1:]])
