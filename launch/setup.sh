#!/usr/bin/env bash
# Makes .venv with the project and all that it needs, once. Later calls find it as it should be and return at once.
# PYTHON=python3.12 bash launch/setup.sh chooses the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
wanted=$(cat pyproject.toml constraints.txt launch/setup.sh | cksum)
[ -x .venv/bin/python ] && [ "$(cat .venv/installed 2>/dev/null || true)" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is older than 3.10: install a newer Python, or name one with PYTHON=..." >&2
    exit 2
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "setup: $python has no venv: on Debian and Ubuntu, apt-get install python3-venv" >&2
    exit 2
}
echo "setup: making .venv (once, some minutes) ..." >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,sentencepiece,dev]'
echo "$wanted" > .venv/installed
