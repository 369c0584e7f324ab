"""Reads state dicts of the method's published implementation into this package's modules.

Strict: a key that is missing, unexpected or of the wrong shape is a ``ValueError`` that names it. Configurations are
mappings with the keys of the published configuration files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intermoe.config import VAEConfig
from intermoe.nn.skeleton import CONTACT_JOINTS
from intermoe.nn.vae import CausalSkeletalVAE, ResidualBlock

_LAYOUT_OF_DATASET = {"interhuman": "interhuman", "interx": "interx", "t2m": "humanml3d"}


class StrictReader:
    """Hands out the tensors of a state dict one by one and knows which were never asked for."""

    def __init__(self, state: Mapping[str, Tensor], name: str = "state_dict") -> None:
        self._state = state
        self._name = name
        self._unread = dict.fromkeys(state)

    def take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``key``. Raises ``ValueError`` if it is missing or not of ``shape``."""
        if key not in self._state:
            raise ValueError(f"{self._name}: missing key {key!r}")
        value = self._state[key]
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{self._name}: {key!r} must have shape {tuple(shape)}, got {tuple(value.shape)}")
        self._unread.pop(key, None)
        return value.detach()

    def copy(self, parameter: Tensor, key: str) -> None:
        """Fill ``parameter`` with the tensor ``key``, which must have its shape."""
        with torch.no_grad():
            parameter.copy_(self.take(key, tuple(parameter.shape)))

    def finish(self) -> None:
        """Raises ``ValueError`` naming the keys that nothing asked for."""
        if self._unread:
            raise ValueError(f"{self._name}: unexpected keys {sorted(self._unread)}")


def require_setting(config: Mapping[str, Any], key: str, supported: Any, default: Any) -> None:
    """Raises ``ValueError`` unless ``config[key]`` (``default`` if absent) is the one value that is implemented."""
    value = config.get(key, default)
    if value != supported:
        raise ValueError(f"config: {key} must be {supported!r}, got {value!r}")


def setting(config: Mapping[str, Any], key: str) -> Any:
    """``config[key]``. Raises ``ValueError`` if it is missing."""
    if key not in config:
        raise ValueError(f"config: missing key {key!r}")
    return config[key]


def load_vae(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> CausalSkeletalVAE:
    """The autoencoder, in eval mode, from the published one's state dict.

    ``config`` needs ``latent_dim`` and ``dataset_name`` (interhuman, interx or t2m) and may have ``n_extra_layers``,
    ``kernel_size``, ``dropout`` and more; values that this package does not implement raise ``ValueError``. Graphs and
    pooling groups come from the state dict: the published Inter-X graph is not the skeleton's, but its weights were
    trained on it.
    """
    dataset = setting(config, "dataset_name")
    if dataset not in _LAYOUT_OF_DATASET:
        raise ValueError(f"config: dataset_name must be one of {tuple(_LAYOUT_OF_DATASET)}, got {dataset!r}")
    contacts = [] if dataset == "interx" else list(CONTACT_JOINTS)
    for key, supported in (("activation", "silu"), ("norm", "none"), ("n_layers", 2), ("contact_joints", contacts)):
        require_setting(config, key, supported, supported)
    vae_config = VAEConfig(
        layout=_LAYOUT_OF_DATASET[dataset],
        latent_dim=setting(config, "latent_dim"),
        num_blocks=config.get("n_extra_layers", 1) + 1,
        kernel_size=config.get("kernel_size", 3),
        dropout=config.get("dropout", 0.1),
    )
    vae = CausalSkeletalVAE(vae_config).eval()
    reader = StrictReader(state_dict)
    _read_joint_layers(reader, vae)
    _read_graphs(reader, vae)
    for level in range(2):
        for index in range(vae_config.num_blocks):
            _read_block(reader, f"conv_enc.layers.{level}.{index}", vae.encoder[level][index])
            _read_block(reader, f"conv_dec.layers.{level}.{index + 1}", vae.decoder[level][index])
    reader.copy(vae.head.weight, "dist.weight")
    reader.copy(vae.head.bias, "dist.bias")
    reader.finish()
    return vae


def _read_joint_layers(reader: StrictReader, vae: CausalSkeletalVAE) -> None:
    encoder, decoder = vae.joint_encoder, vae.joint_decoder
    start = 0
    for joint, columns in enumerate(vae.layout.features):
        rows = slice(start, start + len(columns))
        start += len(columns)
        reader.copy(encoder.weight[rows].t(), f"motion_enc.layers.{joint}.0.weight")
        reader.copy(encoder.bias[joint], f"motion_enc.layers.{joint}.0.bias")
        reader.copy(encoder.out.weight[joint].t(), f"motion_enc.layers.{joint}.2.weight")
        reader.copy(encoder.out.bias[joint], f"motion_enc.layers.{joint}.2.bias")
        reader.copy(decoder.inner.weight[joint].t(), f"motion_dec.layers.{joint}.0.weight")
        reader.copy(decoder.inner.bias[joint], f"motion_dec.layers.{joint}.0.bias")
        reader.copy(decoder.weight[rows], f"motion_dec.layers.{joint}.2.weight")
        reader.copy(decoder.bias[rows], f"motion_dec.layers.{joint}.2.bias")


def _read_graphs(reader: StrictReader, vae: CausalSkeletalVAE) -> None:
    """One graph per resolution; the state dict repeats it for every convolution, and the copies must agree."""
    blocks = vae.config.num_blocks
    for level, (adjacency, pool) in enumerate(((vae.adjacency_0, vae.pool_0), (vae.adjacency_1, vae.pool_1))):
        keys = [
            f"conv_{side}.layers.{layer}.{index + offset}.layers.{position}.adj_matrix"
            for side, layer, offset in (("enc", level, 0), ("dec", 1 - level, 1))
            for index in range(blocks)
            for position in (2, 5)
        ]
        reader.copy(adjacency, keys[0])
        reader.copy(pool, f"conv_enc.layers.{level}.{blocks}.skeleton_pool")
        for key in keys[1:]:
            if not torch.equal(reader.take(key, tuple(adjacency.shape)).to(adjacency), adjacency):
                raise ValueError(f"state_dict: {key!r} differs from {keys[0]!r}")
        key = f"conv_dec.layers.{1 - level}.0.skeleton_unpool"
        members = (pool > 0).to(pool.dtype).t()
        if not torch.equal(reader.take(key, tuple(members.shape)).to(members), members):
            raise ValueError(f"state_dict: {key!r} has other groups than the pooling of that level")


def _read_block(reader: StrictReader, prefix: str, block: ResidualBlock) -> None:
    for position, conv in ((2, block.conv1), (5, block.conv2)):
        for name, module in (
            ("graph_conv.linear1", conv.own),
            ("graph_conv.linear2", conv.neighbours),
            ("temp_conv", conv.temporal),
        ):
            reader.copy(module.weight, f"{prefix}.layers.{position}.{name}.weight")
            reader.copy(module.bias, f"{prefix}.layers.{position}.{name}.bias")
