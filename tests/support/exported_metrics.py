"""The metrics that the daemons export, and their labels."""

from __future__ import annotations

from tests.support.markdown import DOCS, code_of


def exported_metrics() -> dict[str, set[str]]:
    """Labels by metric; test_documentation.py compares these tables with what the daemons export."""
    return {
        code_of(row[0])[0]: set(code_of(row[2]))
        for heading in ("Aggregator", "Estimator", "Ballooning daemon")
        for table in DOCS["metrics.md"].tables(heading)
        for row in table
    }
