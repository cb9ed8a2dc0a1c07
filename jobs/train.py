"""A head on features, as ``ray job submit`` runs it: ``python jobs/train.py --output URL ...``."""

import sys

from featlib.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
