#!/usr/bin/env bash
# N processes of one run on this machine, the number of each in front of its lines. One that fails
# ends the others; a run that has failed is started again, from its last checkpoint.
#
#   bash launch/local.sh [-n PROCESSES] [-r RESTARTS] train --config FILE ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

processes=1 restarts=0
while getopts n:r: flag; do
  case $flag in n) processes=$OPTARG ;; r) restarts=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
# shellcheck source=launch/environment.sh
command -v mllm-jax >/dev/null || { source launch/environment.sh && prepare run; }

try() { # try WORDS...: all processes to their end; returns their code, 128 and more if all were killed
  local i pid one code=0 pids=() port=$((20000 + RANDOM % 6000 * 2))
  for ((i = 0; i < processes; i++)); do
    # of several processes, each takes one GPU; CPUs do not care
    ((processes == 1)) || export JAX_LOCAL_DEVICE_IDS=$i
    mllm-jax "$@" --coordinator "127.0.0.1:$port" --processes "$processes" --process "$i" \
      > >(sed -u "s/^/[$i] /") 2>&1 &
    pids+=($!)
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
  for pid in "${pids[@]}"; do
    while one=0 && { wait "$pid" || one=$?; } && kill -0 "$pid" 2>/dev/null; do :; done
    ((one == 0 || (one > 128 && code != 0))) || code=$one
  done
  return "$code"
}

for ((turn = 1; ; turn++)); do
  code=0 && try "$@" || code=$?
  if ((code == 0 || code == 2 || code == 75 || turn > restarts)); then exit "$code"; fi
  echo "local.sh: ended with code $code; restart $turn of $restarts" >&2
  [[ $1 != train ]] || set -- "$@" --resume auto
done
