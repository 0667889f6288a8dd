# What differs from cluster to cluster, in one place. Every job sources this file where it starts; source it in
# the shell you submit from, too (`source slurm/cluster.sh`): sbatch reads the SBATCH_ variables from there.
#
# Your own lines go into slurm/cluster.local.sh, which git ignores. Such as:
#
#   export SBATCH_ACCOUNT=my_project SBATCH_PARTITION=gpu
#   PREPARE_OPTIONS="--partition=cpu"       # for jobs of slurm/chain.sh that need no GPU
#   TRAIN_OPTIONS="--nodes=2"               # for the training job of slurm/chain.sh
#   export NCCL_SOCKET_IFNAME=ib0           # the network between nodes, where NCCL does not find it
#
# and one of these, if charlm is not in .venv:
#
#   module load python/3.12 && source ~/venvs/charlm/bin/activate          # modules
#   source ~/miniforge3/etc/profile.d/conda.sh && conda activate charlm    # conda
#   source ~/charlm/.venv/bin/activate                                     # uv (uv venv, uv pip install)
#   PATH=$PWD/slurm/apptainer:$PATH                                        # a container, see slurm/charlm.def

if [ -f slurm/cluster.local.sh ]; then
  source slurm/cluster.local.sh
elif [ -f .venv/bin/activate ]; then
  source .venv/bin/activate
fi
