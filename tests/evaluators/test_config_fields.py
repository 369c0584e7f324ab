"""What each value of an evaluator's configuration changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.evaluators.bigru import BiGRUConfig, BiGRUEvaluator
from intermoe.evaluators.evaluator import load_evaluator, save_evaluator, weights_digest
from intermoe.evaluators.interclip import InterClip, InterClipConfig
from intermoe.nn.layers import sinusoid
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder

CAPTIONS = ["two people bow", "they turn"]
TEXT = TextConfig(output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=16, vocab_size=60)
SMALL: dict[str, Any] = {
    "width": 8, "num_layers": 2, "num_heads": 2, "feedforward_dim": 12, "embedding_dim": 6, "dropout": 0.0,
    "text": TEXT,
}  # fmt: skip
LENGTHS = torch.tensor([12, 9])


def interclip(**changes: Any) -> InterClip:
    torch.manual_seed(0)
    values = {**SMALL, **changes}
    return InterClip(InterClipConfig(**values), WordPieceTextEncoder.train_tokenizer(CAPTIONS, 60)).eval()


def test_sizes_of_interclip() -> None:
    text = TextConfig(**{**TEXT.to_dict(), "output_dim": 5})
    model = interclip(width=12, num_layers=3, feedforward_dim=20, embedding_dim=5, text=text)
    assert model.embed_motion(torch.randn(2, 2, 12, 262), LENGTHS).shape == (2, 5)
    assert model.embed_text(CAPTIONS).shape == (2, 5)
    assert len(model.motion.transformer.layers) == 3
    assert model.motion.transformer.layers[0].linear1.weight.shape == (20, 12)


def test_input_columns_and_persons() -> None:
    model, motion = interclip(input_dim=10, persons=3), torch.randn(2, 3, 12, 262)
    embedded = model.embed_motion(motion, LENGTHS)
    beyond, within, other = motion.clone(), motion.clone(), motion.clone()
    beyond[..., 10:] += 1
    within[..., 9] += 1
    other[:, 2, :, 0] += 1
    assert torch.equal(model.embed_motion(beyond, LENGTHS), embedded)
    assert not torch.allclose(model.embed_motion(within, LENGTHS), embedded)
    assert not torch.allclose(model.embed_motion(other, LENGTHS), embedded)
    with pytest.raises(ValueError, match=r"motion: expected \(B, 3, T, at least 10 columns\)"):
        model.embed_motion(motion[:, :2], LENGTHS)
    assert InterClipConfig().input_dim == 258  # all but the contacts of InterHuman


def test_heads_change_the_answer_and_no_shape() -> None:
    one, two = interclip(num_heads=1), interclip(num_heads=2)
    two.load_state_dict(one.state_dict())
    motion = torch.randn(2, 2, 12, 262)
    assert not torch.allclose(one.embed_motion(motion, LENGTHS), two.embed_motion(motion, LENGTHS), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_scale_is_the_length_of_every_embedding(scale: float) -> None:
    model = interclip(scale=scale)
    for embedded in (model.embed_motion(torch.randn(2, 2, 12, 262), LENGTHS), model.embed_text(CAPTIONS)):
        torch.testing.assert_close(embedded.norm(dim=1), torch.full((2,), scale))


def test_dropout_and_representation_of_interclip() -> None:
    motion = torch.randn(2, 2, 12, 262)
    for p in (0.0, 0.5):
        model = interclip(dropout=p).train()
        assert torch.equal(model.motion(motion, LENGTHS), model.motion(motion, LENGTHS)) is (p == 0.0)
        assert model.motion.dropout.p == p
        for layer in model.motion.transformer.layers:
            assert layer.dropout.p == layer.self_attn.dropout == p
    assert interclip(representation="interx", input_dim=12).representation == "interx"


def test_frames_beyond_the_length_and_their_order() -> None:
    model, motion = interclip(), torch.randn(2, 2, 12, 262)
    embedded = model.embed_motion(motion, LENGTHS)
    longer = torch.cat([motion, torch.full((2, 2, 4, 262), 50.0)], dim=2)
    torch.testing.assert_close(model.embed_motion(longer, LENGTHS), embedded)
    assert not torch.allclose(model.embed_motion(motion.flip(2), torch.tensor([12, 12])), embedded)


GRU: dict[str, Any] = {
    "input_dim": 259, "max_frames": 24, "max_words": 4, "vocab_size": 6, "word_dim": 5, "movement_dim": 6,
    "motion_dim": 7, "text_dim": 4, "embedding_dim": 3,
}  # fmt: skip
WORDS = ["sos", "eos", "unk", "walk", "person", "slowly"]


def bigru(**changes: Any) -> BiGRUEvaluator:
    torch.manual_seed(0)
    config = BiGRUConfig(**{**GRU, **changes})
    evaluator = BiGRUEvaluator(config, json.dumps(WORDS[: config.vocab_size])).eval()
    evaluator.vectors.normal_()
    return evaluator


def test_sizes_of_the_recurrent_evaluator() -> None:
    model = bigru(word_dim=8, movement_dim=9, motion_dim=10, text_dim=11, embedding_dim=12)
    assert model.embed_motion(torch.randn(2, 1, 12, 263), LENGTHS).shape == (2, 12)
    assert model.embed_text(["walk/VERB", "person/NOUN walk/VERB"]).shape == (2, 12)
    assert model.vectors.shape == (6, 8)
    assert (model.conv1.out_channels, model.motion.gru.hidden_size, model.text.gru.hidden_size) == (9, 10, 11)
    with pytest.raises(ValueError, match="expected vocab_size=7 different words"):
        BiGRUEvaluator(BiGRUConfig(**{**GRU, "vocab_size": 7}), json.dumps(WORDS))


def test_motion_and_texts_are_cut_to_their_most() -> None:
    model, motion = bigru(max_frames=12, max_words=2), torch.randn(1, 1, 24, 263)
    whole = model.embed_motion(motion, torch.tensor([24]))
    torch.testing.assert_close(model.embed_motion(motion[:, :, :12], torch.tensor([12])), whole)
    assert not torch.allclose(bigru(max_frames=24).embed_motion(motion, torch.tensor([24])), whole)
    texts = ["person/NOUN walk/VERB slowly/ADV", "person/NOUN walk/VERB"]
    cut, long = model.embed_text(texts), bigru(max_words=3).embed_text(texts)
    torch.testing.assert_close(cut[0], cut[1])
    assert not torch.allclose(long[0], long[1])


def test_normalisation_and_columns_of_the_recurrent_evaluator() -> None:
    """Column k is (x - mean_k) / std_k; the contacts are not read."""
    model, motion = bigru(), torch.randn(2, 1, 12, 263)
    embedded = model.embed_motion(motion, LENGTHS)
    model.mean.copy_(torch.linspace(-1, 1, 259))
    model.std.copy_(torch.linspace(0.5, 2, 259))
    moved = motion.clone()
    moved[..., :259] = motion[..., :259] * model.std + model.mean
    moved[..., 259:] += 5
    torch.testing.assert_close(model.embed_motion(moved, LENGTHS), embedded, rtol=1e-4, atol=1e-5)


def test_representation_of_interx_puts_both_persons_side_by_side() -> None:
    """672 columns: joint by joint the rotations of both persons, then the place of both roots and six zeros."""
    model, motion = bigru(representation="interx", input_dim=56 * 12), torch.randn(1, 2, 8, 55, 12)
    assert model.representation == "interx"
    columns = model._columns(motion)
    assert columns.shape == (1, 8, 672)
    for joint in (0, 31, 54):
        for person in (0, 1):
            expected = motion[:, person, :, joint, 6:]
            torch.testing.assert_close(columns[..., 12 * joint + 6 * person : 12 * joint + 6 * person + 6], expected)
    place = columns[..., 660:].view(1, 8, 2, 6)
    torch.testing.assert_close(place[..., :3], motion[:, :, :, 0, :3].transpose(1, 2))
    assert not place[..., 3:].any()


def test_a_word_of_movement_has_a_category_of_its_own_and_unknown_words_none() -> None:
    from intermoe.evaluators.words import CATEGORIES, encode

    index = {word: number for number, word in enumerate(WORDS)}
    words, categories = encode("person/NOUN walk/NOUN slowly/ADV zebra/NOUN person/X", index, 5)
    assert words == [0, 4, 3, 5, 2, 4, 1]
    assert [CATEGORIES[c] for c in categories] == ["OTHER", "NOUN", "Act_VIP", "Desc_VIP", "OTHER", "OTHER", "OTHER"]


def test_interclip_reads_the_query_then_both_persons_side_by_side() -> None:
    """Position 0 is the query and answers, t + 1 is frame t: columns of person 1, then of person 2; to the length."""
    model, motion = interclip(input_dim=3), torch.randn(2, 2, 12, 5)
    encoder = model.motion
    for row, length in enumerate(LENGTHS.tolist()):
        frames = torch.cat([motion[row, 0, :length, :3], motion[row, 1, :length, :3]], dim=-1)
        tokens = torch.cat([encoder.query, frames @ encoder.embed.weight.T + encoder.embed.bias])
        hidden = encoder.transformer((tokens + sinusoid(torch.arange(length + 1), 8))[None])
        expected = torch.nn.functional.normalize(encoder.out(encoder.norm(hidden[:, 0])))
        torch.testing.assert_close(model.embed_motion(motion, LENGTHS)[row : row + 1], expected)
    motion[1, :, 9:] = torch.nan
    assert model.embed_motion(motion, LENGTHS).isfinite().all()


def test_a_text_is_its_words_and_their_categories() -> None:
    """sos, the words and eos, each the vector and the embedded category; the GRU ends at each text's own end."""
    from intermoe.evaluators.words import CATEGORIES

    model = bigru()
    rows, kinds = [0, 4, 5, 1], ["OTHER", "NOUN", "Desc_VIP", "OTHER"]
    columns = model.category.weight[:, [CATEGORIES.index(kind) for kind in kinds]].T + model.category.bias
    expected = model.text((model.vectors[rows] + columns)[None], torch.tensor([4]))
    embedded = model.embed_text(["person/NOUN slowly/ADV", "person/NOUN walk/VERB slowly/ADV"])
    torch.testing.assert_close(embedded[:1], expected)


def test_an_evaluator_is_saved_in_a_folder_within_others_and_in_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "evaluator"
    for evaluator in (interclip(dropout=0.5), interclip(dropout=0.0)):
        save_evaluator(folder, evaluator)
        assert load_evaluator(folder).config == evaluator.config


def test_a_loaded_evaluator_is_frozen_and_does_not_drop(tmp_path: Path) -> None:
    save_evaluator(tmp_path, interclip(dropout=0.5))
    loaded = load_evaluator(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_published_text_side_is_read_at_the_end_of_text() -> None:
    """Embeddings and positions -> transformer over the padding too -> norm -> state at the largest id -> Linear."""
    text = TextConfig(
        kind="clip", output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=5, vocab_size=20
    )
    torch.manual_seed(0)
    encoder: Any = InterClip(InterClipConfig(**{**SMALL, "text": text})).eval().text
    torch.nn.init.normal_(encoder.norm.weight)
    tokens = torch.tensor([[17, 4, 19, 0, 0], [17, 4, 5, 6, 19]])
    states = encoder.transformer(encoder.token_embedding.weight[tokens] + encoder.position_embedding)
    normed = torch.nn.functional.layer_norm(states, (8,), encoder.norm.weight, encoder.norm.bias)
    expected = encoder.out(torch.stack([normed[0, 2], normed[1, 4]]))
    torch.testing.assert_close(encoder.encode_tokens(tokens), expected)


def test_a_digest_is_of_names_types_shapes_and_values() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "b": torch.ones(2).int()},
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "b": torch.tensor([1.0, 2.0])},
        {"a": tensors["a"]},
    ]
    digests = {weights_digest(each) for each in (tensors, *others)}
    assert len(digests) == 6
    assert weights_digest(dict(reversed(tensors.items()))) == weights_digest(tensors)


HOSTILE = [
    (kind, field)
    for kind, fields in (
        ("interclip", "persons input_dim width feedforward_dim text.width text.feedforward_dim text.max_tokens"),
        ("bigru", "input_dim word_dim movement_dim motion_dim text_dim embedding_dim"),
    )
    for field in fields.split()
]


@pytest.mark.parametrize("size", [10**5, 10**9, 10**30])
@pytest.mark.parametrize(("kind", "field"), HOSTILE)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
    kind: str, field: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "interclip":
        save_evaluator(tmp_path, interclip())
    else:
        dims = dict.fromkeys(("word_dim", "movement_dim", "motion_dim", "text_dim", "embedding_dim"), 4)
        words = json.dumps(["sos", "eos", "unk", "walk"])
        save_evaluator(tmp_path, BiGRUEvaluator(BiGRUConfig(input_dim=5, vocab_size=4, **dims), words))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    section, _, last = field.rpartition(".")
    (values[section] if section else values)[last] = size
    path.write_text(json.dumps(values))
    monkeypatch.setattr("intermoe.evaluators.evaluator.load_module", lambda *_: pytest.fail("built as it says"))
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_evaluator(tmp_path)
