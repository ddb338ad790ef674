"""The commands: ``vqstack NAME …``, ``python -m vqstack NAME …``, and the scripts in recipes/ and tools/.

Each is a module of its own with ``main(arguments)``. It is imported when it is asked for: torch takes seconds.
"""

import shutil
import sys
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from textwrap import fill
from typing import Any, NamedTuple

from vqstack import __version__, allocator, signals
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.terminal import say


class About(NamedTuple):
    """What help says of a command, and what running it once more does after a signal."""

    summary: str
    example: str
    again: str = "to start over"
    shown: tuple[str, ...] = ()
    """The options that its help names first; none: all."""


COMMANDS = {
    "train": About(
        "train a model: levels, then a prior",
        "--config digits --out runs/digits",
        "to go on",
        tuple(
            "config images out steps dry_run data augment levels train_levels prior "
            "train_prior sampling levels_from start_from seed mixed_precision trackers".split()
        ),
    ),
    "generate": About("draw images", "runs/digits --num 100 --label 3 7 --out samples"),
    "encode": About("turn a data set into codes", "runs/digits --out codes/digits", "to go on"),
    "evaluate": About("score a model on held-out images", "runs/digits --out evaluation"),
    "reconstruct": About("show what each level keeps of images", "runs/mine a.png b.png --out kept"),
    "interpolate": About("go from one image to another", "runs/mine a.png b.png --num 8 --out way"),
    "splice": About("put a part of one image into another", "runs/mine a.png b.png --box 0 0 2 4 --out both"),
    "compress": About("compress images without loss", "runs/digits --split test --out small"),
    "decompress": About("get compressed images back", "runs/digits small --out images"),
    "export": About("write a model as ONNX files", "runs/digits --out exported"),
    "explore": About("look at codes and edit them in the browser", "runs/digits --open"),
    "push": About("put a model or codes on the hub", "runs/digits OWNER/digits", "to send what is missing"),
    "recipes": About("list the recipes that come with the package", "digits"),
    "completion": About("let a shell complete commands and options", "bash"),
    "doctor": About("say what this machine has, and how fast it trains", "10"),
}
HELP, ALL = ("-h", "--help"), "--help-all"


def run(name: str, short_help: bool = False) -> None:
    """Run a command on ``sys.argv[1:]``. A signal while its libraries are imported leaves at once, in one line.

    Its ``--help`` has every setting, or with ``short_help`` what fits a screen.
    """
    again = COMMANDS[name].again
    signals.leave_at_once(again)
    allocator.keep_freed_memory()
    module = import_module(f"vqstack.commands.{name}")
    short = short_help and hasattr(module, "Command") and any(argument in HELP for argument in sys.argv)
    run_command(partial(_screen, name, module) if short else module.main, again)


def main() -> None:
    """Run the command that ``sys.argv`` names first; none, or ``--help``, prints an overview."""
    name = sys.argv[1] if sys.argv[1:] else HELP[0]
    if name not in COMMANDS:
        run_command(_overview)
        return
    every = ALL in sys.argv
    sys.argv[:2] = [f"vqstack {name}"]  # as help and errors call it
    if every:
        sys.argv[1:] = HELP[:1]
    run(name, short_help=not every)


def _overview(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        say(f"vqstack {__version__}")
        return
    if arguments and arguments[0] not in (*HELP, "help"):
        near = get_close_matches(arguments[0], COMMANDS, 1) or COMMANDS
        raise InputError(f"{arguments[0]}: no such command: choose {' or '.join(near)}, or see vqstack --help")
    say("usage: vqstack COMMAND …    hierarchies of discrete codes: train, generate, encode, compress\n")
    say("\n".join(f"  {name:12} {about.summary}" for name, about in COMMANDS.items()))
    say("\nFirst steps:")
    say("\n".join(f"  vqstack {name} {COMMANDS[name].example}" for name in ("train", "generate")))
    say("\nvqstack COMMAND --help explains a command. On several GPUs: accelerate launch -m vqstack train …")


def _screen(name: str, module: Any, arguments: list[str]) -> None:
    """Help that fits a screen: an example, and a sentence for each option."""
    about, fields = COMMANDS[name], module.Command.model_fields
    usage = module.__doc__.partition("\n\n")[0].partition(": ")[2].rstrip(".")
    say(f"usage: {usage}\n\n{about.summary.capitalize()}; for example\n\n  vqstack {name} {about.example}\n")
    width = max(60, min(120, shutil.get_terminal_size().columns))
    for option in about.shown or fields:
        kind = f"{fields[option].metadata} {fields[option].annotation}"
        if "positional" not in kind:  # those stand in the line of usage
            prefix = "temperature, …" if "unprefixed" in kind else option + ".…" * ("Settings" in kind)
            sentence = str(fields[option].description).partition(". ")[0].rstrip(".")
            written = f"  --{prefix.replace('_', '-')}"
            say(fill(f"{written:21} {sentence}", width, subsequent_indent=" " * 22))
    say(f"\nEvery setting with its unit and default: vqstack {name} {ALL}")
