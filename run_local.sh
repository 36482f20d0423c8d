#!/usr/bin/env bash
# The whole stream on this machine, with emulators and simulated patients:
#
#     ./run_local.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

stop() {
  if [[ -n ${!:-} ]]; then
    kill -TERM -- "-$!" 2>/dev/null || true
    wait "$!" 2>/dev/null || true
  fi
  rm -rf "$scratch"
  echo "Stopped; the next run will resume the installation." >&2
  exit "$1"
}

scratch=$(mktemp -d) # an installation that is interrupted does not clear up after itself
trap 'stop 130' INT
trap 'stop 143' TERM HUP

# A process group of its own, so that Ctrl-C ends all of the installation, wherever the signal was sent.
set -m
TMPDIR=$scratch bash "$root/.ci/venv" requirements/local.txt &
status=0
wait "$!" || status=$?
rm -rf "$scratch"
((status == 0)) || exit 1
trap - INT TERM HUP

# Not from the current directory, which may hold packages of the same names.
export PYTHONPATH="$root" PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m local "$@"
