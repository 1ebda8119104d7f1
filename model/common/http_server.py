"""The HTTP server of a daemon's own pages: waitress, with limits that slow clients cannot evade.

Waitress reads requests and writes responses in one thread, whatever the number of connections. Two things are added
to it: a connection that makes no progress is closed even if the client does not read, and at the limit of connections
the oldest one is closed, where waitress would accept no further client.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import waitress.wasyncore  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, make_wsgi_app
from waitress.adjustments import Adjustments  # type: ignore[import-untyped]
from waitress.server import TcpWSGIServer  # type: ignore[import-untyped]
from waitress.task import ThreadedTaskDispatcher  # type: ignore[import-untyped]

from .errors import UsageError
from .logs import ProblemLog
from .threads import start_thread

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger("scroogevm.http")

#: A connection without progress for so long is closed.
_TIMEOUT_S = 10.0

#: One connection more, and the oldest one is closed.
_MOST_CONNECTIONS = 64

#: Threads that compute responses.
_THREADS = 4

_LONGEST_HEADERS = 65_536

#: Responses are kept in memory: a read-only system has no place for temporary files.
_BUFFER_BYTES = 2**30

#: Pause between two attempts at a port that is not available.
_RETRY_S = 2.0

#: How long the end waits for responses that are being computed.
_END_S = 5.0


def serve_metrics(key: str, port: int, address: str, registry: CollectorRegistry) -> Server:
    """Serve the metrics of a registry; see :func:`serve`."""
    return serve(key, port, address, make_wsgi_app(registry))


def serve(key: str, port: int, address: str, application: WSGIApplication) -> Server:
    """Serve an application in background threads until the server is closed.

    The port may be taken by an instance that is still ending, and an address may appear later: then the daemon works
    without its pages, and the port is tried again in the background.

    Raises
    ------
    UsageError
        When the address or the port, which the setting ``key`` names, can never be used.
    """
    server = Server(application, port, address)
    problems = ProblemLog(LOG)
    subject = f"{key}: cannot listen on port {port}"

    def start() -> bool:
        try:
            server.start()
        except (OSError, ValueError) as error:
            if not _may_pass(error):
                raise UsageError(
                    f"{subject}: {getattr(error, 'strerror', None) or 'METRICS_ADDRESS is not an address'}"
                ) from None
            problems.report(subject, f"{error.strerror}; trying again", logging.ERROR)
            return False
        problems.resolve(subject)
        return True

    if not start():
        server.start_later(start)
    return server


def _may_pass(error: OSError | ValueError) -> TypeGuard[OSError]:
    """Whether the port can be used later without a change of the settings."""
    if isinstance(error, socket.gaierror):
        return error.errno in {socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM}
    # A port that needs privileges is the only one that waiting does not free.
    return isinstance(error, OSError) and error.errno != errno.EACCES


class Server:
    """Serves an application from :meth:`start` to :meth:`close`; its threads are daemon threads.

    Parameters
    ----------
    application : WSGI application
        Must not raise; is called in several threads.
    port : int
        0 takes a free port; see ``server_port``.
    address : str
        IPv4, IPv6 or a host name.
    timeout_s : float
        A connection without progress for so long is closed.
    """

    def __init__(self, application: WSGIApplication, port: int, address: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._application = application
        self._port = port
        self._address = address
        self._timeout_s = timeout_s
        self._server: _BoundedServer | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._starter: threading.Thread | None = None

    @property
    def is_serving(self) -> bool:
        """Whether the port is open."""
        return self._server is not None

    @property
    def server_port(self) -> int:
        """The port that is served, once started."""
        return self._port

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._server.active_channels) if self._server else 0

    def start(self) -> None:
        """Listen, and serve in background threads.

        Raises
        ------
        OSError, ValueError
            When the address or the port is not available.
        """
        # Clients that leave or send nonsense are no events of this daemon.
        logging.getLogger("waitress").setLevel(logging.ERROR)
        listener = _listen(self._address, self._port)
        self._port = listener.getsockname()[1]
        self._server = _BoundedServer(self._application, listener, self._timeout_s)
        self._thread = start_thread("http", self._run, self._server)

    def start_later(self, start: Callable[[], bool]) -> None:
        """Try to start in the background until that succeeds or the server is closed.

        Parameters
        ----------
        start : callable
            Whether :meth:`start` succeeded.
        """

        def retry() -> None:
            while not self._closing.wait(_RETRY_S):
                with contextlib.suppress(UsageError):  # the name of the address is gone: it may return
                    if start():
                        return

        self._starter = start_thread("http-start", retry)

    def close(self) -> None:
        """Stop serving and release the port."""
        self._closing.set()
        if self._starter is not None:
            self._starter.join(_END_S)
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self._server = self._thread = None
        server.pull_trigger()
        thread.join()
        for channel in list(server.active_channels.values()):
            # Wakes a thread that waits for the client to read.
            channel.handle_close()
        server.task_dispatcher.shutdown(timeout=_END_S)
        waitress.wasyncore.close_all(server.loop_map)

    def _run(self, server: _BoundedServer) -> None:
        while not self._closing.is_set():
            waitress.wasyncore.loop(timeout=min(1.0, self._timeout_s), use_poll=True, map=server.loop_map, count=1)


def _listen(address: str, port: int) -> socket.socket:
    """A listening socket, which waitress takes over."""
    family, kind, protocol, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """The threads that compute responses."""

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        """Start a thread."""
        start_thread(f"http-{thread_no}", target, thread_no)


class _BoundedServer(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """Waitress with limits on the age, the silence and the number of connections."""

    def __init__(self, application: WSGIApplication, listener: socket.socket, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.loop_map: dict[int, Any] = {}
        """By file descriptor: connections, the listening socket and the pipe that wakes the loop."""
        dispatcher = _Dispatcher()
        dispatcher.set_thread_count(_THREADS)
        super().__init__(
            application,
            map=self.loop_map,
            _sock=listener,
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            dispatcher=dispatcher,
            adj=Adjustments(
                sockets=[listener],
                # Above the limit that handle_accept() keeps: waitress itself stops accepting there.
                connection_limit=4 * _MOST_CONNECTIONS,
                cleanup_interval=0,
                max_request_header_size=_LONGEST_HEADERS,
                max_request_body_size=_LONGEST_HEADERS,
                inbuf_overflow=_BUFFER_BYTES,
                outbuf_overflow=_BUFFER_BYTES,
                log_socket_errors=False,
                ident="ScroogeVM",
            ),
        )

    def handle_accept(self) -> None:
        """Accept a connection; at the limit the oldest one is closed."""
        open_channels = [channel for channel in self.active_channels.values() if not channel.will_close]
        if len(open_channels) >= _MOST_CONNECTIONS:
            _shut_down(open_channels[0])
        super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close the connections on which nothing was received or sent for some time."""
        for channel in self.active_channels.values():
            # While a response is computed, the client has nothing to do.
            waits_for_client = not channel.requests or channel.total_outbufs_len
            if waits_for_client and now - channel.last_activity > self._timeout_s:
                _shut_down(channel)


def _shut_down(channel: Any) -> None:
    """Let the loop close a connection in its next round; also one whose client does not read."""
    channel.will_close = True
    with contextlib.suppress(OSError):
        channel.socket.shutdown(socket.SHUT_RDWR)
