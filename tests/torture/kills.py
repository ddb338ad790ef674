"""Kills and signals at random moments, then the run to its end: it must be the one that nothing interrupted."""

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import End, World, phase_of

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def interrupted(world: World, run: Path, number: int, generator: random.Random, strike: str) -> tuple[str, list[End]]:
    """One attempt, struck at a random moment: (phase in which it was struck, how its processes ended)."""
    children = world.train(run)
    time.sleep(generator.uniform(0, world.seconds / 2))
    phase = phase_of(run)
    victims = children if strike == "all" else [generator.choice(children)]
    for child in victims:
        child.signal(number)
    if number == signal.SIGKILL and len(children) > 1:  # as a launcher does when one of its processes dies
        time.sleep(generator.uniform(0, 0.2))
        for child in children:
            child.signal(number)
    return phase, [child.end() for child in children]


def wrong(ends: list[End], number: int) -> list[str]:
    """What is wrong with the way in which processes ended that were struck by a signal, all or one of them."""
    codes = {end.code for end in ends}
    if number == signal.SIGKILL:  # one that loses its partner may fail on its own before the launcher kills it
        return [] if -signal.SIGKILL in codes or codes == {0} else [str(ends)]
    if any("after step" in end.err for end in ends):  # between steps all leave together, whoever was asked
        return [f"processes disagree: {ends}"] if codes != {75} else []
    # Outside of steps the one that was asked leaves, and the others, as under any launcher, lose their partner.
    return [] if 75 in codes or codes == {0} else [str(ends)]


def kills(world: World, count: int, number: int, seed: int, strike: str = "all") -> dict[str, Any]:
    """``count`` interruptions by a signal, in runs that are each finished and compared."""
    generator = random.Random(seed)
    phases: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    struck, runs, failures = 0, 0, list[str]()
    while struck < count:
        run, runs = world.fresh(f"run-{number}"), runs + 1
        while True:
            if struck < count:
                phase, ends = interrupted(world, run, number, generator, strike)
            else:
                phase, ends = "end", [child.end() for child in world.train(run)]
            failures += [f"{phase}: {problem}" for problem in wrong(ends, number)]
            if all(end.code == 0 for end in ends):
                break
            struck += 1
            phases[phase] += 1
            codes[ends[0].code] += 1
            if len(failures) > 20:
                return {"failures": failures}
        failures += [f"differs: {name}" for name in world.problems(run)]
    return {
        "signal": signal.Signals(number).name,
        "processes": world.processes,
        "interruptions": struck,
        "runs": runs,
        "by_phase": dict(phases),
        "failures": failures,
    }


def part(folder: Path, short: bool) -> dict[str, Any]:
    """SIGKILLs and the signals that ask, with one process and with two."""
    world = World(folder / "one")
    results = [kills(world, 4 if short else 60, signal.SIGKILL, seed=1)]
    results += [kills(world, 1 if short else 8, number, seed=2 + number) for number in SIGNALS]
    pair = World(folder / "two", processes=2)
    results.append(kills(pair, 1 if short else 12, signal.SIGKILL, seed=3, strike="one"))
    if not short:
        results.append(kills(pair, 6, signal.SIGTERM, seed=4, strike="one"))
    return {"results": results, "failures": [failure for result in results for failure in result["failures"]]}
