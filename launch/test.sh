#!/usr/bin/env bash
# Prepares .venv and runs every check: ruff, pyright, the default tests. Words are passed to pytest:
#
#   bash launch/test.sh                      everything
#   bash launch/test.sh tests/data -k chat   some tests
#   bash launch/test.sh -m slow              the slow ones
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
help_if_asked "$@"

prepare test
say "ruff"
ruff check .
ruff format --check .
say "pyright"
pyright
say "pytest"
# two processes: most of the time goes to compiling, which keeps one core busy
python -m pytest -n 2 --dist worksteal "$@"
