"""Networks: folding loses nothing, blocks start as identity, renamed state goes out and comes back."""

import pytest
import torch
from torch import nn

from vqstack.nets import (
    Attention,
    Down,
    Growing,
    ResidualBlock,
    StagedDown,
    StagedUp,
    Trunk,
    Up,
    fold,
    norm_layer,
    rename_state,
    unfold,
)
from vqstack.stack import Stack, StackSettings


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (2, 3), (3, 1), (1, 5)])
def test_unfold_inverts_fold_both_ways(scale):
    image = torch.randn(2, 3, scale[0] * 4, scale[1] * 2)
    assert torch.equal(unfold(fold(image, scale), scale), image)
    features = torch.randn(2, 3 * scale[0] * scale[1], 4, 2)
    assert torch.equal(fold(unfold(features, scale), scale), features)


def test_fold_gathers_each_patch_at_its_own_site():
    image = torch.arange(1 * 2 * 4 * 9).float().view(1, 2, 4, 9)
    folded = fold(image, (2, 3))
    assert folded.shape == (1, 2 * 2 * 3, 2, 3)
    for row in range(2):
        for column in range(3):
            patch = image[0, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert torch.equal(folded[0, :, row, column], patch.flatten())


def test_residual_block_starts_as_the_identity_and_can_leave_it():
    block, x = ResidualBlock(32), torch.randn(2, 32, 3, 5)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.body[-1].weight.grad.abs().max() > 0  # a zero layer that gets no gradient would stay the identity
    nn.init.normal_(block.body[-1].weight)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)])
def test_attention_is_the_softmax_over_all_sites_and_starts_as_the_identity(shape):
    block, x = Attention(128, len(shape)), torch.randn(2, 128, *shape)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.leave.weight)
    asked, known, told = block.look(block.norm(x)).flatten(2).view(2, 3, 2, 64, -1).unbind(1)
    weights = torch.einsum("bhdn,bhdm->bhnm", asked, known).div(8).softmax(-1)
    seen = torch.einsum("bhnm,bhdm->bhdn", weights, told).reshape(2, 128, *shape)
    torch.testing.assert_close(block(x), x + block.leave(seen), atol=1e-4, rtol=1e-4)


def test_stages_look_around_after_their_last_blocks():
    sizes = {"blocks": 3, "map_shape": (4, 4), "scale": (4, 4)}
    for network in (StagedDown, StagedUp):
        kinds = [type(block) for block in network(3, 32, 3, attention=2, **sizes).blocks]
        assert kinds == [ResidualBlock, ResidualBlock, Attention, ResidualBlock, Attention]


@pytest.mark.parametrize("width", [1, 7, 16, 24, 32, 64, 96, 256])
def test_a_one_by_one_map_still_has_something_to_normalise(width):
    groups = norm_layer(width).num_groups
    assert width % groups == 0
    assert groups == 1 or width // groups >= 16
    if width >= 16:
        assert norm_layer(width)(torch.randn(1, width, 1, 1)).abs().max() > 0.1


def test_trunk_tells_sites_apart_by_its_learned_offset():
    trunk = Trunk(16, 1, (3, 2))
    x = torch.ones(1, 16, 3, 2)
    assert torch.equal(trunk(x), x)
    nn.init.normal_(trunk.position)
    assert torch.equal(trunk(x), x + trunk.position)


def test_down_and_up_reach_exactly_the_patch_under_a_site():
    """Without blocks the only mixing is the 3×3 convolution: a site depends on its own and the adjoining patches."""
    down = Down(2, 16, 5, blocks=0, map_shape=(5, 4), scale=(2, 3))
    x = torch.randn(1, 2, 10, 12, requires_grad=True)
    out = down(x)
    assert out.shape == (1, 5, 5, 4)
    # the normalisation looks at the whole map, so reach is measured before it
    down.enter(fold(x, down.scale))[0, :, 0, 0].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    assert reached[:4, :6].all() and not reached[4:].any() and not reached[:, 6:].any()

    up = Up(5, 16, 2, blocks=1, map_shape=(5, 4), scale=(2, 3))
    features, numbers = up(out)
    assert features.shape == (1, up.features, 5, 4) and numbers.shape == x.shape


@pytest.mark.parametrize("scale", [(4, 4), (2, 6), (3,), (2, 1, 2)])
def test_staged_paths_mirror_each_other_at_any_size(scale):
    sites = (3,) * len(scale)
    how = {"blocks": 1, "map_shape": sites, "scale": scale, "least": 4}
    down, up = StagedDown(2, 8, 5, **how), StagedUp(5, 8, 2, **how)
    image = torch.randn(1, 2, *(3 * size for size in scale), requires_grad=True)
    vectors = down(image)
    assert vectors.shape == (1, 5, *sites)
    features, drawn = up(vectors)
    assert features.shape == (1, up.features, *sites)
    assert drawn.shape == image.shape
    larger = torch.randn(2, 2, *(5 * size for size in scale))
    assert up(down(larger))[1].shape == larger.shape


def test_a_stage_that_grows_starts_without_a_pattern():
    """Each site as the one it lies under, and every number can move."""
    stage = Growing(5, 3, (2, 3), 0, 0.0)
    grown = stage(torch.randn(2, 3, 4, 4))
    once = grown[:, :, ::2, ::3]
    assert grown.shape == (2, 5, 8, 12)
    assert torch.equal(grown, once.repeat_interleave(2, 2).repeat_interleave(3, 3))
    assert once.std(0).min() > 0
    assert len(stage.grow.weight.unique()) == 5 * 3 * 9


def test_a_level_of_staged_networks_learns():
    level = {"map": [2, 2], "width": 16, "encoder_blocks": 1, "decoder_blocks": 1, "networks": {"kind": "staged"}}
    settings = StackSettings(levels=[{**level, "quantizer": {"codebook_size": 16, "dim": 4}}], pad_to=(16, 16))
    stack = Stack(settings, (1, 14, 15), 4)  # padded
    tones = torch.randint(0, 4, (24, 1, 2, 2), dtype=torch.uint8)
    images = tones.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :14, :15]
    optimizer = torch.optim.AdamW(stack.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        objective = stack.level(1)(images)
        optimizer.zero_grad()
        objective.loss.backward()
        optimizer.step()
        losses.append(objective.metrics["nats"].item())
    assert losses[-1] < 0.7 * losses[0]
    codes = stack.eval().encode(images)[0]
    assert codes.shape == (24, 2, 2)
    assert stack.decode(codes, 1).shape == images.shape
    level = stack.level(1)
    base, context = level.base_and_context(level.quantizer.lookup(codes), codes)
    assert context.shape[1] == level.context_features
    assert base.shape[2:] == (14, 15)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dropout_acts_in_training_only(share):
    down = Down(1, 16, 4, blocks=1, map_shape=(2, 2), scale=(2, 2), dropout=share)
    nn.init.normal_(down.trunk.blocks[0].body[-1].weight)
    x = torch.randn(1, 1, 4, 4)
    down.eval()
    assert torch.equal(down(x), down(x))
    down.train()
    assert torch.equal(down(x), down(x)) == (share == 0.0)


class Library(nn.Module):
    """Stands for a third-party module: a submodule, a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.inner_twin = nn.Linear(2, 2)
        self.table = nn.Parameter(torch.randn(4))
        self.register_buffer("count", torch.randn(()))


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.library = Library()
        self.own = nn.Linear(2, 2)
        names = {"transform": "library.inner", "codes": "library.table", "uses": "library.count"}
        rename_state(self, names | {"twin": "library.inner_twin"})


OURS = {"transform.weight", "transform.bias", "codes", "uses", "twin.weight", "twin.bias", "own.weight", "own.bias"}


def test_renamed_state_goes_out_and_comes_back():
    first, second = Adapter(), Adapter()
    state = first.state_dict()
    assert set(state) == OURS
    assert torch.equal(state["transform.weight"], first.library.inner.weight)  # not its twin, whose name starts alike
    given = dict(state)
    second.load_state_dict(state)
    assert dict(state) == given and set(state) == OURS  # the caller's dictionary is left alone
    for mine, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_renamed_state_works_inside_other_modules():
    parent, other = (nn.ModuleDict({"a": nn.Sequential(Adapter()), "a2": Library()}) for _ in range(2))
    state = parent.state_dict()
    assert {k for k in state if k.startswith("a.0.")} == {"a.0." + k for k in OURS}
    assert "a2.inner.weight" in state and "a2.table" in state  # a neighbour with the library's names keeps them
    other.load_state_dict(state)
    assert all(torch.equal(state[k], v) for k, v in other.state_dict().items())


def test_renamed_state_is_still_loaded_strictly():
    state = Adapter().state_dict()
    with pytest.raises(RuntimeError, match="Missing"):
        Adapter().load_state_dict({k: v for k, v in state.items() if k != "codes"})
    with pytest.raises(RuntimeError, match="Unexpected"):
        Adapter().load_state_dict(state | {"surplus": torch.zeros(1)})
