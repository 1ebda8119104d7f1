"""Runs a trace through the node model: every strategy in one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..estimates import NodeEstimate
from ..guards import turn_of
from ..nodemodel import ModelSettings, NodeModel
from ..slices import Slice
from ..stability import StabilityDetector
from .dump import DumpRecorder
from .histories import HistoryRecorder
from .scoring import History
from .trace import Trace

SliceSubscriber = Callable[[Slice, NodeEstimate], None]
Progress = Callable[[Iterable[Slice], int], Iterable[Slice]]


class Replay:
    """A replay of one trace, and the recording of it.

    Parameters
    ----------
    trace : Trace
    settings : ModelSettings
        Its number of positions is replaced by the trace's.
    detectors : mapping of resource name to StabilityDetector, optional

    Attributes
    ----------
    recorder : DumpRecorder
        The first subscriber to the slices.
    """

    def __init__(
        self, trace: Trace, settings: ModelSettings, detectors: Mapping[str, StabilityDetector] | None = None
    ) -> None:
        self.trace = trace
        self.settings = replace(settings, positions=trace.config.positions)
        self.recorder = DumpRecorder(settings.strategies, trace.vms)
        self._model = NodeModel(self.settings, detectors, turn_of(trace.config.node_name))

    def run_for_histories(
        self,
        *on_slice: SliceSubscriber,
        progress: Progress = lambda slices, _total: slices,
    ) -> dict[tuple[str, str], History]:
        """Replay the trace, once, without recording dumps; the input of the scores, by strategy and resource name.

        Parameters
        ----------
        *on_slice, progress
            As of :meth:`run`.
        """
        recorder = HistoryRecorder(self.settings.strategies)
        self._run([recorder.record, *on_slice], progress)
        return recorder.histories(self.trace.config.positions)

    def run(
        self,
        *on_slice: SliceSubscriber,
        progress: Progress = lambda slices, _total: slices,
    ) -> Replay:
        """Replay the trace, once.

        Parameters
        ----------
        *on_slice : callable
            Subscribers, called with every slice and its estimate after the recorder.
        progress : callable
            Gets the slices and their number; returns the slices and may show how many have passed.
        """
        self._run([self.recorder.record, *on_slice], progress)
        return self

    def _run(self, subscribers: Sequence[SliceSubscriber], progress: Progress) -> None:
        # Samples that no machine has overflow to infinity, which is null in the dump.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for finished in progress(self.trace.slices(), len(self.trace)):
                estimate = self._model.update(finished)
                for notify in subscribers:
                    notify(finished, estimate)

    def histories(self) -> dict[tuple[str, str], History]:
        """The input of the scores, by strategy and resource name."""
        return self.recorder.histories(self.trace.config.positions)

    def dumps(self, node_name: str, stability: str) -> Iterator[tuple[str, bytes]]:
        """The dump of each strategy as JSON text, one after the other.

        Parameters
        ----------
        node_name, stability : str
            Entries of ``config``, beside what the trace's own ``config`` holds.
        """
        for strategy, pieces in self.dumps_in_pieces(node_name, stability):
            yield strategy, b"".join(pieces)

    def dumps_in_pieces(self, node_name: str, stability: str) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """The same; the second piece of each text is shared by all strategies, and takes almost all of the memory."""
        return self.recorder.encode(self._dump_config(node_name, stability))

    def compact_dump(self, node_name: str, stability: str) -> tuple[bytes, bytes]:
        """One dump of all strategies in two pieces, with a list per percentile of a VM."""
        return self.recorder.encode_compact(self._dump_config(node_name, stability))

    def _dump_config(self, node_name: str, stability: str) -> dict[str, Any]:
        return dump_config({**self.trace.config_fields, "node_name": node_name}, self.settings, stability)


def dump_config(trace_config: Mapping[str, Any], settings: ModelSettings, stability: str) -> dict[str, Any]:
    """The ``config`` object of a dump: the trace's, and the settings of the model."""
    return {
        **trace_config,
        "cpu_percentile": settings.cpu.percentile,
        "mem_percentile": settings.mem.percentile,
        "aggregation": settings.cpu.aggregation,
        "cpu_risk": settings.cpu.risk,
        "mem_risk": settings.mem.risk,
        "stability": stability,
        "guards": settings.guarded,
    }


def dump_name(node_name: str, settings: ModelSettings) -> str:
    """``dump-<node>_c<cpu>_m<mem>_a<aggregation>.json``, at most 255 bytes, without slashes and control characters."""
    node = "".join(c for c in node_name if c != "/" and c.isprintable())
    tail = f"_c{settings.cpu.percentile:g}_m{settings.mem.percentile:g}_a{settings.cpu.aggregation}.json"
    room = 255 - len("dump-") - len(tail)
    return f"dump-{node.encode(sys.getfilesystemencoding(), 'ignore')[:room].decode(errors='ignore')}{tail}"
