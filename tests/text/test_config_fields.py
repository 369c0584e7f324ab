"""What each value of a text encoder's configuration changes, shown with the encoder that needs nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder

CAPTIONS = ["two people bow", "one of them turns to the left", "they turn to the right"]
SMALL: dict[str, Any] = {
    "output_dim": 6, "width": 8, "num_layers": 2, "num_heads": 2, "feedforward_dim": 12, "dropout": 0.0,
    "max_tokens": 10, "vocab_size": 70,
}  # fmt: skip


def build(**changes: Any) -> WordPieceTextEncoder:
    torch.manual_seed(0)
    tokenizer = WordPieceTextEncoder.train_tokenizer(CAPTIONS, 70)
    encoder = build_text_encoder(TextConfig(**{**SMALL, **changes}), tokenizer)
    assert isinstance(encoder, WordPieceTextEncoder)
    return encoder


def test_sizes_of_the_encoder() -> None:
    encoder = build(output_dim=5, width=12, num_layers=3, feedforward_dim=20, vocab_size=90, max_tokens=8)
    assert encoder(CAPTIONS).shape == (3, 5)
    assert encoder.output_dim == 5
    assert encoder.token_embedding.weight.shape == (90, 12)
    assert encoder.position_embedding.shape == (8, 12)
    assert len(encoder.transformer.layers) == 3
    assert encoder.transformer.layers[0].linear1.weight.shape == (20, 12)


def test_heads_change_the_answer_and_no_shape() -> None:
    one, two = build(num_heads=1).eval(), build(num_heads=2).eval()
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(one(CAPTIONS), two(CAPTIONS), atol=1e-5)


def test_prompts_have_at_most_max_tokens() -> None:
    words = "two people bow two people bow"  # six words and the end
    assert build(max_tokens=7)([words]).shape == (1, 6)
    with pytest.raises(ValueError, match=r"expected at most max_tokens=6 word pieces, got 7"):
        build(max_tokens=6)([words])


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at most vocab_size=30 tokens, got \d+"):
        build(vocab_size=30)


def test_dropout_is_of_training_alone_and_spells_words_in_pieces() -> None:
    for p in (0.0, 0.5):
        encoder = build(dropout=p).train()
        assert torch.equal(encoder(CAPTIONS), encoder(CAPTIONS)) is (p == 0.0)
        for layer in encoder.transformer.layers:
            assert layer.dropout.p == layer.dropout1.p == layer.dropout2.p == layer.self_attn.dropout == p
        encoder.eval()
        assert torch.equal(encoder(CAPTIONS), encoder(CAPTIONS))
    encoder = build(dropout=0.3, max_tokens=60).train()
    torch.manual_seed(0)
    row = encoder.token_ids("turns people")
    spelled = [encoder._spell_at_random(row) for _ in range(1000)]
    whole = sum(ids[0] == row[0] for ids in spelled) / 1000
    assert whole == pytest.approx(0.7, abs=0.05)
    assert all(ids[-1] == row[-1] for ids in spelled)


def test_the_kind_chooses_the_encoder() -> None:
    from intermoe.text.clip import ClipTextEncoder

    changes = {"kind": "clip", "output_dim": 8, "clip_layers": 1, "clip_heads": 2}
    clip = build_text_encoder(TextConfig(**{**SMALL, **changes}), None)
    assert isinstance(clip, ClipTextEncoder)
    assert isinstance(build(), WordPieceTextEncoder)


@pytest.mark.parametrize("value", [1, 2])
def test_layers_and_heads_of_the_clip_tower(value: int) -> None:
    changes = {"kind": "clip", "output_dim": 8, "clip_layers": value, "clip_heads": value}
    torch.manual_seed(0)
    clip = build_text_encoder(TextConfig(**{**SMALL, **changes}), None)
    layers = clip.get_submodule("tower").layers
    assert len(layers) == value
    assert layers[0].self_attn.num_heads == value


def test_a_prompt_that_has_no_room_for_pieces_keeps_its_words() -> None:
    """Every word may be spelled; where all pieces are more than the encoder reads, none is and nothing is cut."""
    long = build(dropout=0.999, max_tokens=60).train()
    row = long.token_ids("turns people left right")
    torch.manual_seed(0)
    pieces = [long._spell_at_random(row) for _ in range(20)]
    most = max(map(len, pieces))
    assert most > len(row)
    for room, kept in ((most, False), (most - 1, True)):
        short = build(dropout=0.999, max_tokens=room).train()
        torch.manual_seed(0)
        found = [short._spell_at_random(row) for _ in range(20)]
        assert found == [each if len(each) <= room else row for each in pieces]
        assert (row in found) is kept
