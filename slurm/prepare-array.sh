#!/bin/bash
# Prepare a corpus on many nodes, in four jobs: N tasks count, one chooses the vocabulary, N tasks encode, one joins.
# Each job starts when the one before has succeeded. Run this, do not sbatch it:
#
#   bash slurm/prepare-array.sh 16 --config wikipedia-en
source slurm/cluster.sh || exit
set -euo pipefail
shards=${1-}
if ! [[ $shards =~ ^[1-9][0-9]*$ ]]; then
  echo "prepare-array.sh SHARDS OPTIONS…: a number of shards first, such as 16" >&2
  exit 1
fi
shift
after=()
for step in count vocabulary encode join; do
  case $step in
    count | encode) words=("$@") array=(--array="0-$((shards - 1))" --output=%x-%A_%a.out) ;;
    *) words=("$@" --merge "$shards") array=() ;;
  esac
  # shellcheck disable=SC2086
  job=$(sbatch --parsable --job-name="charlm-$step" "${array[@]}" "${after[@]}" ${PREPARE_OPTIONS-} \
    slurm/prepare.sh "${words[@]}")
  echo "$step: job $job"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
