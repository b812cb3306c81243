"""The most memory that a piece of work adds to this process (Linux), or to a GPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def with_peak_bytes(work: Callable[[], Result]) -> tuple[Result, int]:
    """What `work()` gives, and the bytes that it added at its peak to what was held before.

    On a GPU its allocated memory; else the resident set, after the allocator gave back what it does not use.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    # The kernel forgets the peak so far when 5 is written there.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    return work(), _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
