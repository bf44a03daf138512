# Functions of the launch scripts and of slurm/; they source it.
# shellcheck shell=bash

# values_of "KEY ..." CONFIG [WORD ...]: values of the resolved config, one per line; all of it for no key. Options among the
# words, such as --fresh, are left out. Asked for before anything is launched, it says on one line what is wrong with a config.
values_of() {
    local wanted=() words=() item
    for item in $1; do wanted+=(--get "$item"); done
    shift
    for item in "$@"; do [[ $item == -* ]] || words+=("$item"); done
    python -m ulmfit_dist config "${words[@]}" "${wanted[@]}"
}

visible_gpus() {
    python -c 'import torch; print(torch.cuda.device_count())'
}

# check_processes PROCESSES CONFIG [WORD ...]: end with exit code 2 and one line for a wrong config, or one whose global
# batches so many processes cannot share. Before anything is launched.
check_processes() {
    python -m ulmfit_dist.process_count check "$@"
}

# use_cpu PROCESSES: let that many processes share the cores.
use_cpu() {
    local cores
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
    export ACCELERATE_USE_CPU=true
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}
}
