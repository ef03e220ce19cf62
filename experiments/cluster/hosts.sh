#!/usr/bin/env bash
# Run `afmrl train`, or a script, on GPU hosts without a scheduler, from the root of the repository.
#
# One host, one process with all its GPUs:
#   experiments/cluster/hosts.sh -m afmrl_jax train --out runs/demo
# One host, one process for each of its 8 GPUs:
#   PER_HOST=8 experiments/cluster/hosts.sh -m afmrl_jax train --out runs/demo
# Two hosts, on each of them, with --out on storage that both see:
#   COORDINATOR=host0:12355 HOSTS=2 HOST=0 PER_HOST=8 \
#       experiments/cluster/hosts.sh -m afmrl_jax train --out /shared/runs/demo
#   COORDINATOR=host0:12355 HOSTS=2 HOST=1 PER_HOST=8 \
#       experiments/cluster/hosts.sh -m afmrl_jax train --out /shared/runs/demo
#
# COORDINATOR is a free port on host 0 that all hosts reach. SIGTERM or Ctrl-C to this script on any
# host: all processes save and end, with status 75. The same commands go on, with other numbers of
# hosts and processes too. Status 1: one has failed, and its message says why. CUDA_VISIBLE_DEVICES
# chooses among the GPUs; PYTHON is the interpreter (.venv/bin/python).
set -euo pipefail

readonly hosts=${HOSTS:-1} host=${HOST:-0} per_host=${PER_HOST:-1}
readonly python=${PYTHON:-.venv/bin/python}

fail() {
    echo "error: $*" >&2
    exit 2
}
[[ $# -gt 0 ]] || fail "usage: [PER_HOST=8] experiments/cluster/hosts.sh -m afmrl_jax train [OPTIONS], or SCRIPT [ARGUMENTS]"
[[ $hosts =~ ^[1-9][0-9]*$ && $per_host =~ ^[1-9][0-9]*$ ]] || fail "HOSTS and PER_HOST count from 1"
{ [[ $host =~ ^[0-9]+$ ]] && ((host < hosts)); } || fail "HOST must be 0 to $((hosts - 1)), found '$host'"
((hosts == 1)) || [[ -n ${COORDINATOR:-} ]] || fail "HOSTS=$hosts needs COORDINATOR=host0:port"

if ((hosts * per_host == 1)); then
    exec "$python" "$@"
fi

export JAX_NUM_PROCESSES=$((hosts * per_host))
export JAX_COORDINATOR_ADDRESS=${COORDINATOR:-}
if [[ -z $JAX_COORDINATOR_ADDRESS ]]; then
    port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
fi
if ((per_host == 1)); then
    JAX_PROCESS_ID=$host exec "$python" "$@"
fi

IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq --separator=, 0 $((per_host - 1)))}"
((${#gpus[@]} >= per_host)) || fail "PER_HOST=$per_host, but CUDA_VISIBLE_DEVICES has ${#gpus[@]}"
processes=()
# Ctrl-C does not reach processes in the background.
trap 'interrupted=1; kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < per_host; i++)); do
    CUDA_VISIBLE_DEVICES=${gpus[i]} JAX_PROCESS_ID=$((host * per_host + i)) "$python" "$@" &
    processes+=($!)
done

# 0 if all are done, else 75 if the others were asked to end, else what the first that failed says.
result=0
for process in "${processes[@]}"; do
    while
        interrupted=0 status=0
        wait "$process" || status=$? # A signal to this shell cuts it short.
        ((interrupted))
    do :; done
    if ((status != 0 && (result == 0 || result == 75))); then
        result=$status
    fi
done
exit "$result"
