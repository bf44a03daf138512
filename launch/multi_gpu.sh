#!/usr/bin/env bash
# Train on all visible GPUs of this machine, or on the first N with NUM_PROCESSES=N:
# bash launch/multi_gpu.sh configs/imdb.yaml [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=${NUM_PROCESSES:-$(visible_gpus)}
if [ "$processes" -eq 0 ]; then
    echo "multi_gpu.sh: no GPU is visible: use launch/quickstart.sh or launch/debug.sh on a CPU" >&2
    exit 2
fi
accelerate_run "$processes" "$@"
