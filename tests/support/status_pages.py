"""Statuses, rendered pages and a server of them."""

from __future__ import annotations

import html
import http.client
import re

from prometheus_client import CollectorRegistry

from model.common.http_server import Server
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_page.history import History
from model.publishers.status_page.page import PageSettings
from model.publishers.status_page.query import Query
from model.publishers.status_page.renderer import StatusPage
from model.publishers.status_page.wsgi import application
from model.status import Figures, NodeStatus, ResourceStatus

SLICE_S, VALID_S = 1800.0, 1920.0
NOW_S = 1_800_000_000.0
LAST_S = NOW_S - 60
EVIL = "<script>alert(1)</script>\"'&{{7*7}}</svg>"


def ok(
    node: str = "http://w1:9100/metrics", end_s: float = LAST_S, free: float = 12.5, booked: float = 20.0
) -> NodeStatus:
    """A node of 32 cores and 64 GB."""
    cpu = Figures(32.0, booked + 4.0, booked, 32.0 - free, 0.0, free, free, end_s)
    mem = Figures(65536.0, 45056.0, 40960.0, 45056.0, 0.0, 20480.0, 20480.0, end_s)
    return NodeStatus(
        node,
        "scroogevm",
        end_s,
        ResourceStatus("ok", cpu, {"scroogevm": free, "borg": 3.25}),
        ResourceStatus("ok", mem, {"scroogevm": 20480.0, "borg": 1024.0}),
    )


def history(*published: list[NodeStatus]) -> History:
    kept = History()
    for statuses in published:
        kept.publish(statuses)
    return kept


def page(kept: History, query: str = "", now_s: float = NOW_S) -> str:
    return StatusPage(PageSettings(SLICE_S, VALID_S)).render(kept.snapshot, Query.parse(query), now_s).decode()


def cells(text: str) -> list[list[str]]:
    """The rows of the table, without the folded tables and without charts."""
    body = text[text.index("<tbody>") : text.rindex("</tbody>")]
    body = re.sub(r"<table>.*?</table>|<svg.*?</svg>", "", body, flags=re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", body, flags=re.S)
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.S)
        ]
        for row in rows
    ]


class Served:
    """Serves the pages of some nodes on a free port."""

    def __init__(self, *statuses: NodeStatus, timeout_s: float = 10.0) -> None:
        registry = CollectorRegistry()
        metrics = EstimatorMetrics(registry, EstimatorCounts())
        kept = History()
        for publisher in (metrics, kept):
            publisher.publish(statuses)
        pages = application(kept, registry, SLICE_S, VALID_S, lambda: NOW_S)
        self.server = Server(pages, 0, "127.0.0.1", timeout_s=timeout_s)
        self.server.start()
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/"

    def request(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()
