"""A small HTTP server for a daemon's own pages, in threads, which no client can hang."""

from __future__ import annotations

import io
import socket
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from .errors import UsageError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def serve_metrics(key: str, port: int, address: str, registry: CollectorRegistry) -> Server:
    """Serve metrics to a Prometheus server, in a thread, until the server is closed.

    Raises
    ------
    UsageError
        When the port that the setting ``key`` names can't be had.
    """
    return serve(key, port, address, make_wsgi_app(registry))


def serve(key: str, port: int, address: str, application: WSGIApplication) -> Server:
    """Serve any pages, in a thread, until the server is closed.

    Raises
    ------
    UsageError
        When the port that the setting ``key`` names can't be had.
    """
    try:
        return Server(application, port, address)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "METRICS_ADDRESS is no address"
        raise UsageError(f"{key}: {port} can't be served: {words}") from None


#: So long a client may be silent, and so long it may take for what it is sent.
_PATIENCE_S = 10.0

#: One connection more, and the oldest one is closed: who has little to ask is through long before.
_MOST_CONNECTIONS = 64


class _Handler(WSGIRequestHandler):
    """One request; nothing of it is logged."""

    timeout = _PATIENCE_S
    server_version = "ScroogeVM"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        """Say nothing."""

    def get_stderr(self) -> io.StringIO:
        """Where the library would complain of clients that leave."""
        return io.StringIO()


class Server(ThreadingMixIn, WSGIServer):
    """Serves an application from when it is made until it is closed; its threads end with the process.

    Parameters
    ----------
    application : WSGI application
        Must not raise; is called in several threads.
    port : int
        0 takes any that is free; see ``server_port``.
    address : str
        IPv4, IPv6 or a name.

    Raises
    ------
    OSError
        When the port can't be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, application: WSGIApplication, port: int, address: str) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, where = found[0]
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__((str(where[0]), port), _Handler)
        self.set_app(application)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection; too many cost the oldest its own."""
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                # Not close(): its thread still holds it, wakes up and does that.
                _shut(oldest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Let go of a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client has left, or was too slow."""

    def close(self) -> None:
        """Stop, and give the port back."""
        self.shutdown()
        self._thread.join()
        self.server_close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has left by itself
