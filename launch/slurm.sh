#!/bin/bash
# Both stages on the machines of a Slurm job: one `accelerate launch` a machine, which starts a rank for each of its GPUs.
#
#   sbatch launch/slurm.sh
#   sbatch --nodes=4 launch/slurm.sh runs/large configs/sft.yaml configs/dpo.yaml train.global_batch_size=256 \
#     train.micro_batch_size=8
#
# Arguments: run folder (on a file system that all machines share), configuration of stage one, of stage two, and settings
# (key=value) for both. Submit from the project's folder, where .venv is. A job that was stopped goes on where it was when
# it is submitted again. ZeRO-3: export ZERO_STAGE=3 before sbatch.
#SBATCH --job-name=text-to-sql
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --requeue

set -euo pipefail
run=${1:-runs/slurm}
sft_configuration=${2:-configs/sft.yaml}
dpo_configuration=${3:-configs/dpo.yaml}
# The global batch must be a multiple of train.micro_batch_size x GPUs of all machines (here 8 x 16).
settings=("${@:4}")
if [ ${#settings[@]} -eq 0 ]; then settings=(train.global_batch_size=128 train.micro_batch_size=8); fi
# What --gpus-per-node asked for; 8 where Slurm does not say.
gpus=${SLURM_GPUS_ON_NODE:-8}

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the folder of the project}"
source .venv/bin/activate
machines=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
address=${machines[0]}
# Two jobs on the same machines must not meet on one port.
port=$((20000 + SLURM_JOB_ID % 20000))
zero_stage=${ZERO_STAGE:-2}
export address port gpus zero_stage

on_all_machines() {
    # SLURM_NODEID is known only inside srun: single quotes keep it for the shell of each machine.
    srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file launch/machines-2.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * gpus))" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$address" --main_process_port "$port" --zero_stage "$zero_stage" "$@"' launch "$@"
}

on_all_machines sft/run.py --config "$sft_configuration" --set run="$run" "${settings[@]}"
on_all_machines preference/dpo.py --config "$dpo_configuration" --set run="$run" "${settings[@]}"
