#!/usr/bin/env bash
# Train on BBC News from raw text to a classifier, on all visible GPUs that can share its batches, or without a GPU on two CPU
# processes; then print a prediction, two generated texts, the figures, and next steps. Arguments are keys of the config:
# bash launch/quickstart.sh lm.drop_mult=0.1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus=$(visible_gpus)
if [ "$gpus" -eq 0 ]; then
    if [ "$(device_of "$@")" = cuda ]; then
        echo "quickstart.sh: --device cuda: no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES" >&2
        exit 2
    fi
    processes=2
    use_cpu "$processes"
else
    processes=$(python -m ulmfit_dist.launch.process_count choose "$gpus" configs/quickstart.yaml "$@")
fi
accelerate_run "$processes" configs/quickstart.yaml "$@"

mapfile -t values < <(values_of "runs_dir name" configs/quickstart.yaml "$@")
run=${values[0]}/${values[1]}
echo
ulmfit-dist predict "$run" "The striker scored twice in the second half and the visitors went out of the cup."
ulmfit-dist generate "$run" "The government said" --words 30
echo
python - "$run" <<'EOF'
import sys
from pathlib import Path

from ulmfit_dist.tracking.console import read_scores

print(*read_scores(Path(sys.argv[1])), sep="\n")
EOF
echo "
Next (source .venv/bin/activate first):
  ulmfit-dist init FILE                        a config for your own texts: a folder, CSV, JSON lines or Parquet
  ulmfit-dist ensemble $run --with-baseline    the mean of this classifier and the baseline
  $run/report.html                             curves, confusion matrix, and the articles with the highest loss"
