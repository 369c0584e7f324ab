"""The pretrained weights that a CLIP text encoder starts from: its frozen tower is not trained here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intermoe.hub import is_local
from intermoe.text.clip import TOKENIZER, ClipPooledEncoder, ClipTower


def tower_sizes(source: str) -> dict[str, int]:
    """Sizes of the text tower of a Hugging Face CLIP model or folder, by the names of ``TextConfig``.

    Raises:
        ValueError: if there is no such model.
    """
    sizes = _configuration(source)
    return {
        "width": sizes.hidden_size,
        "clip_layers": sizes.num_hidden_layers,
        "clip_heads": sizes.num_attention_heads,
        "vocab_size": sizes.vocab_size,
        "max_tokens": sizes.max_position_embeddings,
    }


def projection_dim(source: str) -> int:
    """Width of CLIP's own embedding of a text, of a Hugging Face CLIP model or folder. Raises as ``tower_sizes``."""
    return int(_configuration(source).projection_dim)


def _configuration(source: str) -> Any:
    from transformers import CLIPTextConfig

    try:
        return CLIPTextConfig.from_pretrained(source, local_files_only=is_local(source))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"text.name_or_path: expected CLIP's text tower in {source!r}: {error}") from error


def load_tower(encoder: ClipTower) -> None:
    """Take tower and tokenizer from ``name_or_path`` of its configuration, a Hugging Face CLIP model or folder.

    Only safetensors weights are read and no code of the model's repository is run.

    Raises:
        ValueError: if there is no such model, or it has other sizes.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    source = encoder.config.name_or_path or TOKENIZER
    encoder.load_tokenizer(source)
    try:
        model_type = CLIPTextModelWithProjection if isinstance(encoder, ClipPooledEncoder) else CLIPTextModel
        model = model_type.from_pretrained(source, use_safetensors=True, local_files_only=is_local(source))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"text.name_or_path: expected CLIP's text tower in {source!r}: {error}") from error
    theirs = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    try:
        with torch.no_grad():
            for own, value in zip(_tower_parameters(encoder), _tower_values(encoder, theirs), strict=True):
                if own.shape != value.shape:
                    raise ValueError(f"expected a tensor of shape {tuple(own.shape)}, got {tuple(value.shape)}")
                own.copy_(value)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"text.name_or_path: expected the tower of {source!r} to fit the configuration: {error}"
        ) from error


def _tower_parameters(encoder: ClipTower) -> list[Tensor]:
    parameters = [encoder.token_embedding.weight, encoder.position_embedding]
    parameters += [*encoder.tower.parameters(), *encoder.tower_norm.parameters()]
    return [*parameters, encoder.projection.weight] if isinstance(encoder, ClipPooledEncoder) else parameters


def _tower_values(encoder: ClipTower, theirs: dict[str, Tensor]) -> list[Tensor]:
    """The values of ``_tower_parameters``, in their order."""
    values = [theirs[f"embeddings.{name}_embedding.weight"] for name in ("token", "position")]
    if isinstance(encoder, ClipPooledEncoder):
        values[1] = values[1][: encoder.config.max_tokens]  # a shorter text uses the first positions
    for index in range(encoder.config.clip_layers):
        layer = f"encoder.layers.{index}"
        for part in ("weight", "bias"):
            values.append(torch.cat([theirs[f"{layer}.self_attn.{name}_proj.{part}"] for name in "qkv"]))
        for name in ("self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"):
            values += [theirs[f"{layer}.{name}.{part}"] for part in ("weight", "bias")]
    values += [theirs[f"final_layer_norm.{part}"] for part in ("weight", "bias")]
    return [*values, theirs["text_projection.weight"]] if isinstance(encoder, ClipPooledEncoder) else values
