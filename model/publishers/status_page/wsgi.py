"""The web application: status page, status file and metrics."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..status_file import encode
from .history import History
from .page import LOG, Query, StatusPage

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


# --- who asks ----------------------------------------------------------------------------------------

#: Status, headers, body.
_Answer = tuple[str, list[tuple[str, str]], bytes]

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


def application(
    history: History,
    registry: CollectorRegistry,
    slice_s: float,
    valid_s: float,
    clock: Callable[[], float] = time.time,
) -> WSGIApplication:
    """The page at ``/``, the status file's text at ``/status.json``, Prometheus' metrics at ``/metrics``.

    Parameters
    ----------
    history : History
    registry : CollectorRegistry
    slice_s, valid_s : float
        See :class:`StatusPage`.
    clock : callable
        Unix seconds.
    """
    page = StatusPage(slice_s, valid_s)
    metrics = make_wsgi_app(registry)

    def html(environ: WSGIEnvironment) -> _Answer:
        query = Query.parsed(environ.get("QUERY_STRING", ""))
        text = page.render(*history.shown, query, clock())
        return _packed(environ, "text/html; charset=utf-8", text)

    def json(environ: WSGIEnvironment) -> _Answer:
        return _packed(environ, "application/json", encode(history.shown[0], valid_s))

    def prometheus(environ: WSGIEnvironment) -> _Answer:
        told: list[tuple[str, list[tuple[str, str]]]] = []
        pieces = metrics({**environ, "REQUEST_METHOD": "GET"}, lambda status, headers: told.append((status, headers)))
        return *told[0], b"".join(pieces)

    pages = {"/": html, "/status.json": json, "/metrics": prometheus}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        draw = pages.get(environ["PATH_INFO"])
        try:
            if environ["REQUEST_METHOD"] not in _METHODS:
                status, headers, text = _refused("405 Method Not Allowed", ("Allow", ", ".join(_METHODS)))
            else:
                status, headers, text = draw(environ) if draw else _refused("404 Not Found")
        except Exception:
            LOG.exception("%s can't be shown", environ["PATH_INFO"])
            status, headers, text = _refused("500 Internal Server Error")
        start_response(status, [*headers, *_HEADERS, ("Content-Length", str(len(text)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [text]

    return answer


def _packed(environ: WSGIEnvironment, kind: str, text: bytes) -> _Answer:
    headers = [("Content-Type", kind), ("Vary", "Accept-Encoding")]
    if "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", ""):
        return "200 OK", headers, text
    return "200 OK", [*headers, ("Content-Encoding", "gzip")], gzip.compress(text, 5)


def _refused(status: str, *more: tuple[str, str]) -> _Answer:
    return status, [("Content-Type", "text/plain; charset=utf-8"), *more], f"{status}\n".encode()
