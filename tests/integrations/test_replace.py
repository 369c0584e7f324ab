"""Replacing, saving, loading and restoring, for every kind of host."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from intermoe import InterMoEBlock
from intermoe.integrations import (
    BlockAdapter,
    Condition,
    Mask,
    MoEFeedForward,
    attach_bias_update,
    load_pretrained,
    reapply_replacement,
    replace_feed_forward,
    replacement_config,
    restore_feed_forward,
)

MOE = {"num_experts": 4, "expert_dim": 8, "capacity": 1.5}


def replaced(host: Any, **options: Any) -> nn.Module:
    model = host.build()
    torch.manual_seed(1)
    replace_feed_forward(model, adapters=host.adapters, **{**MOE, **options})
    return model


def scatter(model: nn.Module) -> None:
    """Weights that differ from any initial state, so that only loading can bring them back."""
    generator = torch.Generator().manual_seed(2)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))


def test_every_network_is_replaced_and_routed_on_the_hosts_condition(host: Any) -> None:
    model = host.build()
    report = replace_feed_forward(model, adapters=host.adapters, **MOE)
    assert [layer.name for layer in report.layers] == host.networks
    assert {layer.condition for layer in report.layers} == {host.condition}
    assert all(name in str(report) for name in host.networks)
    blocks = [m for m in model.modules() if isinstance(m, InterMoEBlock)]
    assert len(blocks) == len(host.networks)
    assert all(block.norm is None for block in blocks)
    assert host.call(model).isfinite().all()


def test_residual_computes_what_the_dense_host_did_and_can_be_undone(host: Any) -> None:
    expected = host.call(host.build())
    model = replaced(host, init="residual")
    torch.testing.assert_close(host.call(model), expected, rtol=1e-5, atol=1e-6)
    restore_feed_forward(model)
    assert not any(isinstance(m, MoEFeedForward) for m in model.modules())
    assert torch.equal(host.call(model), expected)
    assert list(model.state_dict()) == list(host.build().state_dict())


def test_saved_and_loaded_gives_the_same_output_bit_for_bit(host: Any, tmp_path: Path) -> None:
    model = replaced(host)
    scatter(model)
    expected = host.call(model)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(tmp_path, max_shard_size="10KB")
        loaded = load_pretrained(type(model), tmp_path)
    else:
        torch.save(model.state_dict(), tmp_path / "model.pt")
        (tmp_path / "replacement.json").write_text(json.dumps(replacement_config(model)))
        loaded = host.build()
        reapply_replacement(loaded, json.loads((tmp_path / "replacement.json").read_text()), adapters=host.adapters)
        loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(host.call(loaded), expected)
    assert replacement_config(loaded) == replacement_config(model)


def test_a_backend_is_not_noted(own_host: Any) -> None:
    """What is saved is read on other machines, which choose their own."""
    model = replaced(own_host, backend="reference")
    assert all(m.moe.backend == "reference" for m in model.modules() if isinstance(m, MoEFeedForward))
    assert replacement_config(model) == replacement_config(replaced(own_host))
    assert "reference" not in json.dumps(replacement_config(model))


def test_a_copy_is_a_model_of_its_own(host: Any) -> None:
    model = replaced(host)
    expected = host.call(model)
    twin = copy.deepcopy(model)
    scatter(model)
    assert torch.equal(host.call(twin), expected)


def test_a_pickled_model_comes_back(hosts: dict[str, Any]) -> None:
    model = replaced(hosts["torch"])
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(hosts["torch"].call(twin), hosts["torch"].call(model))


def test_gradients_reach_routers_and_experts(host: Any) -> None:
    model = replaced(host).train()
    host.call(model).square().mean().backward()
    for network in (m for m in model.modules() if isinstance(m, MoEFeedForward)):
        for name, parameter in network.moe.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_checkpointing_gives_the_same_gradients(hosts: dict[str, Any]) -> None:
    for name in ("dit", "pixart", "sd3", "flux"):
        grads = []
        for checkpointing in (False, True):
            model = replaced(hosts[name]).train()
            if checkpointing:
                model.enable_gradient_checkpointing()
            torch.manual_seed(3)
            hosts[name].call(model).square().mean().backward()
            grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert grads[0].keys() == grads[1].keys()
        for key, grad in grads[0].items():
            torch.testing.assert_close(grad, grads[1][key], msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["dit", "own"])
def test_compiles_whole(hosts: dict[str, Any], name: str) -> None:
    model = replaced(hosts[name]).train()
    torch.manual_seed(3)
    expected = hosts[name].call(model)
    attach_bias_update(torch.optim.SGD(model.parameters(), lr=0.1), model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    torch.testing.assert_close(hosts[name].call(compiled), expected)
    block = next(m for m in model.modules() if isinstance(m, InterMoEBlock))
    counted = block.expert_counts.clone()  # of a forward without and of one with compilation
    assert counted.sum() > 0
    block.update_selection_bias()
    block.selection_bias.fill_(block.bias_init)
    torch.manual_seed(3)
    hosts[name].call(compiled)
    assert torch.equal(2 * block.expert_counts, counted)


def test_padding_is_neither_routed_nor_counted(hosts: dict[str, Any]) -> None:
    for name in ("torch", "torch-time-first", "own"):
        model = replaced(hosts[name]).train()
        hosts[name].call(model)
        assert {int(m.token_count) for m in model.modules() if isinstance(m, InterMoEBlock)} == {10}


def test_diffusers_masks_are_additive() -> None:
    mask = Mask("attention_mask", "additive")
    bias = (1 - torch.tensor([[1.0, 1.0, 0.0]])) * -10000.0
    expected = torch.tensor([[True, True, False]])
    assert torch.equal(mask.valid({"attention_mask": bias[:, None]}, (1, 3)), expected)
    assert mask.valid({"attention_mask": torch.zeros(1, 2, 3, 3)}, (1, 3)) is None
    assert mask.valid({"attention_mask": None}, (1, 3)) is None


def test_mean_condition_leaves_padding_out() -> None:
    condition = Condition("text", 2, sequence=True, mean_over=Mask("text_mask"))
    text = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    given = {"text": text, "text_mask": torch.tensor([[1, 1, 0]])}
    assert torch.equal(condition.read(given), torch.tensor([[2.0, 3.0]]))
    assert torch.equal(condition.read({"text": text[:, :2]}), torch.tensor([[2.0, 3.0]]))


def test_text_and_tokens_alone_can_be_asked_for(hosts: dict[str, Any]) -> None:
    model = hosts["pixart"].build()
    report = replace_feed_forward(model, condition="text", layers=[0], **MOE)
    report2 = replace_feed_forward(model, condition=None, layers=["*.1.ff"], **MOE)
    assert [(layer.name, layer.condition) for layer in (*report.layers, *report2.layers)] == [
        ("transformer_blocks.0.ff", "text"),
        ("transformer_blocks.1.ff", None),
    ]
    assert hosts["pixart"].call(model).isfinite().all()


def test_selection_depends_on_the_condition(own_host: Any) -> None:
    model = replaced(own_host)
    network = model.blocks[0].mlp
    nn.init.normal_(network.moe.text_router, std=2.0)
    taken = []
    network.moe.train()
    for sign in (1, -1):
        model(torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1)), sign * torch.ones(1, 6))
        taken.append(network.moe.expert_counts.clone())
    assert not torch.equal(*taken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [7]}, "layers: .*, got 7"),
        ({"layers": ["*.attention"]}, "layers: expected some of the blocks"),
        (
            {"condition": "modulation"},
            r"condition: expected what blocks.0.mlp offers, \['embedding'\], got 'modulation'",
        ),
        ({"init": "copy"}, "init: expected one of"),
        ({"init": "upcycle"}, "expert_dim: expected the width 24 of blocks.0.mlp to upcycle it, got 8"),
        (
            {"init": "upcycle", "routing": "token_choice", "top_k": 1, "expert_dim": 24},
            "expected 'upcycle_sparse'",
        ),
        ({"num_expert": 3}, "num_expert: expected an option of InterMoEBlock"),
        ({"capacity": 9.0}, "capacity: expected a value in"),
    ],
)
def test_bad_arguments_are_errors_that_leave_the_model_alone(
    own_host: Any, change: dict[str, Any], message: str
) -> None:
    model = own_host.build()
    with pytest.raises(ValueError, match=message):
        replace_feed_forward(model, adapters=own_host.adapters, **{**MOE, **change})
    assert not any(isinstance(m, MoEFeedForward) for m in model.modules())


def test_unknown_hosts_say_what_to_do(own_host: Any) -> None:
    suggested = (
        r"expected a known transformer block .* adapters=\[BlockAdapter\('SwiGLUBlock', feed_forward=\('mlp',\)\)\]"
    )
    with pytest.raises(ValueError, match=suggested):
        replace_feed_forward(own_host.build(), **MOE)
    with pytest.raises(ValueError, match=r"adapters=\[BlockAdapter\(YourBlock, feed_forward=\('mlp',\), ...\)\]"):
        replace_feed_forward(nn.Linear(3, 3), **MOE)
    adapter = BlockAdapter("SwiGLUBlock", ("ffn",))
    with pytest.raises(ValueError, match="expected feed-forward networks that the adapters name"):
        replace_feed_forward(own_host.build(), adapters=[adapter], **MOE)
    adapter = BlockAdapter("SwiGLUBlock", ("mlp",), condition={"time": Condition("temb", 6)})
    with pytest.raises(ValueError, match=r"expected an argument of SwiGLUBlock.forward .*, got 'temb'"):
        replace_feed_forward(own_host.build(), adapters=[adapter], **MOE)
    adapter = BlockAdapter("SwiGLUBlock", ("shift",))
    with pytest.raises(ValueError, match=r"blocks.0.shift: expected a map of tokens .*, got Linear"):
        replace_feed_forward(own_host.build(), adapters=[adapter], **MOE)


def test_replacing_twice_is_an_error(own_host: Any) -> None:
    model = replaced(own_host)
    with pytest.raises(ValueError, match="got replaced ones alone"):
        replace_feed_forward(model, adapters=own_host.adapters, **MOE)


def test_a_host_that_passes_no_condition_is_told(hosts: dict[str, Any]) -> None:
    model = replaced(hosts["unet"])
    block = model.mid_block.attentions[0].transformer_blocks[0]
    with pytest.raises(
        RuntimeError, match=r"routed on 'encoder_hidden_states', but the host passed none .* condition="
    ):
        block.ff(torch.zeros(1, 4, 16))


def test_a_condition_of_another_width_is_told(own_host: Any) -> None:
    model = own_host.build()
    adapter = BlockAdapter("SwiGLUBlock", ("mlp",), condition={"embedding": Condition("emb", 5)})
    replace_feed_forward(model, adapters=[adapter], **MOE)
    with pytest.raises(ValueError, match=r"condition 'emb': expected \(2, 5\), got \(2, 6\)"):
        own_host.call(model)
    with pytest.raises(ValueError, match=r"expected tokens \(B, T, 16\), got \(2, 6, 15\)"):
        model.blocks[0].mlp(torch.zeros(2, 6, 15))


def test_chunked_feed_forward_is_refused(hosts: dict[str, Any]) -> None:
    model = replaced(hosts["sd3"])
    model.enable_forward_chunking(1, dim=1)
    with pytest.raises(RuntimeError, match="disable_forward_chunking"):
        hosts["sd3"].call(model)


def test_half_precision_keeps_the_bias_in_float32(own_host: Any, tmp_path: Path) -> None:
    model = replaced(own_host).to(torch.bfloat16)
    assert {m.selection_bias.dtype for m in model.modules() if isinstance(m, InterMoEBlock)} == {torch.float32}
    x, emb = torch.zeros(1, 6, 16, dtype=torch.bfloat16), torch.zeros(1, 6, dtype=torch.bfloat16)
    assert model(x, emb).dtype == torch.bfloat16


def test_reading_a_note_of_another_model_is_an_error(hosts: dict[str, Any], tmp_path: Path) -> None:
    config = replacement_config(replaced(hosts["torch"]))
    with pytest.raises(ValueError, match="expected some of the networks"):
        reapply_replacement(hosts["own"].build(), config, adapters=hosts["own"].adapters)
    for wrong in ({"version": 2, "feed_forward": {}}, {"version": 1}, {"feed_forward": {}}):
        with pytest.raises(ValueError, match=r"expected what replacement_config returns \(version 1\), got"):
            reapply_replacement(hosts["torch"].build(), wrong)
    dense = hosts["dit"].build()
    dense.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without; use DiTTransformer2DModel.from_pretrained"):
        load_pretrained(type(dense), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder: nowhere is no folder"):
        load_pretrained(type(dense), "nowhere")


def test_a_variant_is_asked_for_by_its_name(hosts: dict[str, Any], tmp_path: Path) -> None:
    model = replaced(hosts["dit"]).half()
    for size in ("10GB", "10KB"):  # one file, several
        model.save_pretrained(tmp_path / size, variant="fp16", max_shard_size=size)
        with pytest.raises(FileNotFoundError, match="with the variant in its name"):
            load_pretrained(type(model), tmp_path / size)
        loaded = load_pretrained(type(model), tmp_path / size, variant="fp16")
        assert loaded.dtype == torch.float16
        expected = model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    index = tmp_path / "10KB" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    listed = json.loads(index.read_text())
    for names in ({"x": "../outside.safetensors"}, {"x": "/outside.safetensors"}, {"x": 3}, {}, []):
        index.write_text(json.dumps({**listed, "weight_map": names}))
        with pytest.raises(
            ValueError, match=r"index\.fp16\.json: expected a weight_map of tensors to names of files beside"
        ):
            load_pretrained(type(model), tmp_path / "10KB", variant="fp16")
