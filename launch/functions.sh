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

# visible_gpus: how many GPUs to train on; 0 with ACCELERATE_USE_CPU. GPUs that cannot be used are an error.
visible_gpus() {
    python -m ulmfit_dist.distributed.devices
}

# wants_cpu: ACCELERATE_USE_CPU is true, in one of the words that Accelerate knows.
wants_cpu() {
    local value=${ACCELERATE_USE_CPU:-false}
    case "${value,,}" in
        1 | y | yes | t | true | on) return 0 ;;
        0 | n | no | f | false | off) return 1 ;;
    esac
    echo "ulmfit-dist: error: ACCELERATE_USE_CPU=$value: give true or false" >&2
    exit 2
}

# check_processes PROCESSES CONFIG [WORD ...]: end with exit code 2 and one line for a wrong config, or one whose global
# batches so many processes cannot share. Before anything is launched.
check_processes() {
    python -m ulmfit_dist.launch.process_count check "$@"
}

# use_cpu PROCESSES: let that many processes share the cores.
use_cpu() {
    local cores
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
    export ACCELERATE_USE_CPU=true
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}
}
