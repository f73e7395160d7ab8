#!/usr/bin/env bash
# The whole way in minutes: prepares .venv, trains a small Basque-English model in stages, evaluates
# it, exports it to Hugging Face and writes runs/quickstart/report.html.
#
#   bash launch/quickstart.sh [--out DIR] [--share X]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
help_if_asked "$@"

out=runs/quickstart
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
  case ${words[i]} in
    --out) out=${words[i + 1]:-} ;;
    --out=*) out=${words[i]#--out=} ;;
  esac
done

prepare run
mllm-jax quickstart "$@"

if python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
  say "opening the export with stock transformers"
  python tests/support/check_export.py "$out/instruct" "$out/hf" \
    --data "$out/data/heldout.json" --images "$out/data/images"
else
  say "torch is not installed: the export was not opened with transformers (launch/test.sh installs it)"
fi
