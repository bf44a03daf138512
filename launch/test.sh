#!/usr/bin/env bash
# All tests. Words given go to pytest: bash launch/test.sh -k vocab
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

exec python -m pytest "$@"
