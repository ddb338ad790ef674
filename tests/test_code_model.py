"""The transformer over codes: causal, normalised, cached equals uncached, names of its own."""

import itertools

import pytest
import torch

from vqstack.code_model import AutoregressiveCodeModel, CodeModelSettings
from vqstack.likelihood import CodeHead


def build(map_shape=(2, 3), size=5, classes=3, **changes):
    """A model whose weights are all random: its last layer would start at zero."""
    settings = CodeModelSettings(**{"depth": 2, "dim": 16, "heads": 2, "dropout": 0.0, **changes})
    model = AutoregressiveCodeModel(settings, map_shape, CodeHead(size), classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def some(model, batch=4):
    codes = torch.randint(0, model.size, (batch, *model.map_shape))
    return codes, torch.randint(0, model.classes, (batch,)) if model.classes else None


def test_causality_by_gradients():
    model = build()
    codes, labels = some(model)
    seen = []
    hook = model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model.logits(codes.flatten(1), labels)
    hook.remove()
    (embedded,) = seen  # of codes 0 … N-2
    for site in range(model.sites):
        # a random direction, because the sum over codes of one site need not depend on everything
        score = (logits[:, site] * torch.randn(model.size)).sum()
        (gradient,) = torch.autograd.grad(score, embedded, retain_graph=True, allow_unused=True)
        size = gradient.abs().amax(dim=(0, 2))
        assert (size[site:] == 0).all()
        assert (size[:site] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
def test_cached_equals_uncached(classes):
    model = build(classes=classes)
    codes, labels = some(model)
    flat = codes.flatten(1)
    whole = model.logits(flat, labels)
    logits, cache = model.prefill(len(flat), labels)
    for site in range(model.sites):
        if site:
            logits, cache = model.step(flat[:, site - 1], site, cache)
        torch.testing.assert_close(logits, whole[:, site], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
def test_log_prob_is_the_sum_over_the_walked_factors(classes):
    model = build(classes=classes)
    codes, labels = some(model)
    flat = codes.flatten(1)
    distribution = model.distribution(len(codes), labels, torch.device("cpu"))
    values, nats, walked = torch.zeros_like(flat), torch.zeros(len(codes)), []
    for factor in distribution.factors(values):
        chosen = flat[:, factor.sites]
        torch.testing.assert_close(factor.log_probs.exp().sum(-1), torch.ones(chosen.shape))
        nats += factor.log_probs.gather(-1, chosen[..., None])[..., 0].sum(1)
        values[:, factor.sites] = chosen
        walked += factor.sites.tolist()
    assert walked == list(range(model.sites))
    torch.testing.assert_close(nats, model.log_prob(codes, labels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distribution.log_prob(codes), model.log_prob(codes, labels))


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 2])
def test_all_maps_sum_to_one(classes):
    model = build(map_shape=(2, 1), size=3, classes=classes)
    codes = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 2, 1)
    for label in range(max(classes, 1)):
        labels = torch.full((len(codes),), label) if classes else None
        assert model.log_prob(codes, labels).double().exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_first_code_is_scored():
    model = build(map_shape=(1, 1), size=3, classes=0)
    codes = torch.arange(3).view(3, 1, 1)
    nats = model.log_prob(codes, None)
    assert len(nats.unique()) == 3
    (gradient,) = torch.autograd.grad(nats[0], model.begin)
    assert gradient.abs().sum() > 0


@torch.no_grad()
def test_the_label_matters():
    model = build()
    codes, _ = some(model)
    zero, one = (model.log_prob(codes, torch.full((len(codes),), label)) for label in (0, 1))
    assert (zero != one).all()
    with pytest.raises(ValueError, match="labels are needed"):
        model.log_prob(codes, None)
    free = build(labels=False)
    assert free.classes == 0
    assert torch.isfinite(free.log_prob(codes, None)).all()


@torch.no_grad()
def test_starts_uniform():
    model = AutoregressiveCodeModel(CodeModelSettings(depth=1, dim=8, heads=2), (2, 2), CodeHead(4), 0).eval()
    codes, _ = some(model)
    torch.testing.assert_close(model.log_prob(codes, None), -4 * torch.tensor(4.0).log().expand(len(codes)))


def test_forward_is_nats_a_site():
    model = build()
    codes, labels = some(model)
    objective = model(codes, labels)
    nats = -model.log_prob(codes, labels).mean()
    torch.testing.assert_close(objective.loss, nats / 6)
    torch.testing.assert_close(objective.metrics["nats"], nats.detach())
    assert objective.loss.requires_grad
    assert not objective.metrics["nats"].requires_grad


def test_names_are_our_own_and_travel():
    model, other = build(), build()
    state = model.state_dict()
    assert not [name for name in state if "backbone" in name or "layers" in name]
    assert {"blocks.0.query.weight", "blocks.1.feedforward_out.bias", "final_norm.gain"} <= set(state)
    assert len(state) == len(list(model.named_parameters()))
    codes, labels = some(model)
    assert not torch.equal(model.log_prob(codes, labels), other.log_prob(codes, labels))
    other.load_state_dict(state, strict=True)
    assert torch.equal(model.log_prob(codes, labels), other.log_prob(codes, labels))


def test_heads_divide_dim():
    with pytest.raises(ValueError, match="multiple of heads"):
        CodeModelSettings(dim=10, heads=4)
