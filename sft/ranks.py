"""Ranks of one job: who am I, how many are we, how many threads does each get, and how do we wait for each other."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import warnings
from datetime import timedelta
from pathlib import Path

# The option of Linux's prctl that names the signal a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
# A rank may sample or judge for hours while the others wait at a barrier.
WAIT = timedelta(hours=24)


def cores() -> int:
    """Cores that this process may use, by its affinity and, in a container, by its quota of CPU time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no such limit, or "max"
        return count


def prepare_environment(*, distributed: bool) -> None:
    """Set what must stand in the environment before torch is imported.

    `distributed`: give a process that was started without a launcher's rank variables the ones of a single rank, since
    DeepSpeed otherwise looks for mpi4py.
    """
    # Idle OpenMP threads that spin on make two jobs on the same cores collapse (10 times slower), and threads that sleep at
    # once cost a third of the speed of one job. A thousand turns of libgomp's loop, some microseconds, avoid both: one job runs
    # 1.45 times as fast as without, two jobs of two threads on two cores at 0.8 times (sampling, 96 rows).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # trl still sets names that transformers renames; nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if (launched or "RANK" in os.environ) and sys.platform == "linux":
        # A launcher that is killed cannot end its ranks: without this they would go on and write into the same files.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if launched and "RANK" not in os.environ and "MASTER_PORT" in os.environ:
        # accelerate's one-process launcher sets the port, and no rank, where more than one process was asked for.
        raise ValueError(
            "accelerate was asked for several processes and started one: without GPUs its own launcher needs mpirun "
            "for more. Use `accelerate launch --config_file launch/cpu-2-ranks.yaml --num_processes N`, which starts "
            "them through torch's launcher, or ask for one process."
        )
    if "RANK" not in os.environ and distributed:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))


def rank() -> int:
    """This process's rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks in the job, all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_ranks() -> int:
    """Number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes what there is one of."""
    return rank() == 0


def threads_per_rank() -> int:
    """Threads for each rank so that all ranks of this machine together use its cores once."""
    return max(1, cores() // local_ranks())


def start(*, zero: bool) -> None:
    """Join the process group (where there is one) and set the thread count; call once, before any model is loaded.

    `zero`: DeepSpeed ZeRO will train in this process.
    """
    import torch

    torch.set_num_threads(threads_per_rank())
    if "RANK" not in os.environ:
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    elif zero:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed's shared-memory reduction would be compiled at the first start (a minute, and a C++ compiler);
        # gloo does the same work on the CPU.
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)


def device() -> str:
    """The device that this rank's models live on: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def barrier() -> None:
    """Wait until every rank is here."""
    import torch

    if torch.distributed.is_initialized() and world_size() > 1:
        torch.distributed.barrier()


def gather(value: object) -> list:
    """The picklable `value` of every rank, in rank order, on every rank."""
    import torch

    if not torch.distributed.is_initialized() or world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def finish() -> None:
    """Leave the process group, so that the launcher sees a clean end."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
