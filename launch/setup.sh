#!/usr/bin/env bash
# Makes .venv with the project and all that it needs, once. Later calls find it as it should be and return at once.
# PYTHON=python3.12 bash launch/setup.sh chooses the interpreter (3.10 or newer). TORCH_INDEX=ADDRESS bash launch/setup.sh
# takes torch and torchvision from another package index, for another version of CUDA; later calls keep to it, and an empty
# TORCH_INDEX= goes back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
earlier_index=$(cat .venv/torch_index 2>/dev/null || true)
index=${TORCH_INDEX-$earlier_index}
wanted=$({ cat pyproject.toml constraints.txt launch/setup.sh && echo "$index"; } | cksum)
[ -x .venv/bin/python ] && [ "$(cat .venv/installed 2>/dev/null || true)" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is older than 3.10: install a newer Python, or name one with PYTHON=..." >&2
    exit 2
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "setup: $python has no venv: on Debian and Ubuntu, apt-get install python3-venv" >&2
    exit 2
}

install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

echo "setup: making .venv (once, some minutes) ..." >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
again=()
[ "$index" = "$earlier_index" ] || again=(--force-reinstall) # else pip takes one build of a version for another
if [ -n "$index" ]; then
    # Only these two: an index of torch's has other versions of what they need, which the last line puts right.
    mapfile -t builds < <(grep -E '^torch(vision)?==' constraints.txt)
    install "${again[@]}" --index-url "$index" "${builds[@]}"
else
    install "${again[@]}" --constraint constraints.txt torch torchvision
fi
echo "$index" > .venv/torch_index
install --constraint constraints.txt --editable '.[demo,sentencepiece,dev]'
echo "$wanted" > .venv/installed
