"""How many threads train on the CPU: as many as a few steps of a phase show to be quicker; and cores to be shared.

The tensors of small models keep no two threads busy, and threads that wait spin: beside other programs they cost more
than they give. ``accelerate launch`` gives each process one thread where ``OMP_NUM_THREADS`` is not set, so that 1 is
nobody's wish there.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator

from vqstack.terminal import warn

GAIN = 0.9
"""Largest share of one thread's time that more threads may take to be worth it."""


def asked_for() -> bool:
    """Whether a person named a number of threads (``OMP_NUM_THREADS``)."""
    value = os.environ.get("OMP_NUM_THREADS")
    return value is not None and not (value == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ)


def cores(processes: int = 1) -> int:
    """Cores that this process may use, or the share of each of several processes of a machine.

    Those that it may run on, and on Linux no more than the time that its control group is given, rounded up.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([found, *map(math.ceil, quotas())]) // processes)


def quotas(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """Processor time for each second that a container, or a group around this process, is limited to; in seconds."""
    found: list[float] = []
    try:
        lines = cgroup.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # another system
        lines = []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root  # the first version of control groups, or the second
        place = top / inside.lstrip("/")
        found += [_quota(folder) for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return [seconds for seconds in found if seconds > 0]


def _quota(group: Path) -> float:
    """Processor time for each second that a control group has; 0 where nothing limits it."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((group / f"cpu.cfs_{part}_us").read_text(encoding="ascii") for part in ("quota", "period"))
        return float(quota) / float(period)
    return 0.0


def beside(processes: int) -> int:
    """Of those of a launch, the processes on this machine, as its launcher counts them; else all of them."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(processes, int(value)) if value.isdecimal() and int(value) else processes


def share_cores(processes: int = 1) -> None:
    """Let a command that trains nothing compute with its share of the cores, unless a person named a number.

    Its results are rounded by that number, so it follows from the machine alone and is not measured.
    """
    if not asked_for():
        torch.set_num_threads(cores(beside(processes)))


def quickest(work: Callable[[], object], most: int, repeats: int = 3) -> int:
    """1, or ``most`` where ``work`` takes at most nine tenths of its time then; medians of turns, after a warm-up."""
    before, seconds = torch.get_num_threads(), dict[int, list[float]]()
    for turn in range(repeats + 1):
        for threads in (1, most):
            torch.set_num_threads(threads)
            began = time.perf_counter()
            work()
            if turn:
                seconds.setdefault(threads, []).append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return most if statistics.median(seconds[most]) <= GAIN * statistics.median(seconds[1]) else 1


def keep(name: str, began: int, accelerator: Accelerator) -> None:
    """Sums are rounded by the number of threads: a run on the CPU goes on with as many as its phase ``name`` had."""
    now = torch.get_num_threads()
    if began == now or accelerator.device.type != "cpu":
        return
    torch.set_num_threads(began)
    if asked_for() and accelerator.is_main_process:
        warn(
            f"{name} began with {began} threads, and the run goes on with as many, not with {now}: with others its "
            "weights would not be those of a run that was never stopped"
        )
