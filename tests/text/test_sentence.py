"""A sentence encoder inside the model; here a tiny one that is made on the spot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.text.build import build_text_encoder
from intermoe.text.packed import GROUP, PackedMatrix
from intermoe.text.protocol import TextConfig, parse_tokenizer
from intermoe.text.sentence import SentenceTextEncoder, sentence_encoder_tokenizer, without_other_scripts

SMALL: dict[str, Any] = {
    "kind": "sentence", "output_dim": 6, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 12,
    "dropout": 0.0, "max_tokens": 10, "vocab_size": 16, "vector_dim": GROUP, "sentence_layers": 2,
    "sentence_heads": 4,
}  # fmt: skip
WORDS = ["two", "people", "bow", "greet", "dance", "left", "right", "turn", "##s", "##ing", "!"]
CAPTIONS = ["two people bow", "two people dance", "people turn left!"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sentence encoder that was never trained."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sentences")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": GROUP, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 4 * GROUP}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **sizes))
    for name, parameter in model.named_parameters():  # biases and norms too, none of them at its start
        torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("LayerNorm.weight") else 0.0, std=0.2)
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def build(sentences: Path, captions: list[str] | None = None, **changes: Any) -> SentenceTextEncoder:
    torch.manual_seed(0)
    config = TextConfig(**{**SMALL, "name_or_path": str(sentences), **changes})
    encoder = build_text_encoder(config, sentence_encoder_tokenizer(str(sentences)))
    assert isinstance(encoder, SentenceTextEncoder)
    encoder.take_encoder(str(sentences), captions or CAPTIONS)
    return encoder


def test_packing_rounds_to_four_bits_by_the_group() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(5, 2 * GROUP) * torch.tensor([0.01, 1, 1, 100, 0.0])[:, None]
    packed = PackedMatrix(5, 2 * GROUP)
    packed.pack(matrix)
    groups, got = matrix.unflatten(1, (-1, GROUP)), packed.matrix().unflatten(1, (-1, GROUP))
    step = groups.abs().amax(dim=2, keepdim=True) / 7
    assert ((got - groups).abs() <= 0.505 * step + 1e-12).all()  # half a step, and the scale's own rounding
    assert (got.abs().amax(dim=2) >= 0.99 * groups.abs().amax(dim=2)).all()
    assert 8 * (packed.packed.nbytes + packed.scale.nbytes) == 4.25 * matrix.numel(), "four bits, and a scale for 64"
    torch.testing.assert_close(packed.rows(torch.tensor([[3, 0]])), packed.matrix()[[3, 0]][None], rtol=0, atol=0)


def test_what_was_unpacked_follows_the_packed() -> None:
    packed, other = PackedMatrix(2, GROUP), PackedMatrix(2, GROUP)
    packed.pack(torch.ones(2, GROUP))
    first = packed.matrix()
    assert packed.matrix() is first
    other.pack(torch.full((2, GROUP), 3.0))
    packed.load_state_dict(other.state_dict())
    torch.testing.assert_close(packed.matrix(), torch.full((2, GROUP), 3.0), rtol=1e-3, atol=0)
    packed.scale.mul_(2)
    torch.testing.assert_close(packed.matrix(), torch.full((2, GROUP), 6.0), rtol=1e-3, atol=0)
    packed.packed.fill_(7 + 16 * 7)  # two zeros
    assert not packed.matrix().any()
    with pytest.raises(ValueError, match=f"columns: expected a multiple of {GROUP}, got 6"):
        PackedMatrix(2, 6)


def test_token_states_are_the_sentence_encoders(sentences: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = build(sentences).eval()
    model = transformers.AutoModel.from_pretrained(sentences).eval()
    for name, parameter in model.named_parameters():  # rounded as the packed ones
        if parameter.dim() == 2 and ("encoder.layer" in name or "word_embeddings" in name):
            packed = PackedMatrix(*parameter.shape)
            packed.pack(parameter.detach())
            parameter.data.copy_(packed.matrix())
    prompts = ["two people bow!", "dance"]
    tokens = transformers.AutoTokenizer.from_pretrained(sentences)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = encoder._states(prompts)
        expected = model(**tokens).last_hidden_state
    assert mask.tolist() == tokens["attention_mask"].bool().tolist()
    torch.testing.assert_close(states[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_it_is_rebuilt_from_what_is_saved(sentences: Path) -> None:
    encoder = build(sentences).eval()
    again = build_text_encoder(encoder.config, encoder.tokenizer_json).eval()
    again.load_state_dict(encoder.state_dict())
    prompts = ["two people greet", ""]
    torch.testing.assert_close(again(prompts), encoder(prompts), rtol=0, atol=0)
    assert again(prompts).shape == (2, 6)
    assert again.unknown_words("bow") == []
    assert not any(name.startswith("frozen") for name, _ in encoder.named_parameters())


def test_the_embedding_is_standardised_over_the_captions(sentences: Path) -> None:
    encoder = build(sentences).eval()
    states, mask = encoder._states(CAPTIONS)
    mean = torch.stack([row[valid].mean(dim=0) for row, valid in zip(states, mask, strict=True)])
    own = torch.nn.functional.normalize(mean, dim=1)
    torch.testing.assert_close(encoder.mean, own.mean(dim=0))
    torch.testing.assert_close(encoder.spread, (own - own.mean(dim=0)).square().mean().sqrt())
    # caption and details add up
    with torch.no_grad():
        encoder.output.weight.zero_()
        encoder.output.bias.fill_(2.0)
        expected = encoder.about((own - encoder.mean) / encoder.spread) + 2.0
    torch.testing.assert_close(encoder(CAPTIONS), expected, rtol=1e-4, atol=1e-5)


def test_padding_and_case_do_not_matter_but_order_does(sentences: Path) -> None:
    encoder = build(sentences).eval()
    alone = encoder(["two people bow"])
    torch.testing.assert_close(
        encoder(["two people bow", "two people dance left right left"])[:1], alone, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(encoder(["Two people BOW"]), alone)
    assert not torch.allclose(encoder(["bow people two"]), alone, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_type_embeds_the_same_in_float32(sentences: Path, dtype: torch.dtype) -> None:
    encoder = build(sentences).eval()
    expected = encoder(CAPTIONS)
    found = encoder.to(dtype)(CAPTIONS)
    assert found.dtype == torch.float32
    assert encoder.input.weight.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=16 * torch.finfo(dtype).eps * expected.abs().max().item())


def test_training_blurs_the_caption_and_drops_details(sentences: Path) -> None:
    encoder = build(sentences).train()
    with torch.no_grad():
        encoder.about.weight.zero_(), encoder.about.bias.zero_()
        encoder.output.weight.zero_(), encoder.output.bias.fill_(1.0)
        torch.manual_seed(0)
        kept = encoder(["two people bow"] * 400)[:, 0]
        assert set(kept.tolist()) == {0.0, 1.0}
        assert kept.mean().item() == pytest.approx(0.6, abs=0.07)
        encoder.output.bias.zero_()
        encoder.about.weight[0, 0] = 1.0
        blurred = encoder(["two people bow"] * 400)[:, 0]
        exact = encoder.eval()(["two people bow"])[0, 0]
    assert blurred.std().item() == pytest.approx(0.5, abs=0.06)
    assert blurred.mean().item() == pytest.approx(exact.item(), abs=0.1)


def test_unknown_words_are_those_unlike_the_captions(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(sentences)
    places = {"two": 0, "people": 1, "bow": 2, "dance": 3, "turn": 4, "left": 5, "greet": 2, "right": 9}
    names = {encoder._tokenizer.token_to_id(word): place for word, place in places.items()}

    ending = encoder._tokenizer.token_to_id("##ing")

    def alone(words: list[list[int]]) -> torch.Tensor:  # "greet" is as good as "bow", and "right" as nothing
        places = [14 if ending in pieces else names.get(pieces[0], 15) for pieces in words]
        return 10 + torch.eye(16)[places]  # what all share tells nothing

    monkeypatch.setattr(encoder, "_alone", alone)
    assert encoder.unknown_words("Two people greet RIGHT, right bows zebra!") == ["right", "zebra"]
    assert encoder.unknown_words("turning bow turn") == ["turning"]  # a piece that was seen makes no word known


def test_what_does_not_fit_is_named(sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at most vocab_size=10 tokens, got 16"):
        build(sentences, vocab_size=10)
    with pytest.raises(ValueError, match="expected at most max_tokens=5 word pieces, got 6"):
        build(sentences, ["bow"], max_tokens=5)(["two people turn left"])
    with pytest.raises(ValueError, match="name_or_path: expected a"):
        sentence_encoder_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"name_or_path"):
        TextConfig(**SMALL)
    for name, field, value, got in (
        ("num_hidden_layers", "sentence_layers", 1, 2),
        ("num_attention_heads", "sentence_heads", 8, 4),
        ("hidden_size", "vector_dim", 2 * GROUP, GROUP),
    ):
        with pytest.raises(ValueError, match=f"expected a sentence encoder with {name} {value}, got {got}"):
            build(sentences, **{field: value})
    with pytest.raises(ValueError, match=r"text.vocab_size: expected 16, as many word pieces as .*, got 17"):
        build(sentences, vocab_size=17)


def tokenizer_of(pieces: list[str], special: dict[str, int], **changes: Any) -> str:
    """A BERT tokenizer whose special tokens have ids of their own and other pieces those between."""
    tokens = [{"id": index, "content": token, **FLAGS} for token, index in special.items()]
    left = iter(range(len(pieces) + max(special.values()) + 1))
    free = [index for index in left if index not in special.values()][: len(pieces)]
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": dict(zip(pieces, free, strict=True)) | special,
    }  # fmt: skip
    ends = {token: {"id": token, "ids": [special[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": None,
            "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ends},
            "model": model | changes,
        }
    )  # fmt: skip


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
SPECIAL = {"[PAD]": 0, "[UNK]": 4, "[CLS]": 2, "[SEP]": 3}
PIECES = ["[unused0]", "[unused12]", "two", "α", "bow", "行", "##s", "##я", "3", "é", "—", "unused"]


def test_pieces_of_other_scripts_are_left_out_and_the_rest_moves_up() -> None:
    whole = tokenizer_of(PIECES, SPECIAL)
    left = json.loads(without_other_scripts(whole, ["two bow", "3!"]))
    expected = {"two": 1, "bow": 5, "##s": 6, "3": 7, "é": 8, "—": 9, "unused": 10}
    assert left["model"]["vocab"] == SPECIAL | expected
    other = {key: value for key, value in json.loads(whole).items() if key != "model"}
    assert {key: value for key, value in left.items() if key != "model"} == other
    prompt = "Two bows α 3"
    tokens = [parse_tokenizer(each).encode(prompt).tokens for each in (whole, json.dumps(left))]
    assert tokens[0] == ["[CLS]", "two", "bow", "##s", "α", "3", "[SEP]"]
    assert tokens[1] == ["[CLS]", "two", "bow", "##s", "[UNK]", "3", "[SEP]"]


def test_pieces_of_the_captions_own_scripts_stay() -> None:
    left = json.loads(without_other_scripts(tokenizer_of(PIECES, SPECIAL), ["two 行", "я"]))["model"]["vocab"]
    assert {"行", "##я", "two"} <= left.keys()
    assert not {"α", "[unused0]"} & left.keys()


@pytest.mark.parametrize("whole", [
    tokenizer_of(PIECES, {**SPECIAL, "[UNK]": 14}),  # seven pieces and four tokens would leave it no id
    tokenizer_of(PIECES, SPECIAL, type="WordLevel"),
])  # fmt: skip
def test_a_tokenizer_of_another_kind_stays(whole: str) -> None:
    assert without_other_scripts(whole, ["two bow"]) == whole


def test_an_encoder_of_fewer_pieces_hears_the_same(sentences: Path) -> None:
    whole = sentence_encoder_tokenizer(str(sentences))
    content = json.loads(whole)
    vocabulary = content["model"]["vocab"]
    gone = vocabulary.pop("dance")
    content["model"]["vocab"] = {piece: index - (index > gone) for piece, index in vocabulary.items()}
    few = build_text_encoder(TextConfig(**{**SMALL, "vocab_size": 15, "name_or_path": "x"}), json.dumps(content))
    assert isinstance(few, SentenceTextEncoder)
    few.take_encoder(str(sentences), ["two people bow"])
    every = build(sentences, ["two people bow"])
    every.load_state_dict(every.state_dict() | dict(few.named_parameters()))
    prompts = ["two people bow!", "turn"]
    torch.testing.assert_close(few.eval()(prompts), every.eval()(prompts), rtol=0, atol=0)
    assert few.unknown_words("dance") == ["dance"]
    content["model"]["vocab"]["waltz"] = 15
    strange = build_text_encoder(TextConfig(**{**SMALL, "name_or_path": "x"}), json.dumps(content))
    assert isinstance(strange, SentenceTextEncoder)
    with pytest.raises(ValueError, match="expected a sentence encoder with word piece 'waltz', got none"):
        strange.take_encoder(str(sentences), ["two people bow"])


def test_a_package_that_holds_a_model_is_found(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sentences_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not run')", encoding="utf-8")
    (package / "model").symlink_to(sentences)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert sentence_encoder_tokenizer("sentences_in_a_package") == sentence_encoder_tokenizer(str(sentences))


def test_places_are_drawn_that_word_order_is_heard(sentences: Path) -> None:
    encoder = build(sentences, width=64, max_tokens=40)
    assert float(encoder.position_embedding.detach().std()) == pytest.approx(0.3, rel=0.1)
