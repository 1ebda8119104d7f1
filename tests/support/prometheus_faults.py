"""Faults of a Prometheus server, by what comes of them."""

from __future__ import annotations

from tests.support import prometheus_proxy as faults
from tests.support.prometheus_proxy import SECRET, Fault, Proxy

#: The server counts as down.
UNAVAILABLE: dict[str, Fault] = {
    "slow": faults.slow(30),
    "connection closed within the body": faults.cut_off,
    "truncated body": faults.truncated,
    "HTML": faults.html(200),
    "bad gateway": faults.html(502),
    "too many requests": faults.refused(429, "slow down", Retry_After="1"),
    "overloaded": faults.refused(503, "overloaded", Retry_After="1"),
    "every query too large": faults.refused(422, "query processing would load too many samples into memory"),
    "warnings": faults.noted(warnings=["store 7 did not respond"]),
    "partial": faults.noted(isPartial=True),
    "old answers of a cache": faults.of_earlier(120, stamped=False),
    "no number": faults.valued("abc"),
    "redirect": faults.redirected(f"http://user:{SECRET}@elsewhere.invalid/"),
    "unauthorized": faults.html(401),
}

#: The server is answered with, and the nodes have no figures.
MISSING: dict[str, Fault] = {
    "not a number": faults.valued("NaN"),
    "infinite": faults.valued("+Inf"),
    "too large for a float": faults.valued("1e999"),
    "old answers with new times": faults.of_earlier(120, stamped=True),
    "nothing": faults.without(lambda _labels, _i: True),
}

#: Some of the figures may be there.
PARTIAL: dict[str, Fault] = {
    "queries for two nodes too large": faults.too_large(1),
    "every second series dropped": faults.without(lambda _labels, i: i % 2 == 1),
    "the other series dropped": faults.without(lambda _labels, i: i % 2 == 0),
    "half of the VMs dropped": faults.without(lambda labels, _: labels.get("domain") in {"a", "c"}),
    "half of the modes dropped": faults.without(lambda labels, _: labels.get("mode") == "system"),
    "a node dropped": faults.without(lambda labels, _: labels.get("instance", "").startswith("w2")),
}


def behind_url(proxy: Proxy) -> str:
    return proxy.url.replace("//", f"//user:{SECRET}@")
