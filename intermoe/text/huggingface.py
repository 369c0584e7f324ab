"""Any pretrained Hugging Face text encoder, frozen, with a trainable adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.hub import is_local
from intermoe.nn.layers import Linear
from intermoe.text.protocol import TextConfig, TextEncoder, check_prompts, masked_mean, transformer


class HuggingFaceTextEncoder(TextEncoder):
    """Any pretrained Hugging Face text encoder, frozen, with a trainable adapter on its token states.

    Frozen token states -> Linear to ``width`` -> ``num_layers`` post-norm transformer layers -> LayerNorm -> mean over
    tokens -> Linear to ``output_dim``. The frozen model is always in eval mode, has no gradient, and is neither in
    ``state_dict()`` nor in ``parameters()``: it is loaded again by ``name_or_path``. It follows ``.to()`` and the like.

    Only safetensors weights are read and no code of the model's repository is run.

    Raises:
        ValueError: if ``name_or_path`` cannot be loaded as a text encoder.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        # Held in a list, because a module attribute would be registered, saved and switched to training mode.
        self._frozen = [load_frozen(str(config.name_or_path))]
        self._tokenizer = load_tokenizer(str(config.name_or_path))
        self.input = Linear(self._frozen[0].config.hidden_size, config.width)
        self.transformer = transformer(config, norm_first=False)
        self.norm = nn.LayerNorm(config.width)
        self.output = Linear(config.width, config.output_dim)

    @property
    def frozen(self) -> nn.Module:
        """The pretrained encoder."""
        model: nn.Module = self._frozen[0]
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HuggingFaceTextEncoder:
        self._frozen[0]._apply(fn, recurse)
        moved: HuggingFaceTextEncoder = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ``ValueError`` for a prompt over ``max_tokens`` tokens."""
        self._tokens(prompts)

    def _tokens(self, prompts: Sequence[str]) -> Any:
        encoded = self._tokenizer(check_prompts(prompts), padding=True, return_tensors="pt")
        if encoded["input_ids"].shape[1] > self.config.max_tokens:
            lengths = encoded["attention_mask"].sum(1)
            raise ValueError(
                f"prompts: expected at most max_tokens={self.config.max_tokens} tokens, got {int(lengths.max())} "
                f"in {prompts[int(lengths.argmax())][:60]!r}..."
            )
        return encoded

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed ``prompts``: (B, output_dim) float32. Raises ``ValueError`` for a prompt over ``max_tokens`` tokens."""
        encoded = self._tokens(prompts).to(self.output.weight.device)
        mask = encoded["attention_mask"].bool()
        with torch.no_grad():
            states = self._frozen[0](**encoded).last_hidden_state
        states = self.input(states.masked_fill(~mask[..., None], 0.0))
        states = self.transformer(states, src_key_padding_mask=~mask)
        result: Tensor = self.output(masked_mean(self.norm(states), mask)).float()
        return result


def load_frozen(name_or_path: str) -> Any:
    """A pretrained text encoder. Raises ``ValueError`` if there is none of that name."""
    from transformers import AutoModel

    try:
        place = _place(name_or_path)
        model = AutoModel.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, local_files_only=is_local(place)
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"name_or_path: expected a text encoder in {name_or_path!r}: {error}") from error
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if not hasattr(model.config, "hidden_size"):
        raise ValueError(
            f"name_or_path: expected a text encoder, got a {type(model).__name__} from {name_or_path!r}; "
            "the CLIP text tower is kind='clip'"
        )
    return model.float().requires_grad_(False).eval()


def load_tokenizer(name_or_path: str) -> Any:
    """Its tokenizer. Raises ``ValueError`` if there is none of that name."""
    from transformers import AutoTokenizer

    try:
        place = _place(name_or_path)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=is_local(place))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"name_or_path: expected a tokenizer in {name_or_path!r}: {error}") from error


def _place(name_or_path: str) -> str:
    """The folder ``model`` of an installed package of that name; a folder or a name on the Hub as it is."""
    spec = importlib.util.find_spec(name_or_path) if name_or_path.isidentifier() else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model").is_dir():
            return str(Path(location) / "model")
    return name_or_path
