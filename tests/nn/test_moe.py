"""InterMoEBlock against the authors' arrays, its invariants and its bias update."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from intermoe import InterMoEBlock, backends, official
from intermoe.files import write_tensors
from intermoe.nn.attention import Attention
from intermoe.nn.moe import BIAS_MARGIN

TOLERANCE = 1e-5


def golden_block(archive) -> InterMoEBlock:
    state = {k.removeprefix("state0/"): torch.tensor(archive[k]) for k in archive.files if k.startswith("state0/")}
    config = json.loads(str(archive["config"]))
    return official.load_moe_block(state, num_experts=config["E"], capacity=config["cap"])


def training_calls(archive) -> int:
    return len({key.split("/")[0] for key in archive.files if key.startswith("step")})


def small(**changes) -> InterMoEBlock:
    torch.manual_seed(0)
    arguments = {"dim": 16, "num_experts": 4, "expert_dim": 12, "cond_dim": 8} | changes
    block = InterMoEBlock(**arguments)
    with torch.no_grad():
        block.motion_router.mul_(60)  # from N(0, 0.006) to logits that select some experts and not others
        if block.text_router is not None:
            block.text_router.mul_(60)
        if hasattr(block.norm, "modulation"):
            nn.init.normal_(block.norm.modulation.weight, std=0.1)
    return block


def test_training_steps_equal_the_authors(golden, relative_error) -> None:
    archive = golden("moe_block.npz")
    block = golden_block(archive).train()
    for step in range(training_calls(archive)):
        read = {
            k.removeprefix(f"step{step}/"): torch.tensor(archive[k])
            for k in archive.files
            if k.startswith(f"step{step}/")
        }
        if step:
            block.update_selection_bias()
        assert torch.equal(block.selection_bias, read["aux_bias_used"][:, 0])
        x, emb = read["x"].requires_grad_(), read["emb"].requires_grad_()
        block.zero_grad()
        y = block(x, emb)
        y.backward(read["grad_out"])
        grads = {
            "gate_weight": block.motion_router.grad,
            "text_gate_weight": block.text_router.grad,
            "norm.emb_layers.1.weight": block.norm.modulation.weight.grad,
            "norm.emb_layers.1.bias": block.norm.modulation.bias.grad,
        }
        for e in range(block.num_experts):
            gate, up = block.w_gate_up.grad[e].chunk(2)
            grads |= {
                f"experts.{e}.gate_proj.weight": gate,
                f"experts.{e}.up_proj.weight": up,
                f"experts.{e}.down_proj.weight": block.w_down.grad[e],
            }
        assert {f"grad_{k}" for k in grads} == {k for k in read if k.startswith("grad_")} - {
            "grad_out",
            "grad_x",
            "grad_emb",
        }
        assert relative_error(y, read["y"]) < TOLERANCE
        assert relative_error(x.grad, read["grad_x"]) < TOLERANCE
        assert relative_error(emb.grad, read["grad_emb"]) < TOLERANCE
        for key, grad in grads.items():
            assert relative_error(grad, read[f"grad_{key}"]) < TOLERANCE, key


def test_evaluation_equals_the_authors(golden, relative_error) -> None:
    archive = golden("moe_block.npz")
    block = golden_block(archive).train()
    for step in range(training_calls(archive)):
        if step:
            block.update_selection_bias()
        block(torch.tensor(archive[f"step{step}/x"]), torch.tensor(archive[f"step{step}/emb"]))
    block.eval()
    x, emb = torch.tensor(archive["eval/x"]), torch.tensor(archive["eval/emb"])
    assert relative_error(block(x, emb), archive["eval/y"]) < TOLERANCE
    logits = (x @ block.motion_router.T + (emb @ block.text_router.T)[:, None]).flatten(0, 1)
    mask = torch.sigmoid(logits) + block.selection_bias > 0
    assert torch.equal(mask.T, torch.tensor(archive["eval/mask"]))


@pytest.mark.parametrize(
    ("fusion", "cond_dim", "norm", "shared"),
    [*itertools.product(["weighted", "sum", "learned"], [8, None], ["adaln", "none"], [0, 2])],
)
def test_every_kind_trains(fusion: str, cond_dim: int | None, norm: str, shared: int) -> None:
    block = small(fusion=fusion, cond_dim=cond_dim, norm=norm, num_shared_experts=shared)
    hidden = torch.randn(3, 5, 16, requires_grad=True)
    condition = None if cond_dim is None else torch.randn(3, 8, requires_grad=True)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    out = block(hidden, condition, mask)
    assert out.shape == hidden.shape
    assert (out[~mask] == 0).all()
    out.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert hidden.grad.abs().sum() > 0
    assert condition is None or condition.grad.abs().sum() > 0


def test_learned_fusion_starts_as_the_weighted_one() -> None:
    weighted, learned = small(alpha=0.3), small(alpha=0.3, fusion="learned")
    hidden, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    torch.testing.assert_close(weighted(hidden, condition), learned(hidden, condition))


def test_shared_experts_add_a_dense_network() -> None:
    plain, shared = small(), small(num_shared_experts=2)
    shared.load_state_dict(plain.state_dict(), strict=False)
    hidden, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    dense = shared.shared_experts(plain.norm(hidden, condition))
    torch.testing.assert_close(shared(hidden, condition), plain(hidden, condition) + dense)


def test_padding_and_batch_order_do_not_matter() -> None:
    block = small().eval()
    hidden, condition = torch.randn(3, 6, 16), torch.randn(3, 8)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])
    out = block(hidden, condition, mask)
    garbage = torch.where(mask[..., None], hidden, torch.full_like(hidden, 1e4))
    torch.testing.assert_close(block(garbage, condition, mask), out)
    torch.testing.assert_close(block(hidden.flip(0), condition.flip(0), mask.flip(0)), out.flip(0))
    torch.testing.assert_close(block(hidden[1:2, :4], condition[1:2]), out[1:2, :4])


def test_counts_are_of_valid_tokens_in_training_with_gradients_only() -> None:
    block = small()
    hidden, condition = torch.randn(2, 6, 16), torch.randn(2, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1] = False
    block(hidden, condition, mask)
    alone = block.expert_counts.clone()
    assert block.token_count == 6
    block.update_selection_bias()
    block(hidden[:1], condition[:1])
    assert torch.equal(block.expert_counts, alone)
    with torch.no_grad():
        block(hidden * 5, condition)
    block.eval()(hidden * 5, condition)
    assert torch.equal(block.expert_counts, alone)


@pytest.mark.parametrize("pool", ["batch", "sample"])
def test_counts_add_up_until_the_update_and_stay_to_be_read(pool: str) -> None:
    block = small(pool=pool)
    parts = [(torch.randn(2, n, 16), torch.randn(2, 8)) for n in (5, 9)]
    each = []
    for part in parts:
        block(*part)
        each.append([counter.clone() for counter in block.counters])
        block.update_selection_bias()
        block.selection_bias.fill_(-0.5)
        assert all(map(torch.equal, block.counters, each[-1]))
    for part in parts:
        block(*part)
    assert all(map(torch.equal, block.counters, map(torch.add, *each)))
    assert block.token_count == 28


def test_forward_never_moves_the_bias_and_the_update_follows_the_equation() -> None:
    block = small(bias_rate=0.01, capacity=1.0)
    before = block.selection_bias.clone()
    block(torch.randn(2, 6, 16), torch.randn(2, 8))
    assert torch.equal(block.selection_bias, before)
    counts = block.expert_counts.clone()
    block.update_selection_bias()
    expected = before - 0.01 * torch.sign(counts.float() - 1.0 * 12 / 4)
    assert torch.equal(block.selection_bias, expected)


def test_recomputation_leaves_bias_and_gradients_alone() -> None:
    block = small()
    hidden, condition = torch.randn(2, 6, 16, requires_grad=True), torch.randn(2, 8)
    block(hidden, condition).sum().backward()
    plain, counts = hidden.grad.clone(), block.expert_counts.clone()
    hidden.grad = None
    torch.utils.checkpoint.checkpoint(block, hidden, condition, use_reentrant=False).sum().backward()
    torch.testing.assert_close(hidden.grad, plain)
    assert torch.equal(block.expert_counts, 2 * counts)  # of two forwards, not of three
    torch.utils.checkpoint.checkpoint(block, hidden, condition, use_reentrant=True).sum().backward()
    assert torch.equal(block.expert_counts, 3 * counts)
    assert (block.selection_bias == -0.5).all()


def test_bias_settles_at_the_capacity() -> None:
    block = small(bias_rate=0.01, capacity=1.5)
    hidden, condition = torch.randn(8, 20, 16), torch.randn(8, 8)
    for _ in range(100):
        block(hidden, condition)
        block.update_selection_bias()
    assert abs(block.expert_counts.sum().item() / 160 - 1.5) < 0.1
    assert (block.expert_counts - 60).abs().max() < 10


def test_bias_stays_strictly_inside() -> None:
    block = small(bias_rate=0.3)
    with torch.no_grad():
        block.motion_router.zero_()
        block.text_router.zero_()
    for count in (100, 0):
        for _ in range(5):
            block.expert_counts.fill_(count)
            block.token_count.fill_(10)
            block.update_selection_bias()
        assert (block.selection_bias > -1).all()
        assert (block.selection_bias < 0).all()
    torch.testing.assert_close(block.selection_bias, torch.full((4,), -BIAS_MARGIN))


def test_bias_keeps_float32_through_a_change_of_dtype() -> None:
    block = small()
    block.selection_bias.fill_(-0.123456)
    block.to(torch.bfloat16)
    assert block.w_down.dtype == torch.bfloat16
    assert (block.selection_bias == torch.tensor(-0.123456)).all()
    out = block(torch.randn(2, 5, 16).bfloat16(), torch.randn(2, 8).bfloat16())
    assert out.dtype == torch.bfloat16


def test_autocast_runs_experts_in_half_and_routes_in_float32() -> None:
    block = small()
    torch.nn.init.normal_(block.text_router)
    hidden, condition = torch.randn(64, 16, 16), torch.randn(64, 8)  # so many that some are within rounding of a tie
    exact, logits = block(hidden, condition), block.routing_logits(hidden, condition)
    counts = block.expert_counts.clone()
    block.update_selection_bias()
    block.selection_bias.fill_(-0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(hidden, condition)
        linear = torch.nn.functional.linear(hidden, torch.eye(16))
        torch.testing.assert_close(block.routing_logits(hidden, condition), logits)
    assert torch.equal(block.expert_counts, counts)
    assert out.dtype == linear.dtype == torch.bfloat16
    error = ((out - exact).norm() / exact.norm()).item()
    assert 0 < error < 4 * torch.finfo(torch.bfloat16).eps * (16 + 12) ** 0.5


def test_state_round_trip() -> None:
    block, other = small(), small()
    block.selection_bias.uniform_(-0.9, -0.1)
    other.load_state_dict(block.state_dict())
    hidden, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    assert torch.equal(block(hidden, condition), other(hidden, condition))


def test_a_scalar_of_learned_fusion_is_read_too() -> None:
    block = small(fusion="learned", alpha=0.3)
    state = block.state_dict()
    other = small(fusion="learned", alpha=0.7)
    other.load_state_dict({**state, "fusion_logit": state["fusion_logit"].squeeze(0)})
    assert torch.equal(other.fusion_logit, block.fusion_logit)


def test_a_block_built_without_memory_is_filled_rightly() -> None:
    with torch.device("meta"):
        block = InterMoEBlock(16, 4, 12, 8, bias_init=-0.3, fusion="learned", alpha=0.3)
    block.to_empty(device="cpu")
    for value in (*block.parameters(), *block.buffers(), *block.counters):
        value.data.fill_(77)  # what the memory happened to hold
    for module in block.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(block.selection_bias, torch.full((4,), -0.3))
    assert all((counter == 0).all() for counter in block.counters)
    assert (block.norm.modulation.weight == 0).all()
    assert block.w_down.abs().max() <= 12**-0.5
    torch.testing.assert_close(torch.sigmoid(block.fusion_logit), torch.tensor([0.3]))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bias_is_float32_whatever_is_loaded(dtype: torch.dtype, assign: bool) -> None:
    block = small()
    state = {key: value.to(dtype) for key, value in block.state_dict().items()}
    state["selection_bias"].fill_(-0.25)
    block.load_state_dict(state, assign=assign)
    assert block.selection_bias.dtype == torch.float32
    assert (block.selection_bias == -0.25).all()
    assert block.w_down.dtype == (dtype if assign else torch.float32)
    used = block.w_down.dtype
    assert block(torch.randn(2, 5, 16, dtype=used), torch.randn(2, 8, dtype=used)).dtype == used
    block.update_selection_bias()
    assert ((block.selection_bias + 0.25).abs() <= 1.1e-3).all()


@pytest.mark.parametrize("name", ["reference", "native", "triton"])
@pytest.mark.parametrize("runs", [1, 2, 4, 12])
def test_a_row_of_the_condition_for_each_run_of_tokens(name: str, runs: int, relative_error) -> None:
    """Equal to the runs as samples of their own: forward, and every gradient."""
    if not {"cpu", "any"} & set(backends.available()[name].devices):
        pytest.skip(f"{name} does not serve the CPU here: {backends.available()[name].reason}")
    block = small(backend=name, num_shared_experts=1)
    hidden, condition = torch.randn(3, 12, 16), torch.randn(3, runs, 8)
    mask = torch.rand(3, 12) > 0.2
    grad_out = torch.randn(3, 12, 16)
    results = []
    for split in (False, True):
        block.zero_grad()
        x, c = hidden.clone().requires_grad_(), condition.clone().requires_grad_()
        shape = (3 * runs, 12 // runs, 16) if split else hidden.shape
        out = block(x.view(shape), c.flatten(0, 1) if split else c, mask.view(shape[:2]))
        out.backward(grad_out.view(shape))
        results.append([out.view(hidden.shape), x.grad, c.grad, *(p.grad.clone() for p in block.parameters())])
    for rows, samples in zip(*results, strict=True):
        assert relative_error(rows, samples) < 1e-5
    logits = block.routing_logits(hidden, condition)
    assert relative_error(logits.view(3 * runs, -1, 4), block.routing_logits(x.view(shape), c.flatten(0, 1))) < 1e-5
    if runs > 1:
        assert relative_error(block(hidden, condition[:, :1], mask), results[0][0]) > 0.01


def test_equal_rows_are_one_row() -> None:
    block = small().eval()
    hidden, condition = torch.randn(3, 12, 16), torch.randn(3, 8)
    torch.testing.assert_close(block(hidden, condition[:, None].expand(3, 4, 8)), block(hidden, condition))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    try:
        _sharded(rank, folder)
    finally:
        dist.destroy_process_group()


def _sharded(rank: int, folder: str) -> None:
    """A block whose parameters lie on two ranks; on the second its last expert takes nothing."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    hidden, condition = _tokens(rank)
    mesh = init_device_mesh("cpu", (2,))
    block = small()
    whole = block.routing_logits(hidden, condition), block.chosen_pairs(hidden, condition)
    fully_shard(block, mesh=mesh)
    assert hasattr(block.w_down, "full_tensor")
    torch.testing.assert_close(block.routing_logits(hidden, condition), whole[0])
    assert torch.equal(block.chosen_pairs(hidden, condition), whole[1])
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(hidden, condition).square().sum().backward()
    optimizer.step()
    block.update_selection_bias()
    assert (block.expert_counts[-1] == 0) == (rank == 1)
    state = {key: p.full_tensor().detach() for key, p in block.named_parameters()}
    torch.save({**state, "selection_bias": block.selection_bias}, f"{folder}/{rank}.pt")

    with pytest.raises(RuntimeError, match="mesh: expected a block whose experts are whole, got sharded ones"):
        block.distribute(mesh)
    with pytest.raises(ValueError, match=r"model\.safetensors: expected whole tensors, got a part of .*'w_down'"):
        write_tensors(f"{folder}/model.safetensors", {"w_down": block.w_down})
    learned = small(fusion="learned")
    alone = learned(hidden, condition)
    fully_shard(learned, mesh=mesh)
    torch.testing.assert_close(learned(hidden, condition), alone)
    learned(hidden, condition).sum().backward()
    assert learned.fusion_logit.grad.full_tensor().isfinite().all()

    with torch.device("meta"):
        block = InterMoEBlock(16, 4, 12, 8)
    fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    block.to_empty(device="cpu")
    for module in block.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    out = block(hidden, condition)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert block.selection_bias.dtype == torch.float32
    assert all(p.grad.to_local().isfinite().all() for p in block.parameters())
    with pytest.raises(TypeError, match="hidden: expected a plain tensor, got a DTensor"):
        block(dist.tensor.distribute_tensor(hidden, mesh), condition)


def _tokens(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    hidden, condition = torch.randn(2, 9, 16, generator=g), torch.randn(2, 8, generator=g)
    if rank == 1:  # far on the side of the tokens that the last expert does not take
        hidden -= 20 * small().motion_router[-1].detach()
    return hidden, condition


def test_sharded_over_two_processes(tmp_path: Path, relative_error) -> None:
    # New interpreters: a fork of this one would wait for OpenMP threads that it does not have.
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    block = small()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for rank in range(2):
        (block(*_tokens(rank)).square().sum() / 2).backward()
    optimizer.step()
    block.update_selection_bias()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found.pop("selection_bias"), block.selection_bias)
        for key, value in found.items():
            assert relative_error(value, block.get_parameter(key)) < 1e-5, key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_a_half_block_are_sums_of_float32(dtype: torch.dtype) -> None:
    """Of tokens and of the condition: ones of which a half type holds no sum of 2049, and 2 + 2049 no better."""
    block = InterMoEBlock(2049, 2, 1, 2049, norm="none", fusion="sum").to(dtype)
    with torch.no_grad():
        block.motion_router.fill_(1.0), block.text_router.fill_(1.0)
        hidden, condition = torch.ones(1, 1, 2049, dtype=dtype), torch.ones(1, 2049, dtype=dtype)
        for of_tokens, of_rows in ((1, 0), (0, 1), (1, 1)):
            logits = block.routing_logits(of_tokens * hidden, of_rows * condition)
            assert logits.tolist() == [[[2049.0 * (of_tokens + of_rows)] * 2]]


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_a_condition_of_another_dtype_than_the_weights(shared: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The weights' dtype is what layers compute in; the output keeps that of the tokens."""
    weights, condition_type = dtypes
    hidden, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    block = small(num_shared_experts=shared)
    torch.nn.init.normal_(block.norm.modulation.weight, std=0.3)
    expected = block(hidden, condition)
    out = block.to(weights)(hidden, condition.to(condition_type))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=1e-5 if weights == torch.float32 else 5e-3, rtol=0)
    half = block.float()(hidden.half(), condition.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("gradients", [True, False])
def test_memory_that_holds_the_negative_is_read_rightly(backend: str | None, gradients: bool) -> None:
    """As the imaginary part of a conjugate is: its memory holds other numbers than it has."""
    block, condition = small(backend=backend), torch.randn(2, 8)
    hidden = torch.randn(2, 5, 16, dtype=torch.complex64).conj().imag.contiguous()
    lazy = torch.complex(hidden, -hidden).conj().imag
    assert lazy.is_neg()
    with torch.set_grad_enabled(gradients):
        assert torch.equal(block(torch._neg_view(-hidden), condition), block(hidden, condition))
        torch.testing.assert_close(block(lazy, condition), block(hidden, condition))


def test_official_block_is_strict(published_file) -> None:
    known = {"gate_weight": (4, 6), "text_gate_weight": (4, 5), "experts.0.gate_proj.weight": (7, 6)}
    state = published_file(lambda state: official.load_moe_block(state, num_experts=4, capacity=1), known)
    with pytest.raises(ValueError, match=r"unexpected keys .*'extra'"):
        official.load_moe_block({**state, "extra": torch.zeros(1)}, num_experts=4, capacity=1)
    with pytest.raises(ValueError, match=r"unexpected keys .*experts.3"):
        official.load_moe_block(
            {k: v[:3] if v.shape[0] == 4 else v for k, v in state.items()}, num_experts=3, capacity=1
        )
    del state["experts.2.up_proj.weight"]
    with pytest.raises(ValueError, match=r"missing key 'experts.2.up_proj.weight'"):
        official.load_moe_block(state, num_experts=4, capacity=1)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2])


def test_weight_and_bias_of_a_blocks_layer_norm_are_used(relative_error) -> None:
    """Where all experts take every token, such a block is one without a norm on what its norm makes of the input."""
    block, bare = small(cond_dim=None), small(cond_dim=None, norm="none")
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    nn.init.zeros_(block.motion_router)  # it would see the input as it is
    block.selection_bias.fill_(-0.4)
    bare.load_state_dict({key: value for key, value in block.state_dict().items() if not key.startswith("norm.")})
    hidden = torch.randn(2, 5, 16)
    out, expected = (each.detach() for each in (block(hidden), bare(block.norm(hidden))))
    assert (expected != 0).any()
    assert relative_error(out, expected) < TOLERANCE


@pytest.mark.parametrize(("dim", "expert_dim"), [(16, 256), (256, 16)])
def test_experts_start_as_linear_layers_of_their_shape(dim: int, expert_dim: int) -> None:
    torch.manual_seed(0)
    block = InterMoEBlock(dim=dim, num_experts=4, expert_dim=expert_dim, cond_dim=None)
    for weight, inputs in ((block.w_gate_up, dim), (block.w_down, expert_dim)):
        bound = float(nn.Linear(inputs, 10_000).weight.detach().abs().max())  # up to 1 / sqrt(inputs)
        assert weight.detach().abs().max() == pytest.approx(bound, rel=0.01)
        assert weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_attention_starts_as_torch_has_it() -> None:
    torch.manual_seed(0)
    own, torchs = Attention(128, 4), nn.MultiheadAttention(128, 4)
    for weight in (own.query.weight, own.key_value.weight):
        assert weight.detach().abs().max() == pytest.approx(float(torchs.in_proj_weight.detach().abs().max()), rel=0.01)
        assert weight.detach().std() == pytest.approx(float(torchs.in_proj_weight.detach().std()), rel=0.02)
    for projection in (own.query, own.key_value, own.out):
        assert (projection.bias == 0).all()
