#!/usr/bin/env python3
"""Start ``vmaggreg.py`` from a checkout; the command line is :mod:`model.commands.vmaggreg`."""

import sys

from model.commands.vmaggreg import main

if __name__ == "__main__":
    sys.exit(main())
