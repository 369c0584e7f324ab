"""What all text encoders share: their configuration, prompts that are none, and the transformer it describes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from intermoe.text import build as building
from intermoe.text.build import build_text_encoder
from intermoe.text.clip import STRAIGHT_QUOTES, ClipPooledEncoder, ClipTextEncoder
from intermoe.text.protocol import TextConfig, check_prompts, masked_mean, pad_token_ids, parse_tokenizer, transformer
from intermoe.text.wordpiece import WordPieceTextEncoder

tokenizers = pytest.importorskip("tokenizers")


def test_the_defaults_are_those_of_the_release() -> None:
    """An adapter of two layers on CLIP ViT-L/14's tower, whose numbers these are; MiniLM's for sentences."""
    assert TextConfig().to_dict() == {
        "kind": "wordpiece", "output_dim": 768, "width": 768, "num_layers": 2, "num_heads": 8, "feedforward_dim": 2048,
        "dropout": 0.1, "max_tokens": 77, "vocab_size": 2000, "vector_dim": 384, "name_or_path": None,
        "clip_layers": 12, "clip_heads": 12, "sentence_layers": 6, "sentence_heads": 12,
    }  # fmt: skip


def test_prompts_are_a_sequence_of_texts() -> None:
    assert check_prompts(("a", "", "é行")) == ["a", "", "é行"]
    for wrong in ("bow", ["bow", 3], [None], [b"bow"]):
        with pytest.raises(TypeError, match="prompts: expected a sequence of strings, got "):
            check_prompts(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prompts: expected UTF-8 text, got '\\ud83d" + "b" * 59 + "'$"):
        check_prompts(["\ud83d" + "b" * 100])


def test_ids_are_whole_numbers_and_the_mask_ends_with_each_row() -> None:
    ids, mask = pad_token_ids([[7], [1, 2, 3], [4, 5]], torch.device("cpu"))
    assert ids.tolist() == [[7, 0, 0], [1, 2, 3], [4, 5, 0]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.sum(dim=1).tolist() == [1, 3, 2]
    states = torch.tensor([[[2.0, 1.0], [8.0, 8.0], [torch.inf, 8.0]]])
    assert masked_mean(states, torch.tensor([[True, True, False]])).tolist() == [[5.0, 4.5]]


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_transformer_is_as_its_configuration_says(norm_first: bool) -> None:
    config = TextConfig(width=12, num_heads=3, num_layers=2, feedforward_dim=20, dropout=0.25)
    made = transformer(config, norm_first=norm_first)
    assert len(made.layers) == 2
    for layer in made.layers:
        attention: Any = layer.self_attn
        assert (attention.num_heads, attention.embed_dim, attention.batch_first) == (3, 12, True)
        assert (layer.norm_first, layer.linear1.out_features, layer.linear2.in_features) == (norm_first, 20, 20)
        assert {layer.dropout.p, layer.dropout1.p, layer.dropout2.p, attention.dropout} == {0.25}
        assert layer.activation is torch.nn.functional.gelu
    assert made.norm is None


WORDPIECE = TextConfig(
    output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, dropout=0.5, max_tokens=5, vocab_size=40
)


def content(**changes: Any) -> str:
    whole = json.loads(WordPieceTextEncoder.train_tokenizer(["two people bow"], 40))
    return json.dumps({**whole, **changes})


def test_a_tokenizer_of_another_making_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[END\] after every text, as train_tokenizer makes it, got \[\]"):
        WordPieceTextEncoder(WORDPIECE, content(post_processor=None))
    for token in ("[PAD]", "[UNK]", "[END]"):
        whole = json.loads(content())
        vocabulary = whole["model"]["vocab"]
        vocabulary[token.lower()] = vocabulary.pop(token)
        whole["added_tokens"] = [each for each in whole["added_tokens"] if each["content"] != token]
        whole["post_processor"] = None
        name = token.strip("[]")
        with pytest.raises(ValueError, match=rf"expected a token \[{name}\], as train_tokenizer makes it, got none"):
            WordPieceTextEncoder(WORDPIECE, json.dumps(whole))
    with pytest.raises(ValueError, match="tokenizer_json: expected a tokenizer of the tokenizers library: "):
        parse_tokenizer("[]")


def test_a_vocabulary_may_fill_all_rows() -> None:
    needed = len(json.loads(content())["model"]["vocab"])
    WordPieceTextEncoder(TextConfig(**{**WORDPIECE.to_dict(), "vocab_size": needed}), content())
    with pytest.raises(ValueError, match=f"expected at most vocab_size={needed - 1} tokens, got {needed}"):
        WordPieceTextEncoder(TextConfig(**{**WORDPIECE.to_dict(), "vocab_size": needed - 1}), content())


def test_a_long_word_is_one_token_and_a_prompt_that_is_too_long_is_shown_in_part() -> None:
    word = "left" * 20
    encoder = WordPieceTextEncoder(WORDPIECE, WordPieceTextEncoder.train_tokenizer([word], 40)).eval()
    assert encoder.token_ids(word) == [encoder._vocabulary[word], encoder._vocabulary["[END]"]]
    assert encoder([word]).shape == (1, 6)
    with pytest.raises(ValueError, match=r"max_tokens=5 word pieces, got 7 in 'e t t l e f" + r".*'\.\.\."):
        encoder.check(["e", "e t t l e f"])
    told = "t " * 100
    with pytest.raises(ValueError) as error:  # noqa: PT011
        encoder.check([told])
    assert str(error.value).endswith(f"in {told[:60]!r}...")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_type_embeds_in_float32(dtype: torch.dtype) -> None:
    encoder = WordPieceTextEncoder(WORDPIECE, content()).eval()
    expected = encoder(["two bow", "people"])
    found = encoder.to(dtype)(["two bow", "people"])
    assert found.dtype == torch.float32
    bound = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


CLIP: dict[str, Any] = {
    "kind": "clip", "output_dim": 64, "width": 64, "num_layers": 1, "num_heads": 8, "feedforward_dim": 8,
    "clip_layers": 1, "clip_heads": 2, "max_tokens": 60, "vocab_size": 60,
}  # fmt: skip


def test_clips_embeddings_are_drawn_small_and_the_tower_is_four_times_as_wide_within() -> None:
    """N(0, 0.02) for tokens and N(0, 0.01) for places, as in CLIP's own code: 3840 numbers tell to 1 in 60."""
    torch.manual_seed(0)
    clip = ClipTextEncoder(TextConfig(**CLIP))
    assert float(clip.token_embedding.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(clip.position_embedding.std()) == pytest.approx(0.01, rel=0.05)
    (layer,) = clip.tower.layers
    assert (layer.linear1.out_features, layer.self_attn.num_heads, layer.norm_first) == (256, 2, True)
    assert {layer.dropout.p, layer.dropout1.p, layer.self_attn.dropout} == {0.0}
    with pytest.raises(ValueError, match="clip_heads: expected a divisor of width=64, got 3"):
        ClipTextEncoder(TextConfig(**{**CLIP, "clip_heads": 3}))
    with pytest.raises(ValueError, match="output_dim: expected width=64 for kind='clip', got 32"):
        ClipTextEncoder(TextConfig(**{**CLIP, "output_dim": 32}))


def test_every_curly_quote_is_straightened() -> None:
    assert "\u2018\u2019\u201a\u201b|\u201c\u201d\u201e\u201f".translate(STRAIGHT_QUOTES) == "''''|\"\"\"\""


def test_a_tokenizer_of_as_many_tokens_as_rows_is_kept_beside_the_weights() -> None:
    words = {word: number for number, word in enumerate(["?", "two", "bow", "[END]"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?")).to_str()
    clip = build_text_encoder(TextConfig(**{**CLIP, "vocab_size": 4}), own)
    assert isinstance(clip, ClipTextEncoder)
    assert clip.tokenizer_json == own
    assert build_text_encoder(TextConfig(**CLIP), None).tokenizer_json is None
    with pytest.raises(ValueError, match="tokenizer_json: expected at most vocab_size=3 tokens, got 4"):
        build_text_encoder(TextConfig(**{**CLIP, "vocab_size": 3}), own)


def test_each_kind_is_built_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = build_text_encoder(TextConfig(**{**CLIP, "kind": "clip_pooled", "output_dim": 5}), None)
    assert isinstance(pooled, ClipPooledEncoder)
    assert pooled.projection.weight.shape == (5, 64)
    assert pooled.projection.bias is None
    assert pooled.output_dim == 5
    for kind in ("wordpiece", "sentence"):
        with pytest.raises(ValueError, match=f"expected the tokenizer that kind='{kind}' was trained with, got None"):
            build_text_encoder(TextConfig(kind=kind, name_or_path="x"), None)
    asked: list[TextConfig] = []
    monkeypatch.setattr(building, "HuggingFaceTextEncoder", lambda config: asked.append(config))
    config = TextConfig(kind="huggingface", name_or_path="x")
    build_text_encoder(config, None)
    assert asked == [config]
    assert pooled.unknown_words("zebra") == []
