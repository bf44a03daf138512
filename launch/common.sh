# Set-up of the launch scripts, which source this file: installs the project, adds it to the PATH, changes to its root.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
PATH="$PWD/.venv/bin:$PATH"
source launch/functions.sh
choose_device "$@"

# accelerate_run PROCESSES CONFIG [ARG ...]: run `ulmfit-dist run` on this machine's GPUs, or on CPU processes after use_cpu.
accelerate_run() {
    local processes=$1
    check_processes "$@"
    shift
    python -m ulmfit_dist.launch --config_file configs/accelerate/multi_gpu.yaml --num_processes "$processes" \
        -m ulmfit_dist run "$@"
}
