"""What a configuration will cost, for --dry-run: maps, parameters, bits and an estimate of memory."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.fit.blocks import blocks
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.nets import StagedPath
from vqstack.pretrained import without_memory
from vqstack.renderer import Adversary, AdversarySettings
from vqstack.shapes import by_axis, value_dtype
from vqstack.window import SeeingDecoder

PROCESS = 415 * 2**20  # bytes of a process that has loaded the libraries and trains next to nothing, on the CPU
READERS = {"digits": 115 * 2**20, "array": 0}  # bytes of what reads images that are in no cache: scikit-learn, nothing
OTHER_READERS = 55 * 2**20  # datasets
SITES = 100
"""Sites of all training images for each code of a level, below which it is warned of: fewer teach a code little."""
TENSORS = 10**5  # more than any model that could be trained has


def growing_maps(settings: ModelSettings) -> Iterator[str]:
    """A line for each level whose map can hold as many bits as what lies below it, or more: it need forget nothing."""
    below, what = math.prod(settings.image_shape) * math.log2(settings.values), "the images hold"
    for number, level in enumerate(settings.stack.levels, start=1):
        bits = math.prod(level.map) * level.quantizer.codes * math.log2(level.quantizer.codebook_size)
        if bits >= below:
            yield (
                f"levels.{number - 1}: its map can hold {bits:,.0f} bits where {what} at most {below:,.0f}: choose a "
                "smaller map or codebook_size"
            )
        below, what = bits, f"the map of levels.{number - 1} holds"


def unplayed_games(config: RunConfig) -> Iterator[str]:
    """A line for each phase with a discriminator that ends before the discriminator takes part."""
    if config.renderer is None or not (game := config.renderer.adversary).weight:
        return
    last = {"train_renderer": config.train_renderer.steps}
    if game.joint:
        last["train_levels.0"] = config.train_levels[0].steps
    for name, steps in last.items():
        if game.start >= steps:
            yield (
                f"renderer.adversary.start: {game.start:,} steps before the discriminator plays are not fewer than "
                f"the {steps:,} of {name}, so there is no game: lower it"
            )


def attention_without_blocks(settings: ModelSettings) -> Iterator[str]:
    """A line for each network that is to attend after more blocks than it has: it does so after all of them alone."""
    networks = list[tuple[str, Any, str, int]]()  # what asks for it, how much, and which blocks there are
    for number, level in enumerate(settings.stack.levels):
        name, wanted = f"levels.{number}.networks.options: attention", level.networks.options.get("attention")
        for field in ("encoder_blocks", "decoder_blocks"):
            if level.networks.kind == "staged" and field not in level.unused():
                networks.append((name, wanted, f"levels.{number}.{field}", getattr(level, field)))
    if settings.renderer is not None:
        networks.append(
            ("renderer.attention:", settings.renderer.attention, "renderer.blocks", settings.renderer.blocks)
        )
    for name, wanted, field, there in networks:
        if isinstance(wanted, int) and wanted > there:
            yield f"{name} {wanted} is after more blocks than {field} {there}, so there is less of it: change one"


def scarce_sites(settings: ModelSettings, images: int) -> Iterator[str]:
    """A line for each level with more codes than so many images can teach: a rule of thumb."""
    for number, level in enumerate(settings.stack.levels, start=1):
        sites, size = images * math.prod(level.map), level.quantizer.codebook_size
        if sites < SITES * size:
            fewer = 2 ** max(1, (sites // SITES).bit_length() - 1)
            yield (
                f"levels.{number - 1}: {size} codes for the {sites:,} sites of {images:,} images, fewer than {SITES} "
                "for each code; most will lie idle or be learned by heart: try "
                f"levels.{number - 1}.quantizer.codebook_size {fewer}"
            )


def describe(config: RunConfig, settings: ModelSettings, processes: int = 1) -> str:
    """Map shapes, the bits each can hold, parameter counts, and an estimate of training memory a process.

    So many processes share each batch, and where the settings say ``sharded`` the weights too.
    """
    return "\n".join(_costs(config, settings, processes)[0])


def memory_of(config: RunConfig, settings: ModelSettings, processes: int = 1) -> float:
    """Bytes that a training process of so many will take, estimated, its images excepted."""
    return _costs(config, settings, processes)[1]


def _held(modules: Sequence[nn.Module], shards: int) -> float:
    """Bytes of weights, gradients, moments and averages of what is trained in a process, one of so many shards.

    Where there are several, what lies outside of blocks stays gathered through a step, and two blocks while one runs,
    each with its gradient.
    """
    whole = {p: p.numel() for module in modules for p in module.parameters()}  # shared ones once
    if shards == 1:
        return 20.0 * sum(whole.values())
    parts = {block: sum(p.numel() for p in block.parameters()) for module in modules for block in blocks(module)}
    inside = {p for block in parts for p in block.parameters()}
    outside = sum(number for p, number in whole.items() if p not in inside)
    return 20 * sum(whole.values()) / shards + 8 * (outside + 2 * max(parts.values(), default=0))


def _rendered(model: HierarchicalModel, against: AdversarySettings) -> tuple[list[nn.Module], int]:
    """What is trained with a renderer, and the floats that a picture keeps: as many again to compare it; the game's."""
    assert model.renderer is not None
    trained: list[nn.Module] = [model.renderer]
    floats = 2 * model.renderer.up.floats(model.stack.levels[0].map_shape)
    if not against.weight:
        return trained, floats
    channels, *sides = model.renderer.pixels.shape
    last = model.renderer.last_weight.shape
    game = without_memory(lambda: Adversary(against, channels, tuple(sides), last), TENSORS)
    return [*trained, game.discriminator], floats + game.floats(math.prod(sides))


def _costs(config: RunConfig, settings: ModelSettings, processes: int) -> tuple[list[str], float]:
    """Lines for a person, and bytes."""
    shards = processes if config.sharded else 1
    try:
        model = without_memory(lambda: HierarchicalModel(settings), TENSORS)
    except ValueError as error:
        raise InputError(f"{error}: choose a smaller model") from error
    numbers = math.prod(settings.image_shape)
    classes = f", {settings.classes} classes" if settings.classes else ""  # a dry run has not read them
    lines = [
        f"images   {by_axis(settings.image_shape)}, {settings.values} values{classes}: "
        f"{numbers * math.log2(settings.values):,.0f} bits raw"
    ]
    peak = together = scored = 0.0
    for level in model.stack.levels:
        number, sites = level.number, math.prod(level.map_shape)
        fit = config.train_levels[0 if len(config.train_levels) == 1 else number - 1]
        fit = config.train_joint if config.joint else config.train_decoders if config.encoders_from else fit
        parameters = sum(p.numel() for p in level.parameters())
        lines.append(
            f"level {number}  {by_axis(level.upper.shape)} of {level.quantizer.size} codes: at most "
            f"{level.upper.sites * math.log2(level.quantizer.size):,.0f} bits, {parameters:,} parameters"
        )
        blocks = level.settings.encoder_blocks + level.settings.decoder_blocks
        # Each residual block keeps about six maps of its width for the backward pass; the likelihood about four of its
        # own output, of pixels ten; the quantizer three tables of distances and one of int64, which is as large as two.
        windowed = isinstance(level.decoder, SeeingDecoder)
        outputs = level.settings.decoder.features if windowed else level.head.parameters
        staged = [network for network in (level.encoder, level.up) if isinstance(network, StagedPath)]
        paths = sum(path.floats(level.map_shape) for path in staged)
        floats = paths or sites * 6 * level.settings.width * (blocks + 2)
        floats += 5 * sites * level.quantizer.size
        floats += (10 if number == 1 and not windowed else 4) * outputs * sites * math.prod(level.scale)
        # Without a backward pass a block's maps are given back, the likelihood's are not.
        forward = (paths or sites * 6 * level.settings.width) + 4 * sites * outputs * math.prod(level.scale)
        if windowed:
            # Of each site below: what a block reads and makes, twice each, and ten tensors of a likelihood's numbers.
            window, size = level.settings.decoder, math.prod(level.below)
            floats += size * (window.width * (3 + 4 * window.blocks) + 10 * level.head.parameters)
            forward += size * 7 * max(window.width, level.head.parameters)  # one after the other
        floats += 3 * sites * level.quantizer.dim  # the start by k-means has the vectors of a batch three times
        scored = max(scored, forward)
        trained: list[nn.Module] = [level]
        if number == 1 and config.renderer is not None and config.renderer.joint_encoder:
            beside, more = _rendered(model, config.renderer.game_of_level)
            trained, floats = [level, *beside], floats + more
        memory = _held(trained, shards) + 4 * floats * fit.batch_size / (fit.accumulate * processes)
        together += memory
        peak = together if config.at_once else max(peak, memory)
    if config.sharing == "trunk":
        shared = "blocks that levels share are counted with each of them, once in the total"
        nothing = "no two levels have blocks of one width, so nothing is shared"
        lines.append(f"sharing  trunk: {shared if model.stack.owners else nothing}")
    fits = [config.train_prior, *(config.train_refiners * len(config.refiners))[: len(config.refiners)]]
    names = ["unified " if config.unified else "prior   ", *(f"refiner {refiner.level}" for refiner in config.refiners)]
    parts_of: list[list[Any]] = [model.segments if config.unified else [model.prior]]
    parts_of += [[model.refiner(refiner.level)] for refiner in config.refiners]
    for name, parts, fit in zip(names, parts_of, fits, strict=True):
        parameters = sum(p.numel() for p in {p for part in parts for p in part.parameters()})  # shared ones once
        floats = 0
        for part in parts:
            each = 16 + 5 * part.conditions.attended
            kept = each * part.settings.dim * part.settings.depth + 3 * part.head.parameters
            # What a window reads is gathered, and again without the unknown.
            scored = max(scored, part.sites * (12 * part.settings.dim + 3 * part.head.parameters))
            floats += part.sites * (kept + (0 if part.window is None else 2 * part.window.mix.in_features))
        peak = max(peak, _held(parts, shards) + 4 * floats * fit.batch_size / (fit.accumulate * processes))
        sites, groups = sum(part.sites for part in parts), sum(len(part.schedule) for part in parts)
        order = f"{sites} site{'s' * (sites > 1)} in {groups} group{'s' * (groups > 1)}"
        lines.append(f"{name} {order}, {parameters:,} parameters")
    if config.renderer is not None:
        trained, floats = _rendered(model, config.renderer.adversary)
        fit, (parameters, *opponent) = config.train_renderer, [sum(p.numel() for p in m.parameters()) for m in trained]
        peak = max(peak, _held(trained, shards) + 4 * floats * fit.batch_size / (fit.accumulate * processes))
        against = "".join(f", against a discriminator of {number:,}" for number in opponent)
        lines.append(f"renderer beside level 1, outside the ledger, {parameters:,} parameters{against}")
    total = sum(p.numel() for p in model.parameters())
    peak = max(peak, 4 * total + 4 * scored * config.encode_batch)
    lines.append(f"total    {total:,} parameters, {4 * total / 2**20:,.1f} MiB in float32")
    process = PROCESS + READERS.get(config.data.source, OTHER_READERS)
    which = f"each of {processes} processes" + ", weights in shards," * (shards > 1) if processes > 1 else "a process"
    lines.append(
        f"memory   about {(process + peak) / 2**20:,.0f} MiB {which} for the libraries, and for weights, gradients, "
        "AdamW, averages and activations of the largest phase, or of a batch that is encoded or scored, and "
        f"{numbers * value_dtype(settings.values).itemsize / 2**20 * 1000:,.2f} MiB for each 1,000 images"
    )
    if shards > 1:
        lines.append(f"waiting  {4 * total / 2**20:,.1f} MiB of the host for each process: whole weights")
    return lines, float(process + peak)
