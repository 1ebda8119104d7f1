#!/usr/bin/env python3
"""Start ``scroogevm.py`` from a checkout; the command line is :mod:`model.commands.scroogevm`."""

import sys

from model.commands.scroogevm import main

if __name__ == "__main__":
    sys.exit(main())
