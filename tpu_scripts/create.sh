#!/usr/bin/env bash
# Asks for a TPU slice as a queued resource, spot unless told otherwise, and returns.
#
#   NAME=run ZONE=us-east5-a tpu_scripts/create.sh --type=v5p-16 [--on-demand] [--dry-run]
#
#   --type=TYPE      accelerator type; `stepjax plan` prints it for a topology
#   --version=NAME   runtime version; default: the one of the chip's family
#   --on-demand      not spot: costs more, but is not taken away
#
# If a slice of this name is there or asked for already, nothing changes.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
type="" version="" spot=(--spot)
for option in "${rest[@]}"; do
  case "$option" in
    --type=*) type=${option#*=} ;;
    --version=*) version=${option#*=} ;;
    --on-demand) spot=() ;;
    *)
      echo "create.sh: unknown option $option" >&2
      exit 2
      ;;
  esac
done
need NAME ZONE type
gcloud_flags
if [[ -z "$version" ]]; then
  case "$type" in
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *)
      echo "create.sh: --type=$type is of no known family (v4, v5p, v5litepod, v6e);" \
        "give --version" >&2
      exit 2
      ;;
  esac
fi

state=$(queued_state)
if [[ "$state" != NONE ]]; then
  echo "create.sh: $NAME is $state already; nothing to do (delete.sh removes it)" >&2
  exit 0
fi
run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
  --accelerator-type="$type" --runtime-version="$version" "${spot[@]}" "${flags[@]}"
