#!/usr/bin/env bash
# Installs this checkout on every host of the slice, and mounts the disk they share.
#
#   NAME=pod7b ZONE=us-east5-a tpu_scripts/setup.sh [--nfs=HOST:/SHARE | --bucket=NAME]
#
#   --nfs=ADDRESS   share to mount at /mnt/stepjax (e.g. Filestore)
#   --bucket=NAME   bucket to mount there instead, with gcsfuse 2.8 or later
#
# The files that git knows go to ~/stepjax, edits included. Steps that are done already
# are not repeated, and a host with a run that is going on is left as it is. Python is
# installed by uv, since the hosts' own Python is older than 3.11.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
nfs="" bucket=""
for option in "${rest[@]}"; do
  case "$option" in
    --nfs=*) nfs=${option#*=} ;;
    --bucket=*) bucket=${option#*=} ;;
    *)
      echo "setup.sh: unknown option $option" >&2
      exit 2
      ;;
  esac
done
need NAME ZONE
gcloud_flags

steps="set -eu"
steps+="; if $running; then echo \"\$(hostname): a run is going on\"; exit 0; fi"
# A host reads files that another host has just written, so neither mount may cache that
# a file does not exist.
if [[ -n "$nfs" ]]; then
  steps+="; command -v mount.nfs >/dev/null"
  steps+=" || { sudo apt-get -qq update; sudo apt-get -qq install nfs-common; }"
  steps+="; sudo mkdir -p /mnt/stepjax; mountpoint -q /mnt/stepjax"
  steps+=" || sudo mount -o acdirmin=0,acdirmax=0 ${nfs@Q} /mnt/stepjax; sudo chmod 1777 /mnt/stepjax"
elif [[ -n "$bucket" ]]; then
  steps+="; sudo mkdir -p /mnt/stepjax; sudo chown \"\$(id -u)\" /mnt/stepjax"
  steps+="; mountpoint -q /mnt/stepjax"
  steps+=" || gcsfuse --implicit-dirs --rename-dir-limit=100000"
  steps+=" --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
  steps+=" ${bucket@Q} /mnt/stepjax"
fi
steps+="; mkdir -p \$HOME/stepjax; tar -xzf \$HOME/stepjax.tar.gz -C \$HOME/stepjax"
steps+="; test -x \$HOME/.local/bin/uv || python3 -m pip install --quiet --user uv"
steps+="; test -x \$HOME/stepjax-venv/bin/python"
steps+=" || \$HOME/.local/bin/uv venv --quiet --python 3.12 \$HOME/stepjax-venv"
steps+="; \$HOME/.local/bin/uv pip install --quiet --python \$HOME/stepjax-venv"
steps+=" -e \"\$HOME/stepjax[tpu]\""
steps+="; \$HOME/stepjax-venv/bin/python -c 'import stepjax; print(stepjax.__version__)'"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
archive=stepjax.tar.gz
if ! $dry_run; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  archive=$folder/stepjax.tar.gz
  git -C "$root" ls-files -z --cached --others --exclude-standard |
    tar -C "$root" --null --files-from=- -czf "$archive"
fi
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:stepjax.tar.gz" "${flags[@]}" \
  --worker=all
on_all_hosts "$steps"
