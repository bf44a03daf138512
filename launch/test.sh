#!/usr/bin/env bash
# Run all tests in three processes, each a file at a time; some tests only wait. Arguments are passed to pytest, one process:
# bash launch/test.sh -k vocab
# bash launch/test.sh --fast [ARG ...]: run the unit tests, which start no process.
# bash launch/test.sh --simulated-gpu [ARG ...]: run the tests of GPU code on a simulated GPU, on machines without one.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
unset PYTHONDONTWRITEBYTECODE # hundreds of processes would each compile the project again

if [ "${1:-}" = --simulated-gpu ]; then
    shift
    PYTHONPATH=tests python -m simulated_gpu.native || exit 2
    export PYTHONPATH="$PWD/tests/simulated_gpu/startup:$PWD:$PWD/tests:$PWD/tests/gpu" ACCELERATE_USE_CPU=false
    if [ $# -eq 0 ]; then
        export ULMFIT_DIST_WHOLE_SIMULATED_SUITE=1
        set -- tests/gpu tests/simulated_gpu --numprocesses 2 --dist load
    fi
    exec python -m pytest -p simulated_gpu.plugin "$@"
fi
if [ "${1:-}" = --fast ]; then
    shift
    export TOKENIZER_EXAMPLES="${TOKENIZER_EXAMPLES:-20}" # a sixth of what all tests draw
    exec python -m pytest -m unit --numprocesses 2 --dist worksteal "$@"
fi
[ $# -gt 0 ] || set -- --numprocesses 3 --dist loadfile --no-loadscope-reorder
exec python -m pytest "$@"
