#!/bin/bash
# Train on one node or many until it is done, over as many time limits and preemptions as that takes:
#
#   sbatch slurm/train.sh --config wikipedia-en
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/train.sh --config wikipedia-en
#
# Options before the script go to slurm, options after it to `charlm train`. The lines below ask for 4 GPUs and 16
# CPUs per node; for nodes of two GPUs: sbatch --gpus-per-node=2 --ntasks-per-node=2 slurm/train.sh …
# One task is one process, one per GPU. Five minutes before the time limit slurm sends USR1; the run saves itself,
# and this script puts the job back into the queue, with the same id and the same log. A crash is not put back.
#SBATCH --job-name=charlm
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
trap 'say "asked to end"' TERM # stay, while the processes save
trap '[ -z "${srun-}" ] || kill -USR1 "$srun"' USR1 # it comes here where sbatch was told --signal=B:USR1@…
cd "${SLURM_SUBMIT_DIR:?submit this, do not run it: sbatch slurm/train.sh …}" && source slurm/cluster.sh || exit
set -uo pipefail # from here on: what activates an environment may not bear it

say() { echo "[train.sh $(date +%T)] $*"; }
ended() { # status and step, as the run itself tells them
  sed -nE 's/^\{"status": "([a-z]+)", "step": ([0-9]+).*/\1 \2/p' "$run_dir/status.json" 2>/dev/null
}

run_dir=$(charlm train "$@" --print_config | sed -n "s/^run_dir: //p" | tr -d "'\"") || exit
read -r _ before < <(ended)
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline} # no internet on compute nodes
export CHARLM_DEBUG=${CHARLM_DEBUG:-unexpected} # the traceback of an error of charlm: it may not come again

tasks=$SLURM_NTASKS cpus=${SLURM_CPUS_PER_TASK:-1} gpus=${SLURM_GPUS_ON_NODE:-0} layout=()
if [ "$gpus" != 0 ] && [ "$((gpus * SLURM_NNODES))" != "$tasks" ]; then # the script's options are for four
  cpus=$((SLURM_CPUS_ON_NODE < gpus ? 1 : SLURM_CPUS_ON_NODE / gpus)) tasks=$((gpus * SLURM_NNODES))
  layout=(--nodes="$SLURM_NNODES" --ntasks="$tasks" --ntasks-per-node="$gpus")
fi
say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $tasks process(es) on $SLURM_JOB_NODELIST, $run_dir"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
# Every task is the Python process itself, for a signal reaches no further than that. Until Python listens,
# signals are held back; where env cannot do that (before coreutils 8.31) they are ignored, for they would end it.
hold=(env "--block-signal=USR1,TERM")
"${hold[@]}" true 2>/dev/null || hold=()
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task="$cpus" "${layout[@]}" "${hold[@]}" bash -c '
  [ "$0" = held ] || trap "" USR1 TERM
  [ "$SLURM_NTASKS" = 1 ] || export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec charlm train "$@"' "${hold:+held}" "$@" &
srun=$!
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done # a signal interrupts the wait
trap "" TERM USR1 # what follows is not to be ended by slurm's next signal
wait "$srun"
rc=$?

read -r status step < <(ended)
say "ended with $rc: ${status:-no status}, step ${step:-0}"
if [ "$rc" = 138 ] && [[ $status =~ ^(interrupted|running|)$ ]]; then # 128 + USR1: env itself was ended by it
  say "a signal came before a process could hold it back"
elif [ "$status" != interrupted ]; then
  exit "$rc"
elif [ "$step" -le "${before:--1}" ]; then
  say "not put back into the queue: it got no further than step $before before it had to stop"
  exit $((rc ? rc : 1))
fi
# The checkpoint is written: whatever ended the process after that, a second signal say, does not matter.
# While slurm ends the job itself (scancel, or a preemption without grace), it is for slurm to say what follows.
job=$(scontrol show job -o "$SLURM_JOB_ID")
[[ $job == *" JobState=RUNNING "* ]] || exit 0
[[ $job =~ \ EndTime=([0-9][^ ]*) ]] && left=$(($(date -d "${BASH_REMATCH[1]}" +%s) - $(date +%s)))
short=$(((${SLURM_RESTART_COUNT:-0} > 0) && (step - ${before:-0} < 10)))
if [ "$short" = 1 ] && [ "${left:-1000}" -lt 360 ]; then # in its first start a job may have come late to training
  say "not put back into the queue: $((step - ${before:-0})) steps in this start, for slurm's signal came $left s before"
  say "the time limit. Give a longer --time, or --signal=USR1@60. The checkpoint of step $step is written."
  exit 1
fi
say "back into the queue"
scontrol requeue "$SLURM_JOB_ID" || exit
trap - TERM USR1
exec sleep 120 # until slurm ends this
