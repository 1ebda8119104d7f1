#!/usr/bin/env bash
# Runs the checks and the tests, and installs first what they need.
#
#   tests/run.sh              everything that CI checks: format, lint, types, imports, dead code, all tests
#   tests/run.sh --unit       the unit tests alone: no server, no guest, under a minute
#
# Further arguments go to pytest. SCROOGEVM_TEST_WORKERS sets the number of worker processes (default: one per core).
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
if [ "${tests[0]}" = tests ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    PYTHONPATH=. .venv/bin/lint-imports --no-cache
    .venv/bin/vulture
fi
workers=${SCROOGEVM_TEST_WORKERS:-$(nproc)}
# A module stays in one worker: its tests share servers and guests.
exec .venv/bin/python -m pytest -rs --numprocesses="$workers" --dist=loadscope "${tests[@]}" "$@"
