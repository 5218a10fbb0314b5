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
runs=runs/results/results_gpu scores=runs/results/results_gpu_scores
sweep=(results_gpu --set "data.corpus=$corpus")
last=$(($(ltg-mdlm sweep list "${sweep[@]}" --json | grep -c '"index"') - 1))
if command -v sbatch >/dev/null; then
    scripts=${LTG_MDLM_SLURM:-slurm}
    trained=$(sbatch --parsable --array="0-$last" "$@" "$scripts/array.sbatch" "${sweep[@]}" --out-root "$runs")
    sbatch --array="0-$last" --dependency="afterany:${trained%%;*}" "$@" "$scripts/eval.sbatch" "$runs" --data "$data" --out "$scores"
    exit
fi
for index in $(seq 0 "$last"); do
    # A run that diverges (exit code 3) does not end the others.
    ltg-mdlm sweep run "${sweep[@]:0:1}" "$index" "${sweep[@]:1}" --out-root "$runs" || [ $? = 3 ]
done
code=0
for config in "$runs"/*/config.yaml; do
    run=${config%/config.yaml}
    complete=$scores/${run##*/}/main/.complete # suite.json is written after every task
    [ -f "$complete" ] || { ltg-mdlm eval suite "$run" --data "$data" --out "$scores" && touch "$complete"; } || code=$?
done
exit "$code"
