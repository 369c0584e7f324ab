"""The tower of a CLIP text encoder against Hugging Face's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intermoe.text.build import build_text_encoder
from intermoe.text.clip import ClipPooledEncoder, ClipPrompts, ClipTextEncoder, ClipTower
from intermoe.text.protocol import TextConfig
from intermoe.text.tower import load_tower

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=7, hidden_act="quick_gelu", projection_dim=8,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(ClipPrompts, "load_tokenizer", lambda self, name: None)
    return tmp_path / "clip"


def _config(folder: Path, **changes: int) -> TextConfig:
    values = {"width": 16, "output_dim": 16, "clip_layers": 2, "clip_heads": 4, "num_heads": 2, "num_layers": 1}
    return TextConfig(kind="clip", name_or_path=str(folder), max_tokens=7, vocab_size=50, **(values | changes))


def test_states_are_those_of_the_pretrained_tower(folder: Path) -> None:
    encoder = ClipTextEncoder(_config(folder)).eval()
    load_tower(encoder)
    assert not any(p.requires_grad for p in encoder.tower.parameters())
    tokens = torch.tensor([[1, 4, 9, 49, 0, 0, 0], [1, 7, 3, 5, 2, 8, 49]])
    seen: list[torch.Tensor] = []
    encoder.tower_norm.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    encoder.encode_tokens(tokens)
    expected = transformers.CLIPTextModel.from_pretrained(folder)(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [ClipTextEncoder, ClipPooledEncoder])
def test_a_half_type_embeds_the_same_in_float32(kind: type[ClipTower], dtype: torch.dtype, folder: Path) -> None:
    torch.manual_seed(0)
    encoder = kind(_config(folder)).eval()
    tokens = torch.tensor([[1, 4, 9, 49, 0, 0, 0], [1, 7, 3, 5, 2, 8, 49]])
    expected = encoder.encode_tokens(tokens)
    found = encoder.to(dtype).encode_tokens(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=16 * torch.finfo(dtype).eps * expected.abs().max().item())


def test_another_size_and_an_absent_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the tower of .* to fit the configuration"):
        load_tower(ClipTextEncoder(_config(folder, clip_layers=3)))
    with pytest.raises(ValueError, match=r"text\.name_or_path: expected CLIP's text tower"):
        load_tower(ClipTextEncoder(_config(tmp_path / "absent")))


def test_the_pooled_vector_is_the_pretrained_models_own(folder: Path, tmp_path: Path) -> None:
    """Of a text that is cut to fewer positions than the tower has: what is behind its end does not reach it."""
    config = transformers.CLIPTextConfig.from_pretrained(folder)
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path / "pooled")
    sizes = {"width": 16, "output_dim": 8, "clip_layers": 2, "clip_heads": 4, "num_heads": 2}
    text = TextConfig(kind="clip_pooled", name_or_path=str(tmp_path / "pooled"), max_tokens=6, vocab_size=50, **sizes)
    encoder = build_text_encoder(text, None)
    assert isinstance(encoder, ClipPooledEncoder)
    load_tower(encoder)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    tokens = torch.tensor([[1, 4, 9, 49, 0, 0], [1, 7, 3, 5, 2, 49]])
    longer = torch.nn.functional.pad(tokens, (0, 1))
    states = theirs.text_model(longer).last_hidden_state[torch.arange(2), tokens.argmax(dim=1)]
    torch.testing.assert_close(encoder.encode_tokens(tokens), theirs.text_projection(states), atol=1e-5, rtol=1e-5)
