#!/usr/bin/env bash
# Prints the end of every host's log, or follows that of the first host.
#
#   NAME=pod7b ZONE=us-east5-a RUN_DIR=/mnt/stepjax/7b tpu_scripts/logs.sh [--follow]
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
follow=false
for option in "${rest[@]}"; do
  case "$option" in
    --follow) follow=true ;;
    *)
      echo "logs.sh: unknown option $option" >&2
      exit 2
      ;;
  esac
done
need NAME ZONE RUN_DIR
gcloud_flags
logs="$RUN_DIR.logs"
if $follow; then
  on_first_host "tail -n 50 -F ${logs@Q}/\$(hostname).log"
else
  on_all_hosts "echo \"== \$(hostname)\"; tail -n 20 ${logs@Q}/\$(hostname).log"
fi
