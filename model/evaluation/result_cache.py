"""Results of finished traces on disk, so that an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import msgspec

from ..common.atomic_files import write_atomically
from ..slices import RESOURCES
from .grid import Row
from .tasks import SOURCE, Outcome, Plan, Task

# --- what is done already ---------------------------------------------------------------------------


class _Done(msgspec.Struct):
    """A file of the folder ``done``."""

    key: str
    rows: list[Row]


class ResultCache:
    """What of an evaluation is done: kept trace by trace, so that it can be broken off at any time.

    Parameters
    ----------
    folder : Path
        Holds ``done/<trace>.json``, and ``traces/<trace>-<resource>.png`` if there are pictures.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan

    def rows(self, task: Task) -> list[Row] | None:
        """Those of a trace that is done; None when it, its file, the plan or our code is another than then."""
        try:
            done = msgspec.convert(json.loads(self._file(task).read_bytes()), _Done)
            current = done.key == self._key(task)
        except (OSError, ValueError):
            return None
        return done.rows if current and all(path.exists() for path in self._pictures(task).values()) else None

    def keep(self, task: Task, outcome: Outcome) -> None:
        """Write down what came of a trace.

        Raises
        ------
        OSError
        """
        for folder in ("done", "traces") if self._plan.pictures else ("done",):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        for name, path in self._pictures(task).items():
            write_atomically(path, outcome.pictures[name])
        # Not strict JSON: what could not be scored is NaN.
        done = {"key": self._key(task), "rows": [asdict(row) for row in outcome.rows]}
        write_atomically(self._file(task), json.dumps(done).encode())

    def _file(self, task: Task) -> Path:
        return self._folder / "done" / f"{task.name}.json"

    def _pictures(self, task: Task) -> dict[str, Path]:
        if not self._plan.pictures:
            return {}
        return {name: self._folder / "traces" / f"{task.name}-{name}.png" for name in (r.name for r in RESOURCES)}

    def _key(self, task: Task) -> str:
        parts = (task, self._plan.variants, self._plan.after, SOURCE)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
