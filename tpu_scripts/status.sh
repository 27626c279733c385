#!/usr/bin/env bash
# Says whether the slice is there, whether the run is going on, and how far it is.
#
#   NAME=pod7b ZONE=us-east5-a RUN_DIR=/mnt/stepjax/7b tpu_scripts/status.sh
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
says="echo \"\$(hostname):"
on_all_hosts "if $running; then $says running\"; else $says stopped\"; fi"
if [[ -n "${RUN_DIR:-}" ]]; then
  on_first_host "ls ${RUN_DIR@Q}; tail -n 3 ${RUN_DIR@Q}/metrics.jsonl || true"
fi
