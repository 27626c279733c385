#!/usr/bin/env bash
# Deletes the slice and its queued resource. The run directory stays.
#
#   NAME=pod7b ZONE=us-east5-a tpu_scripts/delete.sh [--yes] [--dry-run]
#
# Asks first, unless told --yes. A slice that is gone already is no error.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
yes=$dry_run
for option in "${rest[@]}"; do
  case "$option" in
    --yes) yes=true ;;
    *)
      echo "delete.sh: unknown option $option" >&2
      exit 2
      ;;
  esac
done
need NAME ZONE
gcloud_flags
state=$(queued_state)
if [[ "$state" == NONE ]]; then
  echo "delete.sh: there is no $NAME in $ZONE; nothing to do" >&2
  exit 0
fi
if ! $yes; then
  read -r -p "Delete $NAME ($state) in $ZONE? [y/N] " answer
  if [[ "$answer" != [yY] ]]; then
    echo "delete.sh: left as it is" >&2
    exit 1
  fi
fi
run gcloud compute tpus queued-resources delete "$NAME" --force "${flags[@]}"
