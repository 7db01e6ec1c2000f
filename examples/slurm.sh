#!/bin/bash
#SBATCH --job-name=trio_dask
#SBATCH --ntasks=4 --cpus-per-task=1 --mem-per-cpu=1G
#SBATCH --time=01:00:00 --signal=B:TERM@60
#
# A cluster in one job: a scheduler beside this script, one worker per task, and a program that uses them.
#   sbatch slurm.sh python program.py
# The program connects with Client(scheduler_file=os.environ["SCHEDULER_FILE"]).
# SCHEDULER_OPTIONS chooses the network, for example: sbatch --export=ALL,SCHEDULER_OPTIONS="--interface ib0" slurm.sh ...
# Needs trio_dask on every node, in the environment from which it is submitted, and a folder that all nodes share.

export SCHEDULER_FILE="$SLURM_SUBMIT_DIR/scheduler-$SLURM_JOB_ID.json"

set -m # each program below in a process group of its own: a signal for this script reaches none of them

# With one minute left, or after `scancel --batch --signal=TERM`, the program is told to stop; what follows it ends the rest.
trap 'kill -TERM "$program"' TERM

dask-scheduler --port 0 --scheduler-file "$SCHEDULER_FILE" $SCHEDULER_OPTIONS &
scheduler=$!
srun dask-worker --scheduler-file "$SCHEDULER_FILE" --death-timeout 60 --drain-timeout 20 &
workers=$!

"$@" & # in the background, so that the shell hears TERM at once
program=$!
wait "$program"
status=$?

# TERM goes to the step: srun itself would end its tasks at once. Workers drain, for less than Slurm's KillWait (30 s).
scancel --signal=TERM "$SLURM_JOB_ID.0"
wait "$workers"
kill -TERM "$scheduler"
wait "$scheduler"
exit "$status"
