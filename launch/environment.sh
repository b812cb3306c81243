# Sourced by the scripts here: makes .venv with the pinned versions, once, and puts it first on PATH.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
  python=
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
  done
  if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer was found (found: $(python3 --version 2>&1)). Install one, then run this again." >&2
    exit 1
  fi
  echo "installing into .venv (once; some minutes, most of it torch)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --constraint constraints.txt --editable '.[test]'
  echo "$stamp" > .venv/installed
fi
PATH="$PWD/.venv/bin:$PATH"
