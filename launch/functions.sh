# Functions of the scripts in launch/ and slurm/, which source this file.
# shellcheck shell=bash

# values_of "KEY ..." CONFIG [ARG ...]: print values of the resolved config, one per line, or without keys the whole config.
# Options among the arguments, such as --fresh, are ignored. An invalid config is an error of one line, before the launch.
values_of() {
    local keys=() arguments=() item previous=''
    for item in $1; do keys+=(--get "$item"); done
    shift
    for item in "$@"; do
        [[ $item == -* || $previous == --device ]] || arguments+=("$item")
        previous=$item
    done
    python -m ulmfit_dist config "${arguments[@]}" "${keys[@]}"
}

# device_of [ARG ...]: print the last value of --device among arguments, in either spelling; auto without one.
device_of() {
    local device=auto item previous=''
    for item in "$@"; do
        [[ $item != --device=* ]] || device=${item#*=}
        [ "$previous" != --device ] || device=$item
        previous=$item
    done
    echo "$device"
}

# choose_device [ARG ...]: with --device cpu among arguments, compute on CPUs. Other values are checked, except whether there
# is a GPU; an invalid one is an error.
choose_device() {
    local device
    device=$(device_of "$@")
    case $device in
        auto) ;;
        cpu) export ACCELERATE_USE_CPU=true ;;
        cuda)
            if wants_cpu; then
                echo "ulmfit-dist: error: --device cuda, but ACCELERATE_USE_CPU=$ACCELERATE_USE_CPU: unset it, or leave out --device" >&2
                exit 2
            fi
            ;;
        *)
            echo "ulmfit-dist: error: --device $device: give auto, cpu or cuda" >&2
            exit 2
            ;;
    esac
}

# visible_gpus: print the number of GPUs to train on; 0 with ACCELERATE_USE_CPU. Unusable GPUs are an error.
visible_gpus() {
    python -m ulmfit_dist.distributed.devices
}

# wants_cpu: return whether ACCELERATE_USE_CPU is true, in any spelling that Accelerate accepts.
wants_cpu() {
    local value=${ACCELERATE_USE_CPU:-false}
    case "${value,,}" in
        1 | y | yes | t | true | on) return 0 ;;
        0 | n | no | f | false | off) return 1 ;;
    esac
    echo "ulmfit-dist: error: ACCELERATE_USE_CPU=$value: give true or false" >&2
    exit 2
}

# check_processes PROCESSES CONFIG [ARG ...]: before the launch, exit with code 2 and one line if the config is invalid or its
# global batches cannot be shared by this many processes.
check_processes() {
    python -m ulmfit_dist.launch.process_count check "$@"
}

# use_cpu PROCESSES: divide the cores among this many CPU processes.
use_cpu() {
    local cores
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
    export ACCELERATE_USE_CPU=true
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}
}
