#!/usr/bin/env bash
# All tests, a file at a time in each of two processes, for many of them wait more than they compute. Words given go to
# pytest, and then it is one process: bash launch/test.sh -k vocab
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder
exec python -m pytest "$@"
