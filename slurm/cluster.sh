# What differs from cluster to cluster, in one place. Every job sources this file where it starts; source it in
# each shell you submit from, too (`source slurm/cluster.sh`): sbatch and srun read account and partition there.
#
# Your own lines go into slurm/cluster.local.sh, which git ignores. Such as:
#
#   export SBATCH_ACCOUNT=my_project SBATCH_PARTITION=gpu
#   PREPARE_OPTIONS="--partition=cpu"                        # for the jobs of chain.sh that need no GPU
#   TRAIN_OPTIONS="--gpus-per-node=2 --ntasks-per-node=2"    # for the training job of chain.sh
#   export NCCL_SOCKET_IFNAME=ib0                            # the network between nodes, if NCCL does not find it
#
# and one of these, if charlm is not in .venv of this folder:
#
#   module load python/3.12 && source ~/venvs/charlm/bin/activate          # modules
#   source ~/miniforge3/etc/profile.d/conda.sh && conda activate charlm    # conda (conda create -n charlm python=3.11)
#   source ~/charlm/.venv/bin/activate                                     # uv (uv venv, uv pip install)
#   PATH=$PWD/slurm/apptainer:$PATH                                        # a container, see slurm/charlm.def

if [ -f slurm/cluster.local.sh ]; then
  source slurm/cluster.local.sh
fi
if [ -f .venv/bin/activate ] && { [ ! -f slurm/cluster.local.sh ] || ! command -v charlm >/dev/null; }; then
  source .venv/bin/activate
fi
command -v charlm >/dev/null || echo "slurm/cluster.sh: no charlm in .venv, nor from slurm/cluster.local.sh" >&2
if [ -z "${SLURM_JOB_ID-}" ]; then # srun, for a step of its own, has other names than sbatch
  [ -z "${SBATCH_ACCOUNT-}" ] || export SLURM_ACCOUNT=$SBATCH_ACCOUNT
  [ -z "${SBATCH_PARTITION-}" ] || export SLURM_PARTITION=$SBATCH_PARTITION
fi
