"""The results of a comparison on one workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .grid import Row, Setting
from .summary import Comparison
from .tasks import FleetSeries


@dataclass(frozen=True, slots=True)
class SourceResult:
    """What was found with one workload.

    Attributes
    ----------
    comparison : Comparison
    rows : sequence of Row
    series : mapping of Setting to sequence of FleetSeries
        One per seed.
    slice_s, warm_up_s : float
    """

    comparison: Comparison
    rows: Sequence[Row]
    series: Mapping[Setting, Sequence[FleetSeries]]
    slice_s: float
    warm_up_s: float
