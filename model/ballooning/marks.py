"""The mark that a squeezed guest carries in the metadata of its domain.

The mark is written before the first squeeze and removed when the guest has its memory again. It lasts as long as the
domain runs and moves with it, so that the host itself shows which balloons this program has inflated, whatever becomes
of the journal.
"""

from __future__ import annotations

import hashlib
import math
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: XML namespace and prefix of the mark in a domain's metadata.
NAMESPACE, PREFIX = "urn:scroogevm:ballooning:1", "scroogevm"

#: A session of another daemon has ended at its time limit; it restores the guest within this time.
OTHERS_MARGIN_S = 30.0

_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']")


@dataclass(frozen=True, slots=True)
class Mark:
    """What is recorded in the domain of a squeezed guest.

    Attributes
    ----------
    full_mb : float
        Memory to which the guest is restored; inf when the mark cannot be parsed: all of its memory.
    started_s, until_s : float
        Start and latest end of the session, Unix seconds.
    owner : str
        Identifies the journal of the daemon that squeezed it, see :func:`owner_of`.
    """

    full_mb: float
    started_s: float
    until_s: float
    owner: str

    def others_due_s(self, now_s: float) -> float:
        """Seconds from now until the session, if it is another daemon's, must have ended.

        Not longer than the session itself, because the clocks of two machines may differ.
        """
        left_s = min(self.until_s - now_s, self.until_s - self.started_s)
        return max(left_s, 0.0) + OTHERS_MARGIN_S


def mark_xml(mark: Mark) -> str:
    """The mark as an XML element without namespace, which libvirt adds; the size is in KiB.

    >>> mark_xml(Mark(512.0, 10.0, 130.0, "ab12"))
    '<squeeze full_kib="524288" started_s="10" until_s="130" owner="ab12"/>'
    """
    times = f'started_s="{mark.started_s:.0f}" until_s="{mark.until_s:.0f}"'
    return f'<squeeze full_kib="{mark.full_mb * 1024:.0f}" {times} owner="{mark.owner}"/>'


def parse_mark(text: str) -> Mark:
    """Read a mark; one that is damaged marks the guest all the same.

    >>> parse_mark('<squeeze full_kib="524288" started_s="10" until_s="130" owner="ab12"/>')
    Mark(full_mb=512.0, started_s=10.0, until_s=130.0, owner='ab12')
    >>> parse_mark("<squeeze/>")
    Mark(full_mb=inf, started_s=0.0, until_s=0.0, owner='')
    """
    fields = dict(_ATTRIBUTE.findall(text))
    full_mb = _number(fields, "full_kib", math.inf) / 1024
    return Mark(
        full_mb if full_mb > 0 else math.inf,
        _number(fields, "started_s", 0.0),
        _number(fields, "until_s", 0.0),
        fields.get("owner", ""),
    )


def _number(fields: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(fields[name])
    except (KeyError, ValueError):
        return default
    return value if math.isfinite(value) else default


def owner_of(journal_path: Path) -> str:
    """Identify a journal: the daemon that locks it owns the marks with this name."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        machine = ""
    return hashlib.sha256(f"{machine}\0{socket.gethostname()}\0{journal_path}".encode()).hexdigest()[:16]
