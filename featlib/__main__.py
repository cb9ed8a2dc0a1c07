"""``python -m featlib``."""

from featlib.cli import main

if __name__ == "__main__":
    main()
