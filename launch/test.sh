#!/usr/bin/env bash
# Make the environment of the quickstart and run the tests in it; arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
exec python -m pytest "$@"
