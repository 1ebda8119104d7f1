"""Messages of ``vmaggreg.py --check``."""

from __future__ import annotations

import pytest

from model.aggregator.check import describe_scrape
from model.samples import Scrape

NODE = {"cpu_total": 8.0, "memory_total": 16.0 * 2**20, "probe_delay": 5000.0}
VM = {"cpu_alloc": 1.0, "cpu_cputime": 1.0, "memory_unused": 1.0}


@pytest.mark.parametrize(
    ("node", "domains", "now_s", "usable", "message"),
    [
        (NODE, {"a": VM}, 1000.0, True, "8 cores, 16 GB, 1 VMs"),
        (NODE, {}, 1000.0, True, "8 cores, 16 GB, 0 VMs"),
        (NODE, None, 1000.0, False, "8 cores, 16 GB, but its VMs are unknown: "),
        (
            NODE,
            {"a": VM, "b": {"cpu_alloc": 1.0}},
            1000.0,
            True,
            "8 cores, 16 GB, 2 VMs, 1 of them without CPU time, 1 of them without guest memory",
        ),
        (NODE, {}, 1060.0, True, "8 cores, 16 GB, 0 VMs"),
        (NODE, {}, 1061.0, False, "the page is 61 s old: the probe has stopped, or the clocks differ"),
        (NODE, {}, 939.0, False, "the page is 61 s ahead, or the clocks differ"),
        # Three delays of a slow probe are allowed: 3 x 30 s.
        ({**NODE, "probe_delay": 30_000.0}, {}, 1090.0, True, "8 cores, 16 GB, 0 VMs"),
        (
            {**NODE, "probe_delay": 30_000.0},
            {},
            1091.0,
            False,
            "the page is 91 s old: the probe has stopped, or the clocks differ",
        ),
    ],
)
def test_scrape_is_described(
    node: dict[str, float], domains: dict[str, dict[str, float]] | None, now_s: float, usable: bool, message: str
) -> None:
    assert describe_scrape(Scrape(1_000_000.0, node, domains), now_s) == (usable, message)
