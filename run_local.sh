#!/usr/bin/env bash
# The whole stream on this machine, with emulators and simulated patients:
#
#     ./run_local.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

stop() {
  kill -TERM -- "-$installation" 2>/dev/null || true
  wait "$installation" 2>/dev/null || true
  echo "Stopped; a later run resumes the installation." >&2
  exit "$1"
}

# A process group of its own, so that Ctrl-C ends all of the installation, wherever the signal was sent.
set -m
bash "$root/.ci/venv" requirements/local.txt &
installation=$!
trap 'stop 130' INT
trap 'stop 143' TERM HUP
wait "$installation" || exit 1
trap - INT TERM HUP

# Not from the current directory, which may hold packages of the same names.
export PYTHONPATH="$root" PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m pipeline.local "$@"
