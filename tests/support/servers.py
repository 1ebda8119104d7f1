"""Real servers for the tests: on free ports, in temporary folders, ended by their pid."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.store.settings import InfluxSettings

TOKEN = "a-token-for-tests"
ORG = "scroogevm"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_for(ready: Callable[[], Any], seconds: float = 30.0, every: float = 0.05) -> Any:
    """Wait for a true result of ``ready`` and return it; the test fails if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            result = ready()
            if result:
                return result
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {ready}")


def fetch(url: str, data: Any = None, token: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of an HTTP request; ``data`` is sent as JSON."""
    request = urllib.request.Request(url, data=None if data is None else json.dumps(data).encode())
    if token:
        request.add_header("Authorization", f"Token {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Influxd:
    """A real InfluxDB that can be killed and started again on its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *("influxd", "run", "--reporting-disabled", "--http-bind-address", f"127.0.0.1:{self.port}"),
            *("--bolt-path", self.folder / "bolt", "--engine-path", self.folder / "engine"),
            *("--sqlite-path", self.folder / "sqlite", "--log-level", "error"),
        ]
        self._process = subprocess.Popen(
            [str(argument) for argument in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        health = wait_for(self._healthy, 60)
        self.version = json.loads(health).get("version", "?")

    def _healthy(self) -> bytes | None:
        status, body = fetch(f"{self.url}/health")
        return body if status == 200 else None

    def set_up(self) -> None:
        data = {"username": "u", "password": "p" * 12, "org": ORG, "bucket": "unused", "token": TOKEN}
        status, body = fetch(f"{self.url}/api/v2/setup", data)
        assert status == 201, body

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None


class Container(Influxd):
    """The same in a container, for machines with docker and without influxd."""

    def start(self) -> None:
        command = [
            "docker",
            "run",
            "-d",
            "--rm",
            "-p",
            f"127.0.0.1:{self.port}:8086",
            "-v",
            f"{self.folder}:/var/lib/influxdb2",
        ]
        started = subprocess.run([*command, "influxdb:2.7"], capture_output=True, text=True, timeout=300, check=True)
        self._name = started.stdout.strip()
        health = wait_for(self._healthy, 60)
        self.version = json.loads(health).get("version", "?")

    def kill(self) -> None:
        subprocess.run(["docker", "kill", self._name], capture_output=True, timeout=60, check=False)


def engine_responds() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False).returncode == 0


def settings_of_bucket(url: str, token: str, org: str, bucket: str, timeout_s: float = 20.0) -> InfluxSettings:
    return InfluxSettings(url, token, org, bucket, timeout_s)


def make_bucket(url: str, token: str, org: str, name: str, retention_s: int = 0) -> None:
    _, body = fetch(f"{url}/api/v2/orgs?org={org}", token=token)
    org_id = json.loads(body)["orgs"][0]["id"]
    rules = [{"type": "expire", "everySeconds": retention_s}] if retention_s else []
    status, body = fetch(f"{url}/api/v2/buckets", {"orgID": org_id, "name": name, "retentionRules": rules}, token)
    assert status == 201, body


@contextlib.contextmanager
def influx_server(folder: Path) -> Iterator[tuple[str, str, str, Influxd | None]]:
    """URL, token and organisation of a real server: the configured one, or one started here."""
    configured = os.environ.get("SCROOGEVM_TEST_INFLUXDB_URL")
    if configured:
        environ = os.environ
        yield configured, environ["SCROOGEVM_TEST_INFLUXDB_TOKEN"], environ["SCROOGEVM_TEST_INFLUXDB_ORG"], None
        return
    server = Influxd(folder) if shutil.which("influxd") else Container(folder) if engine_responds() else None
    if server is None:
        pytest.skip("no InfluxDB: neither SCROOGEVM_TEST_INFLUXDB_URL, nor influxd on PATH, nor a docker that responds")
    server.start()
    try:
        server.set_up()
        yield server.url, TOKEN, ORG, server
    finally:
        server.kill()


class PlacementServer:
    """A real OpenStack Placement without Keystone: "admin" is its token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "placement.conf").write_text(
            "[api]\nauth_strategy = noauth2\n"
            f"[placement_database]\nconnection = sqlite:///{folder}/placement.sqlite\nsync_on_startup = true\n"
        )

    def start(self) -> None:
        # One thread: several block each other in SQLite, which gives status 500.
        command = [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{self.port}", "--threads=1"]
        self._process = subprocess.Popen(
            [*command, "placement.wsgi.api:application"],
            env={**os.environ, "OS_PLACEMENT_CONFIG_DIR": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: fetch(self.url)[0] == 200, 60)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API and return the JSON of the response; raises on an error status."""
        headers = {
            "X-Auth-Token": "admin",
            "OpenStack-API-Version": "placement 1.39",
            "Content-Type": "application/json",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text else None

    def provider(self, name: str, parent: str | None = None, /, **inventories: dict[str, Any]) -> str:
        """Create a provider, a part of another one if there is a parent, and return its UUID."""
        about = {"name": name} if parent is None else {"name": name, "parent_provider_uuid": parent}
        provider = str(self.call("POST", "/resource_providers", about)["uuid"])
        body = {"resource_provider_generation": 0, "inventories": inventories}
        self.call("PUT", f"/resource_providers/{provider}/inventories", body)
        return provider

    def set_traits(self, provider: str, *traits: str) -> None:
        """Replace the traits of a provider; custom ones are created."""
        for trait in traits:
            self.call("PUT", f"/traits/{trait}")
        generation = self.call("GET", f"/resource_providers/{provider}")["generation"]
        body = {"resource_provider_generation": generation, "traits": list(traits)}
        self.call("PUT", f"/resource_providers/{provider}/traits", body)

    def set_aggregates(self, provider: str, *aggregates: str) -> None:
        """Replace the aggregates of a provider."""
        generation = self.call("GET", f"/resource_providers/{provider}")["generation"]
        body = {"resource_provider_generation": generation, "aggregates": list(aggregates)}
        self.call("PUT", f"/resource_providers/{provider}/aggregates", body)

    def inventories(self, provider: str) -> dict[str, dict[str, Any]]:
        return dict(self.call("GET", f"/resource_providers/{provider}/inventories")["inventories"])


@contextlib.contextmanager
def placement_server(folder: Path) -> Iterator[PlacementServer]:
    missing = [name for name in ("placement", "waitress") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no OpenStack Placement: {' and '.join(missing)} cannot be imported")
    server = PlacementServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
