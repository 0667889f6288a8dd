#!/bin/bash
# A training for every line of options in a file; each has a run directory of its own and goes on as train.sh does:
#
#   printf '%s\n' '--model.cell gru' '--model.cell lstm --optim.learning_rate 1e-3' > sweep.txt
#   sbatch --array=0-1%2 slurm/sweep.sh sweep.txt --config wikipedia-simple      # 0-1: the two lines; %2: at once
#SBATCH --job-name=charlm-sweep
#SBATCH --array=0-1
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
cd "${SLURM_SUBMIT_DIR:?submit this, do not run it: sbatch slurm/sweep.sh …}" || exit
file=${1:?sweep.sh FILE OPTIONS…: a file with a line of options per training}
shift
mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "$file")
[ "${SLURM_ARRAY_TASK_MAX:-0}" -ge $((${#lines[@]} - 1)) ] ||
  echo "sweep.sh: $file has ${#lines[@]} lines of options, but --array ends at $SLURM_ARRAY_TASK_MAX; it counts from 0"
line=${lines[$SLURM_ARRAY_TASK_ID]:?sweep.sh: $file has only ${#lines[@]} lines of options, --array counts from 0}
mapfile -t options < <(xargs -n 1 printf '%s\n' <<<"$line") # quoted words stay whole
run_dir=runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
exec bash slurm/train.sh "$@" --run_dir "$run_dir" "${options[@]}" # what comes later wins
