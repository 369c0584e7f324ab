"""Denoiser and attention: the authors' arrays, any number of persons, padding, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from einops import rearrange

from intermoe import official
from intermoe.nn.attention import Attention, CrossAttention
from intermoe.nn.layers import sinusoid
from intermoe.systems.intermoe.config import DenoiserConfig, ShortcutConfig
from intermoe.systems.intermoe.denoiser import Denoiser, Shortcut

TOLERANCE = 1e-5


def golden_denoiser(archive) -> Denoiser:
    state = {k.removeprefix("state/"): torch.tensor(archive[k]) for k in archive.files if k.startswith("state/")}
    return official.load_denoiser(state, json.loads(str(archive["config"])))


def tiny(**changes) -> Denoiser:
    torch.manual_seed(0)
    arguments = {"input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "num_experts": 3}
    model = Denoiser(DenoiserConfig(**arguments, expert_dim=8, dropout=0.0, **changes))
    with torch.no_grad():
        torch.nn.init.normal_(model.out.weight, std=0.3)
        for block in model.moe_blocks():
            block.motion_router.mul_(60)
            block.text_router.mul_(60)
    return model


def test_whole_denoiser_equals_the_authors_on_valid_frames(golden, relative_error) -> None:
    archive = golden("denoiser.npz")
    model = golden_denoiser(archive)
    mask = torch.tensor(archive["mask"])[..., 0] > 0
    x = rearrange(torch.tensor(archive["x"]), "b t (p x) -> b p t x", p=2)
    y = model(x, torch.tensor(archive["timesteps"]), torch.tensor(archive["cond"]), mask)
    y = rearrange(y, "b p t x -> b t (p x)")
    assert relative_error(y[mask], archive["y"][mask.numpy()]) < TOLERANCE


def test_first_layer_equals_the_authors(golden, relative_error) -> None:
    archive = golden("denoiser.npz")
    layer = golden_denoiser(archive).layers[0]
    mask = torch.tensor(archive["mask"])[..., 0] > 0
    hidden = torch.stack([torch.tensor(archive["block0/x"]), torch.tensor(archive["block0/other"])], dim=1)
    y = layer(hidden, torch.tensor(archive["block0/emb"]), mask)[:, 0]
    assert relative_error(y[mask], archive["block0/y"][mask.numpy()]) < TOLERANCE


@pytest.mark.parametrize("persons", [1, 2, 3])
def test_persons_share_weights_and_permute(persons: int) -> None:
    model = tiny().eval()
    x, text, t = torch.randn(2, persons, 5, 6), torch.randn(2, 5), torch.tensor([3, 700])
    y = model(x, t, text)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x.flip(1), t, text), y.flip(1))


def test_the_text_can_name_the_first_person() -> None:
    torch.manual_seed(0)
    model = tiny(first_person=True).eval()
    x, text, t = torch.randn(2, 3, 5, 6), torch.randn(2, 5), torch.tensor([3, 700])
    same = x[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(model(same, t, text)[:, 0], model(same, t, text)[:, 1])  # it starts at zero
    torch.nn.init.normal_(model.first_person)
    y = model(x, t, text)
    torch.testing.assert_close(model(x[:, [0, 2, 1]], t, text), y[:, [0, 2, 1]])  # the others stay exchangeable
    assert (model(x.flip(1), t, text) - y.flip(1)).abs().max() > 1e-2
    y.square().sum().backward()
    assert model.first_person.grad.abs().max() > 0
    assert "first_person" not in tiny().state_dict()


def test_a_person_sees_all_the_others() -> None:
    model = tiny().eval()
    x, text, t = torch.randn(1, 3, 5, 6), torch.randn(1, 5), torch.tensor([3])
    y = model(x, t, text)
    for other in (1, 2):
        changed = x.clone()
        changed[:, other] += 1
        assert (model(changed, t, text)[:, 0] - y[:, 0]).abs().max() > 1e-4


def test_a_person_alone_attends_to_the_zero_key_only() -> None:
    attention = CrossAttention(16, 2)
    hidden = torch.randn(2, 1, 5, 16)
    out = attention(hidden, hidden, torch.randn(2, 16))
    torch.testing.assert_close(out, attention.attention.out.bias.expand_as(out))


def test_attention_equals_torch_with_a_zero_key() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True, add_zero_attn=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.normal_()
        ours.query.bias.copy_(theirs.in_proj_bias[:16])
        ours.key_value.bias.copy_(theirs.in_proj_bias[16:])
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, context = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    mask = torch.rand(3, 7) > 0.4
    mask[0] = False  # nobody valid: only the zero key is left
    expected = theirs(queries, context, context, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(ours(queries, context, mask), expected)


def test_padding_does_not_reach_valid_frames() -> None:
    model = tiny().eval()
    x, text, t = torch.randn(2, 2, 6, 6), torch.randn(2, 5), torch.tensor([3, 700])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    y = model(x, t, text, mask)
    valid = mask[:, None, :, None].expand_as(x)
    changed = torch.where(valid, x, torch.full_like(x, 50.0))
    torch.testing.assert_close(model(changed, t, text, mask)[valid], y[valid])
    for value in (math.inf, math.nan):
        assert torch.equal(model(x.masked_fill(~valid, value), t, text, mask)[valid], y[valid])
    torch.testing.assert_close(model(x[1:, :, :4], t[1:], text[1:]), y[1:, :, :4])


def test_padding_is_not_counted_and_both_persons_are_one_pool() -> None:
    model = tiny().train()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    model(torch.randn(2, 2, 6, 6), torch.tensor([3, 700]), torch.randn(2, 5), mask)
    assert [block.token_count.item() for block in model.moe_blocks()] == [20, 20]
    before = [block.selection_bias.clone() for block in model.moe_blocks()]
    model.update_selection_bias()
    for block, old in zip(model.moe_blocks(), before, strict=True):
        step = torch.sign(block.expert_counts.double() - 20 / 3).float()
        assert torch.equal(block.selection_bias, old - 1e-3 * step)


@pytest.mark.parametrize("pool", ["batch", "sample"])
@pytest.mark.parametrize("routing", ["dynamic", "token_choice", "expert_choice"])
def test_every_routing_kind_trains(routing: str, pool: str) -> None:
    model = tiny(routing=routing, pool=pool, top_k=2 if routing == "token_choice" else None).train()
    assert DenoiserConfig.from_dict(model.config.to_dict()) == model.config
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    out, balance = model(torch.randn(2, 2, 6, 6), torch.tensor([3, 700]), torch.randn(2, 5), mask, balance=True)
    if routing == "token_choice":
        assert balance >= 2 * 0.9  # two layers, each 1 when even
        assert torch.autograd.grad(balance, model.layers[0].moe.motion_router, retain_graph=True)[0].any()
        assert all(block.expert_counts.sum() == 2 * 20 for block in model.moe_blocks())
    else:
        assert balance == 0
    (out.transpose(1, 2)[mask].square().mean() + balance).backward()
    model.update_selection_bias()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_fresh_denoiser_answers_zero() -> None:
    model = Denoiser(DenoiserConfig(input_dim=6, text_dim=5, dim=16, num_layers=1, num_heads=2, expert_dim=8))
    assert (model(torch.randn(1, 2, 4, 6), torch.tensor([1]), torch.randn(1, 5)) == 0).all()


def test_full_size_names_and_parameters(golden) -> None:
    """229.15 M parameters as published, every published weight with a place, on the meta device."""
    shapes = golden("keys_denoiser.json")
    with torch.device("meta"):
        model = Denoiser(DenoiserConfig())
    assert sum(p.numel() for p in model.parameters()) == sum(
        torch.Size(shape).numel()
        for key, shape in shapes.items()
        if not key.endswith(("pe", "aux_bias", "expert_threshold", "ema_decay"))
    )


def test_sinusoid_is_interleaved() -> None:
    table = sinusoid(torch.tensor([0, 7]), 4)
    angles = torch.tensor([7.0, 7.0 / 100])
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(table[1], torch.stack([angles.sin(), angles.cos()], dim=1).flatten())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 2, 4, 7), torch.zeros(1), torch.zeros(1, 5)), ValueError, "x: expected shape .* 6"),
        ((torch.zeros(1, 2, 4, 6), torch.zeros(2), torch.zeros(1, 5)), ValueError, "timesteps: expected shape"),
        ((torch.zeros(1, 2, 4, 6), torch.zeros(1), torch.zeros(1, 4)), ValueError, "text: expected shape"),
        ((torch.zeros(1, 2, 0, 6), torch.zeros(1), torch.zeros(1, 5)), ValueError, "x: expected at least one"),
        (
            (torch.zeros(1, 2, 4, 6), torch.zeros(1), torch.zeros(1, 5), torch.ones(1, 4)),
            TypeError,
            "mask: expected dtype",
        ),
    ],
)
def test_bad_call_is_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        tiny()(*arguments)


def test_official_denoiser_is_strict(published_file) -> None:
    experts = {"num_experts": 3, "capacity": 1, "n_shared_experts": 0}
    sizes = {"input_feats": 42, "latent_dim": 32, "ff_size": 8, "num_layers": 2, "num_heads": 4}
    config = {**sizes, "MoE_config": experts}
    tables = {f"{name}sequence_pos_encoder.pe": sinusoid(torch.arange(9), 32) for name in ("", "embed_timestep.")}
    known = {"text_embed.weight": (32, 5), **tables}
    state = published_file(lambda state: official.load_denoiser(state, config), known)
    with pytest.raises(ValueError, match=r"unexpected keys .*blocks\.1\."):
        official.load_denoiser(state, {**config, "num_layers": 1})
    with pytest.raises(ValueError, match="config: missing key 'ff_size'"):
        official.load_denoiser(state, {k: v for k, v in config.items() if k != "ff_size"})
    with pytest.raises(ValueError, match="sinusoidal"):
        official.load_denoiser({**state, "sequence_pos_encoder.pe": torch.zeros(5000, 32)}, config)
    state["out.linear.bias"] = state["out.linear.bias"][:3]
    with pytest.raises(ValueError, match=r"'out.linear.bias': expected shape \(42,\), got \(3,\)"):
        official.load_denoiser(state, config)


@torch.no_grad()
def test_a_shortcut_by_hand() -> None:
    """up(silu(down(LN(h)) + condition(silu(c)))), c of the whole sample or of a person's run of frames."""
    torch.manual_seed(0)
    shortcut, hidden = Shortcut(6, 3), 2 * torch.randn(2, 2, 4, 6) + 1
    assert not shortcut(hidden, torch.randn(2, 6)).any()  # it starts at zero
    torch.nn.init.normal_(shortcut.up.weight)
    torch.nn.init.normal_(shortcut.up.bias)
    silu = torch.nn.functional.silu
    for condition in (torch.randn(2, 6), torch.randn(2, 2, 2, 6)):
        found = shortcut(hidden, condition)
        for row in range(2):
            for person in range(2):
                for frame in range(4):
                    h = hidden[row, person, frame]
                    normed = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()
                    c = condition[row] if condition.dim() == 2 else condition[row, person, frame // 2]
                    down = shortcut.down.weight @ normed + shortcut.down.bias
                    narrow = silu(down + shortcut.condition.weight @ silu(c))
                    expected = shortcut.up.weight @ narrow + shortcut.up.bias
                    torch.testing.assert_close(found[row, person, frame], expected)


@torch.no_grad()
def test_each_layer_has_a_shortcut_of_its_own() -> None:
    """Added to the layer's result, from that result and the condition of all layers."""
    model = tiny(shortcut=ShortcutConfig(steps=2, width=3)).eval()
    for shortcut in model.shortcuts:
        torch.nn.init.normal_(shortcut.up.weight)
    x, text, t = torch.randn(2, 2, 6, 6), torch.randn(2, 5), torch.tensor([3, 700])
    condition = model.embed_timestep(t) + model.embed_text(text)
    hidden = model.embed_motion(x) + sinusoid(torch.arange(6), 16)
    for layer, shortcut in zip(model.layers, model.shortcuts, strict=True):
        hidden = layer(hidden, condition)
        hidden = hidden + shortcut(hidden, condition)
    torch.testing.assert_close(model(x, t, text, shortcut=True), model.out(hidden))
    assert not torch.allclose(model(x, t, text), model.out(hidden), atol=1e-3)
    assert len(tiny().shortcuts) == 0


def test_equal_levels_are_one_level() -> None:
    model = tiny().eval()
    x, text = torch.randn(2, 2, 6, 6), torch.randn(2, 5)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    timesteps = torch.tensor([3, 700])
    expected = model(x, timesteps, text, mask)
    for runs in (1, 3, 6):
        levels = timesteps[:, None, None].expand(2, 2, runs)
        torch.testing.assert_close(model(x, levels, text, mask), expected)


def test_each_person_and_run_of_frames_has_its_own_level() -> None:
    """The condition of a person and run of frames is that of its own level, in attention and in the block."""
    model = tiny().eval()
    x, text = torch.randn(1, 2, 6, 6), torch.randn(1, 5)
    levels = torch.tensor([[[3, 500, 900], [100, 200, 300]]])
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, keep=keep: seen.append(args[keep]))
        for module, keep in ((model.layers[0].self_attention, 1), (model.layers[0].moe, 1))
    ]
    out = model(x, levels, text)
    for handle in handles:
        handle.remove()
    attention, block = seen
    for person in range(2):
        for run in range(3):
            own = model.embed_timestep(levels[:, person, run]) + model.embed_text(text)
            torch.testing.assert_close(attention[:, person, run], own)
            torch.testing.assert_close(block[:, 3 * person + run], own)
    assert out.shape == x.shape
    swapped = model(x.flip(1), levels.flip(1), text).flip(1)
    torch.testing.assert_close(swapped, out)  # a level goes with its person


@pytest.mark.parametrize("recompute", [False, True])
def test_levels_train(recompute: bool) -> None:
    model = tiny(recompute=recompute).train()
    torch.nn.init.normal_(model.out.weight)
    levels = torch.randint(1000, (2, 2, 3))
    model(torch.randn(2, 2, 6, 6), levels, torch.randn(2, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 4), r"timesteps: expected \(B, P, K\) with K dividing T'=6, got K=4"),
        ((2, 2, 0), r"timesteps: expected \(B, P, K\) with K dividing T'=6, got K=0"),
        ((2, 3, 6), r"timesteps: expected shape \(2, 2, K\), got \(2, 3, 6\)"),
        ((2, 2), r"timesteps: expected shape \(2,\), got \(2, 2\)"),
    ],
)
def test_levels_that_do_not_fit_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(torch.randn(2, 2, 6, 6), torch.zeros(shape, dtype=torch.long), torch.randn(2, 5))
