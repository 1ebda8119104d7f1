"""Results of finished traces on disk, so that an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import msgspec

from ..common.atomic_files import write_atomically
from ..parallel.source import SOURCE_DIGEST
from ..slices import RESOURCES
from .grid import Row
from .tasks import EvaluationPlan, Outcome, Task


class _StoredResult(msgspec.Struct):
    """``done/<trace>.json``."""

    key: str
    rows: list[Row]


class ResultCache:
    """The finished traces of an evaluation.

    Parameters
    ----------
    folder : Path
        Has ``done/<trace>.json``, and ``traces/<trace>-<resource>.png`` if there are pictures.
    plan : EvaluationPlan
    """

    def __init__(self, folder: Path, plan: EvaluationPlan) -> None:
        self._folder = folder
        self._plan = plan

    def load(self, task: Task) -> list[Row] | None:
        """The rows of a finished trace; None when the trace, its file, the plan or the code has changed since."""
        try:
            stored = msgspec.convert(json.loads(self._file(task).read_bytes()), _StoredResult)
        except (OSError, ValueError):
            return None
        current = stored.key == self._key(task)
        return stored.rows if current and all(path.exists() for path in self._pictures(task).values()) else None

    def save(self, task: Task, outcome: Outcome) -> None:
        """Write the result of a trace.

        Raises
        ------
        OSError
        """
        for folder in ("done", "traces") if self._plan.pictures else ("done",):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        for name, path in self._pictures(task).items():
            write_atomically(path, outcome.pictures[name])
        # Not strict JSON: figures of a trace without scored slices are NaN.
        stored = {"key": self._key(task), "rows": [asdict(row) for row in outcome.rows]}
        write_atomically(self._file(task), json.dumps(stored).encode())

    def _file(self, task: Task) -> Path:
        return self._folder / "done" / f"{task.name}.json"

    def _pictures(self, task: Task) -> dict[str, Path]:
        if not self._plan.pictures:
            return {}
        return {name: self._folder / "traces" / f"{task.name}-{name}.png" for name in (r.name for r in RESOURCES)}

    def _key(self, task: Task) -> str:
        parts = (task, self._plan.variants, self._plan.after, SOURCE_DIGEST)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
