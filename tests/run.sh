#!/usr/bin/env bash
# Everything that CI checks. Installs what is missing first; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
misc/setup.sh tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -rs "$@"
