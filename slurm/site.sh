# What differs from cluster to cluster. Edit it once, then submit with:
#
#     source slurm/site.sh && sbatch slurm/train.sbatch
#
# sbatch reads the SBATCH_* variables as options: they override the script's #SBATCH lines, and options on the command
# line (`sbatch --partition=short ...`) override them. The jobs read this file again.

# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=12:00:00

# A training job takes whole nodes, with all their GPUs. For one GPU of a shared node:
#     sbatch --oversubscribe --mem=64G --gpus-per-node=1 --cpus-per-gpu=8 slurm/train.sbatch

if [ -n "${repository:-}" ]; then # from here on: inside a job, whose script has set $repository

    # module load cuda
    # export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # the network between the nodes, if the default is wrong
    # export HF_HUB_OFFLINE=1 WANDB_MODE=offline             # nodes without internet access

    # Training processes on each node: one for each of its GPUs, or one if it has none.
    processes_per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}

    # The environment that make built, or the one that was active when the job was submitted.
    python=${PYTHON:-$repository/.venv/bin/python}
    [ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
    complete='from importlib.util import find_spec; raise SystemExit(not (find_spec("torch") and find_spec("tqdm")))'
    "$python" -c "$complete" 2> /dev/null || {
        echo "error: no PyTorch or no tqdm for $python: make an environment (make quickstart) in $repository," \
            "or name its Python: PYTHON=/path/to/python sbatch ..." >&2
        return 1
    }
fi
