"""``python3 misc/fakeworkers``: serve the simulated workers until stopped."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.cli.main import require_libraries

with require_libraries("live"):
    from misc.fakeworkers.command import main

sys.exit(main())
