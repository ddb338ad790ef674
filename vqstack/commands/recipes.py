"""List the recipes that come with the package: vqstack recipes [NAME]. With a name: print that recipe."""

from vqstack.errors import InputError
from vqstack.recipes import about, shipped
from vqstack.terminal import say


def main(arguments: list[str]) -> None:
    found = shipped()
    if not arguments:
        say("\n".join(f"{name:14} {about(path)}" for name, path in found.items()))
        say("\nvqstack train --config NAME trains one; vqstack recipes NAME prints it, to be changed.")
    elif arguments[0] in ("-h", "--help"):
        say(__doc__)
    elif len(arguments) > 1 or arguments[0] not in found:
        raise InputError(f"{' '.join(arguments)}: no recipe of the package: choose one of {', '.join(found)}")
    else:
        say(found[arguments[0]].read_text(encoding="utf-8").rstrip("\n"))
