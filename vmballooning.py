#!/usr/bin/env python3
"""Start ``vmballooning.py`` from a checkout; the command line is :mod:`model.commands.vmballooning`."""

import sys

from model.commands.vmballooning import main

if __name__ == "__main__":
    sys.exit(main())
