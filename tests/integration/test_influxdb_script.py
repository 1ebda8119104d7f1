"""misc/influxdb.sh: what it asks of the container engine and of InfluxDB, and that no secret is on a command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, bare_environment

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

#: An engine that remembers what it was asked, and one container. With INFLUXD it runs that as the container.
ENGINE = r"""#!/usr/bin/env bash
set -eu
cd "$FAKE"
printf '%s\n' "${0##*/} $*" >>asked
[ ! -e silent ] || exit 1
launch() {
    echo true >state
    [ -n "${INFLUXD:-}" ] || return 0
    "$INFLUXD" --http-bind-address "127.0.0.1:$(cat port)" --bolt-path "$FAKE/bolt" --engine-path "$FAKE/engine" \
        --sqlite-path "$FAKE/sqlite" --reporting-disabled >log 2>&1 </dev/null &
    echo $! >pid
}
case $1 in
ps) ;;
container) cat state ;;
run)
    while [ "$1" != --publish ]; do shift; done
    port=${2%:*}
    echo "${port##*:}" >port
    [ ! -e broken ] || { echo false >state; exit 0; }
    launch
    ;;
start) launch ;;
stop)
    echo false >state
    [ ! -e pid ] || { kill "$(cat pid)"; while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.1; done; }
    ;;
*) exit 64 ;;
esac
"""
CURL = r"""#!/usr/bin/env bash
printf '%s\n' "curl $*" >>"$FAKE/asked"
exec "$REAL_CURL" "$@"
"""
TOKEN = "a-token_of.ours="

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Influx(BaseHTTPRequestHandler):
    """As much of InfluxDB as the script knows."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.say(200, {"status": "pass"})
        elif self.path == "/api/v2/setup":
            self.say(200, {"allowed": self.server.done is None})  # type: ignore[attr-defined]
        elif self.headers["Authorization"] != f"Token {TOKEN}":
            self.say(401, {"message": "unauthorized access"})
        else:
            self.server.asked.append(self.path)  # type: ignore[attr-defined]
            self.say(200, {"buckets": [{"retentionRules": [{"everySeconds": 7200}]}]})

    def do_POST(self) -> None:
        self.server.done = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.say(201, {"auth": {}})

    def say(self, status: int, answer: Any) -> None:
        body = json.dumps(answer, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def influx() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Influx)
    server.done, server.asked = None, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The folder of the fake engine: ``asked`` (its command lines and curl's), ``state``."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("docker", ENGINE), ("curl", CURL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "state").write_text("no such container\n")
    (folder / "asked").touch()
    (tmp_path / "cwd").mkdir()
    return folder


@pytest.fixture
def run(fake: Path) -> Run:
    real_curl = shutil.which("curl")

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **bare_environment(),
            "PATH": f"{fake}/bin:/usr/bin:/bin",
            "FAKE": str(fake),
            "REAL_CURL": str(real_curl),
        }
        return subprocess.run(
            [ROOT / "misc" / "influxdb.sh", *arguments],
            env={**environment, "INFLUXDB_WAIT_S": "3", **settings},
            cwd=fake.parent / "cwd",
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run


def asked(fake: Path) -> list[str]:
    return (fake / "asked").read_text().splitlines()


def url(influx: Any) -> str:
    return f"http://127.0.0.1:{influx.server_address[1]}"


def test_first_start_runs_a_container_on_loopback_with_its_data_on_a_volume(run: Run, fake: Path, influx: Any) -> None:
    done = run(INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN, INFLUXDB_IMAGE="influxdb:2.9")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in asked(fake) if line.startswith("docker run")]
    assert f"--publish 127.0.0.1:{influx.server_address[1]}:8086 " in line
    assert "--volume scroogevm-influxdb:/var/lib/influxdb2 " in line
    assert line.endswith(" influxdb:2.9")


def test_first_start_sets_everything_up_and_no_secret_is_on_a_command_line(run: Run, fake: Path, influx: Any) -> None:
    org = 'an "org" \\ of ours'
    done = run(
        INFLUXDB_URL=url(influx),
        INFLUXDB_TOKEN=TOKEN,
        INFLUXDB_ORG=org,
        INFLUXDB_BUCKET="b",
        INFLUXDB_RETENTION_S="7200",
        INFLUXDB_PASSWORD="of-eight-and-more",
    )
    assert done.returncode == 0, done.stderr
    assert influx.done == {
        "username": "scroogevm",
        "password": "of-eight-and-more",
        "org": org,
        "bucket": "b",
        "retentionPeriodSeconds": 7200,
        "token": TOKEN,
    }
    # Nothing was made that is not known already.
    assert done.stdout == ""
    assert not [line for line in asked(fake) if TOKEN in line or "of-eight" in line]


def test_a_missing_token_is_made_and_printed_as_lines_for_dotenv_that_work(run: Run, fake: Path, influx: Any) -> None:
    dotenv = fake.parent / "cwd" / ".env"
    dotenv.write_text(f"# ours\nexport INFLUXDB_URL = '{url(influx)}' # here\nINFLUXDB_ORG=an org # of ours\n")
    done = run()
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
    assert lines == {
        "INFLUXDB_URL": url(influx),
        "INFLUXDB_TOKEN": influx.done["token"],
        "INFLUXDB_ORG": "'an org'",
        "INFLUXDB_BUCKET": "scroogevm",
        "INFLUXDB_RETENTION_S": "2592000",
    }
    assert len(lines["INFLUXDB_TOKEN"]) >= 40
    assert influx.done["password"] in done.stdout
    for secret in (influx.done["token"], influx.done["password"]):
        assert not [line for line in asked(fake) if secret in line]
        assert secret not in done.stderr


def test_a_second_run_starts_nothing_and_checks_the_token(run: Run, fake: Path, influx: Any) -> None:
    settings = {"INFLUXDB_URL": url(influx), "INFLUXDB_RETENTION_S": "7200", "INFLUXDB_ORG": "ö & o"}
    (fake / "state").write_text("true\n")
    influx.done = {}
    done = run(**settings, INFLUXDB_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "runs" in done.stderr
    assert influx.done == {}
    assert influx.asked == ["/api/v2/buckets?org=%C3%B6%20%26%20o&name=scroogevm"]
    assert not [line for line in asked(fake) if line.startswith(("docker run", "docker start")) or TOKEN in line]
    for token in ("another", ""):
        done = run(**settings, INFLUXDB_TOKEN=token)
        assert done.returncode == 1
        assert "INFLUXDB_TOKEN" in done.stderr
    assert "7200" in run(**{**settings, "INFLUXDB_RETENTION_S": "3600"}, INFLUXDB_TOKEN=TOKEN).stderr


def test_a_stopped_container_is_started(run: Run, fake: Path, influx: Any) -> None:
    (fake / "state").write_text("false\n")
    influx.done = {}
    assert run("start", INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN).returncode == 0
    assert "docker start scroogevm-influxdb" in asked(fake)
    assert not [line for line in asked(fake) if line.startswith("docker run")]


def test_stop_and_status_say_how_it_is(run: Run, fake: Path, influx: Any) -> None:
    settings = {"INFLUXDB_URL": url(influx)}
    done = run("status", **settings)
    assert (done.returncode, "absent" in done.stderr) == (3, True)
    assert run("stop", **settings).returncode == 0
    assert "docker stop scroogevm-influxdb" not in asked(fake)
    (fake / "state").write_text("true\n")
    assert run("status", **settings).returncode == 0
    assert run("status", INFLUXDB_URL="http://127.0.0.1:1").returncode == 3
    assert run("stop", **settings).returncode == 0
    assert "docker stop scroogevm-influxdb" in asked(fake)
    assert run("status", **settings).returncode == 3


def test_podman_is_used_where_docker_is_silent(run: Run, fake: Path, influx: Any) -> None:
    (fake / "bin" / "docker").rename(fake / "bin" / "podman")
    (fake / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    (fake / "bin" / "docker").chmod(0o755)
    assert run(INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN).returncode == 0
    assert [line for line in asked(fake) if line.startswith("podman run")]


def test_an_engine_that_does_not_answer_is_one_line(run: Run, fake: Path) -> None:
    (fake / "silent").touch()
    (fake / "bin" / "podman").write_text("#!/bin/sh\nexit 1\n")
    (fake / "bin" / "podman").chmod(0o755)
    done = run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "docker and podman" in done.stderr


def test_waiting_is_bounded_and_ends_at_once_when_the_container_does(run: Run, fake: Path) -> None:
    done = run(INFLUXDB_URL="http://127.0.0.1:1", INFLUXDB_WAIT_S="1")
    assert done.returncode == 1
    assert "does not answer after 1 s" in done.stderr
    (fake / "state").write_text("none\n")
    (fake / "broken").touch()
    done = run(INFLUXDB_URL="http://127.0.0.1:1", INFLUXDB_WAIT_S="80")
    assert done.returncode == 1
    assert "docker logs scroogevm-influxdb" in done.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"INFLUXDB_RETENTION_S": "3599"}, "INFLUXDB_RETENTION_S"),
        ({"INFLUXDB_RETENTION_S": "0"}, "INFLUXDB_RETENTION_S"),
        ({"INFLUXDB_RETENTION_S": "1h"}, "INFLUXDB_RETENTION_S"),
        ({"INFLUXDB_RETENTION_S": "0008"}, "INFLUXDB_RETENTION_S"),
        ({"INFLUXDB_URL": "https://127.0.0.1:8086"}, "INFLUXDB_URL"),
        ({"INFLUXDB_URL": "http://influx.example:8086"}, "INFLUXDB_LISTEN"),
        ({"INFLUXDB_TOKEN": 'a"b'}, "INFLUXDB_TOKEN"),
        ({"INFLUXDB_PASSWORD": "short"}, "INFLUXDB_PASSWORD"),
        ({"INFLUXDB_ORG": "o\nrg"}, "INFLUXDB_ORG"),
        ({"INFLUXDB_BUCKET": "it's"}, "BUCKET"),
        ({"INFLUXDB_WAIT_S": "long"}, "INFLUXDB_WAIT_S"),
    ],
    ids=str,
)
def test_a_setting_that_can_not_be_is_one_line_before_anything_is_started(
    run: Run, fake: Path, settings: dict[str, str], named: str
) -> None:
    done = run(**settings)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert asked(fake) == []


def test_others_may_reach_it_only_when_told_so(run: Run, fake: Path) -> None:
    settings = {"INFLUXDB_URL": "http://0.0.0.0:1", "INFLUXDB_WAIT_S": "0"}
    assert run(**settings).returncode == 2
    run(**settings, INFLUXDB_LISTEN="0.0.0.0")
    assert [line for line in asked(fake) if "--publish 0.0.0.0:1:8086 " in line]


@pytest.mark.parametrize("arguments", [("restart",), ("start", "now")])
def test_an_unknown_verb_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == "influxdb: usage: misc/influxdb.sh [start|stop|status]\n"


def test_help_names_every_setting_that_is_read(run: Run) -> None:
    text = (ROOT / "misc" / "influxdb.sh").read_text()
    help_text = run("-h").stdout
    for word in text.split("setting ")[1:]:
        if word.startswith("INFLUXDB_"):
            assert word.split()[0] in help_text


def test_env_file_is_read_and_never_run(run: Run, fake: Path) -> None:
    cwd = fake.parent / "cwd"
    (cwd / ".env").write_text("INFLUXDB_ORG=$(touch run)`touch run`\nINFLUXDB_RETENTION_S=60\n")
    assert "'60'" in run().stderr
    assert not (cwd / "run").exists()
    # The environment comes first.
    assert "'61'" in run(INFLUXDB_RETENTION_S="61").stderr


def test_shellcheck_has_nothing_to_say() -> None:
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(ROOT / ".venv" / "bin"))
    if command is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([command, ROOT / "misc" / "influxdb.sh"], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("influxd") is None, reason="influxd is not installed")
def test_a_real_influxdb_is_set_up_kept_over_a_stop_and_takes_data(run: Run, fake: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        base = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "INFLUXD": str(shutil.which("influxd")),
        "INFLUXDB_URL": base,
        "INFLUXDB_ORG": 'Our "own" & örg',
        "INFLUXDB_RETENTION_S": "7200",
        "INFLUXDB_WAIT_S": "60",
    }

    def write(token: str) -> int:
        request = urllib.request.Request(
            f"{base}/api/v2/write?org=Our%20%22own%22%20%26%20%C3%B6rg&bucket=scroogevm",
            data=b"node,url=x cpu=2",
            headers={"Authorization": f"Token {token}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)

    try:
        done = run(**settings)
        assert done.returncode == 0, done.stderr
        (token,) = [line.split("=", 1)[1] for line in done.stdout.splitlines() if line.startswith("INFLUXDB_TOKEN=")]
        assert write(token) == 204
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            write("another")
        refused.value.close()
        for verb in ("start", "stop", "start"):
            done = run(verb, **settings, INFLUXDB_TOKEN=token)
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert write(token) == 204
        assert run(**settings, INFLUXDB_TOKEN="another").returncode == 1
        done = run(**settings | {"INFLUXDB_BUCKET": "none"}, INFLUXDB_TOKEN=token)
        assert done.returncode == 1
        assert 'bucket \\"none\\" not found' in done.stderr
        assert not [line for line in asked(fake) if token in line]
    finally:
        if (fake / "pid").exists() and (fake / "state").read_text() == "true\n":
            os.kill(int((fake / "pid").read_text()), signal.SIGTERM)
