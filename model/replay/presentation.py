"""The columns of a replay's table, the same in the terminal and in the report, and its log lines."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..common.text import printable
from ..estimates import NodeEstimate
from ..slices import CPU, RESOURCES, Resource, Slice
from .evidence import DEFINITION, NEGLIGIBLE, Evidence, rate_text

#: Headings by resource name.
TITLES = {resource.name: resource.title[:1].upper() + resource.title[1:] for resource in RESOURCES}

#: The share of WAIT_SHARES that the table shows: 10 %.
_TENTH = 1

#: What the columns mean. Stands in the report and under the table.
DEFINITIONS: tuple[str, ...] = (
    f"{DEFINITION} In figures: capacity - 99th percentile < left, where left is the figure published at the end of the "
    "slice before, less the growth of the VMs' allocations since then.",
    "The rate is that of the open loop: the recording does not react to what is published. The realised risk in the "
    "estimator's status is the closed loop's: it also counts every slice in which the node was full.",
    f"Violations by less than {NEGLIGIBLE:.1%} of the node are not counted; the worst violation includes them.",
)

_WAITING_DEFINITION = (
    "Waiting while offered: VM-minutes in which VMs waited for CPU for more than 10 % of the time in which they could "
    "run, in the slices before which something was published, of all."
)


def definitions_of(rows: Iterable[Evidence]) -> Sequence[str]:
    """What the columns of some rows mean."""
    return (*DEFINITIONS, _WAITING_DEFINITION) if any(row.waited for row in rows) else DEFINITIONS


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, and the text of a cell."""

    heading: str
    text: Callable[[Evidence], str]


def columns_of(resource: Resource, rows: Sequence[Evidence]) -> Sequence[Column]:
    """The columns behind the name of the strategy, those that matter first at the left."""
    unit = resource.display_unit
    waiting = [Column("waiting while offered, VM-min", _waiting)] if any(row.waited for row in rows) else []
    return (
        Column("violations", lambda row: f"{row.violations} of {row.slices}" if row.slices else "-"),
        Column("rate (95% interval)", rate_text),
        Column(f"worst violation, {unit}", lambda row: _amount(row.worst_violation, resource)),
        Column(f"published free, {unit}", lambda row: _amount(row.published_free, resource)),
        Column("booked/capacity, now and with it", lambda row: _ratio(row, resource)),
        *waiting,
        _score("published misprediction", "published_misprediction", ".3f"),
        _score("published violation", "published_violation", ".3f"),
        _score("published free", "published_free_share", ".1%"),
        _score("replay misprediction", "misprediction", ".3f"),
        _score("replay violation", "violation", ".3f"),
        _score("replay violated", "violation_frequency", ".1%"),
        _score("replay decrease", "decrease", ".3f"),
        _score("replay free", "free_share", ".1%"),
    )


def heading_of(resource: Resource, *, guarded: bool) -> str:
    """The heading of a table."""
    published = "published as free with guards" if guarded else "published as free"
    return f"{TITLES[resource.name]}: what was {published}, and how often more was used"


def exclusion_note(rows: Sequence[Evidence]) -> str:
    """Names the strategies that are not recommended whatever their scores; empty without any."""
    names = [row.strategy for row in rows if row.exceeds_capacity]
    return f"Not recommended, because they computed more free than the node has: {', '.join(names)}." if names else ""


def _score(heading: str, attribute: str, form: str) -> Column:
    def text(row: Evidence) -> str:
        value: float = getattr(row.score, attribute)
        return "-" if math.isnan(value) else format(value, form)

    return Column(heading, text)


def _waiting(row: Evidence) -> str:
    """VM-minutes above 10 %: in the slices before which something was published, of all."""
    if row.waited is None or row.waited_while_offered is None:
        return "-"
    return f"{row.waited_while_offered[_TENTH]:.0f} of {row.waited[_TENTH]:.0f}"


def _amount(value: float, resource: Resource) -> str:
    """Cores or GB: one decimal, and two significant digits below one unit; 0 for nothing."""
    shown = value / resource.display_scale
    if math.isnan(shown):
        return "-"
    return f"{shown:.1f}" if shown >= 1 or shown < 1e-9 else f"{shown:.2g}"


def _ratio(row: Evidence, resource: Resource) -> str:
    """``1.00 -> 1.62, +40 vCPU``: mean booked share, and the share that the published free amount would allow."""
    if math.isnan(row.offered_ratio):
        return "-"
    unit = "vCPU" if resource is CPU else resource.display_unit
    added = row.published_free / resource.display_scale
    return f"{row.booked_ratio:.2f} -> {row.offered_ratio:.2f}, +{added:.0f} {unit}"


def log_scope(log: logging.Logger, node_name: str, scope: int, finished: Slice, estimate: NodeEstimate) -> None:
    """Log a line per strategy at the end of a scope."""
    if not log.isEnabledFor(logging.INFO):
        return
    node = printable(node_name)
    if not (finished.cpu.measured or finished.mem.measured):
        log.info("%s scope %d: no data in its last slice", node, scope)
        return
    for strategy, cpu in estimate.cpu.by_strategy.items():
        mem = estimate.mem.by_strategy[strategy]
        log.info(
            "%s scope %d %s: %d VMs, booked %.1f cores %.0f MB, free %.1f cores %.0f MB, published %.1f cores %.0f MB",
            *(node, scope, strategy, len(finished.vms), finished.cpu.booked, finished.mem.booked),
            *(cpu.free, mem.free, cpu.published, mem.published),
        )
