#!/usr/bin/env bash
# Asks for a TPU slice as a queued resource, spot unless told otherwise, and returns.
#
#   NAME=pod7b ZONE=us-east5-a tpu_scripts/create.sh --type=v5p-16 [--on-demand] [--dry-run]
#
#   --type=TYPE      v5p-16, or a grid of chips as in `stepjax plan`: v5p:2x2x2
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
check_hosts
gcloud_flags

cloud_name() { # cloud_name TYPE: prints v5p-16 for v5p:2x2x2; other names stay
  local family=${1%%:*} grid=${1#*:} offered per=1 chips
  if [[ "$1" != *:* ]]; then
    echo "$1"
    return
  fi
  case "$family" in
    v5e | v5litepod | v6e) offered="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" ;;
    v4 | v5p) # their names count two cores for each chip
      offered="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"
      per=2
      ;;
    *)
      echo "create.sh: --type=$1; expected a grid of v4, v5e, v5p or v6e" >&2
      return 2
      ;;
  esac
  if [[ " $offered " != *" $grid "* ]]; then
    echo "create.sh: --type=$1; expected one of the grids $offered" >&2
    return 2
  fi
  chips=$((${grid//x/*}))
  echo "${family/v5e/v5litepod}-$((chips * per))"
}

type=$(cloud_name "$type")
type=${type/#v5e-/v5litepod-}
if [[ -z "$version" ]]; then
  case "$type" in
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *)
      echo "create.sh: --type=$type is of no known family (v4, v5e, v5p, v6e);" \
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
