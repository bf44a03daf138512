# What the launch scripts share; they source it. Afterwards the project is set up, on the PATH, and the folder its root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
PATH="$PWD/.venv/bin:$PATH"

# resolved_config CONFIG [WORD ...]: the config, options such as --fresh left out. The scripts ask for it before they launch,
# so that a misspelt key is one line and not a launcher's report of failed processes.
resolved_config() {
    local words=() word
    for word in "$@"; do
        [[ $word == -* ]] || words+=("$word")
    done
    python -m ulmfit_dist config "${words[@]}"
}

# accelerate_run PROCESSES CONFIG [WORD ...]: `ulmfit-dist run` on this machine's GPUs, or on CPU processes after use_cpu.
accelerate_run() {
    local processes=$1
    shift
    resolved_config "$@" > /dev/null
    accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_processes "$processes" -m ulmfit_dist run "$@"
}

visible_gpus() {
    python -c 'import torch; print(torch.cuda.device_count())'
}

# use_cpu PROCESSES: let that many processes share the cores.
use_cpu() {
    local cores
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
    export ACCELERATE_USE_CPU=true
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}
}
