#!/bin/bash
# Text → vocabulary and ids on the shared disk. Where a job has network; else run `charlm prepare` where there is.
#
#   sbatch slurm/prepare.sh --config wikipedia-en
#
# As a job array (slurm/prepare-array.sh submits it so) every task takes its shard.
#SBATCH --job-name=charlm-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
cd "$SLURM_SUBMIT_DIR" && source slurm/cluster.sh || exit
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi
exec charlm prepare "$@"
