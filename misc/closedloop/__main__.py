"""``python3 misc/closedloop``: serve simulated workers, and place VMs on them by what is published."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.cli.main import require_libraries

with require_libraries("live"):
    from misc.closedloop.command import main

sys.exit(main())
