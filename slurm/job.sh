# shellcheck shell=bash
# What the job scripts share.  They source it in the folder that the job was submitted from.

set -euo pipefail

# Where these files lie, as seen from that folder.
slurm_folder=${LTG_MDLM_SLURM:-slurm}
stop_signal=
srun_pid=
forwarded=USR1 # what the processes get for the signal before the time limit

say() { printf '%s job %s: %s\n' "$(date +%T)" "$job" "$*"; }

# One task of an array has the number of the whole array as SLURM_JOB_ID, by which all tasks would be requeued.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

trap 'stop_signal=TERM' TERM
trap 'stop_signal=USR1; forward &' USR1

# On one node: torchrun with the given module and arguments, and a process for every GPU.
run_on_node() {
    local told_to_stop='' code=0
    local processes=${LTG_MDLM_PROCESSES:-${SLURM_GPUS_ON_NODE:-0}}
    local meeting=(--standalone)
    if [ "$SLURM_NNODES" -gt 1 ]; then
        meeting=(--nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
    fi
    trap '' USR1 # torchrun's agent would die of it; the trainer's processes have handlers of their own
    trap 'told_to_stop=yes' TERM
    python3 -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$((processes > 0 ? processes : 1))" "$@" || code=$?
    # After TERM torchrun ends with 1 although its processes saved; srun would kill the other nodes for it, and with them
    # the process that still writes.
    [ -z "$told_to_stop" ] || return "${CODE_IF_STOPPED:-0}"
    return "$code"
}
export -f run_on_node

# train_and_requeue RUN_FOLDER -m MODULE ARGUMENTS...: train on all nodes of the job.  A run that was stopped before its
# end goes back to the queue; status.json in its folder says so, since under torchrun the exit code cannot.  So does a run
# that failed, or lost a process, if it has saved a checkpoint in this job: what fails again and again before that ends.
train_and_requeue() {
    local run_folder=$1 code=0 before
    before=$(newest_of "$1")
    shift
    [ -z "$stop_signal" ] || requeue
    say "start ${SLURM_RESTART_COUNT:-0} of $run_folder on $SLURM_JOB_NODELIST"
    on_all_nodes "$@" || code=$?
    [ "$(status_of "$run_folder")" != finished ] || exit "$code"
    if at_time_limit && [ "$(newest_of "$run_folder")" = "$before" ]; then
        say "$run_folder saved nothing before the time limit, so it would not get further: increase --time"
        exit 1
    fi
    [ -z "$stop_signal" ] || requeue
    # Its processes were stopped by a signal that this script did not get.
    if [ "$code" = 0 ] && [[ $(status_of "$run_folder") == @(preempted|running) ]]; then requeue; fi
    if [ "$(newest_of "$run_folder")" != "$before" ]; then
        say "$run_folder failed, see above, but has saved $(newest_of "$run_folder"): trying again"
        requeue
    fi
    say "$run_folder is not finished: see above${stop_signal:+ (stopped by $stop_signal)}"
    exit "$((code > 0 ? code : 1))"
}

# run_and_requeue RESULTS -m MODULE ARGUMENTS...: on all nodes of the job; if it is stopped, it goes back to the queue.  A
# signal kills its processes, so the command begins again, or keeps what it has done: a summary.json for every part of it
# below RESULTS, without a new one of which it does not go on after the time limit.
run_and_requeue() {
    local results=$1 code=0 started=$SECONDS
    shift
    export CODE_IF_STOPPED=250 # srun returns the largest code of all nodes
    forwarded=TERM
    [ -z "$stop_signal" ] || requeue
    say "start ${SLURM_RESTART_COUNT:-0} of ${*:2} on $SLURM_JOB_NODELIST"
    on_all_nodes "$@" || code=$?
    if at_time_limit && [ -z "$(find "$results" -name summary.json -mmin "-$(((SECONDS - started) / 60 + 1))" -print -quit 2>/dev/null)" ]; then
        say "nothing was finished before the time limit, so it would not get further: increase --time"
        exit 1
    fi
    if [ "$code" = "$CODE_IF_STOPPED" ] || [ -n "$stop_signal" ]; then requeue; fi
    exit "$code"
}

# Whether the signal before the time limit stopped the job, and not one that somebody sent earlier.
at_time_limit() { [ "$stop_signal" = USR1 ] && [ "$(seconds_left)" -lt 900 ]; }

on_all_nodes() {
    # With sbatch --export=NONE, srun would not pass on this script's function and variables either.
    srun --export=ALL --kill-on-bad-exit=1 bash -c 'run_on_node "$@"' run_on_node "$@" &
    srun_pid=$!
    await "$srun_pid"
}

prepare_environment() {
    set +u # modules and conda read variables that are not set
    if [ -f "$slurm_folder/cluster.env" ]; then
        # shellcheck source=/dev/null
        source "$slurm_folder/cluster.env"
    fi
    if declare -F activate_environment >/dev/null; then activate_environment; fi
    set -u
    # Compute nodes may have no network: wandb writes files, which sync.sh uploads later.
    export WANDB_MODE=${WANDB_MODE:-offline}
    # Micro-batches of several row lengths otherwise leave gaps in a GPU's memory.
    if [ -z "${PYTORCH_CUDA_ALLOC_CONF-}${PYTORCH_ALLOC_CONF-}" ]; then
        export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    fi
    # srun does not take this one from sbatch.
    [ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # below the ports that systems give out by themselves
    export MASTER_ADDR MASTER_PORT
}

# srun passes USR1 to the processes on all nodes.  Those that are still importing ignore it, hence again and again.  For
# TERM srun kills them: soon enough before the time limit for the job to requeue itself, also if one of them hangs.
forward() {
    while [ -n "$srun_pid" ] && kill -"$forwarded" "$srun_pid" 2>/dev/null; do
        sleep 10
        if [ "$forwarded" != TERM ] && [ "$(seconds_left)" -lt 45 ]; then
            say "still running shortly before the time limit: killing it"
            forwarded=TERM
        fi
    done
}

seconds_left() {
    local end
    end=$(SLURM_TIME_FORMAT=standard scontrol show job -o "$job" | sed -n 's/.* EndTime=\([0-9][^ ]*\) .*/\1/p')
    if [ -n "$end" ] && end=$(date -d "$end" +%s); then echo $((end - $(date +%s))); else echo 1000000; fi
}

# A trapped signal ends `wait` early, so wait again until the process is gone; returns its exit code.
await() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}

newest_of() { cat "$1/checkpoints/latest" 2>/dev/null || true; }

status_of() { sed -n 's/.*"status": *"\([a-z]*\)".*/\1/p' "$1/status.json" 2>/dev/null || true; }

# Does not return.
requeue() {
    # After scancel or scontrol requeue Slurm ends the job already, and a requeue here would undo a scancel.
    if [[ $(scontrol show job -o "$job") == *JobState=RUNNING* ]]; then
        say "stopped${stop_signal:+ by $stop_signal}: back to the queue"
        scontrol requeue "$job" || say "this job cannot be requeued: submit it again to resume"
    else
        say "stopped: Slurm is ending this job"
    fi
    exit 75
}
