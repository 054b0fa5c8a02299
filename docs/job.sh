#!/usr/bin/env bash
#SBATCH --job-name=s2 --nodes=1 --gpus-per-node=8 --time=04:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --signal=B:USR1@600
# A job of SLURM that trains in several turns: sbatch job.sh. SLURM signals this script ten minutes before its time
# limit. The run then saves and ends, and the job is queued again. Any other failure ends the job.
set -u

out=runs/s2
turns=50  # at most

points() { ls -d "$out"/checkpoints/step-* 2>/dev/null | sort -V; }

resume=()
[ -z "$(points)" ] || resume=(--resume)
torchrun --nproc-per-node 8 --shutdown-timeout 500 \
    -m dreamkit train dreamllm/paper/stage2 --out "$out" "${resume[@]}" &
run=$!

# torchrun forwards SIGTERM to all processes. Its exit code is not theirs, but the last resume point has a flag.
trap 'kill -TERM $run 2>/dev/null' USR1 TERM
wait $run
code=$?
while kill -0 $run 2>/dev/null; do  # a signal ended the wait
    wait $run
    code=$?
done

state=$(points | tail -n 1)/trainer/state.json
if [ $code -ne 0 ] && grep -qs '"preempted": true' "$state" && [ "${SLURM_RESTART_COUNT:-0}" -lt $turns ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
