#!/usr/bin/env bash
# Run `afmrl train`, or a script, on SLURM, from the root of the repository, one task for each GPU:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=8:00:00 \
#       experiments/cluster/slurm.sh -m afmrl_jax train --out /shared/runs/demo
#
#   scancel --signal=TERM JOB     # save, end, and go on when it is the job's turn again
#   scancel JOB                   # save and end; the same sbatch goes on
#
# --out lies on storage that all nodes see. Take --gpus-per-node and not --gpus-per-task: a task must
# see all GPUs of its node, because JAX takes the one with the number of the task.
#
# The tasks get SIGTERM two to three minutes before the time limit, and when the job is preempted
# (with the partition's GraceTime, or else the KillWait of SLURM, to save). They save and end with
# status 75, and the job goes back into the queue, AFMRL_MAX_REQUEUES times (50) at most. Any other
# status ends the job. PYTHON is the interpreter (.venv/bin/python).
#
#SBATCH --job-name=afmrl
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -u

readonly TRY_AGAIN=75 TERMINATED=143
readonly limit=${AFMRL_MAX_REQUEUES:-50} requeued=${SLURM_RESTART_COUNT:-0}

if [[ $# -eq 0 || -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch [OPTIONS] experiments/cluster/slurm.sh -m afmrl_jax train [OPTIONS], or SCRIPT [ARGUMENTS]" >&2
    exit 2
fi

# SLURM sends SIGTERM to the tasks itself. This shell gets it only when the whole job ends, and must
# then live on until the tasks have saved. It passes nothing on: a task that is asked twice stops at
# once, and an srun that gets SIGTERM kills its tasks.
trap 'interrupted=1' TERM

# srun does not take this over from sbatch (SLURM 22.05 and later).
[[ -n ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# A task that has saved must not take along one that still writes; one that is lost is noticed by
# the others within a minute.
srun --kill-on-bad-exit=0 --wait=300 "${PYTHON:-.venv/bin/python}" "$@" &
step=$!
while
    interrupted=0
    wait "$step" # SIGTERM cuts it short.
    status=$?
    ((interrupted))
do :; done

# SIGTERM kills a task that has not come to listen for it yet; nothing is lost then.
((status == TRY_AGAIN || status == TERMINATED)) || exit "$status"

# A job that was cancelled or preempted is no longer running, and SLURM has decided what comes of it.
[[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]] || exit "$status"

if ((requeued >= limit)); then
    echo "error: requeued $requeued times, and AFMRL_MAX_REQUEUES is $limit; submit the same command" \
        "again to go on" >&2
elif scontrol requeue Incomplete "$SLURM_JOB_ID"; then
    echo "saved; in the queue again (restart $((requeued + 1)) of at most $limit)"
else
    echo "error: SLURM did not requeue the job; submit the same command again to go on" >&2
fi
exit "$status"
