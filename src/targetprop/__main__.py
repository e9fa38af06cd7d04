"""Lets ``python -m targetprop`` run the command line."""

import sys

from targetprop.experiments.main import main

if __name__ == "__main__":
    sys.exit(main())
