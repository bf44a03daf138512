#!/usr/bin/env bash
# Train on several nodes. Call it once per node, with the same arguments except NODE_RANK:
#   NUM_NODES=2 NODE_RANK=0 MASTER_ADDR=node1 bash launch/multi_node.sh configs/imdb.yaml [key=value ...]
# GPUS_PER_NODE defaults to the number of visible GPUs, MASTER_PORT to 29500. Config, runs_dir and data.cache_dir must be on a
# shared file system. With ACCELERATE_USE_CPU=true it starts GPUS_PER_NODE CPU processes per node.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for variable in NUM_NODES NODE_RANK MASTER_ADDR; do
    if [ -z "${!variable:-}" ]; then
        echo "multi_node.sh: $variable is not set: NUM_NODES=2 NODE_RANK=0 MASTER_ADDR=node1 bash launch/multi_node.sh CONFIG" >&2
        exit 2
    fi
done
per_node=${GPUS_PER_NODE:-$(visible_gpus)}
if [ "$per_node" -eq 0 ]; then
    echo "multi_node.sh: no GPU is visible: set GPUS_PER_NODE and ACCELERATE_USE_CPU=true to run on CPUs" >&2
    exit 2
fi
check_processes "$((NUM_NODES * per_node))" "$@"
python -m ulmfit_dist.launch --config_file configs/accelerate/multi_node.yaml \
    --num_machines "$NUM_NODES" --machine_rank "$NODE_RANK" --num_processes "$((NUM_NODES * per_node))" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "${MASTER_PORT:-29500}" \
    -m ulmfit_dist run "$@"
