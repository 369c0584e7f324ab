"""A frozen encoder and its adapter, written out once more on a tiny one; what is asked of the library."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from intermoe.text import clip, huggingface, tower
from intermoe.text.clip import ClipPrompts, ClipTextEncoder, _load_tokenizer_json
from intermoe.text.huggingface import HuggingFaceTextEncoder, load_frozen, load_tokenizer
from intermoe.text.protocol import TextConfig
from intermoe.text.tower import load_tower, projection_dim, tower_sizes

transformers = pytest.importorskip("transformers")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "people", "bow", "turn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that was never trained, saved in half precision."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).half().save_pretrained(folder)
    vocab = {token: index for index, token in enumerate(VOCABULARY)}
    transformers.BertTokenizerFast(vocab=vocab).save_pretrained(folder)
    return folder


def build(folder: Path, **changes: Any) -> HuggingFaceTextEncoder:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "kind": "huggingface", "name_or_path": str(folder), "output_dim": 5, "width": 8, "num_layers": 2,
        "num_heads": 2, "feedforward_dim": 12, "max_tokens": 6, **changes,
    }  # fmt: skip
    encoder = HuggingFaceTextEncoder(TextConfig(**values)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder


def norm(x: torch.Tensor, module: Any) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], module.weight, module.bias)


def test_the_adapter_by_hand(folder: Path) -> None:
    """Each prompt by itself: states -> Linear -> post-norm layers -> norm -> mean over its tokens -> Linear."""
    encoder, frozen = build(folder), transformers.AutoModel.from_pretrained(folder).float().eval()
    prompts, expected = ["bow", "two people turn bow"], []
    for prompt in prompts:
        ids = torch.tensor([[2, *(VOCABULARY.index(word) for word in prompt.split()), 3]])
        x = frozen(ids).last_hidden_state[0] @ encoder.input.weight.T + encoder.input.bias
        for layer in encoder.transformer.layers:
            attended, _ = layer.self_attn(x[None], x[None], x[None])
            x = norm(x + attended[0], layer.norm1)
            inner = gelu(x @ layer.linear1.weight.T + layer.linear1.bias)
            x = norm(x + inner @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)
        expected.append(norm(x, encoder.norm).mean(dim=0) @ encoder.output.weight.T + encoder.output.bias)
    with torch.no_grad():
        torch.testing.assert_close(encoder(prompts), torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert encoder.to(torch.bfloat16)(prompts).dtype == torch.float32


def test_a_prompt_that_is_too_long_is_named_wherever_it_stands(folder: Path) -> None:
    encoder = build(folder)
    encoder.check(["two people bow turn"])  # six tokens with their ends
    with pytest.raises(ValueError, match=r"max_tokens=6 tokens, got 8 in 'two two two bow bow bow'\.\.\."):
        encoder.check(["two", "two two two bow bow bow", "turn " * 5])
    with pytest.raises(ValueError, match="at least one prompt"):
        encoder.check([])


def test_a_frozen_encoder_is_float32_and_does_not_learn(folder: Path) -> None:
    model = load_frozen(str(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_of_two_halves_the_encoder_is_taken_and_what_is_none_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 12}
    transformers.T5Model(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    assert not any("decoder" in name for name, _ in load_frozen(str(tmp_path / "t5")).named_parameters())
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    both = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 12}, vision_config={**small, "image_size": 4, "patch_size": 2}
    )
    transformers.CLIPModel(both).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"expected a text encoder, got a CLIPModel from .*kind='clip'"):
        load_frozen(str(tmp_path / "clip"))


class Asked:
    """Stands for the library: notes what is asked of it, and has nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(self, name: str, **options: Any) -> Any:
        self.calls.append((name, options))
        raise OSError("nothing")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that are on the Hub alone; any other lies here."""
    there: list[str] = []
    for module in (huggingface, clip, tower):
        monkeypatch.setattr(module, "is_local", lambda name: name not in there)
    return there


@pytest.mark.parametrize("local", [True, False])
def test_no_foreign_code_is_run_and_a_folder_asks_nobody(
    local: bool, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are safetensors alone; what lies here is looked for nowhere else."""
    name, asked = "somebody/a-model", Asked()
    hub += [] if local else [name]
    kinds = ("AutoModel", "AutoTokenizer", "CLIPTextConfig", "CLIPTextModel", "CLIPTextModelWithProjection")
    for kind in kinds:
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", asked.from_pretrained)
    monkeypatch.setattr(ClipPrompts, "load_tokenizer", lambda self, name: None)
    text = TextConfig(
        kind="clip", output_dim=8, width=8, clip_layers=1, clip_heads=2, num_layers=1, vocab_size=5, name_or_path=name
    )
    plain, safe = {"trust_remote_code": False}, {"use_safetensors": True}
    for call, given, expected, told in (
        (load_frozen, name, {**plain, **safe}, "name_or_path: expected a text encoder in "),
        (load_tokenizer, name, plain, "name_or_path: expected a tokenizer in "),
        (_load_tokenizer_json, name, plain, "name_or_path: expected CLIP's tokenizer in "),
        (tower_sizes, name, {}, r"text\.name_or_path: expected CLIP's text tower in "),
        (projection_dim, name, {}, r"text\.name_or_path: expected CLIP's text tower in "),
        (load_tower, ClipTextEncoder(text), safe, r"text\.name_or_path: expected CLIP's text tower in "),
    ):
        with pytest.raises(ValueError, match=f"{told}{name!r}.*: nothing"):
            call(given)  # type: ignore[operator]
        assert asked.calls.pop() == (name, {**expected, "local_files_only": local})


@pytest.mark.usefixtures("hub")
def test_the_published_tower_is_asked_for_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, tokenizers = Asked(), list[str]()
    monkeypatch.setattr(transformers.CLIPTextModel, "from_pretrained", asked.from_pretrained)
    monkeypatch.setattr(ClipPrompts, "load_tokenizer", lambda self, name: tokenizers.append(name))
    sizes = {"output_dim": 8, "width": 8, "clip_layers": 1, "clip_heads": 2, "num_layers": 1, "vocab_size": 5}
    published = "openai/clip-vit-large-patch14-336"
    for given, name in ((None, published), ("somebody/another", "somebody/another")):
        with pytest.raises(ValueError, match="expected CLIP's text tower"):
            load_tower(ClipTextEncoder(TextConfig(kind="clip", name_or_path=given, **sizes)))
        assert (asked.calls.pop()[0], tokenizers.pop()) == (name, name)


def test_sizes_of_a_tower_are_read_by_name(tmp_path: Path) -> None:
    transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=7, projection_dim=9,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert tower_sizes(str(tmp_path)) == {
        "width": 16, "clip_layers": 3, "clip_heads": 4, "vocab_size": 50, "max_tokens": 7,
    }  # fmt: skip
    assert projection_dim(str(tmp_path)) == 9


def test_a_tokenizer_of_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from intermoe.text import sentence

    monkeypatch.setattr(sentence, "load_tokenizer", lambda name: SimpleNamespace(is_fast=False))
    with pytest.raises(ValueError, match="expected a tokenizer of the tokenizers library in 'x', got another"):
        sentence.sentence_encoder_tokenizer("x")
    assert huggingface._place("no_package_of_this_name") == "no_package_of_this_name"
