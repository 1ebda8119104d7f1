"""Dumps of a live run: the last slices of each node, in the format of a replay's dump."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from ..common.atomic_files import make_folder_of, write_atomically
from ..common.logs import ProblemLog
from ..estimates import NodeEstimate
from ..replay.dump import DumpRecorder
from ..replay.presentation import log_scope
from ..replay.replay import dump_config, dump_name
from ..slices import Slice
from .checkpoints import CheckpointCorrupt, CheckpointFile
from .configuration import RunConfiguration
from .options import EstimatorOptions

LOG = logging.getLogger("scroogevm.estimator")


class DumpWriter:
    """Writes the dump of a node at the end of each scope, and all dumps at the end of a run.

    Parameters
    ----------
    options : EstimatorOptions
    configuration : RunConfiguration
    checkpoints : CheckpointFile
        Holds the figures.
    """

    def __init__(self, options: EstimatorOptions, configuration: RunConfiguration, checkpoints: CheckpointFile) -> None:
        self._folder = options.output or Path()
        self._with_pictures = options.debug >= 2
        self._settings = configuration.settings
        self._stability = self._settings.model.stability
        self._model = configuration.model
        self._checkpoints = checkpoints
        self._problems = ProblemLog(LOG)

    def on_slice(self, node: str, number: int, finished: Slice, estimate: NodeEstimate) -> None:
        """At the last slice of a scope, log the figures and write the dump."""
        scope, position = divmod(number, self._settings.calendar.positions)
        if position == self._settings.calendar.positions - 1:
            log_scope(LOG, node, scope, finished, estimate)
            self.write(node)

    def write_all(self) -> None:
        """Write the dumps of all nodes."""
        for node in self._settings.nodes:
            self.write(node)

    def write(self, node: str) -> None:
        """Write the dump of a node; a failure is logged once."""
        subject = f"dump of {node}"
        try:
            self._write(node)
            self._problems.resolve(subject)
        except (OSError, sqlite3.Error, CheckpointCorrupt) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            self._problems.report(subject, f"cannot be written: {cause}")

    def _write(self, node: str) -> None:
        slices = self._checkpoints.figures(node)
        if not slices:
            return
        recorder = DumpRecorder(self._model.strategies, sorted({name for one in slices for name in one.vm.vms}))
        for figures in slices:
            recorder.add(figures)
        trace_config = self._settings.calendar.trace_config(node, self._settings.historical)
        config = dump_config(trace_config, self._model, self._stability)
        path = self._folder / dump_name(node, self._model)
        make_folder_of(path)
        write_atomically(path, recorder.encode_together(config))
        if self._with_pictures:
            from ..replay.figures import tiers_png

            write_atomically(path.with_suffix(".png"), tiers_png(recorder, self._model.strategies[0], node))
