"""The published autoencoder's weights, read and run: equal to its own outputs, and strict about every key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.official import load_vae
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE

Golden = Callable[[str], Any]


def read_release(golden: Golden, dataset: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    arrays = golden(f"vae_{dataset}.npz")
    state = {key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("state/")}
    names = ("motion", "latent_mean", "loss_kl", "decoded")
    return state, json.loads(str(arrays["config"])), {name: torch.from_numpy(arrays[name]) for name in names}


CONFIG = {"latent_dim": 6, "dataset_name": "interhuman"}


@pytest.fixture
def state(published_file: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return published_file(lambda state: load_vae(state, CONFIG), {})


@pytest.mark.parametrize("dataset", ["interhuman", "interx"])
def test_equals_the_release(golden: Golden, relative_error: Callable[..., float], dataset: str) -> None:
    state, config, expected = read_release(golden, dataset)
    vae = load_vae(state, config)
    posterior = vae.encode(expected["motion"])
    assert relative_error(posterior.mean, expected["latent_mean"]) < 1e-5
    assert relative_error(posterior.kl(), expected["loss_kl"]) < 1e-5
    assert relative_error(vae.decode(expected["latent_mean"]), expected["decoded"]) < 1e-5
    stream = vae.streaming_decoder()
    steps = [stream.step(latent) for latent in expected["latent_mean"].unbind(1)]
    assert relative_error(torch.cat(steps, dim=1), expected["decoded"]) < 1e-5


def test_graphs_come_from_the_state_dict(golden: Golden) -> None:
    state, config, _ = read_release(golden, "interx")
    loaded, own = load_vae(state, config), CausalSkeletalVAE(VAEConfig(representation="interx", latent_dim=8))
    assert torch.equal(loaded.adjacency_0, state["conv_enc.layers.0.0.layers.2.adj_matrix"])
    assert not torch.equal(loaded.adjacency_0, own.adjacency_0)
    assert torch.equal(loaded.pool_0, own.pool_0)

    state, config, _ = read_release(golden, "interhuman")
    loaded, own = load_vae(state, config), CausalSkeletalVAE(VAEConfig(latent_dim=8))
    for name, buffer in own.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name)), name


def test_full_size_state_dict_is_read_whole(golden: Golden) -> None:
    shapes = golden("keys_vae.json")
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    vae = load_vae(state, {"latent_dim": 64, "dataset_name": "interhuman"})
    fixed = sum(value.numel() for key, value in state.items() if "adj_matrix" in key or "pool" in key)
    assert sum(parameter.numel() for parameter in vae.parameters()) + fixed == 1_006_948


@pytest.mark.parametrize(
    ("dataset", "contacts"), [("interhuman", [7, 10, 8, 11]), ("interx", []), ("t2m", [7, 10, 8, 11])]
)
def test_feet_of_a_data_set_are_those_that_it_has(
    dataset: str, contacts: list[int], published_file: Callable[..., dict[str, Tensor]]
) -> None:
    config = {**CONFIG, "dataset_name": dataset}
    state = published_file(lambda state: load_vae(state, config), {})
    told = load_vae(state, {**config, "contact_joints": contacts}).config
    assert told == load_vae(state, config).config
    assert (told.latent_dim, told.num_blocks, told.kernel_size, told.dropout) == (6, 2, 3, 0.1)
    other = [] if contacts else [7, 10, 8, 11]
    with pytest.raises(ValueError, match=r"config: contact_joints: expected \["):
        load_vae(state, {**config, "contact_joints": other})


def test_every_weight_is_copied(state: dict[str, Tensor]) -> None:
    """No parameter keeps its initial value: a number everywhere in the file is it everywhere in the model."""
    graphs = ("adj_matrix", "skeleton_pool", "skeleton_unpool")
    poisoned = {key: value if key.endswith(graphs) else torch.full_like(value, 1234.5) for key, value in state.items()}
    vae = load_vae(poisoned, CONFIG)
    assert not vae.training
    assert [name for name, parameter in vae.named_parameters() if not (parameter == 1234.5).all()] == []


@pytest.mark.parametrize(
    "key",
    [
        "dist.bias",
        "motion_enc.layers.21.2.weight",
        "motion_dec.layers.0.0.bias",
        "conv_enc.layers.1.1.layers.5.temp_conv.weight",
        "conv_dec.layers.1.2.layers.5.adj_matrix",
        "conv_dec.layers.0.0.skeleton_unpool",
    ],
)
def test_missing_and_misshapen_keys_are_named(state: dict[str, Tensor], key: str) -> None:
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        load_vae({name: value for name, value in state.items() if name != key}, CONFIG)
    with pytest.raises(ValueError, match=f"'{key}': expected shape"):
        load_vae({**state, key: torch.zeros(3)}, CONFIG)


def test_unexpected_key_is_named(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"unexpected keys \['extra.weight'\]"):
        load_vae({**state, "extra.weight": torch.zeros(1)}, CONFIG)


@pytest.mark.parametrize(
    "key",
    [
        "conv_enc.layers.0.0.layers.5.adj_matrix",
        "conv_dec.layers.1.1.layers.2.adj_matrix",
        "conv_dec.layers.1.0.skeleton_unpool",
        "conv_dec.layers.0.0.skeleton_unpool",
    ],
)
def test_contradicting_graphs_are_refused(state: dict[str, Tensor], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        load_vae({**state, key: 1 - state[key]}, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "config: activation: expected 'silu', got 'gelu'"),
        ({"norm": "layer"}, "config: norm"),
        ({"n_layers": 3}, "config: n_layers"),
        ({"contact_joints": [1]}, "config: contact_joints"),
        ({"dataset_name": "kit"}, "config: dataset_name: expected one of .* got 'kit'"),
    ],
)
def test_unsupported_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_vae({}, {"latent_dim": 8, "dataset_name": "interhuman", **change})


def test_missing_configuration_is_named() -> None:
    with pytest.raises(ValueError, match="config: missing key 'latent_dim'"):
        load_vae({}, {"dataset_name": "interhuman"})
