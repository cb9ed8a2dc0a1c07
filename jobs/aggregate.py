"""Features to one vector a video, as ``ray job submit`` runs it: ``python jobs/aggregate.py --output URL ...``."""

import sys

from featlib.cli import main

if __name__ == "__main__":
    main(["aggregate", *sys.argv[1:]])
