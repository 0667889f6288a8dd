# What differs from cluster to cluster, in one place. Every job sources this file where it starts; source it in
# the shell you submit from, too (`source slurm/cluster.sh`): sbatch reads the SBATCH_ variables from there.

# export SBATCH_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu
# PREPARE_OPTIONS="--partition=cpu"       # for jobs of slurm/chain.sh that need no GPU
# TRAIN_OPTIONS="--nodes=2"               # for the training job of slurm/chain.sh

# module load python/3.12
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# export NCCL_SOCKET_IFNAME=ib0           # the network between nodes, where NCCL does not find it
