# What the launch scripts share; they source it. Afterwards the project is set up, on the PATH, and the folder its root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
PATH="$PWD/.venv/bin:$PATH"

# accelerate_run PROCESSES WORD...: `accelerate launch -m ulmfit_dist WORD...` on this machine's GPUs, or CPU processes
# where ACCELERATE_USE_CPU is true. The config is checked first, so that a misspelt key is one line and not a launcher's
# report of two failed processes.
accelerate_run() {
    local processes=$1
    shift
    python -m ulmfit_dist config "${@:2}" > /dev/null
    accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_processes "$processes" -m ulmfit_dist "$@"
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
