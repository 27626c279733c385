#!/usr/bin/env bash
# Brings a run back after its slice was taken away (spot): asks for the slice again when
# it is gone, waits for it, sets it up, and runs the same command, which continues.
#
#   NAME=pod7b ZONE=us-east5-a RUN_DIR=/mnt/stepjax/7b tpu_scripts/resume.sh \
#     --type=v5p-16 [--nfs=HOST:/SHARE | --bucket=NAME] [--wait=SECONDS] \
#     -- run --config=FILE
#
# What follows -- is what run.sh was given. Called on a run that is going on, it changes
# nothing, so that it can be called from a timer.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=tpu_scripts/common.sh
source "$here/common.sh"

options=() stepjax=()
for ((n = 1; n <= $#; n++)); do
  if [[ "${!n}" == -- ]]; then
    stepjax=("${@:n+1}")
    break
  fi
  options+=("${!n}")
done
read_options "${options[@]}"
create=() setup=() seconds=86400
for option in "${rest[@]}"; do
  case "$option" in
    --type=* | --version=* | --on-demand) create+=("$option") ;;
    --nfs=* | --bucket=*) setup+=("$option") ;;
    --wait=*) seconds=${option#*=} ;;
    *)
      echo "resume.sh: unknown option $option" >&2
      exit 2
      ;;
  esac
done
need NAME ZONE RUN_DIR
check_hosts
if ((${#stepjax[@]} == 0)); then
  echo "resume.sh: no stepjax command after --; expected what run.sh was given" >&2
  exit 2
fi
gcloud_flags
export NAME ZONE RUN_DIR PROJECT="${PROJECT:-}"
dry=() hosts=()
if $dry_run; then
  dry=(--dry-run)
  hosts=(${hosts_given:+"--hosts=$hosts_given"})
fi

state=$(queued_state)
case "$state" in
  SUSPENDED | FAILED) # what is left of a slice that was taken away
    "$here/delete.sh" "${dry[@]}" --yes
    "$here/create.sh" "${dry[@]}" "${create[@]}"
    ;;
  NONE) "$here/create.sh" "${dry[@]}" "${create[@]}" ;;
esac
if ! $dry_run; then
  deadline=$((SECONDS + seconds))
  until [[ "$(queued_state)" == ACTIVE ]]; do
    if ((SECONDS >= deadline)); then
      echo "resume.sh: $NAME is not there after $seconds s; see status.sh" >&2
      exit 1
    fi
    sleep "${POLL_SECONDS:-30}"
  done
fi
"$here/setup.sh" "${dry[@]}" "${setup[@]}"
"$here/run.sh" "${dry[@]}" "${hosts[@]}" -- "${stepjax[@]}"
