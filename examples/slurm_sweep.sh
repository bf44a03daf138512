#!/usr/bin/env bash
# Sweep over learning rates on SLURM: an array job trains one run per rate, then `compare` tests each against the first rate,
# on the documents of the test split. Run it on a login node, in the root of the checkout, in an activated environment:
#
#     bash examples/slurm_sweep.sh
#     bash examples/slurm_sweep.sh runs/rates --partition=gpu --gpus-per-node=1      # a folder, and options of sbatch
#
# A run that is preempted or reaches its time limit is requeued and resumes. After a failure, the same command finishes the
# sweep: completed runs are not trained again.
set -euo pipefail

folder=${1:-runs/slurm_sweep}
shift $(($# > 0))
rates=(1e-3 5e-3 2e-2)

# The sweep file: line i has the arguments of task i, quoted as in a shell.
mkdir -p "$folder"
runs=()
for rate in "${rates[@]}"; do
    echo "name=lr-$rate 'classifier.phases=[{epochs: 4, lr: $rate}]'"
    runs+=("$folder/lr-$rate")
done > "$folder/rates.txt"

# The same for all tasks. This is a small model of the beginnings of a few articles, for two CPU cores: for real results, give
# your own config, and leave out all keys but runs_dir and data.cache_dir.
config=(
    configs/quickstart.yaml "runs_dir=$folder" "data.cache_dir=$folder/cache" tracking.group=slurm_sweep
    data.max_documents=200 tokenizer.max_vocab=1000 "model={emb_sz: 50, n_hid: 50, n_layers: 1}"
    classifier.global_batch_size=8 classifier.max_doc_tokens=144 classifier.drop_mult=0.2 classifier.baseline=false
)

# --wait returns when all tasks have ended, with the highest of their exit codes.
SWEEP=$folder/rates.txt sbatch --wait --array="0-$((${#rates[@]} - 1))" --time=1:00:00 \
    --job-name=slurm_sweep --output="$folder/%x-%A_%a.log" "$@" slurm/array.sbatch "${config[@]}"

for run in "${runs[@]:1}"; do
    python -m ulmfit_dist compare "${runs[0]}" "$run"
done
