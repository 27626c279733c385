#!/usr/bin/env bash
# Says whether the slice is there, whether the run is going on, and how far it is.
#
#   NAME=run ZONE=us-east5-a RUN_DIR=/mnt/stepjax/7b tpu_scripts/status.sh
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
need NAME ZONE
gcloud_flags
state=$(queued_state)
echo "$NAME: $state"
if [[ "$state" != ACTIVE ]]; then
  exit 0
fi
script="id=\$HOME/stepjax.pid; if test -f \$id && kill -0 \"\$(cat \$id)\" 2>/dev/null"
script+="; then echo \"\$(hostname): running\"; else echo \"\$(hostname): stopped\"; fi"
on_all_hosts "$script"
if [[ -n "${RUN_DIR:-}" ]]; then
  on_first_host "ls ${RUN_DIR@Q}; tail -n 3 ${RUN_DIR@Q}/metrics.jsonl || true"
fi
