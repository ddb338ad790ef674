"""Kills and signals at random moments, then the run to its end: it must be the one that nothing interrupted.

Of two processes one is struck. The other must end by itself: together with the struck one, or, where its partner is
gone, in one line with exit code 69. Only one that still waits for its partner to appear at all has nobody to miss; it
is killed after some seconds, as a launcher does, and counted as such.
"""

import random
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import ADVERSARIAL, JOINT, STREAMED, TOGETHER, Child, End, World

SIGNALS = {signal.SIGTERM: 20, signal.SIGINT: 8, signal.SIGUSR1: 8}
PATIENCE = 5.0  # seconds that a launcher gives the others, once one process has ended with an error
LOST, STOPPED = 69, 75


def launched(children: list[Child]) -> tuple[list[End], bool]:
    """The ends of processes that a launcher watches, and whether it had to kill one."""
    deadline, killed = None, False
    while not all([child.ended() for child in children]):
        if deadline is None and any(child.ended() and child.end().code for child in children):
            deadline = time.monotonic() + PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            killed, deadline = True, None
            for child in children:
                child.signal(signal.SIGKILL)
        time.sleep(0.005)
    return [child.end() for child in children], killed


class Counts:
    """What happened in the interruptions of one kind."""

    def __init__(self) -> None:
        self.phases: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, phase: str, ends: list[End], victim: int, number: int, killed: bool) -> None:
        """One interruption: where it was, how the processes ended, which of them was struck and by what."""
        self.phases[phase] += 1
        for place, end in enumerate(ends):
            is_victim = place == victim
            name = f"exit code {end.code}" if end.code >= 0 else signal.Signals(-end.code).name
            if not is_victim and killed and end.code == -signal.SIGKILL:
                name = "killed by the launcher"
            (self.struck if is_victim else self.others)[name] += 1
            fine = self._of_struck(end, number) if is_victim else self._of_other(end, ends[victim], killed)
            if not fine:
                self.failures.append(f"{phase}, {'struck' if is_victim else 'other'}: {end}")

    @staticmethod
    def _of_struck(end: End, number: int) -> bool:
        if end.code == 0:  # it was about to leave
            return True
        if number == signal.SIGKILL:
            return end.code == -signal.SIGKILL
        return end.code == STOPPED and _short(end)

    @staticmethod
    def _of_other(end: End, struck: End, killed: bool) -> bool:
        if "after step" in struck.err:  # between steps all leave together, whoever was asked
            return end.code == STOPPED and _short(end)
        if end.code == LOST:
            return _short(end)
        return end.code == 0 or (killed and end.code == -signal.SIGKILL)


def _short(end: End) -> bool:
    """Whether all it said is one line, but for what torch's own library logs of a connection that was cut."""
    lines = end.err.splitlines()
    logged = bool(lines) and re.match(r"(\[rank\d+\]:)?\[W.*\[c10d\]", lines[0]) is not None
    return end.one_line or (logged and lines[-1].startswith(("stopped ", "error: ")) and "Traceback" not in end.err)


def wait_for(world: World, run: Path, phase: str, children: list[Child]) -> None:
    """Until a run stands in a phase, or has ended."""
    while world.phase_of(run) != phase and not any([child.ended() for child in children]):
        time.sleep(0.005)


def interruptions(world: World, count: int, number: int, seed: int, within: str = "") -> dict[str, Any]:
    """``count`` interruptions by a signal, in runs that are each finished and compared; ``within``: of one phase."""
    generator, counts, runs, done = random.Random(seed), Counts(), 0, 0
    while done < count and len(counts.failures) < 20:
        run, runs = world.fresh(f"run-{number}"), runs + 1
        while True:
            children, victim = world.train(run), generator.randrange(world.processes)
            if done < count:
                if within:
                    wait_for(world, run, within, children)
                time.sleep(generator.uniform(0, world.seconds / 2))
                phase = world.phase_of(run)
                children[victim].signal(number)
            ends, killed = launched(children)
            if all(end.code == 0 for end in ends):
                break
            if done == count:
                counts.failures.append(f"to the end: {ends}")
                break
            done += 1
            counts.add(phase, ends, victim, number, killed)
        counts.failures += [f"differs: {name}" for name in world.problems(run)]
    return {
        "signal": signal.Signals(number).name,
        "recipe": world.name,
        "processes": world.processes,
        "interruptions": done,
        "runs": runs,
        "by_phase": dict(counts.phases),
        "struck": dict(counts.struck),
        "others": dict(counts.others),
        "failures": counts.failures,
    }


def part(folder: Path, short: bool) -> dict[str, Any]:
    """SIGKILLs and the signals that ask, of all kinds of training, with one process and with two."""
    world = World(folder / "one")
    results = [interruptions(world, 4 if short else 60, signal.SIGKILL, seed=1)]
    results += [interruptions(world, 1 if short else n, number, seed=2 + number) for number, n in SIGNALS.items()]
    joint = World(folder / "joint", recipe=JOINT)
    results.append(interruptions(joint, 1 if short else 12, signal.SIGKILL, seed=5))
    streamed = World(folder / "streamed", recipe=STREAMED)
    results.append(interruptions(streamed, 1 if short else 12, signal.SIGKILL, seed=6))
    if not short:
        results.append(interruptions(streamed, 6, signal.SIGTERM, seed=7))
    pair = World(folder / "two", processes=2)
    results.append(interruptions(pair, 2 if short else 15, signal.SIGKILL, seed=3))
    results.append(interruptions(pair, 1 if short else 10, signal.SIGTERM, seed=4))
    for recipe, within, processes, kills, requests in (
        (ADVERSARIAL, "renderer", 1, 20, 6),
        (ADVERSARIAL, "renderer", 2, 10, 5),
        (TOGETHER, "level-1", 1, 10, 3),
        (TOGETHER, "level-1", 2, 5, 2),
    ):
        game = World(folder / f"{within}-{processes}", processes, recipe)
        few = 2 if recipe == ADVERSARIAL else 1
        results.append(interruptions(game, few if short else kills, signal.SIGKILL, seed=8, within=within))
        if not short:
            results.append(interruptions(game, requests, signal.SIGTERM, seed=9, within=within))
    return {"results": results, "failures": [failure for result in results for failure in result["failures"]]}
