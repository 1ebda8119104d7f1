"""One node: read its slices from the store and compute them, in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..slices import Slice, Usage
from ..status import NodeStatus

#: The aggregator tries again after 30 s at most when its store was away.
CATCH_UP_S = 40.0


class StoreBehind(Exception):
    """The store does not have yet what it is going to have."""


@dataclass(slots=True)
class NodeProgress:
    """A node and how far it has come."""

    done: tuple[int | None, NodeStatus]
    """The number of its last slice, and what was said at its end: always exchanged together."""
    busy: bool = False
    error: str = ""
    retry_at: float = 0.0
    waits_until: float = -math.inf
    """Until when it is waited for what the aggregator kept while the store was away; inf as long as it is."""


def without_vm_samples(finished: Slice) -> Slice:
    """What is kept of a slice when no strategy will ask again what single VMs used."""
    return replace(finished, cpu=_node_alone(finished.cpu), mem=_node_alone(finished.mem))


def _node_alone(usage: Usage) -> Usage:
    return replace(usage, vm_usage=np.empty((usage.vm_config.size, 0)))
