#!/usr/bin/env bash
# Runs the tests that need lm-eval and lmms-eval, in an environment beside .venv that borrows from it:
#
#   bash tests/support/harnesses.sh FOLDER     FOLDER is made if it is not there
#
# They cannot be in .venv: lmms-eval needs filelock below 4, and all that it requires is gigabytes
# (PyTorch for GPUs, OpenCV, sentence-transformers ...). Its evaluator imports what is listed here.
set -euo pipefail
folder=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ ! -e $folder/ready ]]; then
  .venv/bin/python -m venv "$folder"
  site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  .venv/bin/python -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    >"$site/borrowed.pth"
  echo "$PWD" >>"$site/borrowed.pth" # the package itself: .venv's own link to it is not followed
  pip() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
  pip --no-deps "lm-eval==0.4.13" "lmms-eval==0.7.3" "filelock>=3.16,<4"
  pip datasets evaluate pytablewriter rouge-score sqlitedict word2number more-itertools dill \
    loguru accelerate tenacity 2>&1 | { grep -Ev "is not installed|dependency conflicts" || true; }
  touch "$folder/ready"
fi
"$folder/bin/python" -c 'import lm_eval, lmms_eval.evaluator' # skipped tests would hide that
exec "$folder/bin/python" -m pytest tests/evaluation/harness -n 2 --dist loadfile --durations=5
