"""Dumps of what ran live: the last slices of each node, in the form of a replay's dump."""

from __future__ import annotations

import argparse
import logging
import sqlite3
from pathlib import Path

from ..common.atomic_files import write_atomically
from ..common.logs import ProblemLog
from ..nodemodel import ModelSettings, NodeEstimate
from ..replay.dump import DumpRecorder
from ..replay.presentation import log_scope
from ..replay.replay import dump_config, dump_name
from ..slices import Slice
from .checkpoints import CheckpointCorrupt, CheckpointFile
from .settings import EstimatorSettings

LOG = logging.getLogger("scroogevm.estimator")


class DumpWriter:
    """Writes a node's dump at the end of each scope, and all of them at the end.

    Parameters
    ----------
    args : argparse.Namespace
        ``output``, ``debug`` and ``stability`` of the command line.
    settings : EstimatorSettings
    model : ModelSettings
    memory : CheckpointFile
        Where the figures are kept.
    """

    def __init__(
        self, args: argparse.Namespace, settings: EstimatorSettings, model: ModelSettings, memory: CheckpointFile
    ) -> None:
        self._folder = Path(args.output or ".")
        self._pictures = args.debug >= 2
        self._stability = settings.model.stability
        self._settings = settings
        self._model = model
        self._memory = memory
        self._problems = ProblemLog(LOG)

    def on_slice(self, node: str, number: int, finished: Slice, estimate: NodeEstimate) -> None:
        """Take note of a slice; the last one of a scope is told, and the dump written."""
        scope, position = divmod(number, self._settings.calendar.positions)
        if position == self._settings.calendar.positions - 1:
            log_scope(LOG, node, scope, finished, estimate)
            self.write(node)

    def write_all(self) -> None:
        """The dumps of all nodes, as far as they are."""
        for node in self._settings.nodes:
            self.write(node)

    def write(self, node: str) -> None:
        """One dump; what prevents it is logged once."""
        try:
            self._write(node)
            self._problems.resolve(f"dump of {node}")
        except (OSError, sqlite3.Error, CheckpointCorrupt) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            self._problems.report(f"dump of {node}", f"can't be written: {words}")

    def _write(self, node: str) -> None:
        kept = self._memory.figures(node)
        if not kept:
            return
        recorder = DumpRecorder(self._model.strategies, sorted({name for one in kept for name in one.vm.vms}))
        for figures in kept:
            recorder.add(figures)
        trace_config = self._settings.calendar.trace_config(node, self._settings.historical)
        config = dump_config(trace_config, self._model, self._stability)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / dump_name(node, self._model)
        write_atomically(path, recorder.encode_together(config))
        if self._pictures:
            from ..replay.figures import tiers_png

            published = self._model.strategies[0]
            write_atomically(path.with_suffix(".png"), tiers_png(recorder, published, node))
