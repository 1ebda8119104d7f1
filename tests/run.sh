#!/usr/bin/env bash
# Runs the checks and the tests, and installs first what they need.
#
#   tests/run.sh              everything that CI checks: format, lint, types, imports, dead code, all tests
#   tests/run.sh --unit       the unit tests alone: no server, no guest, about a minute
#
# Further arguments go to pytest. SCROOGEVM_TEST_WORKERS sets the number of worker processes.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(tests model)
case ${1:-} in
-h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' tests/run.sh
    exit 0
    ;;
--unit)
    shift
    tests=(tests/unit model)
    ;;
esac
misc/setup.sh tests

static_checks() {
    .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy &&
        PYTHONPATH=. .venv/bin/lint-imports --no-cache && .venv/bin/vulture
}

checks=
log=$(mktemp)
trap 'kill $checks 2>/dev/null || true; rm -f "$log"' EXIT
if [ "${tests[0]}" = tests ]; then
    static_checks >"$log" 2>&1 &
    checks=$!
fi
# Many tests wait for a server or a guest: more workers than cores. A module stays in one worker, whose tests share
# servers and guests.
workers=${SCROOGEVM_TEST_WORKERS:-$(($(nproc) + 1))}
code=0
.venv/bin/python -m pytest -rs --numprocesses="$workers" --dist=loadscope --no-loadscope-reorder "${tests[@]}" "$@" ||
    code=$?
if [ -n "$checks" ]; then
    wait "$checks" || {
        cat "$log"
        exit 1
    }
fi
exit "$code"
