"""misc/influxdb.sh: its requests to container engine and InfluxDB, its settings, no secret on a command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from tests.conftest import ROOT, bare_environment
from tests.support.servers import free_port, wait_for

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

#: An engine that logs its command lines and has one container. With INFLUXD it runs that as the container.
ENGINE = r"""#!/usr/bin/env bash
set -eu
cd "$FAKE"
printf '%s\n' "${0##*/} $*" >>calls
[ ! -e broken_engine ] || exit 1
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
printf '%s\n' "curl $*" >>"$FAKE/calls"
exec "$REAL_CURL" "$@"
"""
TOKEN = "a-token_of.tests="

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Influx(BaseHTTPRequestHandler):
    """The part of InfluxDB that the script uses."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.respond(200, {"status": "pass"})
        elif self.path == "/api/v2/setup":
            self.respond(200, {"allowed": self.server.setup is None})  # type: ignore[attr-defined]
        elif self.headers["Authorization"] != f"Token {TOKEN}":
            self.respond(401, {"message": "unauthorized access"})
        else:
            self.server.requests.append(self.path)  # type: ignore[attr-defined]
            self.respond(200, {"buckets": [{"retentionRules": [{"everySeconds": 7200}]}]})

    def do_POST(self) -> None:
        self.server.setup = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.respond(201, {"auth": {}})

    def respond(self, status: int, content: Any) -> None:
        body = json.dumps(content, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def influx() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Influx)
    server.setup, server.requests = None, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The folder of the fake engine: ``calls`` (its command lines and those of curl), ``state``."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("docker", ENGINE), ("curl", CURL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "state").write_text("no such container\n")
    (folder / "calls").touch()
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


def calls(fake: Path) -> list[str]:
    return (fake / "calls").read_text().splitlines()


def unused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


def url(influx: Any) -> str:
    return f"http://127.0.0.1:{influx.server_address[1]}"


def test_first_start_runs_a_container_on_loopback_with_data_on_a_volume(run: Run, fake: Path, influx: Any) -> None:
    done = run(INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN, INFLUXDB_IMAGE="influxdb:2.9")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in calls(fake) if line.startswith("docker run")]
    assert f"--publish 127.0.0.1:{influx.server_address[1]}:8086 " in line
    assert "--volume scroogevm-influxdb:/var/lib/influxdb2 " in line
    assert line.endswith(" influxdb:2.9")


def test_first_start_sets_up_influxdb_without_a_secret_on_a_command_line(run: Run, fake: Path, influx: Any) -> None:
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
    assert influx.setup == {
        "username": "scroogevm",
        "password": "of-eight-and-more",
        "org": org,
        "bucket": "b",
        "retentionPeriodSeconds": 7200,
        "token": TOKEN,
    }
    # All values were given: none has to be printed.
    assert done.stdout == ""
    assert not [line for line in calls(fake) if TOKEN in line or "of-eight" in line]


def test_missing_token_is_created_and_printed_as_lines_for_dotenv(run: Run, fake: Path, influx: Any) -> None:
    dotenv = fake.parent / "cwd" / ".env"
    dotenv.write_text(f"# comment\nexport INFLUXDB_URL = '{url(influx)}' # comment\nINFLUXDB_ORG=an org # comment\n")
    done = run()
    assert done.returncode == 0, done.stderr
    printed = dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
    assert printed == {
        "INFLUXDB_URL": url(influx),
        "INFLUXDB_TOKEN": influx.setup["token"],
        "INFLUXDB_ORG": "'an org'",
        "INFLUXDB_BUCKET": "scroogevm",
        "INFLUXDB_RETENTION_S": "2592000",
    }
    assert len(printed["INFLUXDB_TOKEN"]) >= 40
    assert influx.setup["password"] in done.stdout
    for secret in (influx.setup["token"], influx.setup["password"]):
        assert not [line for line in calls(fake) if secret in line]
        assert secret not in done.stderr


def test_second_run_starts_nothing_and_checks_the_token(run: Run, fake: Path, influx: Any) -> None:
    settings = {"INFLUXDB_URL": url(influx), "INFLUXDB_RETENTION_S": "7200", "INFLUXDB_ORG": "ö & o"}
    (fake / "state").write_text("true\n")
    influx.setup = {}
    done = run(**settings, INFLUXDB_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "runs" in done.stderr
    assert influx.setup == {}
    assert influx.requests == ["/api/v2/buckets?org=%C3%B6%20%26%20o&name=scroogevm"]
    assert not [line for line in calls(fake) if line.startswith(("docker run", "docker start")) or TOKEN in line]
    for token in ("another", ""):
        done = run(**settings, INFLUXDB_TOKEN=token)
        assert done.returncode == 1
        assert "INFLUXDB_TOKEN" in done.stderr
    assert "7200" in run(**{**settings, "INFLUXDB_RETENTION_S": "3600"}, INFLUXDB_TOKEN=TOKEN).stderr


def test_stopped_container_is_started(run: Run, fake: Path, influx: Any) -> None:
    (fake / "state").write_text("false\n")
    influx.setup = {}
    assert run("start", INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN).returncode == 0
    assert "docker start scroogevm-influxdb" in calls(fake)
    assert not [line for line in calls(fake) if line.startswith("docker run")]


def test_stop_and_status_report_the_state(run: Run, fake: Path, influx: Any) -> None:
    settings = {"INFLUXDB_URL": url(influx)}
    done = run("status", **settings)
    assert (done.returncode, "absent" in done.stderr) == (3, True)
    assert run("stop", **settings).returncode == 0
    assert "docker stop scroogevm-influxdb" not in calls(fake)
    (fake / "state").write_text("true\n")
    assert run("status", **settings).returncode == 0
    assert run("status", INFLUXDB_URL=unused_url()).returncode == 3
    assert run("stop", **settings).returncode == 0
    assert "docker stop scroogevm-influxdb" in calls(fake)
    assert run("status", **settings).returncode == 3


def test_podman_is_used_if_docker_does_not_respond(run: Run, fake: Path, influx: Any) -> None:
    (fake / "bin" / "docker").rename(fake / "bin" / "podman")
    (fake / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    (fake / "bin" / "docker").chmod(0o755)
    assert run(INFLUXDB_URL=url(influx), INFLUXDB_TOKEN=TOKEN).returncode == 0
    assert [line for line in calls(fake) if line.startswith("podman run")]


def test_engine_that_does_not_respond_is_one_line(run: Run, fake: Path) -> None:
    (fake / "broken_engine").touch()
    (fake / "bin" / "podman").write_text("#!/bin/sh\nexit 1\n")
    (fake / "bin" / "podman").chmod(0o755)
    done = run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "docker and podman" in done.stderr


def test_waiting_is_bounded_and_ends_with_the_container(run: Run, fake: Path) -> None:
    done = run(INFLUXDB_URL=unused_url(), INFLUXDB_WAIT_S="1")
    assert done.returncode == 1
    assert "does not respond after 1 s" in done.stderr
    (fake / "state").write_text("none\n")
    (fake / "broken").touch()
    done = run(INFLUXDB_URL=unused_url(), INFLUXDB_WAIT_S="80")
    assert done.returncode == 1
    assert "docker logs scroogevm-influxdb" in done.stderr


@pytest.mark.parametrize(
    ("settings", "key"),
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
        ({"INFLUXDB_COARSE_BUCKET": "scroogevm"}, "INFLUXDB_COARSE_BUCKET"),
        ({"INFLUXDB_COARSE_BUCKET": "it's"}, "_COARSE_BUCKET"),
        ({"INFLUXDB_COARSE_BUCKET": "c", "STORE_COARSE_STEP_S": "0"}, "STORE_COARSE_STEP_S"),
        ({"INFLUXDB_COARSE_BUCKET": "c", "STORE_COARSE_STEP_S": "700"}, "STORE_COARSE_STEP_S"),
        ({"INFLUXDB_COARSE_RETENTION_S": "60"}, "INFLUXDB_COARSE_RETENTION_S"),
    ],
    ids=str,
)
def test_invalid_setting_is_one_line_before_anything_is_started(
    run: Run, fake: Path, settings: dict[str, str], key: str
) -> None:
    done = run(**settings)
    assert done.returncode == 2
    assert key in done.stderr
    assert done.stderr.count("\n") == 1
    assert calls(fake) == []


def test_it_listens_beyond_loopback_only_if_set_to(run: Run, fake: Path) -> None:
    port = free_port()
    settings = {"INFLUXDB_URL": f"http://0.0.0.0:{port}", "INFLUXDB_WAIT_S": "0"}
    assert run(**settings).returncode == 2
    run(**settings, INFLUXDB_LISTEN="0.0.0.0")
    assert [line for line in calls(fake) if f"--publish 0.0.0.0:{port}:8086 " in line]


@pytest.mark.parametrize("arguments", [("restart",), ("start", "now")])
def test_unknown_command_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == "influxdb: usage: misc/influxdb.sh [start|stop|status]\n"


def test_help_names_every_setting(run: Run) -> None:
    text = (ROOT / "misc" / "influxdb.sh").read_text()
    help_text = run("-h").stdout
    for word in text.split("setting ")[1:]:
        if word.startswith("INFLUXDB_"):
            assert word.split()[0] in help_text


def test_env_file_is_data_and_the_environment_precedes_it(run: Run, fake: Path) -> None:
    cwd = fake.parent / "cwd"
    (cwd / ".env").write_text("INFLUXDB_ORG=$(touch run)`touch run`\nINFLUXDB_RETENTION_S=60\n")
    assert "'60'" in run().stderr
    assert not (cwd / "run").exists()
    assert "'61'" in run(INFLUXDB_RETENTION_S="61").stderr


#: Values of .env. They are no number, so that the message about the setting shows what was read.
VALUES = {
    "bare": "plain text",
    "bare with a comment": "text # comment",
    "bare with a sharp": "te#xt",
    "sharp first": "#text",
    "comment alone": " # comment",
    "empty": "",
    "reference": "${HOME}",
    "reference in double quotes": '"${HOME} and $HOME"',
    "reference with a default": "${NOTHING:-default}",
    "dollars": "pa$$word$1$",
    "command": "$(id)`id`",
    "single quotes": "'a # b' # comment",
    "double quotes": '"a # b" # comment',
    "escaped single quote": r"'it\'s' # comment",
    "escaped double quote": r'"a \"b\" c"',
    "escaped backslashes": r"'a\\b\c\\'",
    "escaped letters": r'"a\tb\q\\t"',
    "letters in single quotes": r"'a\tb'",
    "backslash": r"a\tb\\c",
    "blanks": "   text   ",
    "quotes inside": "a'b\"c",
    "two lines": "'first\nINFLUXDB_RETENTION_S=second'",
    "not ASCII": "örg",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize(
    "template",
    [
        "INFLUXDB_RETENTION_S={}",
        "other='x\ny'\nexport  INFLUXDB_RETENTION_S =\t{}\r\nINFLUXDB_RETENTION_S_2=0\nEMPTY\n# end",
    ],
    ids=["alone", "among others"],
)
def test_env_file_is_read_as_python_dotenv_does_without_interpolation(
    run: Run, fake: Path, template: str, value: str
) -> None:
    path = fake.parent / "cwd" / ".env"
    path.write_text(template.format(value), newline="")
    expected = dotenv_values(path, interpolate=False)["INFLUXDB_RETENTION_S"]
    # Empty means the default; an invalid setting that is read later ends this run too.
    message = f"INFLUXDB_RETENTION_S: '{expected}' is not" if expected else "INFLUXDB_WAIT_S: 'stop' is not"
    done = run(INFLUXDB_WAIT_S="stop")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("line", ["INFLUXDB_ORG='open", 'INFLUXDB_ORG="a" b', "=x", "two words"])
def test_malformed_line_of_the_env_file_is_named(run: Run, fake: Path, line: str) -> None:
    (fake.parent / "cwd" / ".env").write_text(f"# comment\n\nINFLUXDB_WAIT_S='1'\n{line}\n")
    done = run()
    assert (done.returncode, done.stderr) == (2, "influxdb: .env, line 4: is no setting such as KEY='value'\n")
    assert calls(fake) == []


def test_password_with_dollars_in_the_env_file_arrives_unchanged(run: Run, fake: Path, influx: Any) -> None:
    password = "pa$$word${HOME}$(id)\\n"
    (fake.parent / "cwd" / ".env").write_text(f"INFLUXDB_PASSWORD={password}\nINFLUXDB_TOKEN={TOKEN}\n")
    assert run(INFLUXDB_URL=url(influx)).returncode == 0
    assert influx.setup["password"] == password


def test_printed_lines_are_read_back_unchanged(run: Run, fake: Path, influx: Any) -> None:
    org = 'back\\slash \\\\ "$HOME" # ö'
    path = fake.parent / "cwd" / ".env"
    path.write_text(run(INFLUXDB_URL=url(influx), INFLUXDB_ORG=org).stdout)
    assert dotenv_values(path, interpolate=False)["INFLUXDB_ORG"] == org
    (fake / "state").write_text("no such container\n")
    influx.setup = None
    assert run().returncode == 0
    assert influx.setup["org"] == org


def test_shellcheck_reports_nothing() -> None:
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(ROOT / ".venv" / "bin"))
    if command is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([command, ROOT / "misc" / "influxdb.sh"], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("influxd") is None, reason="influxd is not installed")
def test_real_influxdb_is_set_up_and_keeps_its_data_over_a_stop(run: Run, fake: Path) -> None:
    base = unused_url()
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
        assert not [line for line in calls(fake) if token in line]
    finally:
        if (fake / "pid").exists() and (fake / "state").read_text() == "true\n":
            os.kill(int((fake / "pid").read_text()), signal.SIGTERM)


@pytest.mark.skipif(shutil.which("influxd") is None, reason="influxd is not installed")
def test_coarse_bucket_and_its_task_are_made_once_also_beside_an_older_bucket(run: Run, fake: Path) -> None:
    base = unused_url()
    settings = {
        "INFLUXD": str(shutil.which("influxd")),
        "INFLUXDB_URL": base,
        "INFLUXDB_TOKEN": TOKEN,
        "INFLUXDB_BUCKET": "raw $x\\ ${z}",
        "INFLUXDB_WAIT_S": "60",
    }
    coarse = {"INFLUXDB_COARSE_BUCKET": "a ${y} \\b & c", "INFLUXDB_COARSE_RETENTION_S": "86400"}

    def request(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(base + path, data, headers), timeout=30) as response:
            return json.loads(response.read())

    try:
        done = run(**settings)
        assert done.returncode == 0, done.stderr
        assert request("/api/v2/tasks")["tasks"] == []
        for more in ({}, {}, {"STORE_COARSE_STEP_S": "600"}):
            done = run(**settings, **coarse, **more)
            assert done.returncode == 0, done.stderr
        buckets = {one["name"]: one for one in request("/api/v2/buckets")["buckets"]}
        assert buckets[coarse["INFLUXDB_COARSE_BUCKET"]]["retentionRules"][0]["everySeconds"] == 86400
        (task,) = request("/api/v2/tasks")["tasks"]
        assert task["status"] == "active"
        assert "step = 600s" in task["flux"]
        request(f"/api/v2/tasks/{task['id']}/runs", {})
        path, ended = f"/api/v2/tasks/{task['id']}/runs", {"success", "failed"}
        assert wait_for(lambda: {one["status"] for one in request(path)["runs"]} & ended) == {"success"}
        done = run(**{**settings, **coarse, "INFLUXDB_TOKEN": "another"})
        assert done.returncode == 1
        assert not [line for line in calls(fake) if TOKEN in line]
    finally:
        if (fake / "pid").exists() and (fake / "state").read_text() == "true\n":
            os.kill(int((fake / "pid").read_text()), signal.SIGTERM)
