"""Defaults, first draws and small formulas of the layers, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from intermoe import InterMoEBlock
from intermoe.nn.attention import Attention, CrossAttention, SelfAttention
from intermoe.nn.distributed import clip_grad_norm_, local, peers_of, spread
from intermoe.nn.layers import AdaLN, SwiGLU, TimestepEmbedding, sinusoid, whole
from intermoe.nn.multihead import EncoderLayer, MultiheadAttention
from intermoe.ops import exchange


def test_a_block_is_that_of_the_paper_where_nothing_is_said() -> None:
    with torch.device("meta"):
        block = InterMoEBlock()
    assert {name: tuple(parameter.shape) for name, parameter in block.named_parameters()} == {
        "motion_router": (8, 768), "text_router": (8, 768), "norm.modulation.weight": (1536, 768),
        "norm.modulation.bias": (1536,), "w_gate_up": (8, 2048, 768), "w_down": (8, 768, 1024),
    }  # fmt: skip
    said = {name: getattr(block, name) for name in ("capacity", "fusion", "alpha", "bias_rate", "bias_init")}
    assert said == {"capacity": 1.0, "fusion": "weighted", "alpha": 0.5, "bias_rate": 1e-3, "bias_init": -0.5}
    others = ("recompute", "backend", "routing", "top_k", "pool", "unit", "max_pairs", "half_sums", "is_spread")
    assert [getattr(block, name) for name in others] == [
        False, None, "dynamic", None, "batch", "frame", None, False, False,
    ]  # fmt: skip
    assert repr(block).startswith(
        "InterMoEBlock(\n  dim=768, num_experts=8, expert_dim=1024, cond_dim=768, capacity=1.0, fusion='weighted', "
        "routing='dynamic'\n"
    )


def test_sizes_are_told_by_their_own_names() -> None:
    block = InterMoEBlock(6, 3, 5, 4, capacity=1.5, fusion="sum", routing="expert_choice")
    assert block.extra_repr() == (
        "dim=6, num_experts=3, expert_dim=5, cond_dim=4, capacity=1.5, fusion='sum', routing='expert_choice'"
    )


def test_routers_start_near_zero_and_experts_as_linear_layers() -> None:
    """Uniform to one over the root of what each sums over."""
    torch.manual_seed(0)
    block = InterMoEBlock(64, 8, 16, 32, bias_init=-0.25)
    for router in (block.motion_router, block.text_router):
        assert router.std().item() == pytest.approx(0.006, rel=0.15)
        assert abs(router.mean().item()) < 0.002
    for weight, inputs in ((block.w_gate_up, 64), (block.w_down, 16)):
        bound = inputs**-0.5
        assert 0.98 * bound < weight.max() <= bound
        assert -bound <= weight.min() < -0.98 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert (block.selection_bias == -0.25).all()


def test_a_bias_stays_a_thousandth_inside() -> None:
    block = InterMoEBlock(4, 3, 4, None, bias_rate=0.7)
    for count, end in ((100, -0.999), (0, -0.001)):
        for _ in range(3):
            block.expert_counts.fill_(count), block.token_count.fill_(10)
            block.update_selection_bias()
        torch.testing.assert_close(block.selection_bias, torch.full((3,), end))


@pytest.mark.parametrize("runs", [None, 2])
def test_adaptive_normalisation_by_hand(runs: int | None) -> None:
    """Of tokens that vary as little as the millionth that is added to their variance."""
    torch.manual_seed(0)
    layer = AdaLN(5, 3)
    nn.init.normal_(layer.modulation.weight), nn.init.normal_(layer.modulation.bias)
    hidden = 1e-3 * torch.randn(2, 4, 5) + 7
    condition = torch.randn(2, 3) if runs is None else torch.randn(2, runs, 3)
    found = layer(hidden, condition)
    for row in range(2):
        for frame in range(4):
            x, own = hidden[row, frame].double(), condition[row] if runs is None else condition[row, frame // 2]
            made = layer.modulation.weight.double() @ nn.functional.silu(own.double()) + layer.modulation.bias.double()
            scale, shift = made[:5], made[5:]
            normed = (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()
            torch.testing.assert_close(found[row, frame].double(), normed * (1 + scale) + shift, rtol=5e-3, atol=5e-3)
    assert isinstance(plain := InterMoEBlock(5, 2, 4, None).norm, nn.LayerNorm)
    assert plain.eps == layer.eps == 1e-6


def test_a_dense_network_by_hand() -> None:
    layer, x = SwiGLU(3, 4), torch.randn(2, 5, 3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "gate_up.weight": (8, 3), "down.weight": (3, 4),
    }  # fmt: skip
    gate, up = (x @ layer.gate_up.weight.T).split(4, dim=-1)
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * up) @ layer.down.weight.T)


def test_projections_of_an_attention_start_as_one_matrix_and_without_a_bias() -> None:
    """Of D inputs and 3 D outputs by Glorot and Bengio: uniform to the root of 6 / 4 D."""
    torch.manual_seed(0)
    layer, bound = Attention(48, 4), (6 / (48 + 3 * 48)) ** 0.5
    for projection in (layer.query, layer.key_value):
        assert 0.98 * bound < projection.weight.abs().max() <= bound
        assert projection.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(each.bias.any() for each in (layer.query, layer.key_value, layer.out))


@pytest.mark.parametrize("masked", [True, False])
def test_attention_and_layer_of_torch_s_weights_are_torch_s(masked: bool) -> None:
    torch.manual_seed(0)
    own, theirs = MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(own.state_dict())
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    given = None if mask is None else ~mask
    torch.testing.assert_close(own(x, context, mask), theirs(x, context, context, key_padding_mask=given)[0])
    torch.testing.assert_close(
        own(context, context, mask), theirs(context, context, context, key_padding_mask=given)[0]
    )
    layer = EncoderLayer(8, 2, 12)
    torch_s = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
    torch_s.load_state_dict(layer.state_dict())
    for one, other in zip(layer.parameters(), torch_s.parameters(), strict=True):
        nn.init.normal_(one, std=0.5), other.data.copy_(one.data)
    found, wanted = layer(context, mask), torch_s(context, src_key_padding_mask=given)
    keep = torch.ones(2, 5, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(found[keep], wanted[keep])


def test_gradients_are_cut_as_torch_cuts_them() -> None:
    """Small ones too: what is added to the norm is a millionth."""
    for limit in (5e-4, 1.0, 100.0):
        made = []
        for clip in (clip_grad_norm_, nn.utils.clip_grad_norm_):
            parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
            parameters[0].grad, parameters[1].grad = torch.tensor([6e-4, 0.0]), torch.tensor([0.0, 8e-4, 0.0])
            norm = clip(parameters, limit)
            made.append([norm, *(p.grad for p in parameters)])
        for one, other in zip(*made, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0


def test_a_parameter_that_is_whole_is_itself() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    assert whole(parameter) is parameter


def drawn(layer: nn.Module) -> nn.Module:
    """No weight at zero, so that every one of them counts."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def test_a_timestep_goes_through_one_layer_and_then_the_other() -> None:
    torch.manual_seed(0)
    layer, timesteps = drawn(TimestepEmbedding(6)), torch.tensor([[3, 700], [0, 41]])
    inner = nn.functional.linear(sinusoid(timesteps, 6), layer.inner.weight, layer.inner.bias)
    expected = nn.functional.linear(inner * torch.sigmoid(inner), layer.out.weight, layer.out.bias)
    torch.testing.assert_close(layer(timesteps), expected)


@pytest.mark.parametrize("persons", [1, 2, 3])
def test_persons_attend_to_their_own_frames_and_to_those_of_the_others(persons: int) -> None:
    """Each side under its own normalisation; of samples of other lengths the valid frames alone."""
    torch.manual_seed(persons)
    own, others = drawn(SelfAttention(8, 2)), drawn(CrossAttention(8, 2))
    hidden, partners, condition = torch.randn(2, persons, 4, 8), torch.randn(2, persons, 4, 8), torch.randn(2, 8)
    lengths = (4, 2)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    found = own(hidden, condition, mask), others(hidden, partners, condition, mask)
    for sample, length in enumerate(lengths):
        given = condition[sample : sample + 1]
        for person in range(persons):
            queries = own.norm(hidden[sample : sample + 1, person], given)
            wanted = own.attention(queries, queries[:, :length])[0]
            torch.testing.assert_close(found[0][sample, person], wanted, rtol=1e-4, atol=1e-5)
            seen = [partners[sample, other, :length] for other in range(persons) if other != person]
            context = torch.cat([others.context_norm(each[None], given) for each in seen] or [hidden[:1, 0, :0]], dim=1)
            queries = others.norm(hidden[sample : sample + 1, person], given)
            wanted = others.attention(queries, context)[0]
            torch.testing.assert_close(found[1][sample, person], wanted, rtol=1e-4, atol=1e-5)


class Mesh:
    """Of two replicas of three ranks, or of three ranks."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def get_group(self, dimension: int) -> str:
        return f"group {dimension}"

    def size(self, dimension: int | None = None) -> int:
        sizes = (2, 3)[-self.ndim :]
        return 3 * (self.ndim == 2) + 3 if dimension is None else sizes[dimension]


class Spread:
    """A weight that is split over a mesh, as this rank sees it."""

    def __init__(self, mesh: Mesh) -> None:
        self.device_mesh, self.part = mesh, torch.ones(2, requires_grad=True)

    def to_local(self) -> torch.Tensor:
        return self.part


@pytest.mark.parametrize(("ndim", "ranks"), [(1, 3), (2, 6)])
def test_a_weight_is_split_over_the_last_dimension_and_its_gradient_is_the_mean_over_all(
    ndim: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[Any] = []
    summed: list[Any] = []
    monkeypatch.setattr(
        torch.distributed.tensor, "distribute_tensor", lambda w, mesh, places: (placed.append((mesh, places)), w)[1]
    )
    monkeypatch.setattr(exchange.dist, "all_reduce", lambda grad, group: summed.append(group))
    mesh: Any = Mesh(ndim)
    spread(nn.Parameter(torch.zeros(3, 2)), mesh)
    assert placed == [(mesh, [*[Replicate()] * (ndim - 1), Shard(0)])]
    weight = Spread(mesh)
    assert peers_of(weight) == exchange.Peers(f"group {ndim - 1}", 3)  # type: ignore[arg-type]
    (12 * local(weight)).sum().backward()
    assert weight.part.grad is not None
    assert weight.part.grad.tolist() == [12 / ranks] * 2
    assert summed == (["group 0"] if ndim == 2 else [])
