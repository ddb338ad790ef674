"""The commands: ``vqstack NAME …``, ``python -m vqstack NAME …``, and the scripts in recipes/ and tools/.

Each is a module of its own with ``main(arguments)``. It is imported when it is asked for: torch takes seconds.
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from vqstack import __version__, signals
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.terminal import say


class About(NamedTuple):
    """What the overview says of a command, and what running it once more does after a signal."""

    summary: str
    example: str
    again: str = "to start over"


COMMANDS = {
    "train": About("train a model: levels, then a prior", "--config digits --out runs/digits", "to go on"),
    "generate": About("draw images", "runs/digits --num 100 --label 3 7 --out samples"),
    "encode": About("turn a data set into codes", "runs/digits --out codes/digits", "to go on"),
    "evaluate": About("score a model on held-out images", "runs/digits --out evaluation"),
    "compress": About("compress images without loss", "runs/digits --split test --out small"),
    "decompress": About("get compressed images back", "runs/digits small --out images"),
    "recipes": About("list the recipes that come with the package", ""),
}


def run(name: str) -> None:
    """Run a command on ``sys.argv[1:]``. A signal while its libraries are imported leaves at once, in one line."""
    again = COMMANDS[name].again
    signals.leave_at_once(again)
    run_command(import_module(f"vqstack.commands.{name}").main, again)


def main() -> None:
    """Run the command that ``sys.argv`` names first; none, or ``--help``, prints an overview."""
    name = sys.argv[1] if sys.argv[1:] else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"vqstack {name}"]  # as help and errors call it
        run(name)
    else:
        run_command(_overview)


def _overview(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        say(f"vqstack {__version__}")
        return
    if arguments and arguments[0] not in ("-h", "--help", "help"):
        near = get_close_matches(arguments[0], COMMANDS, 1) or COMMANDS
        raise InputError(f"{arguments[0]}: no such command: choose {' or '.join(near)}, or see vqstack --help")
    rows = [(f"  {name:11} {about.summary}", f"vqstack {name} {about.example}") for name, about in COMMANDS.items()]
    say("usage: vqstack COMMAND …\n\nHierarchies of discrete codes: train, generate, encode, compress.\n")
    say("\n".join(f"{left:57} {right}".rstrip() for left, right in rows))
    say("\nvqstack COMMAND --help explains a command. On several GPUs: accelerate launch -m vqstack train …")
