#!/usr/bin/env bash
# Starts N processes with K fake devices each on this machine, as if they were the
# hosts of a slice, and waits for them. Process 0 prints here, the rest print into files.
#
#   tpu_scripts/local_pod.sh [--dry-run] N K COMMAND...
#   tpu_scripts/local_pod.sh 2 4 stepjax run --config=configs/quickstart.py --workdir=/tmp/pod
#
# Every process runs COMMAND --hosts=N. LOGS names the folder of their logs (default: a
# new temporary one). When one process fails, all are stopped.
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if (($# < 3)) || ! [[ "$1" =~ ^[1-9][0-9]*$ && "$2" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: local_pod.sh [--dry-run] N K COMMAND..., N processes of K devices" >&2
  exit 2
fi
hosts=$1
devices=$2
shift 2

free_port() {
  python3 -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
export JAX_NUM_PROCESSES=$hosts
# XLA for CPU cuts products by its number of threads, so that the order of additions
# depends on it. With this number, one process and several compute the same bits.
export NPROC=$((hosts * devices))
JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-$(free_port)}"
export JAX_COORDINATOR_ADDRESS
command=("$@" "--hosts=$hosts")

if $dry_run; then
  for ((host = 0; host < hosts; host++)); do
    echo "JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$hosts JAX_PROCESS_ID=$host" \
      "JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS NPROC=$NPROC" \
      "XLA_FLAGS='$XLA_FLAGS' ${command[*]@Q}"
  done
  exit
fi

logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
echo "logs of the other processes: $logs" >&2
pids=()
# shellcheck disable=SC2329 # called by the trap
stop() {
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
  done
}
trap stop EXIT
for ((host = hosts - 1; host > 0; host--)); do
  JAX_PROCESS_ID=$host "${command[@]}" >"$logs/host_$host.log" 2>&1 &
  pids+=($!)
done
JAX_PROCESS_ID=0 "${command[@]}" &
pids+=($!)

status=0
for ((left = hosts; left > 0; left--)); do
  wait -n || {
    status=$?
    echo "a process failed with status $status; see $logs" >&2
    break
  }
done
exit "$status"
