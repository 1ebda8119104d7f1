"""The metrics that the daemons export, and their labels."""

from __future__ import annotations

from tests.support.markdown import DOCS, code_of

#: Metrics that scroogevm.py is about to export. Remove what docs/metrics.md has.
PENDING = {
    "scroogevm_contention_level": {"node", "resource"},
    "scroogevm_waiting_vms": {"node"},
    "scroogevm_vm_wait_share_max": {"node"},
}


def exported_metrics() -> dict[str, set[str]]:
    """Labels by metric; test_documentation.py compares these tables with what the daemons export."""
    documented = {
        code_of(row[0])[0]: set(code_of(row[2]))
        for heading in ("Aggregator", "Estimator", "Ballooning daemon")
        for table in DOCS["metrics.md"].tables(heading)
        for row in table
    }
    assert not documented.keys() & PENDING.keys(), "no longer pending"
    return {**documented, **PENDING}
