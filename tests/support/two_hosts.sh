#!/usr/bin/env bash
# Runs a command on two simulated hosts of this machine, each a network namespace with an address,
# a host name and a routing table of its own (needs root and iproute2):
#
#   bash two_hosts.sh COMMAND...
#
# Each copy of the command sees HOST_INDEX (0 or 1), HOST_COUNT (2) and COORDINATOR (an address of
# host 0) and prints to host0.log or host1.log in the working directory. To unplug the cable between
# them: ip -n mllm1 link set eth down. Exits with 1 if either copy failed.
set -euo pipefail

readonly NETWORK=10.77.0
export HOST_COUNT=2 COORDINATOR=$NETWORK.1:9911

remove_host() {
  local host=mllm$1 pid
  if ip netns pids "$host" >/dev/null 2>&1; then
    for pid in $(ip netns pids "$host"); do
      kill -KILL "$pid" 2>/dev/null || true # it may have ended by itself
    done
    ip netns delete "$host"
  fi
  rm -rf "/etc/netns/$host"
}

add_host() {
  local host=mllm$1
  ip netns add "$host"
  ip -n "$host" link set lo up
  # `ip netns exec` shows this file as /etc/hosts: Gloo advertises the address of the host's name
  mkdir -p "/etc/netns/$host"
  cat >"/etc/netns/$host/hosts" <<HOSTS
127.0.0.1 localhost
$NETWORK.1 mllm0
$NETWORK.2 mllm1
HOSTS
}

connect_host() {
  ip -n "mllm$1" address add "$NETWORK.$(($1 + 1))/24" dev eth
  ip -n "mllm$1" link set eth up
}

on_host() {
  local index=$1
  shift
  export HOST_INDEX=$index
  # shellcheck disable=SC2016 # the inner shell expands its own arguments
  exec ip netns exec "mllm$index" \
    unshare --uts bash -c 'hostname "$0" && exec "$@"' "mllm$index" "$@"
}

remove_hosts() { remove_host 0 && remove_host 1; }

trap remove_hosts EXIT
remove_hosts # of a run that was killed
add_host 0
add_host 1
ip -n mllm0 link add eth type veth peer name eth netns mllm1
connect_host 0
connect_host 1

on_host 0 "$@" >host0.log 2>&1 &
first=$!
on_host 1 "$@" >host1.log 2>&1 &
second=$!
failed=0
wait "$first" || failed=1
wait "$second" || failed=1
exit "$failed"
