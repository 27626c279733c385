#!/usr/bin/env bash
# Runs stepjax on every host of the slice: the same command as on one GPU, and --hosts.
#
#   NAME=pod7b ZONE=us-east5-a RUN_DIR=/mnt/stepjax/7b tpu_scripts/run.sh \
#     run --config=configs/qwen2_5_math_7b.py:gs://BUCKET/Qwen2.5-Math-7B,/mnt/stepjax/data
#
# The words after the options are stepjax's; --workdir=$RUN_DIR and --hosts=N are added.
# Paths of --config are those of the checkout that setup.sh has copied.
# It goes on when this terminal closes: see logs.sh and status.sh. A run that is going
# on is left as it is; a directory that has a run in it is continued.
# --dry-run --hosts=4 shows what would be run on a slice of 4 hosts, without a slice.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
need NAME ZONE RUN_DIR
check_hosts
if ((${#rest[@]} == 0)); then
  echo "run.sh: no stepjax command; expected e.g.: run --config=FILE" >&2
  exit 2
fi
gcloud_flags
hosts=$(host_count)
command="cd \$HOME/stepjax && exec \$HOME/stepjax-venv/bin/python -m stepjax"
command+=" ${rest[*]@Q}"
command+=" --workdir=${RUN_DIR@Q} --hosts=$hosts"
logs="$RUN_DIR.logs"
script="set -eu; mkdir -p ${logs@Q}"
script+="; if $running; then echo \"\$(hostname): a run is going on\"; exit 0; fi"
script+="; nohup bash -c ${command@Q} >${logs@Q}/\$(hostname).log 2>&1 </dev/null &"
script+=" echo \$! >\$HOME/stepjax.pid; echo \"\$(hostname): started\""
on_all_hosts "$script"
