#!/bin/bash
# Upload what wandb wrote without network, from a machine that has it:  slurm/sync.sh RUN_FOLDER_OR_SWEEP_FOLDER...
# May be repeated, also while runs go on: what was uploaded before is left alone.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
command -v wandb >/dev/null || { echo "sync.sh: no wandb here (pip install wandb)" >&2; exit 2; }

# The parts of a resumed run have one id, and their names begin with their time: in this order, appended, they are one run.
find "$@" -type d -path '*/wandb/offline-run-*' -prune -print0 | sort -z | while IFS= read -r -d '' part; do
    compgen -G "$part/*.synced" >/dev/null || wandb sync --append "$part"
done
