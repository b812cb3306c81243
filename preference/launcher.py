"""Runs the stages' commands for many runs, some at a time, each on its own share of the cores, and says how far it is."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from sft import ranks

PROJECT = Path(__file__).parents[1]


class WorkFailed(ValueError):
    """Some pieces of work failed; the text says how. `names` are theirs."""

    def __init__(self, failed: dict[str, Exception], count: int, done: str):
        told = "\n".join(f"{name}: {error if isinstance(error, (ValueError, OSError)) else repr(error)}"
                         for name, error in failed.items())
        text = f"{len(failed)} of {count} could not be {done}:\n{told}"
        if "--set run=FOLDER" in text:  # a stage's own advice
            text += ("\nFor arms, another folder is --set runs=FOLDER results=FOLDER, and --overwrite is an option of "
                     "preference/ablate.py, too.")
        super().__init__(text)
        self.names = set(failed)


def shares_of_cores(jobs: int) -> list[list[int]]:
    """The numbers of this process's cores in `jobs` equal shares; empty ones where the system binds no process to cores.

    Raises ValueError for fewer than one job, or more than there are cores.
    """
    if not 1 <= jobs <= ranks.cores():
        raise ValueError(f"--jobs {jobs}: this machine offers {ranks.cores()} core(s). Allowed is 1 to {ranks.cores()}, since "
                         "runs that share a core slow each other down. Choose fewer.")
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    return [cores[part::jobs] for part in range(jobs)]


class Launcher:
    """`jobs` places to run in, and accelerate's configuration file, if any, for the commands."""

    def __init__(self, jobs: int, configuration: str | None):
        self.shares = shares_of_cores(jobs)
        # Port 0: each call takes a free one, so that calls with several ranks can run at once.
        self.accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
        if configuration is not None:
            self.accelerate += ["--config_file", configuration]
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.ending = False

    def call(self, folder: Path, cores: list[int], *words: str) -> None:
        """Run `accelerate launch WORDS` on these cores, its output added to folder/ablate.log; ValueError where it fails."""
        log = folder / "ablate.log"
        folder.mkdir(parents=True, exist_ok=True)
        threads = len(cores) or max(1, ranks.cores() // len(self.shares))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        with open(log, "ab") as output, self.lock:
            if self.ending:
                raise ValueError("not started: the other runs were interrupted. Run the same command again.")
            began = log.stat().st_size
            process = subprocess.Popen([*self.accelerate, str(PROJECT / words[0]), *words[1:]], env=environment,
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            self.running.add(process)
        if cores:  # the stages take as many threads as they have cores
            os.sched_setaffinity(process.pid, cores)
        status = process.wait()
        self.running.discard(process)
        if status:
            # The log is appended to: what an earlier attempt said is not told again.
            said = log.read_bytes()[began:].decode(errors="replace").replace("\r", "\n").strip().splitlines()
            told = [line for line in said if line.startswith("error: ")] or said or ["(no output)"]
            # What to do about it stands at the end.
            last = told[-1] if len(told[-1]) <= 1000 else f"{told[-1][:650]} ... {told[-1][-350:]}"
            raise ValueError(f"accelerate launch {words[0]} ended with exit status {status}: {last}\n"
                             f"  Everything that it printed is in {log}. Mend that and run the same command again; what is "
                             "finished stays.")

    def all(self, work: dict[str, Callable[[list[int]], None]], done: str) -> None:
        """Call each piece of work with its share of the cores, telling progress and the time left.

        Raises WorkFailed with those that failed, once all the others are through.
        """
        places: queue.Queue[list[int]] = queue.Queue()
        for share in self.shares:
            places.put(share)

        def one(name: str) -> float:
            cores, started = places.get(), time.monotonic()
            try:
                work[name](cores)
            finally:
                places.put(cores)
            return time.monotonic() - started

        failed, started, ended = {}, time.monotonic(), 0
        asked_to_end = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        pool = ThreadPoolExecutor(len(self.shares))
        try:
            futures = {pool.submit(one, name): name for name in work}
            for future in as_completed(futures):
                name, ended = futures[future], ended + 1
                left = (time.monotonic() - started) / ended * (len(work) - ended)
                rest = f"; about {left / 60:.0f} min left" if ended < len(work) else ""
                try:
                    print(f"[{ended}/{len(work)}] {name}: {done} in {future.result() / 60:.1f} min{rest}", flush=True)
                except Exception as error:  # whatever it is, the other pieces of work go on
                    failed[name] = error
                    if not isinstance(error, (ValueError, OSError)):  # its text says little
                        traceback.print_exception(error)
                    print(f"[{ended}/{len(work)}] {name}: failed{rest}", flush=True)
        finally:
            with self.lock:
                self.ending = ended < len(work)
            for process in list(self.running):
                process.terminate()
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGTERM, asked_to_end)
        if failed:
            raise WorkFailed(failed, len(work), done)
