"""Adapters of PEFT beside, instead of and on top of the experts: what learns, what stays, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import attach_bias_update, replace_feed_forward, restore_feed_forward

peft = pytest.importorskip("peft")


def replaced(host: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = host.build()
    replace_feed_forward(model, num_experts=4, expert_dim=8, adapters=host.adapters)
    return model


def adapted(host: Any, **options: Any) -> nn.Module:
    return peft.get_peft_model(replaced(host), peft.LoraConfig(r=2, **{"target_modules": ["to_q", "to_v"], **options}))


def train(model: nn.Module, host: Any, steps: int = 2) -> tuple[set[str], dict[str, Tensor]]:
    """Names of the parameters that moved, and by how much each block's bias did."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    attach_bias_update(optimizer, model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, InterMoEBlock)}
    biases = {name: block.selection_bias.clone() for name, block in blocks.items()}
    model.train()
    for _ in range(steps):
        host.call(model.base_model.model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    return moved, {name: block.selection_bias - biases[name] for name, block in blocks.items()}


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_lora_beside_leaves_experts_and_biases_alone(hosts: dict[str, Any], name: str) -> None:
    moved, biases = train(adapted(hosts[name]), hosts[name])
    assert moved
    assert all("lora_" in parameter for parameter in moved)
    assert not any(change.any() for change in biases.values())


def test_experts_that_are_modules_to_save_learn_and_come_back(hosts: dict[str, Any], tmp_path: Path) -> None:
    host = hosts["dit"]
    model = adapted(host, modules_to_save=["moe"])
    moved, biases = train(model, host)
    assert any("modules_to_save" in name and name.endswith("w_down") for name in moved)
    # PEFT keeps the frozen original, which neither learns nor moves
    assert {bool(change.any()) for name, change in biases.items() if "original_module" in name} == {False}
    assert {bool(change.any()) for name, change in biases.items() if "modules_to_save" in name} == {True}
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(replaced(host), tmp_path)
    outputs = [host.call(m.eval().base_model.model) for m in (model, loaded)]
    assert torch.equal(*outputs)


def test_lora_on_the_experts_themselves(hosts: dict[str, Any]) -> None:
    host = hosts["dit"]
    model = adapted(host, target_modules=[], target_parameters=["moe.w_gate_up", "moe.w_down"], lora_dropout=0.0)
    before = host.call(replaced(host))
    torch.testing.assert_close(host.call(model.base_model.model), before)  # B starts at zero
    moved, biases = train(model, host)
    assert any("moe" in name and "lora_B" in name for name in moved)
    assert all("lora_" in name for name in moved)
    assert not any(change.any() for change in biases.values())
    with pytest.raises(ValueError, match="around them; unload or merge that first"):
        restore_feed_forward(model)
