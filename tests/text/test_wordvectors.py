"""Word pieces with vectors of a sentence encoder; here of a tiny one that is made on the spot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextConfig
from intermoe.text.sentence import sentence_encoder_tokenizer
from intermoe.text.wordvectors import WordVectorTextEncoder

SMALL: dict[str, Any] = {
    "kind": "wordvectors", "output_dim": 6, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 12,
    "dropout": 0.0, "max_tokens": 10, "vocab_size": 40, "vector_dim": 4,
}  # fmt: skip
WORDS = ["two", "people", "bow", "greet", "dance", "left", "right", "turn", "##s", "##ing", "é", "!"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sentence encoder that was never trained."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sentences")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def build(sentences: Path, **changes: Any) -> WordVectorTextEncoder:
    torch.manual_seed(0)
    config = TextConfig(**{**SMALL, "name_or_path": str(sentences), **changes})
    encoder = build_text_encoder(config, sentence_encoder_tokenizer(str(sentences)))
    assert isinstance(encoder, WordVectorTextEncoder)
    encoder.take_vectors(str(sentences))
    return encoder


def test_vectors_are_the_sentence_encoders_reduced_and_stay(sentences: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = build(sentences, vector_dim=16).eval()
    model = transformers.AutoModel.from_pretrained(sentences).eval()
    ids = [encoder._tokenizer.token_to_id(word) for word in WORDS if word not in ("é", "!")]
    with torch.no_grad():
        states = [model(torch.tensor([[2, index, 3]])).last_hidden_state.mean(dim=1)[0] for index in ids]
    alone = torch.nn.functional.normalize(torch.stack(states), dim=1)
    # all directions are kept here, so distances are those of the encoder, up to the scale
    own, expected = torch.cdist(encoder.vectors[ids], encoder.vectors[ids]), torch.cdist(alone, alone)
    torch.testing.assert_close(own / own.max(), expected / expected.max(), rtol=1e-3, atol=1e-4)
    assert encoder.vectors[ids].square().mean() == pytest.approx(1, abs=1e-3)
    assert encoder.vectors[encoder._tokenizer.token_to_id("é")].abs().sum() == 0
    assert not any(name.startswith(("vectors", "seen")) for name, _ in encoder.named_parameters())
    assert build(sentences, vector_dim=3).vectors.shape == (40, 3)


def test_it_is_rebuilt_from_what_is_saved(sentences: Path) -> None:
    encoder = build(sentences).eval()
    encoder.note(["two people bow"])
    again = build_text_encoder(encoder.config, encoder.tokenizer_json).eval()
    again.load_state_dict(encoder.state_dict())
    prompts = ["two people greet", ""]
    torch.testing.assert_close(again(prompts), encoder(prompts), rtol=0, atol=0)
    assert again(prompts).shape == (2, 6)
    assert again.unknown_words("bow") == []


def test_padding_case_and_punctuation_do_not_matter_but_order_does(sentences: Path) -> None:
    encoder = build(sentences).eval()
    alone = encoder(["two people bow"])
    torch.testing.assert_close(encoder(["two people bow", "two people dance left right left"])[:1], alone)
    torch.testing.assert_close(encoder(["Two people BOW!"]), alone)
    assert not torch.allclose(encoder(["bow people two"]), alone, atol=1e-4)


def test_unknown_words_are_those_unlike_the_captions(sentences: Path) -> None:
    encoder = build(sentences)
    greet, bow, left = (encoder._tokenizer.token_to_id(word) for word in ("greet", "bow", "left"))
    encoder.note(["two people bow!"])
    encoder.vectors[bow] = torch.tensor([1.0, 0, 0, 0])
    encoder.vectors[greet] = torch.tensor([0.9, 0.1, 0, 0])  # as good as "bow"
    encoder.vectors[left] = torch.tensor([0, 0, 0, -1.0])
    for word in ("two", "people"):
        encoder.vectors[encoder._tokenizer.token_to_id(word)] = torch.tensor([0, 1.0, 0, 0])
    assert encoder.unknown_words("Two people greet LEFT, left bows zebra!") == ["left", "bows", "zebra"]


def test_training_leaves_words_out(sentences: Path) -> None:
    encoder = build(sentences, dropout=0.5).train()
    row = encoder.token_ids("two people bow")
    torch.manual_seed(0)
    kept = [encoder._without_some(row) for _ in range(400)]
    assert all(ids[-1] == row[-1] for ids in kept)
    assert sum(len(ids) - 1 for ids in kept) / (400 * 3) == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(encoder(["two people bow"]), encoder(["two people bow"]))
    encoder.eval()
    assert torch.equal(encoder(["two people bow"]), encoder(["two people bow"]))


def test_what_does_not_fit_is_named(sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at most vocab_size=10 tokens, got 17"):
        build(sentences, vocab_size=10)
    with pytest.raises(ValueError, match="expected at most max_tokens=3 word pieces, got 4"):
        build(sentences, max_tokens=3)(["two people bow"])
    with pytest.raises(ValueError, match="name_or_path: cannot load"):
        sentence_encoder_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"name_or_path: must be a model name|name_or_path: .*a model name or folder"):
        TextConfig(**SMALL)
    words = json.loads(sentence_encoder_tokenizer(str(sentences)))
    del words["model"]["vocab"]["[SEP]"]
    words["added_tokens"], words["post_processor"] = [], None
    with pytest.raises(ValueError, match=r"expected a token \[SEP\]"):
        WordVectorTextEncoder(TextConfig(**SMALL, name_or_path=str(sentences)), json.dumps(words))


def test_a_package_that_holds_a_model_is_found(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "words_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not run')", encoding="utf-8")
    (package / "model").symlink_to(sentences)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert sentence_encoder_tokenizer("words_in_a_package") == sentence_encoder_tokenizer(str(sentences))
