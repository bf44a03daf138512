#!/usr/bin/env bash
# All stages on one process and a small subset, for debugging: deterministic, with anomaly detection, printing shapes and the
# first batch as text. bash launch/debug.sh [CONFIG] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config=configs/quickstart.yaml
if [[ -n ${1:-} && $1 != *=* && $1 != -* ]]; then
    config=$1
    shift
fi
ulmfit-dist run "$config" --fresh --verbose name=debug data.max_documents=200 tracking.wandb_mode=disabled \
    runtime.deterministic=true runtime.detect_anomaly=true runtime.show_first_batch=true \
    'lm.phases=[{epochs: 1, lr: 1e-2}]' \
    'classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 1, lr: [1e-3, 1e-2]}]' "$@"
