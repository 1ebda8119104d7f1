"""A trace through the models: every strategy in one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..nodemodel import ModelSettings, NodeEstimate, NodeModel
from ..slices import RESOURCES, Slice
from ..stability import StabilityDetector
from .dump import DumpRecorder
from .scoring import Score, score
from .trace import Trace


class Replay:
    """The outcome of a replay.

    Parameters
    ----------
    trace : Trace
    settings : ModelSettings
        Its positions are the trace's, whatever it says.
    detectors : mapping of resource name to StabilityDetector, optional
    """

    def __init__(
        self, trace: Trace, settings: ModelSettings, detectors: Mapping[str, StabilityDetector] | None = None
    ) -> None:
        self.trace = trace
        self.settings = replace(settings, positions=trace.config.positions)
        self.recorder = DumpRecorder(settings.strategies, trace.vms)
        self._model = NodeModel(self.settings, detectors)

    def run(
        self,
        *,
        progress: Callable[[Iterable[Slice], int], Iterable[Slice]] = lambda slices, _total: slices,
        on_slice: Callable[[Slice, NodeEstimate], None] = lambda _finished, _estimate: None,
    ) -> Replay:
        """Replay the trace, once.

        Parameters
        ----------
        progress : callable
            Given the slices and their number, hands them on and may show how far it is.
        on_slice : callable
            Told every slice and its estimate.
        """
        # What overflows on samples that no machine gives is infinite, and null in the dump.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for finished in progress(self.trace.slices(), len(self.trace)):
                estimate = self._model.update(finished)
                self.recorder.record(finished, estimate)
                on_slice(finished, estimate)
        return self

    def scores(self) -> list[Score]:
        """A row per strategy and resource."""
        histories = self.recorder.histories(self.trace.config.positions)
        return [
            score(strategy, resource.name, histories[strategy, resource.name])
            for strategy in self.settings.strategies
            for resource in RESOURCES
        ]

    def dumps(self, node_name: str, stability: str) -> Iterator[tuple[str, bytes]]:
        """The dump of each strategy as JSON text, one after the other.

        Parameters
        ----------
        node_name, stability : str
            As they are to stand in ``config``, beside what the trace's own ``config`` holds.
        """
        config = {**self.trace.config_fields, "node_name": node_name}
        return self.recorder.encode(dump_config(config, self.settings, stability))


def dump_config(trace_config: Mapping[str, Any], settings: ModelSettings, stability: str) -> dict[str, Any]:
    """What stands in a dump's ``config``: the trace's, and how the models were set."""
    return {
        **trace_config,
        "cpu_percentile": settings.cpu.percentile,
        "mem_percentile": settings.mem.percentile,
        "aggregation": settings.cpu.aggregation,
        "cpu_risk": settings.cpu.risk,
        "mem_risk": settings.mem.risk,
        "stability": stability,
    }


def dump_name(node_name: str, settings: ModelSettings) -> str:
    """``dump-<node>_c<cpu>_m<mem>_a<aggregation>.json``, a name that any file system takes."""
    node = "".join(c for c in node_name if c != "/" and c.isprintable())
    tail = f"_c{settings.cpu.percentile:g}_m{settings.mem.percentile:g}_a{settings.cpu.aggregation}.json"
    room = 255 - len("dump-") - len(tail)
    return f"dump-{node.encode(sys.getfilesystemencoding(), 'ignore')[:room].decode(errors='ignore')}{tail}"
