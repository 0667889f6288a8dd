#!/bin/bash
# Prepare a corpus on many nodes: N tasks count, a job chooses the vocabulary, N tasks encode, a job joins them.
# Each starts when the one before has succeeded. Run it, do not sbatch it:
#
#   bash slurm/prepare-array.sh 16 --config wikipedia-en
set -euo pipefail
source slurm/cluster.sh
shards=${1:?prepare-array.sh SHARDS OPTIONS…}
shift
after=()
for step in count vocabulary encode join; do
  case $step in
    count | encode) words=("$@") array=(--array="0-$((shards - 1))") ;;
    *) words=("$@" --merge "$shards") array=() ;;
  esac
  # shellcheck disable=SC2086
  job=$(sbatch --parsable --job-name="charlm-$step" "${array[@]}" "${after[@]}" ${PREPARE_OPTIONS-} \
    slurm/prepare.sh "${words[@]}")
  echo "$step: job $job"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
