# Sourced by the other scripts here, from the repository root: `prepare run` or `prepare test`
# makes .venv from requirements.txt with the flavour of JAX that this machine has, and puts it
# first on PATH. Once made, nothing is installed or fetched until the requirements change.
#
#   PYTHON=python3.12      which Python to use; otherwise the first of 3.11 to 3.13 that is found
#   MLLM_JAX_FLAVOUR=cpu   which JAX to install: cpu, gpu or tpu; otherwise what the machine has
# shellcheck shell=bash

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

help_if_asked() { # help_if_asked "$@": for --help prints the comment at the head of the script, ends
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "launch/$(basename "$0")"
    exit 0
  fi
}

in_range() { # in_range COMMAND: is it a Python 3.11 to 3.13 that can make environments?
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  local name
  if [[ -n ${PYTHON:-} ]]; then
    in_range "$PYTHON" && { echo "$PYTHON"; return; }
    say "PYTHON=$PYTHON is not a Python 3.11 to 3.13 with the venv module"
    return 1
  fi
  for name in python3 python3.13 python3.12 python3.11; do
    in_range "$name" && { echo "$name"; return; }
  done
  say "no Python 3.11 to 3.13 with the venv module was found; install one or set PYTHON"
  return 1
}

find_flavour() {
  if [[ -n ${MLLM_JAX_FLAVOUR:-} ]]; then
    case $MLLM_JAX_FLAVOUR in
      cpu | gpu | tpu) echo "$MLLM_JAX_FLAVOUR"; return ;;
      *) say "MLLM_JAX_FLAVOUR=$MLLM_JAX_FLAVOUR is none of cpu, gpu, tpu"; return 1 ;;
    esac
  fi
  if [[ -e /dev/nvidia0 || -e /dev/dxg ]] || nvidia-smi -L >/dev/null 2>&1; then
    echo gpu
  elif [[ -e /dev/accel0 ]] || has_tpu; then
    echo tpu
  else
    echo cpu
  fi
}

has_tpu() { # looks where JAX looks: PCI devices of Google that are TPU chips, v2 to 7x
  local device
  for device in /sys/bus/pci/devices/*; do
    [[ -r $device/vendor && $(<"$device/vendor") == 0x1ae0 ]] || continue
    case $(<"$device/device") in
      0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
    esac
  done
  return 1
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

make_environment() { # make_environment PYTHON FLAVOUR WANT
  local python=$1 flavour=$2 want=$3 extras=() target=.
  say "preparing .venv: $("$python" --version), JAX for $flavour, to $want (minutes, once)"
  if [[ $(version_of .venv/bin/python) != "$(version_of "$python")" ]]; then
    "$python" -m venv --clear .venv
  fi
  rm -f .venv/prepared
  if [[ $want == test && $(uname -s) == Linux && $(version_of .venv/bin/python) == 3.11.* ]]; then
    # First and alone: pip then takes a CPU build (2.13.0+cpu) where one is at hand, and nothing
    # else can draw in a newer release with gigabytes of CUDA.
    .venv/bin/pip install --quiet torch==2.13.0
  fi
  [[ $flavour == cpu ]] || extras+=("$flavour")
  [[ $want == run ]] || extras+=("$want")
  ((${#extras[@]} == 0)) || target=".[$(IFS=, && echo "${extras[*]}")]"
  .venv/bin/pip install --quiet --editable "$target"
  if [[ $want == test ]]; then
    # A SentencePiece vocabulary that tests read (tests/support/vocabulary.py), where no import
    # finds the package: transformers does not start beside it without what it requires.
    .venv/bin/pip install --quiet --no-deps --upgrade --target .venv/share/vocabulary \
      mistral-common==1.13.1
  fi
}

prepare() { # prepare run|test
  local want=$1 python flavour key stamp=.venv/prepared
  python=$(find_python)
  flavour=$(find_flavour)
  key="$(version_of "$python") $flavour $(cat requirements.txt pyproject.toml | cksum)"
  # an environment made to test also runs; one made to run lacks what tests need
  if [[ -f $stamp ]] && grep -qxF -e "$key test" -e "$key $want" "$stamp"; then
    say ".venv is ready: $("$python" --version), JAX for $flavour"
  else
    make_environment "$python" "$flavour" "$want"
    echo "$key $want" >"$stamp"
  fi
  PATH=$PWD/.venv/bin:$PATH
  export PATH
}
