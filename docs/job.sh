#!/usr/bin/env bash
#SBATCH --job-name=s2 --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=04:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --signal=B:USR1@600
# A job of SLURM that trains in several turns, on one machine or more: sbatch job.sh. SLURM signals this script ten
# minutes before its time limit. The run then saves and ends, and the job is queued again. Any other failure ends the
# job.
set -u

out=runs/s2
turns=50  # at most

points() { ls -d "$out"/checkpoints/step-* 2>/dev/null | sort -V; }

resume=()
[ -z "$(points)" ] || resume=(--resume)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGUSR1 --shutdown-timeout 500 \
    -m dreamkit train dreamllm/paper/stage2 --out "$out" "${resume[@]}" &
run=$!

# srun forwards SIGUSR1 to torchrun on each machine, and torchrun to its processes. A SIGTERM to srun would end them at
# once; SLURM sends its own to torchrun. torchrun's exit code is not that of its processes, but the last resume point
# has a flag.
trap 'kill -USR1 $run 2>/dev/null' USR1
trap : TERM
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
