"""The sentence encoder's own rules, one at a time, with a tokenizer and weights that are made on the spot."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.text import sentence
from intermoe.text.packed import GROUP, PackedMatrix
from intermoe.text.protocol import TextConfig
from intermoe.text.sentence import PackedSentenceEncoder, SentenceTextEncoder, without_other_scripts

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "two", "people", "bow", "turn", "##s"]
CONFIG = TextConfig(
    kind="sentence", name_or_path="x", output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=12,
    dropout=0.0, max_tokens=10, vocab_size=len(WORDS), vector_dim=GROUP, sentence_layers=1, sentence_heads=2,
)  # fmt: skip


def tokenizer() -> Any:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    own = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    own.normalizer = tokenizers.normalizers.Lowercase()
    own.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return own


class Bert:
    """What is read of transformers' ``BertModel``: sizes, and weights that are drawn when it is made."""

    def __init__(self, **changes: Any) -> None:
        self.config = SimpleNamespace(**{
            "hidden_size": GROUP, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4 * GROUP,
            "hidden_act": "gelu", **changes,
        })  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (len(WORDS), GROUP),
            "embeddings.token_type_embeddings.weight": (2, GROUP),
            "embeddings.position_embeddings.weight": (16, GROUP),
        }
        inner = "encoder.layer.0."
        for name in ("query", "key", "value"):
            shapes |= {
                f"{inner}attention.self.{name}.weight": (GROUP, GROUP),
                f"{inner}attention.self.{name}.bias": (GROUP,),
            }
        for name, out, into in (
            ("attention.output.dense", GROUP, GROUP), ("intermediate.dense", 4 * GROUP, GROUP),
            ("output.dense", GROUP, 4 * GROUP),
        ):  # fmt: skip
            shapes |= {f"{inner}{name}.weight": (out, into), f"{inner}{name}.bias": (out,)}
        for name in ("embeddings", f"{inner}attention.output", f"{inner}output"):
            shapes |= {f"{name}.LayerNorm.{part}": (GROUP,) for part in ("weight", "bias")}
        draws = torch.Generator().manual_seed(0)
        self.state = {name: 0.3 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state


@pytest.fixture(autouse=True)
def pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "load_frozen", lambda name: Bert())
    monkeypatch.setattr(sentence, "sentence_encoder_tokenizer", lambda name: tokenizer().to_str())


def build(captions: list[str], tokenizer_json: str | None = None) -> SentenceTextEncoder:
    torch.manual_seed(0)
    encoder = SentenceTextEncoder(CONFIG, tokenizer_json or tokenizer().to_str()).eval()
    encoder.take_encoder("x", captions)
    return encoder


def test_captions_count_once_each_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["two people bow", "people turn", "two bows", "turn", "bow two"]
    encoder = build(captions)
    single = torch.cat([encoder._embedded(*encoder._states([caption])) for caption in captions])
    torch.testing.assert_close(encoder.mean, single.mean(dim=0))
    spread = (single - single.mean(dim=0)).square().mean().sqrt()
    torch.testing.assert_close(encoder.spread, spread)
    monkeypatch.setattr(sentence, "_BATCH", 2)
    again = build([*captions[::-1], captions[0], captions[0]])
    torch.testing.assert_close(again.mean, encoder.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again.spread, encoder.spread, rtol=1e-4, atol=1e-6)


def test_a_single_caption_spreads_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(["two people bow"])
    assert encoder.spread.item() == pytest.approx(1e-6)
    assert encoder(["turn", "two people bow"]).isfinite().all()


def test_a_word_that_is_half_like_one_of_the_captions_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(["two people"])
    for likeness, unknown in ((0.5, []), (0.499, ["turn"]), (-1.0, ["turn"])):
        monkeypatch.setattr(encoder, "_likeness", lambda pieces, likeness=likeness: likeness)
        assert encoder.unknown_words("two turn") == unknown
    monkeypatch.setattr(encoder, "_likeness", lambda pieces: pytest.fail("asked of a word without pieces"))
    assert encoder.unknown_words("two zebra people") == ["zebra"]


def test_a_word_without_pieces_is_unknown_though_captions_had_such(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(["two zebra people"])
    assert bool(encoder.seen[1])
    assert encoder.unknown_words("Lion, two Lion!") == ["lion"]


def test_likeness_is_to_the_nearest_of_the_captions_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines of what is left of single words when their mean is taken off; other captions are other words."""
    encoder = build(["two people bow"])
    vectors = {4: [1.0, 0.0], 5: [0.0, 1.0], 6: [-1.0, -1.0], 7: [0.6, 0.8], 8: [-3.0, -4.0]}
    monkeypatch.setattr(sentence, "_BATCH", 2)
    asked: list[list[list[int]]] = []

    def alone(words: list[list[int]]) -> torch.Tensor:
        asked.append(words)
        return torch.tensor([vectors[pieces[0]] for pieces in words]) + 5.0

    monkeypatch.setattr(encoder, "_alone", alone)
    assert encoder._likeness([7]) == pytest.approx(0.8)
    assert encoder._likeness([8]) == pytest.approx((3 + 4) / 5 / 2**0.5)
    assert asked == [[[4], [5]], [[6]], [[7]], [[8]]]  # those of the captions once
    monkeypatch.undo()
    monkeypatch.setattr(sentence, "load_frozen", lambda name: Bert())
    monkeypatch.setattr(sentence, "sentence_encoder_tokenizer", lambda name: tokenizer().to_str())
    encoder.take_encoder("x", ["turn"])
    assert encoder._near is None
    assert encoder.seen.nonzero()[:, 0].tolist() == [4, 5, 6, 7]


def test_words_alone_are_between_the_ends_of_a_sentence() -> None:
    encoder = build(["two people bow"])
    ids, mask = torch.tensor([[2, 6, 8, 3]]), torch.ones(1, 4, dtype=torch.bool)
    expected = encoder._embedded(encoder.frozen(ids, mask), mask)
    torch.testing.assert_close(encoder._alone([[4], [6, 8]])[1:], expected, rtol=1e-4, atol=1e-5)
    assert encoder._words("Bows, TWO -- bows!") == {"bows": [6, 8], "two": [4]}


def test_a_tokenizer_neither_cuts_nor_fills_whatever_its_file_says() -> None:
    own = tokenizer()
    own.enable_truncation(3)
    own.enable_padding(length=9, pad_id=0, pad_token="[PAD]")
    encoder = build(["two"], own.to_str())
    assert encoder.encode("two people bows") == [2, 4, 5, 6, 8, 3]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("hidden_act", "relu", "gelu"), ("intermediate_size", 128, 256), ("hidden_size", 32, 64),
     ("num_hidden_layers", 2, 1), ("num_attention_heads", 4, 2)],
)  # fmt: skip
def test_an_encoder_of_other_sizes_is_refused(name: str, value: Any, expected: Any) -> None:
    encoder = Bert(**{name: value})
    with pytest.raises(ValueError, match=f"expected a sentence encoder with {name} {expected}, got {value}"):
        PackedSentenceEncoder(CONFIG).take(encoder, range(len(WORDS)))


def test_rows_of_the_vocabulary_are_taken_in_the_order_that_is_asked_for() -> None:
    """Positions hold the kind of a first sentence too; there are as many as a prompt has tokens at most."""
    frozen, theirs = PackedSentenceEncoder(CONFIG), Bert()
    order = [8, 0, 3, 1, 2, 7, 6, 5, 4]
    frozen.take(theirs, order)
    packed = PackedMatrix(len(WORDS), GROUP)
    packed.pack(theirs.state["embeddings.word_embeddings.weight"][order])
    assert torch.equal(frozen.words.matrix(), packed.matrix())
    state = theirs.state
    positions = (
        state["embeddings.position_embeddings.weight"][:10] + state["embeddings.token_type_embeddings.weight"][0]
    )
    assert torch.equal(frozen.positions, positions)
    inner = "encoder.layer.0."
    names = [f"attention.self.{name}.bias" for name in ("query", "key", "value")]
    names += ["attention.output.dense.bias", "attention.output.LayerNorm.weight", "attention.output.LayerNorm.bias"]
    names += ["intermediate.dense.bias", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias"]
    assert torch.equal(frozen.vectors[0], torch.cat([state[f"{inner}{name}"] for name in names]))


def test_states_that_hardly_vary_are_normalised_all_the_same() -> None:
    """A variance of 1e-8 is far above what is added to it, as in BERT."""
    frozen = PackedSentenceEncoder(CONFIG)
    signs = torch.tensor([1.0, -1.0]).repeat(GROUP // 2)
    frozen.positions.copy_(1e-4 * signs.expand(10, GROUP))
    frozen.norm[0] = 1.0
    scales = torch.zeros(sum(sentence._VECTORS), GROUP)
    scales[4] = scales[11] = 1.0  # of both LayerNorms: behind 3 + 1 rows, and behind 2 + 4 + 1 more
    frozen.vectors.copy_(scales.flatten()[None])
    states = frozen(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(states, signs.expand(1, 3, GROUP), rtol=1e-3, atol=1e-3)


def test_pieces_are_kept_where_all_special_tokens_find_their_ids() -> None:
    """Two pieces and three special tokens are ids 0 to 4."""
    for last, changes in ((4, True), (5, False)):
        special = {"[PAD]": 0, "[UNK]": 1, "[SEP]": last}
        content = {
            "added_tokens": [{"content": token, "id": index} for token, index in special.items()],
            "model": {"type": "WordPiece", "vocab": {**special, "bow": 2, "\u03b1": 3, "two": 7}},
        }
        found = json.loads(without_other_scripts(json.dumps(content), ["bow"]))
        expected = {**special, "bow": 2, "two": 3} if changes else content["model"]["vocab"]  # type: ignore[index]
        assert found["model"]["vocab"] == expected


def test_integers_are_two_a_byte_the_first_in_its_lower_half() -> None:
    matrix = torch.zeros(1, 2 * GROUP)
    matrix[0, :4] = torch.tensor([-7.0, 7.0, 3.0, -2.0])
    matrix[0, GROUP:] = torch.linspace(-14, 14, GROUP)
    packed = PackedMatrix(1, 2 * GROUP)
    packed.pack(matrix)
    assert packed.scale.tolist() == [[1.0, 2.0]]
    assert packed.scale.dtype == torch.float16
    assert packed.packed[0, :3].tolist() == [0 + 16 * 14, 10 + 16 * 5, 7 + 16 * 7]
    torch.testing.assert_close(packed.matrix()[0, :GROUP], matrix[0, :GROUP], rtol=0, atol=0)
    assert packed.matrix()[0, GROUP].item() == -14


def test_a_scale_that_is_rounded_down_cuts_what_is_beyond_it() -> None:
    """The largest, 6.2e-7 / 7, becomes the least that float16 has, 2^-24; ten and a half of it are seven."""
    matrix = torch.zeros(1, GROUP)
    matrix[0, 0], matrix[0, 3] = 6.2e-7, -6.2e-7
    packed = PackedMatrix(1, GROUP)
    packed.pack(matrix)
    expected = torch.zeros(GROUP)
    expected[0], expected[3] = 7 * 2.0**-24, -7 * 2.0**-24
    assert torch.equal(packed.matrix()[0], expected)
