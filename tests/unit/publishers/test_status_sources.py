"""The statuses of several masters in one table."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import CollectorRegistry

from model.common.errors import UsageError
from model.publishers.status_file import encode
from model.publishers.status_page.history import History
from model.publishers.status_page.wsgi import application
from model.publishers.status_sources import StatusSources
from model.publishers.status_table import show_status
from model.status import Figures, NodeStatus, ResourceStatus
from tests.support.servers import free_port

END_S = 4_000_000_000.0


def status(node: str, free: float = 6.0, end_s: float = END_S) -> NodeStatus:
    resource = ResourceStatus("ok", Figures(8.0, 4.0, 4.0, 2.0, 0.0, free, free, end_s))
    return NodeStatus(node, "clt", end_s, resource, resource)


@pytest.fixture
def page() -> Iterator[Callable[[list[NodeStatus]], str]]:
    """Serves status pages; the URL of each."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    servers = []

    def serve(statuses: list[NodeStatus]) -> str:
        history = History()
        history.publish(statuses)
        server = make_server("127.0.0.1", 0, application(history, CollectorRegistry(), 60.0, 60.0), handler_class=Quiet)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_files_and_pages_of_all_masters_are_one_table(
    page: Callable[[list[NodeStatus]], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(encode([status("c")], 60.0))
    first, second = page([status("a")]), page([status("b")])
    sources = StatusSources([first, f"{second}/status.json", str(path)])
    nodes, problems = sources.read()
    assert (list(nodes), problems) == (["a", "b", "c"], [])
    assert show_status(sources, json=True) == 0
    assert [one["node"] for one in json.loads(capsys.readouterr().out)] == ["a", "b", "c"]


def test_node_of_two_masters_is_that_of_the_later_slice(page: Callable[[list[NodeStatus]], str]) -> None:
    old, new = page([status("a", 7.0, END_S - 60)]), page([status("a", 3.0)])
    for order in ([old, new], [new, old]):
        nodes, _ = StatusSources(order).read()
        assert nodes["a"].free_cpu == 3.0


def test_master_that_is_down_does_not_hide_the_others(
    page: Callable[[list[NodeStatus]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    down = f"http://user:s3cr3t@127.0.0.1:{free_port()}"
    assert show_status(StatusSources([down, page([status("a")])])) == 1
    shown = capsys.readouterr()
    assert "Connection refused" in shown.err
    assert "s3cr3t" not in shown.err
    assert " a " in shown.out or "\na" in shown.out
    with pytest.raises(UsageError, match="Connection refused"):
        show_status(StatusSources([down]))


def test_page_that_is_no_status_is_named(page: Callable[[list[NodeStatus]], str], tmp_path: Path) -> None:
    url = page([])
    _, problems = StatusSources([f"{url}/metrics", f"{url}/nowhere.json", str(tmp_path / "none.json")]).read()
    assert problems[0] == f"{url}/metrics: HTTP status 404"
    assert problems[1] == f"{url}/nowhere.json: HTTP status 404"
    assert problems[2].endswith("none.json: No such file or directory")
