"""misc/fakeworkers as a process: first lines, clean stop, duration."""

from __future__ import annotations

import http.client
import json
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.conftest import ROOT
from tests.support.servers import fetch, wait_for


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-X", "dev", "-W", "error", str(ROOT / "misc" / "fakeworkers"), "--port=0"]
    with subprocess.Popen(
        [*command, "--workers=2", "--vms=2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "no output within 30 s"
    return process.stdout.readline()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_program_prints_its_url_and_stops_on_a_signal_even_with_a_hanging_request(sent: signal.Signals) -> None:
    with program("--print-stubs", "--fault=1:hang", "--fault=all:vm-leaves") as process:
        line = first_line(process)
        match = re.fullmatch(
            r"serving 2 workers with 2 VMs at http://(127\.0\.0\.1):(\d+)/worker-00000/metrics .*\n", line
        )
        assert match, line
        assert process.stdout is not None
        (url, prefix), _ = json.loads(process.stdout.readline())
        assert url in line
        assert prefix == "vmprobe"
        with socket.create_connection((match[1], int(match[2])), timeout=10) as hanging:
            hanging.sendall(b"GET /worker-00001/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            with closing(http.client.HTTPConnection(match[1], int(match[2]), timeout=10)) as connection:
                connection.request("GET", "/worker-00000/metrics")
                assert connection.getresponse().read().count(b"_cpu_alloc ") == 1
            process.send_signal(sent)
            assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_program_stops_after_its_duration() -> None:
    with program("--duration=0.2") as process:
        assert first_line(process).startswith("serving")
        assert process.wait(20) == 0


def test_program_plays_contention() -> None:
    """Its pages show waits of VMs, also through the textfile of misc/vcpu-delay.sh."""
    arguments = ["--format=labels", "--vcpu-delay", "--cores=1", "--vms=3", "--fault=all:contention", "--print-stubs"]
    with program(*arguments) as process:
        first_line(process)
        assert process.stdout is not None
        stub = json.loads(process.stdout.readline())[0]
        found = [waited_s(stub["node_exporter"])]
        wait_for(lambda: found.append(waited_s(stub["node_exporter"])) or found[-1] - found[0] > 0.5)


def waited_s(url: str) -> float:
    """Seconds that the vCPUs of a page have waited."""
    lines = re.findall(rb"^libvirt_domain_vcpu_delay_seconds_total{[^}]*} (.*)$", fetch(url)[1], re.MULTILINE)
    assert lines
    return sum(map(float, lines))
