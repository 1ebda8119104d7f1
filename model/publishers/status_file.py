"""The status file: one JSON object with a key per node, replaced atomically."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..common.atomic_files import make_folder_of, write_atomically
from ..common.text import printable
from ..contention import Level
from ..guards import offered_capacity
from ..slices import CPU, MEMORY, RESOURCES, Resource
from ..status import Figures, NodeStatus, ResourceStatus
from .settings import StatusFileSettings


class StatusFileError(ValueError):
    """The status file is missing or invalid; the message is one line."""


class StatusFile:
    """Publishes the status of all nodes as a file.

    Parameters
    ----------
    settings : StatusFileSettings
    valid_s : float
        A status is valid for so long after the end of its slice.
    """

    def __init__(self, settings: StatusFileSettings, valid_s: float) -> None:
        self._settings = settings
        self._valid_s = valid_s
        self._is_clean = False

    def publish(self, statuses: Sequence[NodeStatus]) -> None:
        """Replace the file.

        Raises
        ------
        OSError
            When it cannot be written; the previous file is left as it is.
        """
        settings = self._settings
        if not self._is_clean:
            self._remove_temporary_files()
            self._is_clean = True
        make_folder_of(settings.path)
        data = encode(statuses, self._valid_s)
        write_atomically(settings.path, data, mode=settings.mode, owner=(settings.uid, settings.gid))

    def _remove_temporary_files(self) -> None:
        """Remove what a process that was killed left behind."""
        for temporary in self._settings.path.parent.glob(f".{self._settings.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                temporary.unlink()


def encode(statuses: Sequence[NodeStatus], valid_s: float) -> bytes:
    """The status as JSON; times in Unix seconds, CPU in cores, memory in MB of 2**20 bytes."""
    data = msgspec.json.encode({status.node: _node(status, valid_s) for status in statuses})
    return msgspec.json.format(data, indent=1) + b"\n"


def _node(status: NodeStatus, valid_s: float) -> dict[str, Any]:
    known = not math.isnan(status.slice_end_s)
    result: dict[str, Any] = {
        "state": status.state,
        "strategy": status.strategy,
        "slice_end": _whole(status.slice_end_s) if known else None,
        # Later than this the daemon no longer publishes.
        "valid_until": _whole(status.slice_end_s + valid_s) if known else None,
        **{f"free_{resource.name}": status.of(resource).free for resource in RESOURCES},
        **{resource.name: _resource(status.of(resource)) for resource in RESOURCES},
    }
    last = {resource.name: status.of(resource).last for resource in RESOURCES if status.of(resource).state == "stale"}
    if last:
        result["last_known"] = {name: _last(figures) for name, figures in last.items() if figures is not None}
    return result


def _resource(status: ResourceStatus) -> dict[str, Any]:
    last = status.last
    if last is None:
        return {"state": status.state} | dict.fromkeys(("config", "booked", "booked_now", "tier0", "tier1", "tier2"))
    # Without fresh samples the whole node counts as used.
    tiers = (last.tier0, last.tier1, last.tier2) if status.state == "ok" else (last.config, 0.0, 0.0)
    rates = {
        "risk": last.risk,
        "realised_risk": last.violation_rate,
        "forecast_violation_rate": last.forecast_violation_rate,
        "unguarded": last.unguarded if status.state == "ok" else None,
    }
    return {
        "state": status.state,
        "config": last.config,
        "booked": round(last.booked, 6),
        "booked_now": round(last.booked_now, 6),
        **{f"tier{i}": tier for i, tier in enumerate(tiers)},
        "own": round(last.own, 6),
        "closed": last.closed,
        **({"limits": {guard: round(left, 6) for guard, left in last.limits.items()}} if status.state == "ok" else {}),
        **{name: rate for name, rate in rates.items() if rate is not None},
        "contention": _contention(status),
    }


def _contention(status: ResourceStatus) -> dict[str, Any]:
    contention = status.contention
    result: dict[str, Any] = {"level": contention.level.text, "waiting_vms": contention.waiting}
    if contention.level is not Level.NONE or contention.causes:
        result |= {
            "text": printable(status.contention_text),
            "vms": {name: round(share, 4) for name, share in contention.vms.items()},
            "pressure": {name: round(value, 4) for name, value in contention.pressure.items()},
            "calm": contention.calm,
        }
    return result


def _last(figures: Figures) -> dict[str, Any]:
    return {
        "free": figures.free,
        "booked": round(figures.booked, 6),
        "booked_now": round(figures.booked_now, 6),
        **{f"tier{i}": tier for i, tier in enumerate((figures.tier0, figures.tier1, figures.tier2))},
        "slice_end": _whole(figures.slice_end_s),
    }


def _whole(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds


# --- reading -----------------------------------------------------------------------------------------


class PublishedContention(msgspec.Struct):
    """How much the VMs suffer from the lack of a resource: ``none``, ``some`` or ``high``, and why."""

    level: Literal["none", "some", "high"] = "none"
    waiting_vms: int = 0
    text: str = ""
    vms: dict[str, float] = {}
    pressure: dict[str, float] = {}
    calm: bool = False


class PublishedResource(msgspec.Struct):
    """``cpu`` or ``mem`` of a node in the file."""

    state: str
    config: float | None
    booked: float | None
    tier0: float | None
    tier1: float | None
    tier2: float | None
    booked_now: float | None = None
    """None in the file of an earlier version."""
    risk: float | None = None
    violation_rate: float | None = msgspec.field(default=None, name="realised_risk")
    """Share of recent slices in which the node was full, or more was used than was left."""
    forecast_violation_rate: float | None = None
    unguarded: float | None = None
    closed: bool = False
    limits: dict[str, float] = {}
    contention: PublishedContention = msgspec.field(default_factory=PublishedContention)


class PublishedNode(msgspec.Struct):
    """A node in the file."""

    state: str
    strategy: str
    slice_end: float | None
    valid_until: float | None
    free_cpu: float
    free_mem: float
    cpu: PublishedResource
    mem: PublishedResource

    def capacity(self, resource: Resource) -> float | None:
        """What a scheduler may book in total, cores or MB; None where it is not known."""
        free, published = self.of(resource)
        if published.booked_now is None or published.config is None:
            return None
        return offered_capacity(published.booked_now, free, published.config, closed=published.closed)

    def of(self, resource: Resource) -> tuple[float, PublishedResource]:
        """Published free, and the other figures of a resource."""
        return (self.free_cpu, self.cpu) if resource is CPU else (self.free_mem, self.mem)


def read_status(path: Path) -> Mapping[str, PublishedNode]:
    """Read the status of all nodes.

    Raises
    ------
    StatusFileError
        When the file cannot be read or is not a status file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StatusFileError(f"{path}: {error.strerror}") from None
    return decode(data, str(path))


def decode(data: bytes, source: str) -> Mapping[str, PublishedNode]:
    """Decode the status of all nodes.

    Raises
    ------
    StatusFileError
        Which names the source.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, PublishedNode])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StatusFileError(f"{source}: not a status file: {error}") from None


assert RESOURCES == (CPU, MEMORY)  # noqa: S101  # named in PublishedNode
