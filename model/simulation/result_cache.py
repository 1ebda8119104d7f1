"""Results of finished runs on disk, so that an interrupted comparison resumes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import msgspec

from ..common.atomic_files import write_atomically
from ..parallel.source import SOURCE_DIGEST
from .tasks import Outcome, Plan, Task


class ResultCache:
    """The finished runs of a comparison, a file ``done/<key>.json`` each.

    Parameters
    ----------
    folder : Path or None
        Without one nothing is kept.
    plan : Plan
    """

    def __init__(self, folder: Path | None, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._sources = [source.digest() for source in plan.sources] if folder is not None else []

    def load(self, task: Task) -> Outcome | None:
        """The outcome of a finished run; None when the workload, a setting or the code has changed since."""
        if self._folder is None:
            return None
        try:
            return msgspec.convert(json.loads(self._file(self._folder, task).read_bytes()), Outcome)
        except (OSError, ValueError):
            return None

    def save(self, task: Task, outcome: Outcome) -> None:
        """Write the outcome of a run.

        Raises
        ------
        OSError
        """
        if self._folder is None:
            return
        path = self._file(self._folder, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not strict JSON: figures that do not apply are NaN.
        write_atomically(path, json.dumps(asdict(outcome)).encode())

    def _file(self, folder: Path, task: Task) -> Path:
        plan = self._plan
        parts = (
            *(self._sources[task.source], task.seed, task.setting, task.find_hosts),
            *(plan.simulation, plan.positions, plan.historical, plan.memory_risk, SOURCE_DIGEST),
        )
        return folder / "done" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"
