#!/bin/bash
# The protocol of docs/results.md for a GPU: train and evaluate all points of the sweep results_gpu.
#
#   slurm/results_gpu.sh TEXT HELD_OUT EVALUATION_DATA [options of sbatch]
#
# With Slurm it submits two arrays, otherwise it trains one run after the other on this machine.  Finished runs are not
# trained again and others resume, so the same command can be repeated after any interruption.
set -euo pipefail
usage='usage: slurm/results_gpu.sh TEXT HELD_OUT EVALUATION_DATA [options of sbatch]'
text=${1:?$usage} held_out=${2:?$usage} data=${3:?$usage}
shift 3
corpus=corpora/results_gpu
[ -d "$corpus" ] || ltg-mdlm prepare "$text" --valid "$held_out" --vocab-size 16384 --out "$corpus"
options=(results_gpu --set "data.corpus=$corpus" --out-root runs/results/results_gpu)
if command -v sbatch >/dev/null; then
    last=$(($(ltg-mdlm sweep list results_gpu --set "data.corpus=$corpus" --json | grep -c '"index"') - 1))
    trained=$(sbatch --parsable --array="0-$last" "$@" slurm/array.sbatch "${options[@]}")
    sbatch --array="0-$last" --dependency="afterok:${trained%%;*}" "$@" slurm/eval.sbatch runs/results/results_gpu \
        --data "$data" --out runs/results/results_gpu_scores
else
    ltg-mdlm sweep run "${options[@]}"
    for config in runs/results/results_gpu/*/config.yaml; do
        ltg-mdlm eval suite "${config%/config.yaml}" --data "$data" --out runs/results/results_gpu_scores
    done
fi
