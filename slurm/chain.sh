#!/bin/bash
# Submit prepare → train → evaluate; each starts when the one before has succeeded. Run it, do not sbatch it:
#
#   bash slurm/chain.sh --config wikipedia-en
#
# PREPARE_OPTIONS, TRAIN_OPTIONS, EVALUATE_OPTIONS (environment or slurm/cluster.sh): more options for sbatch.
source slurm/cluster.sh || exit
set -euo pipefail
run_dir=$(charlm train "$@" --print_config | sed -n "s/^run_dir: //p" | tr -d "'\"")
after=()
for step in prepare train evaluate; do
  options=${step^^}_OPTIONS
  words=("$@")
  [ "$step" = evaluate ] && words=("$run_dir" --split test)
  # shellcheck disable=SC2086
  job=$(sbatch --parsable "${after[@]}" ${!options-} "slurm/$step.sh" "${words[@]}")
  echo "$step: job $job"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
