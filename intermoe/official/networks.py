"""The networks of other systems by name, from state dicts in their published layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from intermoe.registry import Registry

NETWORKS: Registry[Callable[[Mapping[str, Tensor], Mapping[str, Any]], nn.Module]] = Registry(
    "system",
    {
        "intergen": "intermoe.systems.intergen.official:load_network",
        "timotion": "intermoe.systems.timotion.official:load_network",
        "mdm": "intermoe.systems.mdm.official:load_mdm",
        "commdm": "intermoe.systems.mdm.official:load_commdm",
        "intermask_tokenizer": "intermoe.systems.intermask.official:load_tokenizer",
        "intermask": "intermoe.systems.intermask.official:load_network",
    },
)
"""What reads a network from a state dict and the published module's arguments."""


def load_network(system: str, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """The network of ``system``, in eval mode, with published weights.

    Strict: a key that is missing, unexpected or of the wrong shape is an error that names it.

    Args:
        system: a key of ``NETWORKS``.
        state_dict: keys as the published module has them.
        config: the published module's arguments.

    Returns:
        Diffusion networks are called as ``net(x, timesteps, text, mask)`` with x (B, P, T, width) noisy normalised
        motion, timesteps (B,), text (B, C) and mask (B, T) bool, True = valid, or ``None``.

    Raises:
        ValueError: an unknown system, a key or a setting that does not fit; named.
    """
    return NETWORKS[system](state_dict, config)
