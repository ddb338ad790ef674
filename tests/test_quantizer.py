"""Quantizers: the nearest code by brute force, no side effects, and one test for each trap of the library."""

import copy
import math
import resource

import pytest
import torch
import torch.nn.functional as F
from helpers import equal
from pydantic import ValidationError

from vqstack.quantizer import QuantizerSettings, build_quantizer, fsq_levels, nearest, usage
from vqstack.quantizer.settings import QUANTIZERS

KINDS = ["vq", "cosine", "fsq", "lfq", "simvq"]
MAPS = [(), (7,), (3, 5), (1, 1), (2, 3, 2)]


def make(kind, size=16, dim=6, **settings):
    return build_quantizer(QuantizerSettings(kind=kind, codebook_size=size, dim=dim, **settings))


def trained(kind, size=16, dim=6, **settings):
    """A quantizer in training mode whose codebook has seen one batch."""
    quantizer = make(kind, size, dim, **settings).train()
    quantizer(torch.randn(16, dim, 4, 2))
    return quantizer


def snapshot(quantizer):
    """Everything that could change: the state and what the adapter and the library keep outside it."""
    kept = {k: v.clone() for k, v in quantizer.state_dict().items()}
    kept |= {"buffer " + k: v.clone() for k, v in quantizer.named_buffers()}
    return kept | {"_pending": torch.tensor(getattr(quantizer, "_pending", 0))}


def distances(vectors, codebook):
    """Squared distances in float64, [b, *map, K], without the expansion that the package uses."""
    x = vectors.double().movedim(1, -1)
    return (x[..., None, :] - codebook.double()).square().sum(-1)


def features_of(quantizer, vectors):
    """What the library compares with its codes: [b, *map, dimensions of the code]."""
    return quantizer.library.project_in(vectors.movedim(1, -1)).detach().double()


def bounded(z, levels):
    """FSQ's bounding function, from the paper: L values, an even L shifted by one half. In units of one step."""
    out = []
    for value, count in zip(z.unbind(-1), levels, strict=True):
        half, offset = (count - 1) * (1 + 1e-3) / 2, 0.0 if count % 2 else 0.5
        out.append(torch.tanh(value + math.atanh(offset / half)) * half - offset)
    return torch.stack(out, -1)


# --- the nearest code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("kind", ["vq", "cosine", "simvq"])
def test_encode_is_the_nearest_code_by_brute_force(kind, shape):
    quantizer, x = trained(kind), torch.randn(9, 6, *shape)
    if kind == "cosine":
        assert torch.allclose(quantizer.codebook().norm(dim=1), torch.ones(16))
    table = distances(F.normalize(x, dim=1) if kind == "cosine" else x, quantizer.codebook())
    two = table.topk(2, largest=False).values
    assert (two[..., 1] - two[..., 0]).min() > 1e-5  # no ties: the answer is unique
    codes = quantizer.encode(x)
    assert torch.equal(codes, table.argmin(-1))
    assert len(codes.unique()) > 1


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("levels", [(8, 3), (5, 4)])
def test_fsq_is_the_nearest_point_of_its_grid(levels, dim):
    quantizer = make("fsq", math.prod(levels), dim, fsq_levels=levels).train()
    x = 2 * torch.randn(8, dim, 6, 5)
    z = bounded(features_of(quantizer, x), levels)
    steps = [torch.arange(n) - n // 2 for n in levels]  # the values of each dimension, in units of one step
    digits = [(z[..., i, None] - s).abs().argmin(-1) for i, s in enumerate(steps)]
    expected = digits[0] + levels[0] * digits[1]
    assert torch.equal(quantizer.encode(x), expected)
    assert len(expected.unique()) > math.prod(levels) // 2
    points = torch.stack([(d - n // 2) / (n // 2) for d, n in zip(digits, levels, strict=True)], -1)
    vectors = quantizer.library.project_out(points).movedim(-1, 1)
    assert torch.allclose(quantizer.lookup(expected), vectors, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 6])
def test_lfq_is_the_nearest_corner_of_its_cube(dim):
    quantizer, x = make("lfq", 16, dim).train(), torch.randn(8, dim, 6, 5)
    z = features_of(quantizer, x)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double()
    codes = quantizer.encode(x)
    assert torch.equal(codes, (z[..., None, :] - corners).square().sum(-1).argmin(-1))
    assert len(codes.unique()) > 8
    vectors = quantizer.library.project_out(corners.float())[codes].movedim(-1, 1)
    assert torch.allclose(quantizer.lookup(codes), vectors, atol=1e-6)


def test_chunked_search_equals_the_whole_and_keeps_its_bound(monkeypatch):
    x, codebook = torch.randn(101, 5), torch.randn(13, 5)
    whole = nearest(x, codebook)
    assert torch.equal(whole, torch.cdist(x.double(), codebook.double()).argmin(1))
    largest, addmm = [], torch.addmm

    def spy(*args, **kwargs):
        out = addmm(*args, **kwargs)
        largest.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", spy)
    for limit in (1, 13, 26, 100, 10**6):
        largest.clear()
        assert torch.equal(nearest(x, codebook, max_elements=limit), whole)
        assert sum(largest) == 101 * 13
        assert max(largest) <= max(limit, 13)  # one row of distances is the least there can be


# --- one interface ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_returns_the_same_types(kind, training):
    """Trap: classes differ in the number, order and dtype of what they return (FSQ int32 and no loss, LFQ a tuple)."""
    quantizer, x = make(kind).train(training), torch.randn(3, 6, 2, 5)
    out = quantizer(x)
    assert out.codes.dtype == torch.int64 and quantizer.encode(x).dtype == torch.int64
    assert out.codes.shape == (3, 2, 5) and out.codes.min() >= 0 and out.codes.max() < 16
    assert out.vectors.dtype == torch.float32 and out.vectors.shape == x.shape
    assert out.loss.shape == () and out.loss.dtype == torch.float32
    assert training or out.loss == 0  # LFQ's can be negative, and others' commitment is reported in eval mode as well


@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_any_shape_are_their_sites_one_by_one(kind, shape):
    """Trap: image mode needs C == H == W or transposes; every map must equal its sites quantized alone, in order."""
    quantizer, x = trained(kind).eval(), torch.randn(4, 6, *shape)
    out = quantizer(x)
    assert out.codes.shape == (4, *shape) and out.vectors.shape == x.shape
    sites = x.reshape(4, 6, -1)
    for i in range(sites.shape[2]):
        alone = quantizer(sites[:, :, i])
        assert torch.equal(out.codes.reshape(4, -1)[:, i], alone.codes)
        assert torch.allclose(out.vectors.reshape(4, 6, -1)[:, :, i], alone.vectors, atol=1e-6)


@pytest.mark.parametrize("shape", MAPS[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_back_to_vectors_are_what_forward_gave(kind, shape):
    """Trap: the library's ways back from codes differ by class and by layout, and one of them is wrong."""
    quantizer, x = trained(kind), torch.randn(4, 6, *shape)
    before = copy.deepcopy(quantizer)
    out = quantizer(x)  # the codebook moves after it was used
    assert torch.equal(out.codes, before.encode(x))
    assert torch.allclose(before.lookup(out.codes), out.vectors, atol=1e-5)
    out = quantizer.eval()(x)
    assert torch.equal(out.codes, quantizer.encode(x))
    assert torch.equal(quantizer.lookup(out.codes), out.vectors)
    by_hand = quantizer.codebook()[out.codes.flatten()].view(4, *shape, 6).movedim(-1, 1)
    assert torch.equal(out.vectors, by_hand)


# --- gradients and losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dim"), [("vq", 6), ("simvq", 6), ("lfq", 4)])
def test_straight_through_gradient_is_the_identity(kind, dim):
    quantizer = trained(kind, dim=dim, gradient="identity")
    x, g = torch.randn(2, dim, 3, 5, requires_grad=True), torch.randn(2, dim, 3, 5)
    (gradient,) = torch.autograd.grad((quantizer(x).vectors * g).sum(), x)
    assert torch.allclose(gradient, g, atol=1e-6)


def test_straight_through_gradient_of_cosine_is_that_of_the_normalisation():
    quantizer = trained("cosine", gradient="identity")
    x, g = torch.randn(2, 6, 3, 5, requires_grad=True), torch.randn(2, 6, 3, 5)
    (gradient,) = torch.autograd.grad((quantizer(x).vectors * g).sum(), x)
    unit = F.normalize(x.detach(), dim=1)
    by_hand = (g - unit * (g * unit).sum(1, keepdim=True)) / x.detach().norm(dim=1, keepdim=True)
    assert torch.allclose(gradient, by_hand, atol=1e-5)


def test_straight_through_gradient_of_fsq_is_that_of_the_bound():
    levels = (8, 3)
    quantizer = make("fsq", 24, 2, fsq_levels=levels).train()
    x, g = torch.randn(2, 2, 3, 5, requires_grad=True), torch.randn(2, 2, 3, 5)
    (gradient,) = torch.autograd.grad((quantizer(x).vectors * g).sum(), x)
    half_width = torch.tensor([4.0, 1.0])
    z = x.detach().double().requires_grad_()
    (by_hand,) = torch.autograd.grad((bounded(z.movedim(1, -1), levels) / half_width * g.movedim(1, -1)).sum(), z)
    assert torch.allclose(gradient, by_hand.float(), atol=1e-5)


@pytest.mark.parametrize("kind", ["vq", "simvq"])
def test_rotation_gradient_turns_and_scales_input_onto_code(kind):
    """The Jacobian J is a rotation times |q|/|x| that takes x to q: |J'g| = |g| |q|/|x| and x·J'g = q·g."""
    quantizer = trained(kind, gradient="rotation")
    x, g = torch.randn(2, 6, 3, 5, requires_grad=True), torch.randn(2, 6, 3, 5)
    q = quantizer.lookup(quantizer.encode(x)).detach()
    vectors = quantizer(x).vectors
    (gradient,) = torch.autograd.grad((vectors * g).sum(), x)
    assert torch.allclose(vectors, q, atol=1e-5)
    ratio = q.norm(dim=1) / x.detach().norm(dim=1)
    assert torch.allclose(gradient.norm(dim=1), g.norm(dim=1) * ratio, rtol=1e-4)
    assert torch.allclose((gradient * x.detach()).sum(1), (q * g).sum(1), atol=1e-4)
    assert not torch.allclose(gradient, g, atol=1e-2)


@pytest.mark.parametrize("kind", ["vq", "cosine", "simvq"])
def test_loss_is_the_commitment_times_the_mean_square(kind):
    quantizer, x = trained(kind, commitment=0.7), torch.randn(4, 6, 3, 5, requires_grad=True)
    q = quantizer.lookup(quantizer.encode(x))
    target = F.normalize(x, dim=1) if kind == "cosine" else x
    square = (q - target).square().mean()
    expected = square * (1.7 if kind == "simvq" else 0.7)  # simvq's codebook term has weight 1
    assert quantizer(x).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["vq", "simvq"])
def test_commitment_pulls_the_input_to_its_code(kind):
    quantizer, x = trained(kind, commitment=0.7), torch.randn(4, 6, 3, 5, requires_grad=True)
    q = quantizer.lookup(quantizer.encode(x)).detach()
    (gradient,) = torch.autograd.grad(quantizer(x).loss, x)
    assert torch.allclose(gradient, 2 * 0.7 * (x.detach() - q) / x.numel(), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_not_an_alias(kind, training):
    """Trap: the library returns a buffer of its own as the loss; adding to it in place would change later losses."""
    quantizer = make(kind, commitment=0.0, entropy=0.0).train(training)
    x = torch.randn(16, 6, 2, 2)
    first = quantizer(x).loss.detach()
    buffers = {k: v.clone() for k, v in quantizer.named_buffers()}
    value = first.item()
    first += 5
    assert equal(buffers, dict(quantizer.named_buffers()))
    if kind != "simvq":  # its codebook term remains
        assert value == 0 and quantizer(x).loss.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_no_buffer_a_parameter(kind):
    """Trap: the library marks a buffer as trained; once it is moved, the module could not be copied any more."""
    quantizer = make(kind).train()
    out = quantizer(torch.randn(16, 6, 2, 2, requires_grad=True))
    (out.loss + out.vectors.sum()).backward()
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in quantizer.buffers())


# --- no side effects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["fresh", "trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_eval_and_encode_change_nothing(kind, start):
    quantizer = trained(kind) if start == "trained" else make(kind)
    x = torch.randn(16, 6, 2, 2)
    for training in (True, False):
        quantizer.train(training)
        before = snapshot(quantizer)
        quantizer.encode(x)
        quantizer.lookup(quantizer.encode(x))
        assert equal(before, snapshot(quantizer))
    quantizer(x)
    quantizer(torch.zeros_like(x))
    assert equal(before, snapshot(quantizer))


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_no_grad_does_not_stop_the_moving_average_but_eval_does(kind):
    """Trap: neither no_grad nor requires_grad_(False) freezes a codebook; eval mode does until a parent's .train()."""
    quantizer, x = trained(kind), torch.randn(16, 6, 2, 2)
    quantizer.requires_grad_(False)
    before = quantizer.codebook().clone()
    with torch.no_grad():
        quantizer(x)
    assert not torch.equal(quantizer.codebook(), before)
    parent = torch.nn.Sequential(quantizer).eval()
    before = snapshot(quantizer)
    quantizer(x.requires_grad_())
    assert equal(before, snapshot(quantizer))
    parent.train()
    quantizer(x)
    assert not equal(before, snapshot(quantizer))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_no_code(kind):
    """Trap: autocast is switched off inside for CUDA only; on the CPU bfloat16 distances changed 1.6 % of the codes."""
    quantizer, x = trained(kind, 64, 6, revival=0.0), torch.randn(16, 6, 8, 8)  # revival would draw random vectors
    if kind in ("vq", "simvq"):
        coarse = nearest(x.movedim(1, -1).reshape(-1, 6).bfloat16().float(), quantizer.codebook().bfloat16().float())
        assert not torch.equal(coarse, quantizer.encode(x).flatten())  # there is something to lose
    codes = quantizer.encode(x)
    vectors = quantizer.lookup(codes)
    other = copy.deepcopy(quantizer)
    plain = other(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x), codes)
        assert torch.equal(quantizer.lookup(codes), vectors)
        cast = quantizer(x)
    assert torch.equal(cast.codes, plain.codes) and torch.equal(cast.codes, codes)
    assert torch.equal(cast.vectors, plain.vectors) and torch.equal(cast.loss, plain.loss)
    assert equal(snapshot(quantizer), snapshot(other))  # the codebook learns in float32
    half = quantizer.eval()(x.bfloat16())
    assert half.vectors.dtype == torch.float32
    assert torch.equal(half.codes, quantizer(x.bfloat16().float()).codes)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_cosine_codes_do_not_depend_on_the_length(scale):
    quantizer, x = trained("cosine", 64), torch.randn(16, 6, 4, 4)
    before = copy.deepcopy(quantizer)
    codes = distances(F.normalize(x, dim=1), quantizer.codebook()).argmin(-1)
    assert torch.equal(quantizer.encode(x * scale), codes)
    assert torch.equal(before(x * scale).codes, codes)


# --- how the codebook starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_kmeans_does_not_run_in_eval_mode(kind):
    """Trap: a shape probe with zeros in eval mode leaves an all-zero codebook that is marked initialised."""
    quantizer = make(kind).eval()
    before = snapshot(quantizer)
    quantizer(torch.zeros(16, 6, 2, 2))
    quantizer(torch.randn(16, 6, 2, 2))
    assert equal(before, snapshot(quantizer)) and not quantizer.state_dict()["initialised"]
    quantizer.train()(torch.randn(16, 6, 2, 2))
    assert quantizer.state_dict()["initialised"]


@pytest.mark.parametrize("kmeans", [True, False])
@pytest.mark.parametrize("constant", [0.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_a_constant_batch_does_not_start_the_codebook(kind, constant, kmeans):
    """Trap: the same probe in training mode; then the library's own k-means, which waits for the flag, would run."""
    quantizer = make(kind, kmeans=kmeans).train()
    codebook = quantizer.codebook().clone()
    x = torch.full((16, 6, 2, 2), constant, requires_grad=True)
    out = quantizer(x)
    assert not quantizer.state_dict()["initialised"]
    assert torch.equal(quantizer.codebook(), codebook)
    assert torch.equal(out.codes, quantizer.unchecked_encode(x))
    if constant == 1.5:  # it is quantized and trained on like any other batch
        reference = copy.deepcopy(quantizer)
        reference._state.initted.fill_(True)
        expected = reference(x)
        assert torch.allclose(out.vectors, expected.vectors) and torch.allclose(out.loss, expected.loss)
        gradients = [torch.autograd.grad(y.loss + y.vectors.square().sum(), x)[0] for y in (out, expected)]
        assert torch.allclose(*gradients, atol=1e-6)
    quantizer(torch.randn(16, 6, 2, 2))
    assert quantizer.state_dict()["initialised"] and quantizer.codebook().isfinite().all()
    assert quantizer.codebook().norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_kmeans_is_that_of_a_table_of_distances(kind, monkeypatch):
    """Lloyd's iterations by hand, from the same K vectors; then with room for a third of them."""
    x = torch.randn(40, 6, 8)
    flat = x.movedim(1, -1).reshape(-1, 6)
    flat = F.normalize(flat, dim=1) if kind == "cosine" else flat
    for distances, iterations in ((2**31, 10), (len(flat) * 12 * 3, 10), (12 * 12, 1), (12 * 12 - 1, 0)):
        monkeypatch.setattr("vqstack.quantizer.moving_average.KMEANS_DISTANCES", distances)
        quantizer = make(kind, 12).train()
        torch.manual_seed(5)
        sample = flat[torch.randperm(len(flat))[: max(12, distances // 12 // 10)]]
        means = sample[:12]
        for _ in range(iterations):
            owner = torch.cdist(sample, means).argmin(1)
            means = torch.stack([sample[owner == k].mean(0) if (owner == k).any() else means[k] for k in range(12)])
            means = F.normalize(means, dim=1) if kind == "cosine" else means
        torch.manual_seed(5)
        quantizer._initialise(x.movedim(1, -1), 1.0)
        assert torch.allclose(quantizer.codebook(), means, atol=1e-5)


def test_the_start_of_a_large_codebook_takes_bounded_memory_and_time():
    """Trap: a table of all distances is 16 GiB here, and its ten passes take minutes."""
    quantizer = make("vq", 2**16, 4).train()
    flat = torch.randn(64, 1024, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quantizer._initialise(flat, 1.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: 256 MiB
    assert quantizer.state_dict()["initialised"]
    assert (torch.pdist(quantizer.codebook()[:500]) > 0).all()


@pytest.mark.parametrize("vectors", [1, 3, 15])
@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_fewer_vectors_than_codes_leave_no_code_empty_or_twice(kind, vectors):
    """Trap: with fewer vectors than codes k-means fills the rest with zeros or with duplicates."""
    quantizer = make(kind, 32).train()
    quantizer(torch.randn(2, 6, vectors))
    codebook = quantizer.codebook()
    assert quantizer.state_dict()["initialised"] and codebook.isfinite().all()
    assert codebook.norm(dim=1).min() > 1e-2
    assert torch.pdist(codebook).min() > 1e-4


def test_without_kmeans_the_random_codes_stay_until_they_are_used():
    quantizer = make("vq", 16, kmeans=False).train()
    before = quantizer.codebook().clone()
    out = quantizer(torch.randn(2, 6, 2, 2))
    used = torch.bincount(out.codes.flatten(), minlength=16) > 0
    moved = (quantizer.codebook() - before).norm(dim=1)
    assert not used.all() and moved[~used].max() < 1e-4 and moved[used].min() > 1e-3


def test_moving_average_by_hand():
    quantizer = trained("vq", 4, 2, decay=0.9, revival=0.0)
    state = {k: v.clone().double() for k, v in quantizer.state_dict().items()}
    x = torch.randn(8, 2, 5)
    codes = quantizer(x).codes.flatten()
    flat = x.movedim(1, -1).reshape(-1, 2).double()
    for k in range(4):
        use = 0.9 * state["average_use"][0, k] + 0.1 * (codes == k).sum()
        total = 0.9 * state["average_sum"][0, k] + 0.1 * flat[codes == k].sum(0)
        assert torch.allclose(quantizer.codebook()[k].double(), total / use, atol=1e-5)


# --- revival ------------------------------------------------------------------------------------------------------


def rows_from(codebook, batch):
    """Which codes are, to the bit, vectors of this batch."""
    flat = batch.movedim(1, -1).reshape(-1, batch.shape[1])
    return (codebook[:, None] == flat).all(-1).any(1)


@pytest.mark.parametrize("kmeans", [True, False])
def test_revival_is_relative_on_small_maps_with_large_codebooks(kmeans):
    """Trap: an absolute threshold replaces all 512 codes at every step (4×4 maps, batch 32, K=512)."""
    quantizer = make("vq", 512, 4, kmeans=kmeans).train()
    if kmeans:
        quantizer(torch.randn(32, 4, 4, 4))  # K means of K vectors are these vectors
    for _ in range(8):
        x = torch.randn(32, 4, 4, 4)
        quantizer(x)
        assert not rows_from(quantizer.codebook(), x).any()


def test_a_dead_code_is_revived_and_a_living_one_stays():
    """Trap: the threshold counts vectors a step; here it is a share of the mean use, 256 / 4 = 64."""
    quantizer = trained("vq", 4, 3, decay=0.5, revival=0.1)
    far = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [500, 500, 500]])
    state = quantizer.state_dict()
    state |= {"codebook": far[None], "average_use": torch.full((1, 4), 64.0), "average_sum": 64 * far[None]}
    quantizer.load_state_dict(state)
    for step in range(1, 6):
        x = (far[:3].repeat(86, 1)[:256] + 0.01 * torch.randn(256, 3)).view(16, 16, 3).movedim(-1, 1)
        quantizer(x)
        revived = rows_from(quantizer.codebook(), x)
        assert not revived[:3].any()
        assert revived[3] == (step == 4)  # 64 · 2^-step falls below 6.4 at step 4
        if step == 4:
            assert quantizer.state_dict()["average_use"][0, 3] == 64  # it gets the mean use to begin with


# --- gradient accumulation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_accumulated_micro_batches_equal_one_full_batch(kind):
    """Trap: moving averages are updated at every micro-batch, so accumulation changes the codebook."""
    whole = trained(kind, decay=0.8)
    parts, wrong = copy.deepcopy(whole), copy.deepcopy(whole)
    for _ in range(3):
        x = torch.randn(12, 6, 3, 2)
        whole(x)
        before = snapshot(parts)
        for i, micro in enumerate(x.split(4)):
            parts.accumulating = i < 2
            parts(micro)
            if parts.accumulating:
                assert torch.equal(parts.codebook(), before["codebook"][0])
            wrong(micro)
        for name, value in whole.state_dict().items():
            assert torch.allclose(value.float(), parts.state_dict()[name].float(), atol=1e-5), name
        assert whole._state.threshold_ema_dead_code == pytest.approx(parts._state.threshold_ema_dead_code)
    assert not torch.allclose(whole.codebook(), wrong.codebook(), atol=1e-3)


# --- state and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_has_our_names_and_restores_everything(kind):
    """Trap: checkpoints in the library's names die with the library."""
    quantizer = trained(kind)
    state = quantizer.state_dict()
    expected = {
        "vq": {"codebook", "average_use", "average_sum", "initialised"},
        "cosine": {"codebook", "average_use", "average_sum", "initialised"},
        "simvq": {"transform", "frozen_codebook"},
        "fsq": {"project_in", "project_out"},
        "lfq": {"project_in", "project_out", "bit_values"},
    }[kind]
    assert {k.split(".")[0] for k in state} == expected
    assert not any("library" in k or k.startswith("_") for k in state)
    torch.manual_seed(7)
    other = make(kind).train()
    other.load_state_dict({k: v.clone() for k, v in state.items()})
    x = torch.randn(16, 6, 2, 3)
    assert torch.equal(quantizer.encode(x), other.encode(x))
    quantizer(x), other(x)
    assert equal(snapshot(quantizer), snapshot(other))  # the next step is the same too: no second k-means
    assert torch.equal(quantizer.codebook(), other.codebook())


def test_simvq_learns_its_map_and_not_its_codes():
    quantizer = make("simvq").train()
    quantizer(torch.randn(4, 6, 2, 2)).loss.backward()
    assert [p.shape for p in quantizer.parameters()] == [(6, 6)]
    assert next(quantizer.parameters()).grad.abs().max() > 0


@pytest.mark.parametrize("size", [3, 12, 1000])
def test_lfq_needs_a_power_of_two(size):
    with pytest.raises(ValidationError, match="power of two"):
        QuantizerSettings(kind="lfq", codebook_size=size)
    assert QuantizerSettings(kind="lfq", codebook_size=2 ** size.bit_length())


@pytest.mark.parametrize(
    ("size", "levels", "message"),
    [
        (64, (8, 4), "product of fsq_levels"),
        (64, (8, 8, 1), "below 3"),
        (64, (32, 2), "below 3"),
        (64, (-8, -8), "below 3"),
        (10, None, "set fsq_levels"),  # 2 · 5: no factorisation without a 2
        (2, None, "set fsq_levels"),
        (11, None, "set fsq_levels"),
    ],
)
def test_fsq_levels_must_multiply_to_the_codebook(size, levels, message):
    with pytest.raises(ValidationError, match=message):
        QuantizerSettings(kind="fsq", codebook_size=size, fsq_levels=levels)


@pytest.mark.parametrize("size", [3, 5, 8, 9, 16, 24, 64, 240, 256, 512, 1000, 1024, 4096])
def test_fsq_default_levels_multiply_to_the_codebook(size):
    levels = fsq_levels(QuantizerSettings(kind="fsq", codebook_size=size))
    assert math.prod(levels) == size and min(levels) >= 3 and max(levels) <= 8
    assert make("fsq", size).codebook().shape == (size, 6)


@pytest.mark.parametrize(
    "wrong", [{"codebook_size": 1}, {"decay": 1.0}, {"revival": 1.0}, {"commitment": -1}, {"kind": "rvq"}, {"size": 4}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        QuantizerSettings(**wrong)


def test_every_kind_in_the_settings_can_be_built():
    elsewhere = {"cluster", "residual", "product"}  # a table of codes; several codes a site
    assert set(QUANTIZERS) - elsewhere == set(KINDS)
    for kind in KINDS:
        assert type(build_quantizer(QuantizerSettings(kind=kind))) is QUANTIZERS[kind]


# --- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "share", "perplexity"),
    [
        ([5, 5, 0, 0], 0.5, 2.0),
        ([7, 0, 0, 0], 0.25, 1.0),
        ([1, 1, 2, 0], 0.75, 2**1.5),  # entropy 1/4·2 + 1/4·2 + 1/2·1 = 1.5 bits
        ([3, 3, 3, 3], 1.0, 4.0),
        ([0, 0, 0, 0], 0.0, 1.0),
    ],
)
def test_usage_by_hand(counts, share, perplexity):
    use = usage(torch.tensor(counts))
    assert use.share == pytest.approx(share) and use.perplexity == pytest.approx(perplexity)


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_stochastic_codes_in_training_only(kind):
    """Codes of one vector follow the temperature in training; encoding and eval mode take the nearest."""
    temperature = 0.7
    settings = QuantizerSettings(kind=kind, codebook_size=4, dim=3, kmeans=False, revival=0, stochastic=temperature)
    quantizer = build_quantizer(settings)
    codebook = quantizer.codebook().clone()
    vector = torch.tensor([0.3, -0.2, 0.5])
    vector = vector / vector.norm() if kind == "cosine" else vector
    vectors = vector.view(1, 3, 1, 1).expand(4000, 3, 1, 1)
    quantizer._state.initted.fill_(True)
    codes = quantizer.train()(vectors).codes
    scores = codebook @ vector if kind == "cosine" else -(codebook - vector).norm(dim=1)
    probs = (scores / temperature).softmax(0)
    drawn = torch.bincount(codes.flatten(), minlength=4) / 4000
    assert ((drawn - probs).abs() < 5 * (probs * (1 - probs) / 4000).sqrt()).all()
    for encoded in (quantizer.encode(vectors), quantizer.eval()(vectors).codes):
        assert len(encoded.unique()) == 1


# --- several processes, checkpoints, classes that are not used ------------------------------------------------------


CASES = [("vq", 8, 0.9), ("cosine", 8, 0.9), ("vq", 8, 0.0), ("vq", 70, 0.9)]  # 70 codes: more than vectors, many dead


def _course(kind, size, revival, rank, world):
    """The state after each of six batches, of which process ``rank`` takes every ``world``-th image."""
    torch.manual_seed(0)
    quantizer, states = make(kind, size, 4, decay=0.5, revival=revival).train(), []
    batches = torch.Generator().manual_seed(1)
    for step in range(6):
        images = torch.randn(8, 4, 2, 2, generator=batches)
        if step == 0:
            images[1::2] = 0  # the second process alone could not start on these
        torch.manual_seed(100 * step + rank)
        quantizer(images[rank::world])
        states.append({k: v.clone() for k, v in quantizer.state_dict().items()})
    return states


def _process(rank, file, results):
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save([_course(*case, rank, 2) for case in CASES], f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_decide_and_learn_as_one(tmp_path):
    """Traps: k-means on one process alone waits for ever; processes that draw for themselves learn otherwise."""
    torch.multiprocessing.spawn(_process, (tmp_path / "meeting", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for case, one, two in zip(CASES, first, second, strict=True):
        for alone, left, right in zip(_course(*case, 0, 1), one, two, strict=True):
            assert equal(left, right)
            for name, value in alone.items():
                torch.testing.assert_close(left[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_quantizer_that_does_not_know_of_the_other_processes_is_refused(monkeypatch):
    """Trap: the library looks at the processes when the first module is built, and never again."""
    quantizer = trained("vq")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    before = snapshot(quantizer)
    with pytest.raises(RuntimeError, match="build none before Accelerator()"):
        quantizer(torch.randn(4, 6, 2, 2))
    assert equal(before, snapshot(quantizer))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_activation_checkpointing_is_refused(kind, reentrant):
    """Trap: a checkpoint runs forward a second time in the backward pass, and the averages would move twice."""
    quantizer, x = trained(kind), torch.randn(4, 6, 2, 2, requires_grad=True)

    def both(y):
        out = quantizer(y)
        return out.vectors.sum() + out.loss

    out = torch.utils.checkpoint.checkpoint(both, x, use_reentrant=reentrant)
    before = snapshot(quantizer)
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        out.backward()
    assert equal(before, snapshot(quantizer))


@pytest.mark.parametrize("kind", ["vq", "cosine"])
def test_without_revival_an_unused_code_keeps_its_vector(kind):
    """Trap: the constant that the library adds to each use draws a code that is never used towards zero."""
    quantizer = trained(kind, 4, 3, decay=0.5, revival=0.0)
    away = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
    away = F.normalize(away, dim=1) if kind == "cosine" else away
    state = quantizer.state_dict()
    state |= {"codebook": away[None], "average_use": torch.full((1, 4), 64.0), "average_sum": 64 * away[None]}
    quantizer.load_state_dict(state)
    x = away[:3].repeat(86, 1)[:256].view(16, 16, 3).movedim(-1, 1)
    for _ in range(100):  # 64 · 2^-100 is far below that constant
        assert (quantizer(x).codes < 3).all()
    assert torch.allclose(quantizer.codebook(), away, atol=1e-3)


@pytest.mark.parametrize("kind", ["fsq", "lfq", "simvq"])
def test_codes_that_are_never_drawn_have_no_temperature(kind):
    with pytest.raises(ValueError, match=f"stochastic means nothing for {kind}"):
        QuantizerSettings(kind=kind, codebook_size=64, stochastic=0.5)


OTHER = {"commitment": 0.7, "decay": 0.5, "revival": 0.9, "kmeans": False, "entropy": 0.7, "gradient": "rotation"}
CODES = {"vq": 1, "cosine": 1, "fsq": 1, "lfq": 1, "simvq": 1, "residual": 2, "product": 2}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("field", OTHER)
def test_training_depends_on_the_settings_that_a_kind_reads_and_on_no_other(kind, field):
    """Four steps with another value of one setting: numbers move where it is read, and else stay to the bit."""
    if field == "gradient" and CODES[kind] > 1:
        return  # refused whatever reads it

    def learned(**changes):
        torch.manual_seed(3)
        quantizer = make(kind, dim=4, codes=CODES[kind], **{"decay": 0.1, **changes}).train()
        found = []
        for _ in range(4):
            x = torch.randn(4, 4, 3, 3, requires_grad=True)
            quantized = quantizer(x)
            (quantized.vectors.square().sum() + quantized.loss).backward()
            found += [x.grad, quantized.loss.detach()]
        return [*found, *quantizer.state_dict().values()]

    same = all(torch.equal(a, b) for a, b in zip(learned(), learned(**{field: OTHER[field]}), strict=True))
    assert same == (field in make(kind, codes=CODES[kind]).settings.unused())
