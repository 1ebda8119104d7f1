"""The web application of the estimator: status page, status file and metrics."""

from __future__ import annotations

import gzip
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from ...common.logs import ProblemLog
from ..status_file import encode
from .history import History
from .page import PageSettings
from .query import Query
from .renderer import StatusPage

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger("scroogevm.estimator")

#: Status, headers, body.
_Response = tuple[str, list[tuple[str, str]], bytes]

_METHODS = ("GET", "HEAD")

_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]

_GZIP_LEVEL = 5


def application(
    history: History,
    registry: CollectorRegistry,
    slice_s: float,
    valid_s: float,
    clock: Callable[[], float] = time.time,
    *,
    refresh_s: int = 10,
) -> WSGIApplication:
    """The status page at ``/``, the status file at ``/status.json``, metrics for Prometheus at ``/metrics``.

    Parameters
    ----------
    history : History
    registry : CollectorRegistry
    slice_s, valid_s, refresh_s
        See :class:`PageSettings`.
    clock : callable
        Unix seconds.
    """
    page = StatusPage(PageSettings(slice_s, valid_s, refresh_s=refresh_s))
    metrics = make_wsgi_app(registry)

    def serve_page(environ: WSGIEnvironment) -> _Response:
        query = Query.parse(environ.get("QUERY_STRING", ""))
        return _ok(environ, "text/html; charset=utf-8", page.render(history.snapshot, query, clock()))

    def serve_status(environ: WSGIEnvironment) -> _Response:
        return _ok(environ, "application/json", encode(history.snapshot.statuses, valid_s))

    def serve_metrics(environ: WSGIEnvironment) -> _Response:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = metrics({**environ, "REQUEST_METHOD": "GET"}, lambda *response: started.append(response))
        return *started[0], b"".join(body)

    return _Application({"/": serve_page, "/status.json": serve_status, "/metrics": serve_metrics})


class _Application:
    """Serves GET and HEAD of fixed paths; never raises."""

    def __init__(self, pages: dict[str, Callable[[WSGIEnvironment], _Response]]) -> None:
        self._pages = pages
        self._problems = ProblemLog(LOG)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            status, headers, body = self._respond(environ)
            self._problems.resolve(environ["PATH_INFO"])
        except Exception as error:
            cause = f"page failed: {type(error).__name__}"
            self._problems.report(environ["PATH_INFO"], cause, logging.ERROR, error=error)
            status, headers, body = _error("500 Internal Server Error")
        start_response(status, [*headers, *_HEADERS, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _respond(self, environ: WSGIEnvironment) -> _Response:
        if environ["REQUEST_METHOD"] not in _METHODS:
            return _error("405 Method Not Allowed", ("Allow", ", ".join(_METHODS)))
        page = self._pages.get(environ["PATH_INFO"])
        return page(environ) if page else _error("404 Not Found")


def _ok(environ: WSGIEnvironment, content_type: str, body: bytes) -> _Response:
    headers = [("Content-Type", content_type), ("Vary", "Accept-Encoding")]
    if "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", ""):
        return "200 OK", headers, body
    return "200 OK", [*headers, ("Content-Encoding", "gzip")], gzip.compress(body, _GZIP_LEVEL)


def _error(status: str, *headers: tuple[str, str]) -> _Response:
    return status, [("Content-Type", "text/plain; charset=utf-8"), *headers], f"{status}\n".encode()
