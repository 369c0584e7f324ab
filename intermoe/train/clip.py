"""The pretrained weights that a CLIP text encoder starts from: its frozen tower is not trained here."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.text.clip import TOKENIZER, ClipTextEncoder


def load_tower(encoder: ClipTextEncoder) -> None:
    """Take tower and tokenizer from ``name_or_path`` of its configuration, a Hugging Face CLIP model or folder.

    Only safetensors weights are read and no code of the model's repository is run.

    Raises:
        ValueError: if there is no such model, or it has other sizes.
    """
    from transformers import CLIPTextModel

    source = encoder.config.name_or_path or TOKENIZER
    encoder.load_tokenizer(source)
    try:
        model = CLIPTextModel.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"text.name_or_path: cannot load CLIP's text tower from {source!r}: {error}") from error
    theirs = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    try:
        with torch.no_grad():
            for own, value in zip(_tower_parameters(encoder), _tower_values(encoder, theirs), strict=True):
                if own.shape != value.shape:
                    raise ValueError(f"a tensor of shape {tuple(value.shape)} where {tuple(own.shape)} is needed")
                own.copy_(value)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"text.name_or_path: the tower of {source!r} does not fit the configuration: {error}"
        ) from error


def _tower_parameters(encoder: ClipTextEncoder) -> list[Tensor]:
    parameters = [encoder.token_embedding.weight, encoder.position_embedding]
    return [*parameters, *encoder.tower.parameters(), *encoder.tower_norm.parameters()]


def _tower_values(encoder: ClipTextEncoder, theirs: dict[str, Tensor]) -> list[Tensor]:
    """The values of ``_tower_parameters``, in their order."""
    values = [theirs[f"embeddings.{name}_embedding.weight"] for name in ("token", "position")]
    for index in range(encoder.config.clip_layers):
        layer = f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            values.append(torch.cat([theirs[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]))
        for name in ("self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"):
            values += [theirs[f"{layer}.{name}.{kind}"] for kind in ("weight", "bias")]
    return [*values, *(theirs[f"final_layer_norm.{kind}"] for kind in ("weight", "bias"))]
