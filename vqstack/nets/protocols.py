"""What the networks of a level keep, and the names under which they are found."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.registry import Registry


class EncoderNetwork(Protocol):
    """``encode``: values of a map to vectors of a smaller one.

    Built as ``network(channels, width, out, blocks=…, map_shape=…, scale=…, dropout=…, **options)``, as :class:`Down`.
    May have a property ``reach``, as :class:`StagedPath`: then tiles of large images may agree.
    """

    def __call__(self, values: Float[Tensor, "b channels *below"]) -> Float[Tensor, "b out *map"]: ...


class DecoderNetwork(Protocol):
    """``decode``: vectors of a map to features of its sites, which refiners read, and to numbers of the larger map.

    Built as :class:`EncoderNetwork`.

    Attributes:
        features: how many features each site has.
    """

    features: int

    def __call__(
        self, vectors: Float[Tensor, "b channels *map"]
    ) -> tuple[Float[Tensor, "b features *map"], Float[Tensor, "b out *below"]]: ...


NETWORKS = Registry[tuple[Any, Any]]("networks", {})


def register_networks(kind: str, encoder: type[nn.Module], decoder: type[nn.Module]) -> None:
    """Let levels be built of these classes where ``networks.kind`` of their settings says so.

    Args:
        kind: a name that is not taken by other classes.
        encoder, decoder: modules that keep :class:`EncoderNetwork` and :class:`DecoderNetwork`.
    """
    NETWORKS.register(kind, (encoder, decoder))


def build_network(network: Any, *sizes: Any, options: Mapping[str, Any], what: str = "networks", **given: Any) -> Any:
    """A module of a class that is registered: ``network(*sizes, **given, **options)``.

    InputError where the class does not take what every class is given, and for options that it does not know.
    """
    signature = inspect.signature(network)
    try:
        signature.bind_partial(*sizes, **given)
    except TypeError as error:
        names = f", and by name {', '.join(given)}" if given else ""
        raise InputError(
            f"{what}: {network.__name__}: {error}: its class must take {len(sizes)} arguments by position{names}"
        ) from error
    try:
        signature.bind(*sizes, **{**given, **options})
    except TypeError as error:
        raise InputError(f"{what}.options: {network.__name__}: {error}: give what its class takes") from error
    return network(*sizes, **{**given, **options})


def check_output(network: nn.Module, what: str, found: Any, shape: tuple[int, ...]) -> None:
    """InputError where a network gives of each image another shape than ``shape``."""
    given = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
    if given != shape:
        raise InputError(f"networks: {type(network).__name__} gives {what} {given} of each image: they must be {shape}")
