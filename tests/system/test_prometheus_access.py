"""TLS and credentials of a Prometheus server, through the real command line and a proxy that checks them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.prometheus import prometheus_server, require
from tests.support.prometheus_fleet import BEFORE_S, NODES, Daemon, history, run
from tests.support.prometheus_proxy import SECRET, Asked, Certificate, Fault, Forward, Proxy, Reply, certificate
from tests.support.servers import wait_for

MODES = (("--check", "--json"), ("--once",), ("--scan", "--json", "--days=0.01", "--jobs=2"))
#: As it may be in a vault: the scheme of basic authentication divides at the first colon.
PASSWORD = f"{SECRET}:ü'€"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    now = int(time.time())
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), history(now - BEFORE_S, now + 600)) as url:
        yield url


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    require("openssl")
    return certificate(tmp_path_factory.mktemp("trusted"))


def guarded(is_allowed: Callable[[Asked], bool]) -> Fault:
    """Only requests with the right headers reach the server."""

    def fault(asked: Asked, forward: Forward) -> Reply:
        if is_allowed(asked):
            return forward(asked)
        return Reply(401, b"<html>unauthorized</html>", {"WWW-Authenticate": f'Basic realm="{SECRET}"'})

    return fault


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def assert_works(folder: Path, url: str, **settings: str) -> None:
    for arguments in MODES:
        done = run(folder, url, *arguments, **settings)
        assert done.returncode == 0, done
        assert SECRET not in done.stdout + done.stderr
        assert done.stderr == ""
        if arguments[0] == "--scan":
            assert [node["node"] for node in json.loads(done.stdout)["nodes"]] == list(NODES)


def assert_fails(folder: Path, url: str, message: str, **settings: str) -> None:
    for arguments in MODES:
        done = run(folder, url, *arguments, **settings)
        assert done.returncode == 1, done
        assert message in done.stdout + done.stderr, done
        for text in (SECRET, "Traceback"):
            assert text not in done.stdout + done.stderr, done
        assert done.stderr.count("\n") <= 2
    assert not (folder / "status.json").exists()


def test_own_certificate_is_trusted_by_setting(server: str, trusted: Certificate, tmp_path: Path) -> None:
    with Proxy(server, trusted.context) as proxy:
        assert_works(tmp_path / "right", proxy.url, PROMETHEUS_CA=str(trusted.path))
        assert len(proxy.asked) > 20
        asked = len(proxy.asked)
        assert_fails(tmp_path / "without", proxy.url, "certificate verify failed")
        other = certificate(tmp_path / "other")
        assert_fails(tmp_path / "other", proxy.url, "certificate verify failed", PROMETHEUS_CA=str(other.path))
        # Whoever has no right certificate gets no credentials.
        assert len(proxy.asked) == asked


def test_certificate_of_another_host_is_refused(server: str, tmp_path: Path) -> None:
    require("openssl")
    other = certificate(tmp_path / "other", "127.0.0.2")
    with Proxy(server, other.context) as proxy:
        assert_fails(tmp_path, proxy.url, "certificate", PROMETHEUS_CA=str(other.path))
        assert proxy.asked == []


@pytest.mark.parametrize("content", [b"no certificate\n", b""])
def test_file_without_certificates_is_one_line(
    content: bytes, server: str, trusted: Certificate, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with Proxy(server, trusted.context) as proxy:
        assert_fails(tmp_path / "run", proxy.url, "certificate", PROMETHEUS_CA=str(path))


def test_plain_http_behind_an_https_url_is_one_line(server: str, tmp_path: Path) -> None:
    with Proxy(server) as proxy:
        assert_fails(tmp_path, f"https://{proxy.address}", "SSL")


@pytest.mark.parametrize(
    ("settings", "header", "value"),
    [
        ({"PROMETHEUS_USER": "u", "PROMETHEUS_PASSWORD": PASSWORD}, "Authorization", basic("u", PASSWORD)),
        ({"PROMETHEUS_TOKEN": SECRET}, "Authorization", f"Bearer {SECRET}"),
        ({"PROMETHEUS_HEADERS": json.dumps({"X-Scope-OrgID": SECRET})}, "X-Scope-OrgID", SECRET),
    ],
)
def test_credentials_reach_the_server_with_each_query_and_no_output(
    settings: dict[str, str], header: str, value: str, server: str, trusted: Certificate, tmp_path: Path
) -> None:
    ca = {"PROMETHEUS_CA": str(trusted.path)}
    with (
        Proxy(server, trusted.context) as proxy,
        proxy.failing(guarded(lambda asked: asked.headers.get(header) == value)),
    ):
        assert_works(tmp_path / "right", proxy.url, **ca, **settings)
        assert {asked.headers.get(header) for asked in proxy.asked} == {value}
        assert_fails(tmp_path / "without", proxy.url, "are the credentials right?", **ca)
        if "PROMETHEUS_TOKEN" in settings:
            wrong = {"PROMETHEUS_TOKEN": f"{SECRET}x"}
            assert_fails(tmp_path / "wrong", proxy.url, "are the credentials right?", **ca, **wrong)


def test_user_and_password_may_stand_in_the_url(server: str, tmp_path: Path) -> None:
    with (
        Proxy(server) as proxy,
        proxy.failing(guarded(lambda asked: asked.headers.get("Authorization") == basic("u", SECRET))),
    ):
        assert_works(tmp_path / "right", f"http://u:{SECRET}@{proxy.address}")
        assert_fails(tmp_path / "wrong", f"http://u:{SECRET}x@{proxy.address}", "are the credentials right?")


def test_daemon_waits_for_a_token_that_is_not_valid_yet(server: str, trusted: Certificate, tmp_path: Path) -> None:
    settings = {"PROMETHEUS_CA": str(trusted.path), "PROMETHEUS_TOKEN": SECRET}
    with Proxy(server, trusted.context) as proxy, proxy.failing(guarded(lambda _: False)):
        with Daemon(tmp_path, proxy.url, **settings) as daemon:
            wait_for(lambda: "are the credentials right?; trying again" in daemon.log(), 60)
            assert daemon.process.poll() is None
            proxy.fault = None
            wait_for(lambda: daemon.is_fresh(0), 60)
        assert SECRET not in daemon.log()
        assert daemon.log().count("are the credentials right?") == 1
