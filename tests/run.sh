#!/usr/bin/env bash
# Everything that CI checks. Installs what is missing first; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' tests/run.sh
    exit 0
    ;;
esac
misc/setup.sh tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -rs "$@"
