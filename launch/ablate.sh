#!/usr/bin/env bash
# Control arms of stage two, one result file for each arm and seed, and the table; an interrupted set goes on where it stopped.
# Arguments go to preference/ablate.py, e.g. --config FILE, --arms default flipped, --jobs 2, --set measure.data=dev.jsonl.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
exec python preference/ablate.py "$@"
