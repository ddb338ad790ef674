"""Speed against named baselines: training, memory kept, encoding, rendering, nearest-code lookup, sampling.

    python benchmarks/run.py [--only NAME …] [--repeats 5] [--threads N] [--out benchmarks/latest.json]

Every line compares two sides that run in turn in one process, A B A B …, after a warm-up of both; its ratio is the
median of the ratios of the pairs. A machine that slows down meanwhile slows down both sides. Where other programs keep
the cores busy, ``--threads 1`` still measures: with more, each parallel section waits for a thread that lost its core.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

from vqstack.allocator import keep_freed_memory
from vqstack.code_model import CodeModel, CodeModelSettings, build_code_model
from vqstack.conditions import GIVEN, ConditionSettings
from vqstack.fit import Fit, FitSettings, optimizer_for
from vqstack.level import Level, LevelSettings, NetworkSettings
from vqstack.likelihood import noise
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.nets import StagedDown, StagedUp
from vqstack.quantizer import QuantizerSettings, build_quantizer
from vqstack.renderer import RendererSettings
from vqstack.shapes import PADDING
from vqstack.sources import CodeSource, PixelSource, Source
from vqstack.stack import Stack, StackSettings
from vqstack.window import DecoderSettings, WindowNetwork

SHAPE, VALUES = (3, 32, 32), 256
MAPS = ((8, 8), (4, 4), (2, 2))


@dataclass(frozen=True)
class Comparison:
    """Two functions that do the same work, each call once.

    Attributes:
        what: shown in the table.
        ours, other: the two sides; warmed up by ``measure``.
        measure: the ratio is of speeds (other's time / ours) or of times (ours / other's).
        target: least ratio of speeds, largest ratio of times; none: reported only.
        images: units of work in one call; vectors in the lookup.
    """

    what: str
    ours: Callable[[], object]
    other: Callable[[], object]
    measure: Literal["speed", "time"]
    target: float | None
    images: int


@dataclass(frozen=True)
class Row:
    """What was measured. Times are medians in seconds a call; ``ratios`` are those of the pairs, in order."""

    what: str
    measure: str
    ratio: float
    target: float | None
    met: bool | None
    ours_seconds: float
    other_seconds: float
    ours_per_second: float
    ratios: list[float]

    def __str__(self) -> str:
        sign = {"speed": ">=", "time": "<="}[self.measure]
        target = "" if self.target is None else f"{sign} {self.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        ratio, ours, other = f"{self.ratio:.3f}", f"{1000 * self.ours_seconds:.1f}", f"{1000 * self.other_seconds:.1f}"
        return f"{self.what:<58}{self.measure:>6}{ratio:>9}{target:>9} {verdict:<7}{ours:>10}{other:>11}"


BUDGET = 10.0  # seconds a line
HEADER = f"{'what':<58}{'ratio':>15}{'target':>9} {'':<7}{'ours ms':>10}{'other ms':>11}"


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, the device's queue drained before and after."""
    drain = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    drain()
    start = time.perf_counter()
    call()
    drain()
    return time.perf_counter() - start


def compare(comparison: Comparison, repeats: int, device: torch.device) -> Row:
    """Two unmeasured calls of each side, then pairs: at least ``repeats``, more where they fit in ``BUDGET``."""
    for side in 2 * (comparison.ours, comparison.other):
        side()
    pairs, start = list[tuple[float, float]](), time.perf_counter()
    while len(pairs) < repeats or time.perf_counter() - start < BUDGET:
        pairs.append((seconds(comparison.ours, device), seconds(comparison.other, device)))
    ratios = [b / a if comparison.measure == "speed" else a / b for a, b in pairs]
    ratio, target = statistics.median(ratios), comparison.target
    met = None if target is None else ratio >= target if comparison.measure == "speed" else ratio <= target
    ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Row(comparison.what, comparison.measure, ratio, target, met, ours, other, comparison.images / ours, ratios)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Inputs of a kind, and level 1 over them."""

    name: str
    shape: tuple[int, ...]
    values: int
    map: tuple[int, ...]
    family: str
    batch: int
    quantizer: dict[str, Any]
    padded: bool = False  # each ends somewhere, as with data.padding


PLAIN = {"codebook_size": 512, "dim": 64}
KINDS = (
    Kind("images, product", SHAPE, VALUES, (8, 8), "product", 64, PLAIN),
    Kind("images, window", SHAPE, VALUES, (8, 8), "window", 16, PLAIN),
    Kind("images, 4 residual codes", SHAPE, VALUES, (8, 8), "window", 16, {**PLAIN, "kind": "residual", "codes": 4}),
    Kind("sounds of 16 bits, window", (1, 1024), 65_536, (256,), "window", 16, PLAIN),
    Kind("series of 10 bits, window", (1, 256), 1024, (32,), "window", 32, PLAIN),
    Kind("series of 10 bits with padding, window", (1, 256), 1024, (32,), "window", 32, PLAIN, padded=True),
    Kind("images of 8 channels, window", (8, 32, 32), VALUES, (8, 8), "window", 16, PLAIN),
    Kind("volumes of 12 bits, window", (1, 16, 16, 16), 4096, (4, 4, 4), "window", 4, PLAIN),
    Kind("videos of 8 frames of 32x32, window", (1, 8, 32, 32), VALUES, (2, 4, 4), "window", 4, PLAIN),
)


def make_stack(levels: int, device: torch.device, *, size: int = 32, **decoder: Any) -> Stack:
    """Three channels of ``size`` pixels squared -> 8x8 (-> 4x4 -> 2x2), K = 512, width 64."""
    torch.manual_seed(0)
    quantizer = QuantizerSettings(codebook_size=512, dim=64)
    settings = tuple(
        LevelSettings(map=m, quantizer=quantizer, width=64, decoder=DecoderSettings(**decoder)) for m in MAPS[:levels]
    )
    return Stack(StackSettings(levels=settings), (3, size, size), VALUES).to(device).eval()


def make_pixels(count: int, device: torch.device) -> Tensor:
    """Smooth random images, uint8."""
    small = torch.randn(count, SHAPE[0], 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, SHAPE[1:], mode="bicubic").mul(48).add(128).clamp(0, 255).to(torch.uint8).to(device)


def bare_loss(level: Level, batch: Tensor) -> Tensor:
    """What a level is trained by, of its parts."""
    quantized = level.quantizer(level.encoder(level.features(batch)))
    distribution = level.distribution(quantized.vectors, quantized.codes)
    return -distribution.unchecked_log_prob(batch).mean() / distribution.sites + quantized.loss


def bare_training(
    module: nn.Module, pixels: Tensor, settings: FitSettings, loss_of: Callable[..., Tensor] = bare_loss, *given: Tensor
) -> Iterator[None]:
    """The loop that one would write by hand for a level, or a code model with what it is given; a turn is a step."""
    module.train()
    optimizer = optimizer_for(module, settings, pixels.device)
    weights: list[Tensor] = list(module.parameters())
    average = [p.detach().clone() for p in weights]
    while True:
        for indices in torch.randperm(len(pixels), device=pixels.device).split(settings.batch_size):
            loss = loss_of(module, pixels[indices], *(each[indices] for each in given))
            loss.backward()
            nn.utils.clip_grad_norm_(weights, settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 1 - settings.ema)
            yield


def make_level(kind: Kind, device: torch.device) -> Level:
    """Level 1 for inputs of a kind; the same weights every time."""
    torch.manual_seed(0)
    decoder = DecoderSettings(family=kind.family)
    level = LevelSettings(map=kind.map, quantizer=QuantizerSettings(**kind.quantizer), width=64, decoder=decoder)
    return Stack(StackSettings(levels=(level,)), kind.shape, kind.values).to(device).level(1)


def make_inputs(kind: Kind, count: int, device: torch.device) -> Tensor:
    """Smooth random numbers of a kind."""
    if kind.shape == SHAPE:
        return make_pixels(count, device)
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(count, *kind.shape, generator=generator).cumsum(-1)
    found = (walk * kind.values / 64 + kind.values / 2).clamp(0, kind.values - 1).int()
    if kind.padded:
        ends = torch.randint(1, kind.shape[-1] + 1, (count, *[1] * len(kind.shape)), generator=generator)
        found = found.where(torch.arange(kind.shape[-1]) < ends, PADDING)
    return found.to(device)


def several(times: int, call: Callable[[], object]) -> None:
    for _ in range(times):
        call()


def both_loops(
    what: str, module: nn.Module, source: Source, bare: Iterator[None], settings: FitSettings, device: torch.device
) -> Iterator[Comparison]:
    """Two steps through the toolkit's loop and through a bare one; neither evaluates."""
    steps, batch = 2, settings.batch_size
    with tempfile.TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=device.type == "cpu")
        fit = Fit("benchmark", module, source, source, settings, accelerator, Path(folder))
        yield Comparison(
            f"training {what}, batch {batch}, EMA / bare loop",
            partial(several, steps, fit.training_step),
            partial(several, steps, partial(next, bare)),
            "speed",
            0.95,
            steps * batch,
        )


def training(device: torch.device) -> Iterator[Comparison]:
    """Level 1 of every kind."""
    for kind in KINDS:
        settings = FitSettings(steps=100_000, batch_size=kind.batch)
        pixels = make_inputs(kind, 2048 if kind.shape == SHAPE else 256, device)
        bare = bare_training(make_level(kind, device), pixels, settings)
        yield from both_loops(kind.name, make_level(kind, device), PixelSource(pixels), bare, settings, device)


# --- memory -----------------------------------------------------------------------------------------------------------


def _steps_on_request(kind: Kind, threads: int, keep: bool, pipe: Connection) -> None:
    """In a process of its own, because what glibc was told stays told: two steps for each message."""
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    pixels = make_inputs(kind, 256, torch.device("cpu"))
    settings = FitSettings(steps=100_000, batch_size=kind.batch)
    bare = bare_training(make_level(kind, pixels.device), pixels, settings)
    while pipe.recv():
        several(2, partial(next, bare))
        pipe.send(None)


def memory(device: torch.device) -> Iterator[Comparison]:
    """The bare loop where glibc keeps freed memory, as the commands ask it to, against glibc as it comes."""
    context = torch.multiprocessing.get_context("spawn")
    for kind in KINDS if device.type == "cpu" else ():
        pipes = [context.Pipe() for _ in range(2)]
        for keep, (_, theirs) in zip((True, False), pipes, strict=True):
            given = (kind, torch.get_num_threads(), keep, theirs)
            context.Process(target=_steps_on_request, args=given, daemon=True).start()

        def steps(pipe: Connection) -> None:
            pipe.send(True)
            pipe.recv()

        ours, other = (partial(steps, mine) for mine, _ in pipes)
        yield Comparison(f"{kind.name}, freed memory kept / returned", ours, other, "speed", None, 2 * kind.batch)
        for mine, _ in pipes:
            mine.send(False)


# --- encoding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bare_encode(stack: Stack, halves: list[Tensor], pixels: Tensor) -> list[Tensor]:
    """Encoder networks, ``addmm`` and ``argmin``; ``halves`` are the codebooks' half squared lengths."""
    maps: list[Tensor] = []
    for level, half in zip(stack.levels, halves, strict=True):
        below = pixels.float() * (2 / 255) - 1 if not maps else level.embedding(maps[-1][..., None]).permute(0, 3, 1, 2)
        vectors = level.encoder(below).permute(0, 2, 3, 1)
        distances = torch.addmm(half, vectors.flatten(0, 2), level.quantizer.codebook().T, alpha=-1)
        maps.append(distances.argmin(1).view(vectors.shape[:3]))
    return maps


def encoding(device: torch.device) -> Iterator[Comparison]:
    """``Stack.encode`` against its networks and a bare lookup, which builds all distances at once."""
    pixels = make_pixels(512, device)
    for levels in (1, 3):
        stack = make_stack(levels, device)
        halves = [level.quantizer.codebook().square().sum(1) / 2 for level in stack.levels]
        for ours, other in zip(stack.encode(pixels), bare_encode(stack, halves, pixels), strict=True):
            assert (ours == other).float().mean() > 0.99, "the two sides disagree"
        yield Comparison(
            f"encoding 512 images, {levels} level{'s' * (levels > 1)} / bare networks, lookup",
            partial(stack.encode, pixels),
            partial(bare_encode, stack, halves, pixels),
            "speed",
            0.9,
            len(pixels),
        )


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tokenizers(device: torch.device) -> Iterator[Comparison]:
    """Level 1 in stages and a renderer, to codes and to pictures, against their networks alone."""
    for side, batch in ((64, 32), (256, 4)):
        torch.manual_seed(0)
        level = LevelSettings(
            map=(16, 16), networks=NetworkSettings(kind="staged"), quantizer=QuantizerSettings(**PLAIN)
        )
        settings = ModelSettings(
            stack=StackSettings(levels=(level,)),
            prior=CodeModelSettings(depth=1, dim=8, heads=1),
            image_shape=(3, side, side),
            values=VALUES,
            renderer=RendererSettings(width=64, perceptual="none"),
        )
        model = HierarchicalModel(settings).to(device).eval()
        pixels = F.interpolate(make_pixels(batch, device).float(), (side, side)).to(torch.uint8)
        (lowest,), renderer, codes = model.stack.levels, model.renderer, model.encode(pixels)[0]
        half = lowest.quantizer.codebook().square().sum(1) / 2

        def bare_render(lowest: Level = lowest, renderer: Any = renderer, codes: Tensor = codes) -> Tensor:
            with torch.no_grad():
                return renderer(lowest.quantizer.unchecked_lookup(codes))

        yield Comparison(
            f"encoding {batch} images of {side}x{side} in stages / bare networks, lookup",
            partial(model.encode, pixels),
            partial(bare_encode, model.stack, [half], pixels),
            "speed",
            0.95,
            batch,
        )
        yield Comparison(
            f"rendering {batch} images of {side}x{side} / bare network",
            partial(model.render, codes),
            bare_render,
            "speed",
            0.95,
            batch,
        )


def norms(device: torch.device) -> Iterator[Comparison]:
    """Networks in stages that normalise each site by itself, against group normalisation: forward and backward."""
    batch, side, scale = 8, 64, (4, 4)
    shared: dict[str, Any] = {"map_shape": (side // 4, side // 4), "scale": scale, "blocks": 1}
    pixels = torch.randn(batch, 3, side, side, device=device)
    codes = torch.randn(batch, 64, side // 4, side // 4, device=device)
    for name, network, given, sizes in (
        ("down", StagedDown, pixels, (3, 64, 64)),
        ("up", StagedUp, codes, (64, 64, 3)),
    ):

        def step(network: nn.Module, given: Tensor = given) -> None:
            out = network(given)
            (out[1] if isinstance(out, tuple) else out).square().mean().backward()

        site, group = (network(*sizes, norm=norm, **shared).to(device) for norm in ("site", "group"))
        what = f"a step of a path {name} in stages, norm of each site / group norm"
        yield Comparison(what, partial(step, site), partial(step, group), "speed", None, batch)


# --- lookup -----------------------------------------------------------------------------------------------------------


def lookup(device: torch.device) -> Iterator[Comparison]:
    """``Quantizer.encode`` against the forward of vector-quantize-pytorch in eval mode, each fed in its own layout."""
    torch.manual_seed(0)
    vectors = torch.randn(256, 64, 8, 8, device=device)
    flat = vectors.flatten(2).transpose(1, 2).contiguous()
    for size in (512, 8192):
        quantizer = build_quantizer(QuantizerSettings(codebook_size=size, dim=64)).to(device).eval()
        library = VectorQuantize(dim=64, codebook_size=size).to(device).eval()
        library._codebook.embed.copy_(quantizer.codebook()[None])
        run_library = torch.no_grad()(partial(library, flat))
        assert (quantizer.encode(vectors).flatten() == run_library()[1].flatten()).float().mean() > 0.99
        yield Comparison(
            f"lookup, 16,384 vectors of 64, K={size} / VectorQuantize",
            partial(quantizer.encode, vectors),
            run_library,
            "speed",
            5.0,
            flat.shape[0] * flat.shape[1],
        )


# --- prior ------------------------------------------------------------------------------------------------------------

DEPTH, DIM, HEADS, BATCH, SITES, CODES = 8, 512, 8, 16, 64, 512


def make_generator(device: torch.device) -> Callable[[], Tensor]:
    """x-transformers' own generator of the same size; token 512 begins."""
    blocks = Decoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS, attn_flash=True)
    network = TransformerWrapper(num_tokens=CODES + 1, max_seq_len=SITES, logits_dim=CODES, attn_layers=blocks)
    wrapper = AutoregressiveWrapper(network).to(device).eval()
    begin = torch.full((BATCH, 1), CODES, device=device)
    return lambda: wrapper.generate(begin, SITES, cache_kv=True, filter_logits_fn=lambda logits: logits)


def bare_step(w: dict[str, Tensor], x: Tensor, keys: Tensor, values: Tensor, site: int) -> Tensor:
    """Logits of one site; ``keys`` and ``values`` [depth, b, heads, sites, dim_head] receive its entries."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), w[f"{name}.gain"] + 1)

    def heads(x: Tensor) -> Tensor:
        return x.view(len(x), HEADS, 1, -1)

    for i in range(DEPTH):
        p = f"blocks.{i}"
        y = norm(x, f"{p}.attention_norm")
        keys[i, :, :, site : site + 1] = heads(F.linear(y, w[f"{p}.key.weight"]))
        values[i, :, :, site : site + 1] = heads(F.linear(y, w[f"{p}.value.weight"]))
        query, seen = heads(F.linear(y, w[f"{p}.query.weight"])), slice(0, site + 1)
        y = F.scaled_dot_product_attention(query, keys[i, :, :, seen], values[i, :, :, seen])
        x = x + F.linear(y.flatten(1), w[f"{p}.attention_out.weight"])
        y = F.linear(norm(x, f"{p}.feedforward_norm"), w[f"{p}.feedforward_in.weight"], w[f"{p}.feedforward_in.bias"])
        x = x + F.linear(F.gelu(y), w[f"{p}.feedforward_out.weight"], w[f"{p}.feedforward_out.bias"])
    return F.linear(norm(x, "final_norm"), w["to_logits.weight"], w["to_logits.bias"])


@torch.no_grad()
def bare_generate(w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes [b, N] drawn with the weights of an autoregressive code model, and their log-probabilities [b]."""
    shape = (DEPTH, BATCH, HEADS, SITES, DIM // HEADS)
    keys, values = w["begin"].new_empty(shape), w["begin"].new_empty(shape)
    codes = torch.empty(BATCH, SITES, dtype=torch.int64, device=keys.device)
    score, x = keys.new_zeros(BATCH), w["begin"].expand(BATCH, -1)
    for site in range(SITES):
        probs = bare_step(w, x + w["position"][site], keys, values, site).softmax(-1)
        code = probs.multinomial(1)
        codes[:, site : site + 1] = code
        score += probs.gather(1, code)[:, 0].log()
        x = w["embedding.weight"][code[:, 0]]
    return codes, score


def prior(device: torch.device) -> Iterator[Comparison]:
    """Samples of the autoregressive prior against x-transformers' generator and against its bare matrix products."""
    torch.manual_seed(0)
    settings = CodeModelSettings(depth=DEPTH, dim=DIM, heads=HEADS)
    model = build_code_model(settings, (8, 8), CODES, 0).to(device).eval()
    nn.init.normal_(model.to_logits.weight, std=0.02)  # not the uniform distribution it starts as
    weights = model.state_dict()
    codes, score = bare_generate(weights)
    with torch.no_grad():
        assert torch.allclose(model.log_prob(codes.view(-1, 8, 8), {}), score, atol=0.05), "the two sides disagree"

    def ours() -> Tensor:
        return model.distribution(BATCH, {}, device).sample(noise(0, range(BATCH), 1, SITES))

    size = f"prior, depth {DEPTH}, dim {DIM}, {BATCH} x {SITES} tokens"
    yield Comparison(f"{size} / x-transformers", ours, make_generator(device), "time", 1.05, BATCH)
    yield Comparison(f"{size} / bare loop", ours, lambda: bare_generate(weights), "time", None, BATCH)


def conditions(device: torch.device) -> Iterator[Comparison]:
    """Training of a prior that attends to a sequence of vectors."""
    settings = FitSettings(steps=100_000, batch_size=BATCH)
    torch.manual_seed(0)
    codes, vectors = torch.randint(CODES, (256, 8, 8)), torch.randn(256, 16, 64, device=device)
    source = CodeSource(codes[None].numpy().astype(np.uint16), device, [vectors])

    def made() -> CodeModel:
        torch.manual_seed(0)
        about = ConditionSettings(name="vectors", shape=(16, 64), kind="attention")
        sizes = CodeModelSettings(depth=DEPTH, dim=DIM, heads=HEADS)
        return build_code_model(sizes, (8, 8), CODES, given=about).to(device)

    def loss_of(model: CodeModel, batch: Tensor, told: Tensor) -> Tensor:
        return -model.unchecked_log_prob(batch, {GIVEN: told}).mean() / model.sites

    bare = bare_training(made(), codes.to(device), settings, loss_of, vectors)
    yield from both_loops("a prior, cross-attention to 16 vectors", made(), source, bare, settings, device)


# --- window decoders --------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw(level: Level, codes: Tensor, u: Tensor) -> Tensor:
    return level.decode(codes).sample(u)


@torch.no_grad()
def bare_steps(network: WindowNetwork, ready: list[tuple[Tensor, Tensor]]) -> None:
    for inputs in ready:
        network.step(*inputs)


@torch.no_grad()
def windows(device: torch.device) -> Iterator[Comparison]:
    """Images drawn given their codes, against the network's step alone on as many sites, whose inputs lie ready."""
    for size, batch, tile in ((32, 1, 0), (32, 64, 0), (64, 1, 0), (64, 1, 32), (64, 16, 0)):
        level = make_stack(1, device, size=size, family="window", tile=(tile, tile)).level(1)
        network = level.decoder.window
        nn.init.normal_(network.leave.weight, std=0.02)
        codes = torch.randint(512, (batch, 8, 8), device=device)
        tiles = batch * (size // (tile or size)) ** 2
        ready = [
            (
                torch.randn(tiles, n, len(network.offsets), SHAPE[0] + 1, device=device),
                torch.randn(tiles, network.settings.features, 1, n, device=device),
            )
            for n in network.schedule.sizes
        ]
        split = f", tiles of {tile}x{tile}" if tile else ""
        yield Comparison(
            f"drawing {batch} of {size}x{size}, {len(network.schedule)} steps{split} / bare steps",
            partial(draw, level, codes, noise(0, range(batch), 0, 3 * size * size)),
            partial(bare_steps, level.decoder.window, ready),
            "time",
            None,
            batch,
        )


# --- the command ------------------------------------------------------------------------------------------------------

LINES = {
    "training": training,
    "memory": memory,
    "encoding": encoding,
    "tokenizers": tokenizers,
    "norms": norms,
    "lookup": lookup,
    "prior": prior,
    "conditions": conditions,
    "windows": windows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES), metavar="NAME", help=", ".join(LINES))
    parser.add_argument("--repeats", type=int, default=5, help="least number of pairs a line (default 5, no fewer)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: as torch chooses)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("latest.json"), help="receives the numbers"
    )
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    machine = {"torch": torch.__version__, "device": f"{device.type} ({name})", "threads": torch.get_num_threads()}
    print(*(f"{key} {value}" for key, value in machine.items()), sep=", ")
    print(f"{HEADER}\n{'-' * len(HEADER)}")
    rows = list[Row]()
    for line in options.only:
        for comparison in LINES[line](device):
            rows.append(compare(comparison, options.repeats, device))
            print(rows[-1], flush=True)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    result = {"date": date, **machine, "repeats": options.repeats, "rows": [asdict(row) for row in rows]}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
