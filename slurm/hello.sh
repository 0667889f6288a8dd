#!/bin/bash
# Is this cluster set up right? Two nodes learn "hello" together, are interrupted on purpose, put back into the
# queue, and go on. A few minutes; the log ends with "set up right". One GPU per node is enough.
#
#   sbatch slurm/hello.sh
#SBATCH --job-name=charlm-hello
#SBATCH --nodes=2
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=00:15:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:?submit this, do not run it: sbatch slurm/hello.sh}" || exit
run=runs/$SLURM_JOB_NAME-$SLURM_JOB_ID
options=(--config hello --run_dir "$run" --data.dir "$run/data")
lanes=$((${SLURM_GPUS_ON_NODE:-0} ? SLURM_GPUS_ON_NODE * SLURM_NNODES : SLURM_NTASKS)) # as many as processes
options+=(--train.batch_size "$lanes" --data.text "$(printf 'hello%.0s' $(seq "$lanes"))")
if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
  srun --label --gpu-bind=none bash -c '
    source slurm/cluster.sh && python -c "
import os, socket, torch
from charlm.model.device import has_gpu
print(socket.gethostname(), \"torch\", torch.__version__, \"sees\", torch.cuda.device_count(), \"GPU(s)\")
has_gpu()"' || exit
  options+=(--train.max_hours 1e-9) # leaves after its first step
fi
bash slurm/train.sh "${options[@]}" || exit
grep -q '"status": "done"' "$run/status.json" && echo "charlm: this cluster is set up right"
