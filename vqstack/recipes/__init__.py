"""The recipes that come with the package: YAML files, each known by its name without the ending."""

import re
from pathlib import Path

from vqstack.errors import InputError
from vqstack.paths import path_of

FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """The recipes of the package by name, sorted."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def about(path: Path) -> str:
    """What a recipe is for: the beginning of the comment in its first line, up to a full stop or colon."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return re.split(r"[.:]( |$)", first.removeprefix("# "))[0]


def find_recipe(given: str) -> Path:
    """The file of that name; where there is none, the recipe of the package that is called so, or InputError."""
    path = path_of(given)
    if (path.exists() and not path.is_dir()) or path.suffix or len(path.parts) != 1:
        return path  # whoever reads it says what is wrong with it
    if given not in shipped():
        names = ", ".join(shipped())
        raise InputError(f"--config {given}: no file of that name, and no recipe of the package: choose one of {names}")
    return shipped()[given]
