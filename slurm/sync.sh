#!/bin/bash
# Upload what wandb wrote without network, from a machine that has it:  slurm/sync.sh RUN_FOLDER_OR_SWEEP_FOLDER...
# May be repeated: what was uploaded before is left alone.  Wait until a job has ended, or the rest of its part is left, too.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
command -v wandb >/dev/null || { echo "sync.sh: no wandb here (pip install wandb)" >&2; exit 2; }

# A run has one part per start, all with the same id; their names begin with their time.
parts=()
while IFS= read -r -d '' part; do
    compgen -G "$part/*.synced" >/dev/null || parts+=("$part")
done < <(find -H "$@" -type d -path '*/wandb/offline-run-*' -prune -print0 | sort -z)
[ "${#parts[@]}" -gt 0 ] || { echo "sync.sh: nothing new in $*"; exit 0; }

# Older versions overwrite a run with its next part unless told to append; newer ones always append, and lack the option.
options=()
if wandb sync --help | grep -q -e '--append'; then options=(--append); fi
wandb sync "${options[@]}" "${parts[@]}"
