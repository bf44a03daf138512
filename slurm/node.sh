#!/usr/bin/env bash
# Task of srun on each node: launches the node's ranks and exits with their code.
set -euo pipefail

if [ "$SLURM_NODEID" -eq 0 ]; then
    echo $$ > "$LAUNCHER"
else
    exec >> "$LOG-node$SLURM_NODEID.log" 2>&1
fi
exec python -m ulmfit_dist.launch \
    --config_file "$(dirname "$0")/../configs/accelerate/multi_node.yaml" \
    --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
    --num_processes "$((SLURM_JOB_NUM_NODES * PROCESSES_PER_NODE))" \
    --main_process_ip "$ADDRESS" --main_process_port "$PORT" \
    -m ulmfit_dist "$@" --verbose
