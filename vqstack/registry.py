"""What settings name and a program may add to: networks, quantizers, likelihoods, decoders, sources, conditions."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from vqstack.errors import InputError

Kind = TypeVar("Kind")
PLUGINS = "VQSTACK_PLUGINS"
"""Environment variable: names of modules, separated by commas, that register what is not registered yet."""


class Unregistered(InputError):
    """Settings name a kind that nobody has registered here, or a module that would is not found."""


class Registry(dict[str, Kind]):
    """Classes or functions by the names that settings give them. No artefact brings code: it names what it needs.

    Args:
        what: the field of the settings that has the name, as in ``register_WHAT``.
        own: the project's own.
    """

    def __init__(self, what: str, own: Mapping[str, Kind]) -> None:
        super().__init__(own)
        self.what, self.own = what, frozenset(own)

    def register(self, kind: str, registered: Kind) -> None:
        """Let settings name this; ValueError where the name is taken."""
        if self.setdefault(kind, registered) != registered:
            raise ValueError(f"{self.what}: {kind} is registered for something else: choose another name")

    def find(self, kind: str, options: Mapping[str, Any] | None = None) -> Kind:
        """What is registered under a name, by a module of :data:`PLUGINS` if not before.

        InputError where nothing is, and for ``options`` where they are given to what is the project's own.
        """
        if kind not in self:
            for module in filter(None, map(str.strip, os.environ.get(PLUGINS, "").split(","))):
                try:
                    import_module(module)
                except ModuleNotFoundError as error:
                    raise Unregistered(f"{PLUGINS}: {error}: name modules that Python finds (PYTHONPATH)") from error
        if kind not in self:
            raise Unregistered(
                f"{self.what}: {kind[:80]} is not registered here, only {', '.join(self)}: call register_{self.what}, "
                f"or name the module that does in {PLUGINS}"
            )
        if options and kind in self.own:
            raise InputError(f"{self.what}.options: {kind} takes none: leave them out")
        return self[kind]

    def check(self, kind: str) -> str:
        """The name, for the validators of settings: ValueError where :meth:`find` finds nothing."""
        try:
            self.find(kind)
        except InputError as error:
            raise ValueError(str(error)) from error
        return kind
