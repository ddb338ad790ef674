"""What refiners are trained on: the frozen level's word on the same parent codes, some of them replaced."""

import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import randomised

from vqstack.code_model import Parent, RefinerSettings, parent_of
from vqstack.config import RunConfig
from vqstack.fit import Fit, FitSettings, Order
from vqstack.images import AugmentSettings, load_splits, uniforms
from vqstack.level import LevelSettings
from vqstack.likelihood import Categorical
from vqstack.phases import Run
from vqstack.sources import CodeSource, EncodingSource, PixelSource, ReadAhead, RefinerSource
from vqstack.stack import Stack, StackSettings

EVERY = torch.arange(40)
EPOCH = torch.zeros_like(EVERY)


@pytest.fixture
def stack():
    return random_stack(6)


def random_stack(codebook_size):
    quantizer = {"codebook_size": codebook_size, "dim": 3}
    levels = tuple(LevelSettings(map=m, width=8, quantizer=quantizer) for m in ((4, 4), (2, 2)))
    stack = Stack(StackSettings(levels=levels), (1, 8, 8), 5).eval()
    return randomised(stack, 0.5)


def source(stack, number, labels=None, **settings):
    pixels = torch.randint(0, 5, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = [] if labels is None else [labels]
    if number == 1:
        below = PixelSource(pixels, given=given)
    else:
        below = CodeSource(stack.encode(pixels)[0].numpy()[None], torch.device("cpu"), given)
    above = stack.level(2) if number == 1 else None
    return RefinerSource(below, stack.level(number), RefinerSettings(level=number, **settings), above)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("corruption", [0.0, 0.5])
def test_without_an_epoch_and_at_share_zero_codes_are_clean(stack, number, corruption):
    made = source(stack, number, corruption=corruption)
    below, *parent = made.batch(EVERY, None)
    expected = parent_of(stack.level(number), stack.level(number).encode(below))[:3]  # it stands in no sequence
    for got, wanted in zip(parent, expected, strict=True):
        assert torch.equal(got, wanted)
    assert (parent[-1] == 0).all()
    if not corruption:
        for got, wanted in zip(made.batch(EVERY, EPOCH)[1:], expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(("number", "by"), [(1, "neighbours"), (1, "samples"), (2, "samples")])
def test_the_same_replaced_codes_for_base_and_features(stack, number, by, monkeypatch):
    seen = []

    def watched(level, codes, share=None):
        seen.append(codes)
        return parent_of(level, codes, share)

    monkeypatch.setattr("vqstack.sources.parent_of", watched)
    below, *parent = source(stack, number, corruption=0.8, corrupt_by=by).batch(EVERY, EPOCH)
    parent = Parent(*parent)
    level, (codes,) = stack.level(number), seen
    clean = level.encode(below)
    assert torch.equal(parent.base, level.base_and_context(level.quantizer.lookup(codes), codes)[0])
    assert torch.equal(parent.features, level.base_and_context(level.quantizer.lookup(codes), codes)[1])
    changed = (codes != clean).flatten(1).float().mean(1)
    assert (changed[parent.share == 0] == 0).all()
    assert 8 <= (parent.share == 0).sum() <= 32  # about half
    assert (parent.share <= 0.8).all()
    assert changed[parent.share > 0.4].mean() > 0.15
    again = source(stack, number, corruption=0.8, corrupt_by=by).batch(EVERY, EPOCH)
    assert torch.equal(again[-1], parent.share)
    assert torch.equal(again[1], parent.base)


def test_neighbours_are_the_nearest_others(stack):
    made = source(stack, 1, corruption=1.0)
    codebook = stack.level(1).quantizer.codebook()
    for code in range(6):
        distances = (codebook - codebook[code]).square().sum(1)
        assert made.neighbours[code].tolist() == distances.argsort()[1:].tolist()


def replaced(stack, monkeypatch, **settings):
    """Codes of level 1 as they were and as they are given to the refiner, of the images in which some were replaced."""
    seen = []
    monkeypatch.setattr("vqstack.sources.parent_of", lambda *given: (seen.append(given[1]), parent_of(*given))[1])
    below, *_, share = source(stack, 1, corruption=1.0, **settings).batch(EVERY, EPOCH)
    touched = share > 0.5
    return stack.level(1).encode(below)[touched], seen[0][touched]


def test_what_replaces_a_code_is_one_of_its_eight_nearest_others(monkeypatch):
    stack = random_stack(64)
    clean, given = replaced(stack, monkeypatch, corrupt_by="neighbours")
    codebook = stack.level(1).quantizer.codebook().double().numpy()
    ranks = []
    for code, other in zip(clean[clean != given].tolist(), given[clean != given].tolist(), strict=True):
        distances = ((codebook - codebook[code]) ** 2).sum(1)
        ranks.append(int((distances < distances[other]).sum()))  # the code itself is nearer than all: rank 0
    assert set(ranks) == set(range(1, 9))


def test_what_replaces_a_code_follows_the_decoder_above(monkeypatch):
    """A decoder that is all but certain leaves one answer: its mode."""
    stack = random_stack(6)
    above = stack.level(2)
    decode = above.decode
    monkeypatch.setattr(above, "decode", lambda codes: Categorical(1e5 * decode(codes).logits))
    clean, given = replaced(stack, monkeypatch, corrupt_by="samples")
    mode = decode(above.encode(clean)).mode()
    assert torch.equal(given[given != clean], mode[given != clean])
    assert ((given != clean).sum() > 20) and ((mode != clean) & (given == clean)).any()  # replaced, but not all


def test_labels_come_along(stack):
    labels = torch.arange(40) % 3
    indices = torch.tensor([5, 1, 7])
    assert source(stack, 2, labels).batch(indices, None)[1].tolist() == [2, 1, 1]


class Seen(Exception):
    """Ends a phase before its first step."""


def seen_by(image, draws, shift):
    """A view of one image, pixel by pixel: moved by two draws, then mirrored by a third."""
    rows, columns = (int(np.floor(draw * (2 * shift + 1))) - shift for draw in draws[2:4])
    view = np.zeros_like(image)
    for r in range(8):
        for c in range(8):
            from_column = 7 - c if draws[4] < 0.5 else c
            source = r - rows, from_column - columns
            if all(0 <= place < 8 for place in source):
                view[0, r, c] = image[(0, *source)]
    return view


def test_every_phase_sees_augmented_images_through_the_frozen_levels(tmp_path, monkeypatch):
    quantizer = {"kind": "lfq", "codebook_size": 64, "dim": 8}
    config = RunConfig.model_validate(
        {
            "data": {"limit": 24},
            "augment": {"shift": 2, "flip": True},
            "levels": [{"map": m, "width": 8, "quantizer": quantizer} for m in ((4, 4), (2, 2))],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
            "seed": 5,
        }
    )
    run, taken = Run(config, tmp_path / "run", Accelerator(cpu=True)), {}
    randomised(run.model.stack, 0.5)

    def phase(name, module, train, *others, **options):
        taken[name] = train
        raise Seen

    monkeypatch.setattr("vqstack.phases.run.Fit", phase)
    for phase in run.phases.values():
        with pytest.raises(Seen):
            run.train(phase)
    run.close()
    indices, epochs = torch.tensor([3, 17, 3, 9, 0, 21]), torch.tensor([0, 0, 1, 7, 2, 2])
    split = load_splits(config.data, ["train"])["train"]
    for below, name in enumerate(("level-1", "level-2", "prior")):
        draws = uniforms(config.seed + below, epochs, indices)
        plain = split.pixels[indices]
        views = [seen_by(image, draw, 2) for image, draw in zip(plain.numpy(), draws, strict=True)]
        wanted = torch.from_numpy(np.stack(views))
        assert not torch.equal(wanted, plain)
        for number in range(1, below + 1):
            wanted, plain = (run.model.stack.level(number).encode(x) for x in (wanted, plain))
        assert not torch.equal(wanted, plain)
        batch = taken[name].batch(indices, epochs)
        assert torch.equal(batch[0], wanted)
        if name == "prior":
            assert torch.equal(batch[1], split.labels[indices])


def host_source(kind, stack):
    pixels = torch.randint(0, 5, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = PixelSource(pixels, augmentation=AugmentSettings(shift=2, flip=True), given=[EVERY])
    codes = CodeSource(np.random.default_rng(0).integers(0, 6, (3, 40, 4, 4), dtype=np.uint8), torch.device("cpu"))
    return {"images": images, "codes": codes, "encoded": EncodingSource(images, stack, 1)}[kind]


@pytest.mark.parametrize("kind", ["images", "codes", "encoded"])
def test_what_is_read_ahead_is_what_would_be_read_now(kind, stack):
    """In the order that was announced, out of it, and without an announcement."""
    ahead, now = host_source(kind, stack), host_source(kind, stack)
    order = Order(len(ahead), 6, 0)
    asked = [(order.indices(step), order.epochs(step)) for step in range(12)]
    ahead.announce(asked[:4])
    announced = asked[:4]
    out_of_order = [asked[5], asked[4], asked[6]]
    for one in [*announced, (EVERY[:3], None), *out_of_order, asked[4]]:
        if one is out_of_order[0]:
            ahead.announce(asked[4:8])
        for got, wanted in zip(ahead.batch(*one), now.batch(*one), strict=True):
            assert torch.equal(got, wanted)


def test_reading_ahead_reads_once_and_on_another_thread():
    reads = []

    def read(indices, epochs):
        reads.append((indices.tolist(), threading.current_thread().name))
        return indices * 2

    ahead = ReadAhead(read)
    ahead.announce([(EVERY[:2], None), (EVERY[2:4], None), (EVERY[4:6], None)])
    assert ahead.take(EVERY[:2], None).tolist() == [0, 2]
    assert ahead.take(EVERY[2:4], None).tolist() == [4, 6]
    assert ahead.take(EVERY[7:8], None).tolist() == [14]  # something else: what was announced is dropped
    assert ahead.take(EVERY[4:6], None).tolist() == [8, 10]
    elsewhere = [indices for indices, thread in reads if thread.startswith("reading-ahead")]
    assert elsewhere == [[0, 1], [2, 3], [4, 5]]
    assert [indices for indices, thread in reads if not thread.startswith("reading-ahead")] == [[7], [4, 5]]


def test_training_announces_what_it_takes(tmp_path):
    """With accumulated gradients and over the end of an epoch; a source that reads ahead trains the same."""
    taken, announced = [], []

    class Watched(PixelSource):
        def announce(self, batches):
            announced.extend(indices.tolist() for indices, _ in batches)
            super().announce(batches)

        def batch(self, indices, epochs):
            if epochs is not None:
                taken.append(indices.tolist())
            return super().batch(indices, epochs)

    states = []
    for reading in (False, True):
        torch.manual_seed(0)
        pixels = torch.randint(0, 5, (10, 1, 8, 8), dtype=torch.uint8)
        settings = FitSettings(steps=6, batch_size=4, accumulate=2, evaluate_every=6, warmup=1)
        stack = Stack(StackSettings(levels=(LevelSettings(map=(4, 4), width=8),)), (1, 8, 8), 5)
        source = Watched(pixels)
        fit = Fit("x", stack.level(1), source, source, settings, Accelerator(cpu=True), tmp_path / str(reading))
        fit.ahead = source if reading else None
        for _ in range(6):
            fit.training_step()
        states.append({name: value.clone() for name, value in stack.state_dict().items()})
    assert announced[:-2] == taken[14:]  # from the second step on; what follows the last is not taken
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
