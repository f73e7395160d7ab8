#!/usr/bin/env bash
# A run on a TPU pod slice: asks for it, waits, sends the code to all workers, starts one process on
# each. One that fails ends the others; a slice that was taken away is asked for again.
#
#   ZONE=us-west4-a TYPE=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite \
#     bash launch/tpu_pod.sh NAME train --config FILE ...
#
# `out`, data and weights lie in a folder that all workers mount. MOUNT: a command that mounts it.
# SPOT=1: a cheaper slice that may be taken away.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=$1 && shift
[[ $1 != train ]] || set -- "$@" --resume auto
queued() { gcloud compute tpus queued-resources "$1" "$name" --zone "$ZONE" "${@:2}"; }
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$ZONE" --worker=all --command "$1"; }
state() { queued describe --format 'value(state.state)' 2>/dev/null || true; }

# shellcheck disable=SC2016 # the workers expand it
remote='set -e; cd mllm_jax && source launch/environment.sh && prepare run
meta() { curl -sfH Metadata-Flavor:Google http://metadata/computeMetadata/v1/instance/attributes/$1; }
IFS=, read -ra all <<<"$(meta worker-network-endpoints)"
export MLLM_JAX_COORDINATOR=${all[0]##*:}:8476 MLLM_JAX_PROCESSES=${#all[@]}
MLLM_JAX_PROCESS=$(meta agent-worker-number) mllm-jax'

for ((turn = 0; turn <= ${RESTARTS:-3}; turn++)); do
  case $(state) in FAILED | SUSPENDED) queued delete --force --quiet ;; esac
  [[ -n $(state) ]] || queued create --node-id "$name" --accelerator-type "$TYPE" \
    --runtime-version "$RUNTIME" ${SPOT:+--spot}
  until [[ $(state) == ACTIVE ]]; do sleep 30; done
  git archive --prefix mllm_jax/ HEAD | gzip >/tmp/mllm_jax.tgz
  code=0
  gcloud compute tpus tpu-vm scp /tmp/mllm_jax.tgz "$name:" --zone "$ZONE" --worker=all &&
    on_all "tar xzf mllm_jax.tgz; ${MOUNT:-true}; $remote $(printf '%q ' "$@")" || code=$?
  case $code in 0 | 2) break ;; esac
done
exit "$code"
