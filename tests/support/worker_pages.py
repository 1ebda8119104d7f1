"""What the tests of the simulated workers share."""

from __future__ import annotations

import json
import re

from prometheus_client.parser import text_string_to_metric_families

from misc.fakeworkers.machines import Plan

#: Some time of 2026, Unix ms.
NOW_MS = 1_795_357_894_930
SMALL = Plan(workers=3, vms=4, other_metrics=25, slow_s=0.3)
COUNTERS = re.compile(
    r"cpu_(cputime|usertime|systemtime|user|kernel|idle|iowait)$|sched_|stat_m..flt$|fault$|(seconds|fault)_total$|last_update$"
)


def samples(page: bytes) -> dict[str, float]:
    """Value by name with labels; fails if prometheus_client cannot read the page."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            name = sample.name + (json.dumps(sample.labels) if sample.labels else "")
            assert name not in values, f"{name} occurs twice"
            values[name] = sample.value
    return values


def plain_samples(page: bytes) -> dict[str, float]:
    """The same with names as they are in the page, without a check; ten times as fast."""
    lines = (line.rpartition(" ") for line in page.decode().splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
