"""InterMask's published state dicts at their full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from intermoe.systems.intermask import official
from intermoe.text.clip import ClipTextEncoder
from intermoe.text.protocol import TextConfig


@pytest.mark.parametrize(
    ("name", "joints", "parameters"),
    [("vq_interhuman", 22, 43.03e6), ("vq_interx", 56, 45.4e6), ("transformer", 0, 43.2e6)],
)
def test_full_size_state_dict_is_read_whole(
    golden: Callable[[str], Any], name: str, joints: int, parameters: float
) -> None:
    """Every number of the file arrives once: tensors of the same size and sum stand on both sides."""
    shapes = golden("peers/keys_intermask.json")[f"keys_{name}"]
    state = {key: torch.empty(shape).uniform_(-1, 1) for key, shape in shapes.items()}
    adapter = {key: state.pop(key) for key in list(state) if key.startswith(("clipTrans.", "clipln."))}
    frequencies = "position_enc.positional_encoding.inv_freq"
    network: torch.nn.Module
    if joints:
        network = official.load_tokenizer(state, {"joints_num": joints})
    else:
        state[frequencies] = 10000.0 ** (-torch.arange(0, 192, 2) / 192)
        network = official.load_network({**state, **adapter}, {})
        text = TextConfig(
            kind="clip",
            output_dim=768,
            width=768,
            num_layers=2,
            num_heads=8,
            feedforward_dim=2048,
            clip_layers=1,
            vocab_size=10,
        )
        encoder = ClipTextEncoder(text)
        official.load_adapter({**state, **adapter}, encoder)
        assert _content([*encoder.adapter.parameters(), *encoder.adapter_norm.parameters()]) == _content(
            adapter.values()
        )
        state.pop(frequencies)
    read = [*network.parameters(), *(b for n, b in network.named_buffers() if n == "codebook.vectors")]
    assert _content(read) == _content(state.values())
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


def _content(tensors: Any) -> list[tuple[int, float]]:
    return sorted((tensor.numel(), tensor.double().sum().item()) for tensor in tensors)
