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

ask_again() { # ask_again STATE: for the slice, after what is left of it is deleted
  if [[ "$1" != NONE ]]; then
    "$here/delete.sh" "${dry[@]}" --yes
  fi
  "$here/create.sh" "${dry[@]}" "${create[@]}"
}

# The state is looked at again and again: a slice that is taken away is SUSPENDING
# before it is SUSPENDED, and one that has come can be taken away while it is set up.
deadline=$((SECONDS + seconds)) before=""
while true; do
  state=$(queued_state)
  if [[ "$state" != "$before" ]]; then
    echo "resume.sh: $NAME is $state" >&2
    before=$state
  fi
  case "$state" in
    ACTIVE) break ;;
    SUSPENDED | FAILED | NONE) ask_again "$state" ;;
    SUSPENDING | DELETING) # what follows can only be shown
      if $dry_run; then ask_again "$state"; fi
      ;;
  esac
  if $dry_run; then
    break
  fi
  if ((SECONDS >= deadline)); then
    echo "resume.sh: $NAME is not there after $seconds s, but $state; see status.sh" >&2
    exit 1
  fi
  sleep "${POLL_SECONDS:-30}"
done
"$here/setup.sh" "${dry[@]}" "${setup[@]}"
"$here/run.sh" "${dry[@]}" "${hosts[@]}" -- "${stepjax[@]}"
