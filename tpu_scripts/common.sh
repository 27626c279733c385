# Shared by the scripts of this folder; sourced, not run.
# Settings come from the environment, and options override them:
#
#   NAME     the slice, and the name of its queued resource            --name=NAME
#   ZONE     e.g. us-east5-a                                           --zone=ZONE
#   PROJECT  the Cloud project; default: gcloud's own                  --project=PROJECT
#   RUN_DIR  the run directory, on a disk that all hosts share         --run-dir=DIR
#
# An option may also be followed by a blank instead of =.
# --dry-run prints the exact commands that change something, and changes nothing. With
# --hosts=N it needs no slice: the commands are those for a slice of N hosts.
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source this

# Asks a host whether the run that run.sh has started there is going on.
running="grep -qs stepjax /proc/\$(cat \$HOME/stepjax.pid 2>/dev/null || echo 0)/cmdline"

dry_run=false
hosts_given="" # by --hosts
rest=() # arguments that are not options of this file

usage() { # prints the comment at the top of the calling script
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}

read_options() { # read_options "$@": sets the settings, puts other arguments in rest
  while (($#)); do
    case "$1" in
      --name | --zone | --project | --run-dir | --hosts | --type | --version | --nfs | \
        --bucket | --wait)
        if (($# < 2)) || [[ "$2" == -* ]]; then
          echo "$(basename "$0"): $1 has no value; expected $1=VALUE" >&2
          exit 2
        fi
        set -- "$1=$2" "${@:3}"
        ;;
    esac
    case "$1" in
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --run-dir=*) RUN_DIR=${1#*=} ;;
      --hosts=*) hosts_given=${1#*=} ;;
      --dry-run) dry_run=true ;;
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        rest+=("$@")
        return
        ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
}

check_hosts() { # exits unless --hosts is a number, and given with --dry-run
  if [[ -n "$hosts_given" ]] && ! [[ "$hosts_given" =~ ^[1-9][0-9]*$ ]]; then
    echo "$(basename "$0"): --hosts=$hosts_given; expected a number from 1" >&2
    exit 2
  fi
  if [[ -n "$hosts_given" ]] && ! $dry_run; then
    echo "$(basename "$0"): --hosts=$hosts_given without --dry-run; leave --hosts out," \
      "because the number of hosts is asked of the slice" >&2
    exit 2
  fi
}

need() { # need VARIABLE...: exits unless each is set
  local name
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      echo "$(basename "$0"): $name is not set; expected it in the environment or as" \
        "an option (see --help)" >&2
      exit 2
    fi
    if [[ "$name" == RUN_DIR && "$RUN_DIR" != /* ]]; then
      echo "$(basename "$0"): RUN_DIR is $RUN_DIR; expected a path that begins with /," \
        "because every host must find the same folder" >&2
      exit 2
    fi
  done
}

gcloud_flags() { # sets flags for every gcloud call
  flags=(--zone="$ZONE" --quiet)
  if [[ -n "${PROJECT:-}" ]]; then
    flags+=(--project="$PROJECT")
  fi
}

run() { # runs a command, or prints it
  if $dry_run; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

queued_state() { # prints ACTIVE, SUSPENDED, ..., NONE, or UNKNOWN when gcloud fails
  local errors state
  errors=$(mktemp)
  if state=$(gcloud compute tpus queued-resources describe "$NAME" "${flags[@]}" \
    --format='value(state.state)' 2>"$errors"); then
    echo "$state"
  elif [[ ! -s "$errors" ]] || grep -qi 'not.found' "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

host_count() { # prints how many hosts the slice has, or what --hosts says
  local listed
  if [[ -n "$hosts_given" ]]; then
    echo "$hosts_given"
    return
  fi
  listed=$(gcloud compute tpus tpu-vm describe "$NAME" "${flags[@]}" \
    --format='value(networkEndpoints[].ipAddress)')
  if [[ -z "$listed" ]]; then
    echo "$(basename "$0"): $NAME has no hosts yet; see status.sh. --dry-run --hosts=N" \
      "shows the commands without a slice" >&2
    return 1
  fi
  tr ';' '\n' <<<"$listed" | grep -c .
}

on_all_hosts() { # on_all_hosts COMMAND: on every host at the same time
  run gcloud compute tpus tpu-vm ssh "$NAME" "${flags[@]}" --worker=all \
    --command="$1"
}

on_first_host() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${flags[@]}" --worker=0 --command="$1"
}
