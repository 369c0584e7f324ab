"""Hosts and arguments of odd kinds: shared, computed, quantised and absent weights, threads, failures, other types."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from intermoe.integrations import (
    BlockAdapter,
    MoEFeedForward,
    attach_bias_update,
    reapply_replacement,
    replace_feed_forward,
    replacement_config,
    restore_feed_forward,
)
from intermoe.nn.layers import SwiGLU

SIZES: dict[str, Any] = {"num_experts": 3, "expert_dim": 24}


def untouched(model: nn.Module) -> bool:
    return not any(isinstance(module, MoEFeedForward) for module in model.modules())


def with_network(host: Any, network: Callable[[], nn.Module]) -> nn.Module:
    model: nn.Module = host.build()
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp = network()  # type: ignore[union-attr, assignment]
    return model


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"layers": []}, ValueError, "layers: expected at least one"),
        ({"layers": [True]}, TypeError, r"layers\[0\]: expected an integer, got True"),
        ({"layers": [0.0]}, TypeError, r"layers\[0\]: expected an integer, got 0.0"),
        ({"layers": [None]}, TypeError, r"layers\[0\]: expected an integer, got None"),
        ({"layers": [-1]}, ValueError, r"layers\[0\]: expected a value >= 0"),
        ({"layers": 0}, TypeError, "layers: expected a list"),
        ({"layers": "blocks.0.mlp"}, TypeError, "layers: expected a list"),
        ({"adapters": None}, TypeError, "adapters: expected a list"),
        ({"adapters": [nn.Linear]}, TypeError, r"adapters\[0\]: expected a BlockAdapter, got"),
        ({"adapters": BlockAdapter("Block", ("mlp",))}, TypeError, "adapters: expected a list"),
    ],
)
def test_arguments_of_other_kinds(own_host: Any, values: dict[str, Any], error: type[Exception], message: str) -> None:
    model = own_host.build()
    with pytest.raises(error, match=f"^{message}"):
        replace_feed_forward(model, **{"adapters": own_host.adapters, **SIZES, **values})
    assert untouched(model)


@pytest.mark.parametrize("model", [None, "model", nn.Linear, [nn.Linear(2, 2)]])
def test_a_model_is_a_module(model: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    for call in (
        lambda: replace_feed_forward(model, **SIZES),
        lambda: restore_feed_forward(model),
        lambda: reapply_replacement(model, {"version": 1, "feed_forward": {}}),
        lambda: attach_bias_update(optimizer, model),
    ):
        with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got"):
            call()
    with pytest.raises(TypeError, match=r"^optimizer: expected an optimiser of torch, got None"):
        attach_bias_update(None, nn.Linear(2, 2))  # type: ignore[arg-type]


def test_numbers_of_layers_may_be_of_numpy(own_host: Any) -> None:
    done = replace_feed_forward(own_host.build(), layers=np.array([1]), adapters=own_host.adapters, **SIZES)
    assert [layer.name for layer in done.layers] == ["blocks.1.mlp"]


def test_a_network_that_two_blocks_share_is_refused(own_host: Any) -> None:
    """They would have experts of their own each, without a word."""
    model = own_host.build()
    model.blocks[1].mlp = model.blocks[0].mlp
    with pytest.raises(ValueError, match=r"^model: expected a feed-forward network of its own .*blocks\.1\.mlp"):
        replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    assert untouched(model)
    model.blocks[1] = model.blocks[0]  # a whole block that is used twice shares its experts as well
    assert len(replace_feed_forward(model, adapters=own_host.adapters, **SIZES).layers) == 1


def test_a_weight_that_stands_elsewhere_too_is_refused_where_it_would_be_lost(own_host: Any) -> None:
    for tie, other in (
        (lambda model: (model.blocks[1].mlp, model.blocks[0].mlp), "blocks.0.mlp"),
        (lambda model: (model.blocks[1].mlp, model), "first"),
    ):
        for init in ("random", "upcycle"):
            model = own_host.build()
            network, place = tie(model)
            if place is model:
                model.first = network.down
            else:
                network.down.weight = place.down.weight
            with pytest.raises(ValueError, match=rf"^model: expected weights of its own .*down\.weight, which {other}"):
                replace_feed_forward(model, adapters=own_host.adapters, init=init, **SIZES)
            assert untouched(model)
        replace_feed_forward(model, adapters=own_host.adapters, init="residual", **SIZES)
        assert not untouched(model)


def test_a_config_that_has_the_word_already_is_refused(own_host: Any) -> None:
    model = own_host.build()
    for config in ({"intermoe": "mine"}, SimpleNamespace(intermoe=3)):
        model.config = config
        with pytest.raises(ValueError, match=r"^model: expected a config whose 'intermoe' is free .*, got ('mine'|3)$"):
            replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
        assert untouched(model)
    model.config = {"intermoe": None}
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)


def test_names_of_networks_are_several() -> None:
    with pytest.raises(TypeError, match=r"^feed_forward: expected a list or the like, got 'mlp'"):
        BlockAdapter("Block", "mlp")
    assert BlockAdapter("Block", ["mlp"]).feed_forward == ("mlp",)


def normed() -> nn.Module:
    network = SwiGLU(16, 24)
    weight_norm(network.gate_up)
    weight_norm(network.down)
    return network


def pruned() -> nn.Module:
    network = SwiGLU(16, 24)
    prune.l1_unstructured(network.down, "weight", 0.5)
    return network


def test_weights_that_are_computed_are_upcycled_and_do_not_come_back(own_host: Any) -> None:
    """What was written to a computed weight would be lost."""
    model, inputs = with_network(own_host, normed), (torch.randn(2, 5, 16), torch.randn(2, 6))
    before = model(*inputs)
    replace_feed_forward(model, init="upcycle", num_experts=1, expert_dim=24, adapters=own_host.adapters)
    torch.testing.assert_close(model(*inputs), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"^blocks\.0\.mlp: expected a single expert .* of plain weights"):
        restore_feed_forward(model)


def test_weights_that_torch_cannot_copy(own_host: Any) -> None:
    model = with_network(own_host, pruned)
    before = own_host.call(model)
    with pytest.raises(ValueError, match=r"^init: expected SwiGLU .*, whose weights are computed from others; init="):
        replace_feed_forward(model, init="upcycle", adapters=own_host.adapters, **SIZES)
    replace_feed_forward(model, init="residual", adapters=own_host.adapters, **SIZES)
    torch.testing.assert_close(own_host.call(model), before)


class Int8Linear(nn.Linear):
    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)
        self.weight = nn.Parameter(torch.ones(out, width, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize("init", ["random", "upcycle", "residual"])
def test_quantised_networks_are_refused(own_host: Any, init: str) -> None:
    model = with_network(own_host, lambda: nn.Sequential(Int8Linear(16, 16)))
    with pytest.raises(ValueError, match=r"^blocks\.0\.mlp: expected floating-point weights, got torch\.int8"):
        replace_feed_forward(model, init=init, adapters=own_host.adapters, **SIZES)


def test_sharded_networks_are_refused(own_host: Any) -> None:
    """No process would tell the others of the gradients of its own new experts."""
    model = own_host.build()
    model.blocks[0].mlp.down.weight.full_tensor = None  # as a DTensor has it
    with pytest.raises(ValueError, match=r"^blocks\.0\.mlp: expected whole weights, got distributed ones"):
        replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    assert untouched(model)


def test_hosts_without_data(own_host: Any) -> None:
    with torch.device("meta"):
        model = own_host.build()
    with pytest.raises(ValueError, match=r"^init: expected weights to upcycle, .* on the meta device"):
        replace_feed_forward(model, init="upcycle", adapters=own_host.adapters, **SIZES)
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    assert all(value.is_meta for value in (*model.parameters(), *model.buffers()))
    model = own_host.build()
    with torch.device("meta"):  # says where new things are made, not where the host is
        replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    assert own_host.call(model).isfinite().all()


def test_hooks_that_go_with_the_dense_network_are_told(own_host: Any) -> None:
    model = own_host.build()
    model.blocks[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"^blocks\.1\.mlp: has hooks"):
        replace_feed_forward(model, adapters=own_host.adapters, **SIZES)


def test_names_are_those_of_the_model_before_it_was_compiled(own_host: Any) -> None:
    compiled = torch.compile(own_host.build(), backend="eager")
    replace_feed_forward(compiled, layers=["blocks.0.mlp"], adapters=own_host.adapters, **SIZES)
    note = replacement_config(compiled)
    assert list(note["feed_forward"]) == ["blocks.0.mlp"]
    reapply_replacement(own_host.build(), note, adapters=own_host.adapters)


@pytest.mark.parametrize(
    "change",
    [{"condition": None}, {"odd": 1}, {"residual": "no"}, None],
    ids=["missing", "unknown", "of another kind", "no mapping"],
)
def test_a_note_of_another_form_is_refused(own_host: Any, change: dict[str, Any] | None) -> None:
    model = own_host.build()
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    note = replacement_config(model)
    spec = note["feed_forward"]["blocks.0.mlp"]
    if change == {"condition": None}:
        del spec["condition"]
    note["feed_forward"]["blocks.0.mlp"] = None if change is None else spec | change if "condition" in spec else spec
    for wrong in (note, None, "note", [1]):
        with pytest.raises(ValueError, match=r"^config: expected what replacement_config"):
            reapply_replacement(own_host.build(), wrong, adapters=own_host.adapters)  # type: ignore[arg-type]


def test_batches_without_rows_or_tokens(own_host: Any) -> None:
    model = own_host.build()
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    assert model(torch.zeros(0, 5, 16), torch.zeros(0, 6)).shape == (0, 5, 16)
    assert model(torch.zeros(2, 0, 16), torch.zeros(2, 6)).shape == (2, 0, 16)


def test_a_call_that_failed_leaves_nothing_behind(own_host: Any) -> None:
    """Else the next call outside of the block would be routed on what the failed one was given."""
    model = own_host.build()
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    block = model.blocks[0]
    with pytest.raises(ValueError, match="condition 'emb': expected"):
        block(torch.zeros(2, 5, 16), torch.zeros(1, 6))
    with pytest.raises(RuntimeError, match="is routed on 'emb', but the host passed none"):
        block.mlp(torch.zeros(2, 5, 16))


def test_threads_that_call_one_host_at_once(own_host: Any) -> None:
    """Each one's tokens are routed on its own condition: the first waits inside the block until the second has left."""
    model = own_host.build()
    adapter = replace(own_host.adapters[0], mask=None)
    replace_feed_forward(model, layers=[0], adapters=[adapter], **SIZES)
    block, entered, left = model.blocks[0], threading.Event(), threading.Event()
    x, first, second = torch.randn(2, 5, 16), torch.randn(2, 6), torch.randn(2, 6)
    alone = [block(x, condition) for condition in (first, second)]
    slow: list[Tensor] = []

    def wait(*_: Any) -> None:
        if threading.current_thread() is thread:
            entered.set()
            left.wait(30)

    block.norm.register_forward_hook(wait)
    thread = threading.Thread(target=lambda: slow.append(block(x, first)), daemon=True)
    thread.start()
    entered.wait(30)
    fast = block(x, second)
    left.set()
    thread.join(timeout=60)
    assert torch.equal(fast, alone[1])
    assert torch.equal(slow[0], alone[0])


def test_a_network_that_is_compiled_alone(own_host: Any) -> None:
    model = own_host.build()
    replace_feed_forward(model, adapters=own_host.adapters, **SIZES)
    before = own_host.call(model)
    for block in model.blocks:
        block.mlp.compile(backend="eager")
    torch.testing.assert_close(own_host.call(model), before)
