#!/bin/bash
# Score held-out text with the best weights of a run:
#
#   sbatch slurm/evaluate.sh runs/wikipedia-en --split test
#SBATCH --job-name=charlm-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:?submit this, do not run it: sbatch slurm/evaluate.sh …}" && source slurm/cluster.sh || exit
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
exec charlm evaluate "$@"
