"""Everything that wants a GPU, in one command of at most nine minutes; without one it checks itself at toy size.

    python benchmarks/gpu.py [--out gpu.json] [--toy] [--data $DATA]

Trains and encodes in bfloat16, compiled, channels last, with the fused optimiser, and compares each with a bare loop
over the same modules under the same settings. The walk of a prior reads all its weights once a site, as the bfloat16
copies that autocast keeps of them; it is compared with the time in which the device copies as many bytes. Then a run is
stopped in the middle and gone on with, ``deterministic``, and its weights are compared with those of a run that was
left alone, bit by bit.

At the end come pictures. Steps of an encoder with likelihood and renderer, against a discriminator, at 64×64 and at
256×256 (images of 64×64, enlarged): images a second beside a bare loop over the same module, and the memory that a step
adds. Then such a run on emoji of 64×64 (emoji64-train.parquet and emoji64-test.parquet in ``--data``; faces that are
made here without it), and the bare VQGAN loop of ``vqgan.py`` for as long on the same images: codes used, PSNR, rFID.

The numbers are written after each comparison; what is not measured after nine minutes is not.
A section that fails is a row with its error, the others are still measured, and the exit code is 1.
Prints what falls short of the aims: training 0.9 of the bare loop, encoding 0.9 of the bare network, a walk within
twice the time of its bytes, equal bits, pictures in no number worse than those of the bare VQGAN loop.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the run that is resumed: read at the first product

import numpy as np
import torch
import torch.nn.functional as F
import vqgan
from accelerate import Accelerator
from run import Comparison, bare_training, compare, make_pixels, seconds
from torch import Tensor, nn

import vqstack
from vqstack.code_model import CodeModelSettings, build_code_model
from vqstack.ending import run_command
from vqstack.errors import Stopped
from vqstack.features import Classifier
from vqstack.fit import Callback, Fit, FitSettings, optimizer_for
from vqstack.level import Level, LevelSettings, NetworkSettings
from vqstack.likelihood import noise
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.quantizer import QuantizerSettings
from vqstack.renderer import AdversarySettings, LayerDistance, RenderedLevel, RendererSettings, RendererTraining
from vqstack.sources import PixelSource
from vqstack.stack import Stack, StackSettings
from vqstack.window import DecoderSettings


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    width: int
    codes: int
    batch: int
    images: int
    depth: int
    dim: int
    sites: int
    steps: int
    sides: tuple[int, int]  # pixels of the images of which pictures are made
    pictured: int  # steps of the run that makes them


LONGEST = 530  # seconds
FULL = Size(
    width=256,
    codes=4096,
    batch=256,
    images=8192,
    depth=24,
    dim=1024,
    sites=256,
    steps=200,
    sides=(64, 256),
    pictured=1500,
)
TOY = Size(width=16, codes=32, batch=8, images=64, depth=2, dim=32, sites=16, steps=8, sides=(16, 32), pictured=4)


def level_of(size: Size, family: str, device: torch.device) -> Level:
    """Level 1 of images of 32×32, in stages, channels last."""
    torch.manual_seed(0)
    quantizer = QuantizerSettings(codebook_size=size.codes, dim=16)
    decoder = DecoderSettings(family=family)
    networks = NetworkSettings(kind="staged")
    settings = LevelSettings(map=(8, 8), quantizer=quantizer, width=size.width, decoder=decoder, networks=networks)
    level = Stack(StackSettings(levels=(settings,)), (3, 32, 32), 256).to(device).level(1)
    level.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its stub does not
    return level


def accelerator_of(device: torch.device) -> Accelerator:
    """In bfloat16 on a GPU."""
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if device.type == "cpu" else "bf16")


def training(size: Size, device: torch.device) -> Iterator[Comparison]:
    """Level 1, compiled, through the toolkit's loop and through a bare one."""
    compiled = device.type == "cuda"
    for family in ("product", "window"):
        settings = FitSettings(steps=10**6, batch_size=size.batch)
        pixels, accelerator = make_pixels(size.images, device), accelerator_of(device)
        bare_level, level = (level_of(size, family, device) for _ in range(2))
        if compiled:
            for network in bare_level.networks:
                network.compile(dynamic=False)
        bare = bare_training(bare_level, pixels, settings)

        def step(bare: Iterator[None] = bare, accelerator: Accelerator = accelerator) -> None:
            with accelerator.autocast():
                next(bare)

        with tempfile.TemporaryDirectory() as folder:
            source = PixelSource(pixels)
            fit = Fit("gpu", level, source, source, settings, accelerator, Path(folder), compile_module=compiled)
            name = f"training, {family}, batch {size.batch} / bare loop"
            yield Comparison(name, fit.training_step, step, "speed", 0.9, size.batch)


def encoding(size: Size, device: torch.device) -> Iterator[Comparison]:
    """Images to codes, and the network alone."""
    level, pixels = level_of(size, "product", device).eval(), make_pixels(size.batch, device)
    if device.type == "cuda":
        level.encoder.compile(dynamic=False)
    accelerator = accelerator_of(device)

    @torch.no_grad()
    def ours() -> Tensor:
        with accelerator.autocast():
            return level.code(pixels)

    @torch.no_grad()
    def bare() -> Tensor:
        with accelerator.autocast():
            return level.encoder(level.features(pixels))

    yield Comparison(f"encoding {size.batch} images / bare network", ours, bare, "speed", 0.9, size.batch)


def bandwidth(device: torch.device, count: int) -> float:
    """Bytes a second that the device reads and writes in a copy, the better of ten."""
    source = torch.empty(count, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(11)][1:]
    return 2 * source.nbytes / min(times)


def walk(size: Size, device: torch.device) -> dict:
    """Seconds a site of a prior at batch 1, and those in which as many bytes as its weights have are copied."""
    torch.manual_seed(0)
    settings = CodeModelSettings(depth=size.depth, dim=size.dim, heads=size.dim // 32)
    side = round(size.sites**0.5)
    prior = build_code_model(settings, (side, side), size.codes, 0, 16).to(device).eval()
    u, dtype = noise(0, range(1), 0, size.sites), torch.float32 if device.type == "cpu" else torch.bfloat16

    @torch.no_grad()
    def draw() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=device.type != "cpu"):
            prior.distribution(1, {}, device).sample(u)

    draw()
    each = min(seconds(draw, device) for _ in range(3)) / size.sites
    held = sum(p.numel() for p in prior.parameters()) * dtype.itemsize  # autocast makes its copies at the first site
    least = held / bandwidth(device, 2**18 if size is TOY else 2**28)
    return {"what": "walk of a prior, batch 1", "seconds a site": each, "of its bytes": least, "ratio": each / least}


def faces(count: int, side: int) -> Tensor:
    """Coloured discs with two eyes on white, uint8: made, and as easy as emoji."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)[..., None, None]

    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    radius, ground = 0.5 + 0.45 * drawn(1), torch.ones(count, 3, side, side)
    face = torch.where(rows**2 + columns**2 < radius**2, drawn(3), ground)
    for across in (-0.4, 0.4):
        eye = (rows + 0.3 * radius) ** 2 + (columns - across * radius) ** 2 < (0.2 * radius) ** 2
        face = torch.where(eye, drawn(3), face)
    return (255 * face).round().to(torch.uint8)


def rendered_level(size: Size, side: int, device: torch.device) -> RenderedLevel:
    """Level 1 and a renderer against a discriminator, compared by a network that was not trained: for time alone."""
    torch.manual_seed(0)
    quantizer = QuantizerSettings(codebook_size=size.codes, dim=16)
    level = LevelSettings(
        map=(size.sides[0] // 4,) * 2, quantizer=quantizer, width=size.width, networks=NetworkSettings(kind="staged")
    )
    adversary = AdversarySettings(weight=0.5, start=0, width=size.width // 4, layers=3, joint=True)
    settings = RendererSettings(width=size.width, joint_encoder=1.0, adversary=adversary)
    stack, prior = StackSettings(levels=(level,)), CodeModelSettings(depth=1, dim=32, heads=2)
    model = HierarchicalModel(
        ModelSettings(stack=stack, prior=prior, image_shape=(3, side, side), values=256, renderer=settings)
    )
    assert model.renderer is not None
    training = RendererTraining(model.renderer, settings)
    network = Classifier((3, side, side), 256, 10).to(device).eval().requires_grad_(False)
    training.compare_by(LayerDistance(network.layers))
    module = RenderedLevel(model.stack.level(1), training, 1.0).to(device)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as above


def bare_rendering(module: RenderedLevel, pixels: Tensor, settings: FitSettings, of: Accelerator) -> Iterator[None]:
    """The loop that one would write by hand; every turn is a step."""
    module.train()
    optimizer, judge = optimizer_for(module, settings, pixels.device), list(module.opponent.parameters())
    theirs = set(map(id, judge))
    own = [p for p in module.parameters() if id(p) not in theirs]
    average = [p.detach().clone() for p in module.parameters()]
    while True:
        for indices in torch.randperm(len(pixels), device=pixels.device).split(settings.batch_size):
            with of.autocast():
                loss = module(pixels[indices]).loss
            loss.backward()
            for weights in (own, judge):
                nn.utils.clip_grad_norm_(weights, settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(module.parameters()), 1 - settings.ema)
            yield


def rendering(size: Size, device: torch.device) -> Iterator[Comparison]:
    """Level 1 with a renderer and a discriminator, at both sizes, through the toolkit's loop and through a bare one."""
    compiled, small = device.type == "cuda", faces(size.images, size.sides[0])
    for side in size.sides:
        batch = max(2, size.batch * size.sides[0] // side // 4)
        pixels = F.interpolate(small, (side, side)).to(device)
        settings, accelerator = FitSettings(steps=10**6, batch_size=batch), accelerator_of(device)
        other, ours = (rendered_level(size, side, device) for _ in range(2))
        if compiled:
            for network in other.networks:
                network.compile(dynamic=False)
        bare = bare_rendering(other, pixels, settings, accelerator)
        with tempfile.TemporaryDirectory() as folder:
            source = PixelSource(pixels)
            fit = Fit("gpu", ours, source, source, settings, accelerator, Path(folder), compile_module=compiled)
            name = f"encoder, likelihood and renderer at {side}x{side}, batch {batch} / bare loop"
            yield Comparison(name, fit.training_step, partial(next, bare), "speed", 0.9, batch)


def memory(call: Callable[[], object], device: torch.device) -> float | None:
    """GiB that a call adds at most to what is held; None where nobody counts."""
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - held) / 2**30


def pictures(size: Size, device: torch.device, data: Path | None) -> dict:
    """An encoder with likelihood and renderer, then the renderer alone, and the bare VQGAN loop for as long."""
    side, fit = size.sides[0], {"batch_size": size.batch // 4, "warmup": 2, "evaluate_every": size.pictured}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = zip(
            ("test", "train"), faces(size.images, side).split([size.images // 4, size.images * 3 // 4]), strict=True
        )
        files = {part: str(folder / f"{part}.npy") for part in ("train", "test")}
        for part, pixels in made:
            np.save(files[part], pixels.numpy())
        here = {"source": "array", "files": files, "size": (side, side), "validation": 0.1}
        given = {"files": {part: str(data / f"emoji64-{part}.parquet") for part in files}} if data else here
        config = vqstack.recipe(
            Path(__file__).parent / "recipes" / "emoji_renderer.yaml",
            data=given,
            levels={"map": (side // 4, side // 4), "width": size.width, "quantizer": {"codebook_size": size.codes // 4}}
            | {"networks": {"kind": "staged", "options": {"norm": "site"}}},
            renderer={"width": size.width, "norm": "site", "joint_encoder": 1.0},
            train_levels={**fit, "steps": size.pictured},
            train_renderer={**fit, "steps": size.pictured // 2},
            mixed_precision="no" if device.type == "cpu" else "bf16",
            compile=device.type == "cuda",
        )
        clock = vqgan.clock_of(device)
        began = clock()
        vqstack.train(config, out=folder / "run")
        spent = clock() - began
        vqgan.main(
            [str(folder / "run"), "--out", scratch, "--seconds", str(spent), "--features", config.renderer.perceptual]
        )
        found = json.loads((folder / "vqgan.json").read_text(encoding="utf-8"))
    bare, ours = found["ways"].values()
    about = {"what": f"pictures of {side}x{side}", "of": str(data or "faces that are made here"), "seconds": spent}
    return {**about, "steps": found["training"]["steps"], "ours": ours, "bare": bare, "floor": found["floor"]}


class TimeIsUp(BaseException):
    """No Exception, so that nothing on the way takes it for an error."""


class Stopping(Callback):
    """Stops a run after some steps, as a signal from outside does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, phase: str, step: int, loss: float) -> None:
        if phase == "level-1" and step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def resumed_equal(size: Size, device: torch.device) -> bool:
    """Whether a run that was stopped amid level 1 ends with the bits of one that was left alone."""
    fit = {"steps": size.steps, "batch_size": 16, "evaluate_every": size.steps}
    precision = "no" if device.type == "cpu" else "bf16"
    config = vqstack.recipe(
        "digits", deterministic=True, mixed_precision=precision, train_levels=fit, train_refiners=fit, train_prior=fit
    )
    with tempfile.TemporaryDirectory() as folder:
        alone = vqstack.train(config, out=Path(folder) / "alone")
        try:
            vqstack.train(config, out=Path(folder) / "stopped", callbacks=[Stopping(size.steps // 2)])
            raise AssertionError("the run was not stopped")
        except Stopped:
            pass
        again = vqstack.train(config, out=Path(folder) / "stopped")
    ours, theirs = alone.state_dict(), again.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def no_worse(ours: dict, bare: dict) -> bool:
    """Whether pictures are at least as good in every number."""
    more = all(ours[name] >= bare[name] for name in ("psnr", "ssim", "used"))
    return more and all(ours[name] <= bare[name] for name in ("perceptual", "frechet"))


Found = Iterator[tuple[dict, bool]]  # what was measured, and whether it is as good as was aimed at


def speeds(size: Size, device: torch.device, section: Callable[[Size, torch.device], Iterator[Comparison]]) -> Found:
    """Of the comparisons of a section, with the memory that a step of each side adds."""
    for comparison in section(size, device):
        row = compare(comparison, 5, device)
        held = [memory(side, device) for side in (comparison.ours, comparison.other)]
        about = {"what": row.what, "ratio": row.ratio, "per_second": row.ours_per_second}
        yield {**about, "GiB a step": held[0], "GiB bare": held[1]}, row.met is not False


def walked(size: Size, device: torch.device) -> Found:
    found = walk(size, device)
    yield found, found["ratio"] <= 2


def resumed(size: Size, device: torch.device) -> Found:
    equal = resumed_equal(size, device)
    yield {"what": "stopped and gone on with, equal bits", "equal": equal}, equal


def pictured(size: Size, device: torch.device, data: Path | None) -> Found:
    found = pictures(size, device, data)
    yield found, no_worse(found["ours"], found["bare"])


def sections(data: Path | None) -> dict[str, Callable[[Size, torch.device], Found]]:
    """Everything, in order; what fails keeps none of the others from being measured."""
    return {
        "training": partial(speeds, section=training),
        "encoding": partial(speeds, section=encoding),
        "walk": walked,
        "resume": resumed,
        "rendering": partial(speeds, section=rendering),
        "pictures": partial(pictured, data=data),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="receives the numbers")
    parser.add_argument("--toy", action="store_true", help="at toy size, though there is a GPU")
    parser.add_argument("--data", type=Path, help="folder of the emoji of 64x64; default: images that are made here")
    parser.add_argument("--seconds", type=int, default=LONGEST, help="after so many it is cut off")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy, began = options.toy or device.type == "cpu", time.perf_counter()
    if device.type == "cpu":
        print("no GPU is here: everything runs on the CPU at toy size, and its figures mean nothing")
    size = TOY if toy else FULL
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "toy": toy,
        "rows": list[dict](),
        "short": list[str](),
    }

    def write() -> None:
        found["seconds"] = time.perf_counter() - began
        if device.type == "cuda":
            found["peak_GiB"] = max(found.get("peak_GiB", 0), torch.cuda.max_memory_allocated() / 2**30)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def add(row: dict, short: bool) -> None:
        found["rows"].append(row)
        found["short"] += [row["what"]] if short else []
        write()
        print(row, flush=True)

    def stop(*_: object) -> None:
        raise TimeIsUp

    write()  # a path that cannot be written is told before anything is measured
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(options.seconds)
    try:
        for name, section in sections(None if toy else options.data).items():
            try:
                for row, fine in section(size, device):
                    add(row, short=not fine and (not toy or "equal" in row))  # bits are equal at any size
            except Exception as error:  # of a device that nobody knows: memory, a compiler; the others are still tried
                traceback.print_exc()
                add({"what": name, "error": f"{type(error).__name__}: {error}"}, short=True)
        signal.alarm(0)
    except TimeIsUp:
        found["short"].append(f"what follows, cut off after {options.seconds} s")
    write()
    judged = "at toy size no speed is judged; " if toy else ""
    print(f"{found['seconds']:.0f} s; {judged}falls short: {', '.join(found['short']) or 'nothing'}")
    if any("error" in row for row in found["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
