#!/bin/bash
# Text → vocabulary and ids on the shared disk. Needs the network on the compute node if the text comes from it;
# without one, run `charlm prepare` on the login node.
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
cd "${SLURM_SUBMIT_DIR:?submit this, do not run it: sbatch slurm/prepare.sh …}" && source slurm/cluster.sh || exit
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi
exec charlm prepare "$@"
