"""What the evaluators are made with where nothing is asked for, what they refuse, and what their folders hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from intermoe.evaluators import official
from intermoe.evaluators.bigru import BiGRUConfig, BiGRUEvaluator, Recurrent
from intermoe.evaluators.evaluator import load_evaluator, save_evaluator, weights_digest
from intermoe.evaluators.interclip import InterClip, InterClipConfig, InterClipMotionEncoder
from intermoe.systems.published import Files
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder

TEXT = TextConfig(output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=16, vocab_size=60)
SMALL = InterClipConfig(
    input_dim=5, width=8, num_layers=2, num_heads=2, feedforward_dim=12, embedding_dim=6, dropout=0.0, text=TEXT
)
WORDS = ["sos", "eos", "unk", "walk", "person"]


def interclip(**changes: Any) -> InterClip:
    torch.manual_seed(0)
    return InterClip(replace(SMALL, **changes), WordPieceTextEncoder.train_tokenizer(["two people bow"], 60)).eval()


def bigru(**changes: Any) -> BiGRUEvaluator:
    torch.manual_seed(0)
    sizes = {
        "max_frames": 12, "max_words": 3, "vocab_size": 5, "word_dim": 5, "movement_dim": 6, "motion_dim": 7,
        "text_dim": 4, "embedding_dim": 3,
    }  # fmt: skip
    return BiGRUEvaluator(BiGRUConfig(**{**sizes, **changes}), json.dumps(WORDS)).eval()


def test_the_published_sizes_are_the_defaults() -> None:
    """InterGen's ``interclip.yaml`` and CLIP ViT-L/14's tokens; the released evaluator of Guo et al. 2022."""
    clip = InterClipConfig().to_dict()
    text = clip.pop("text")
    assert clip == {
        "representation": "interhuman", "persons": 2, "input_dim": 258, "width": 1024, "num_layers": 8, "num_heads": 8,
        "feedforward_dim": 2048, "embedding_dim": 512, "dropout": 0.1, "scale": 1.0,
    }  # fmt: skip
    expected = {
        "kind": "clip", "output_dim": 512, "width": 768, "num_layers": 8, "num_heads": 8, "feedforward_dim": 2048,
        "dropout": 0.1, "max_tokens": 77, "vocab_size": 49408,
    }  # fmt: skip
    assert {name: text[name] for name in expected} == expected
    assert BiGRUConfig().to_dict() == {
        "representation": "humanml3d", "input_dim": 259, "max_frames": 196, "max_words": 20, "vocab_size": 1,
        "word_dim": 300, "movement_dim": 512, "motion_dim": 1024, "text_dim": 512, "embedding_dim": 512,
    }  # fmt: skip
    own = official._interclip_config(official.INTERCLIP, 512, lambda output_dim: InterClipConfig().text)
    assert own == InterClipConfig()


def test_a_published_configuration_is_read_field_by_field() -> None:
    config = {
        "INPUT_DIM": 5, "LATENT_DIM": 12, "FF_SIZE": 7, "NUM_LAYERS": 3, "NUM_HEADS": 2, "DROPOUT": 0.3,
        "ACTIVATION": "gelu",
    }  # fmt: skip
    asked: list[int] = []

    def text(output_dim: int) -> TextConfig:
        asked.append(output_dim)
        return replace(TEXT, output_dim=output_dim)

    own = official._interclip_config(config, 9, text)
    assert own == InterClipConfig(
        input_dim=5, width=12, feedforward_dim=7, num_layers=3, num_heads=2, embedding_dim=9, dropout=0.3,
        text=replace(TEXT, output_dim=9),
    )  # fmt: skip
    assert asked == [9]
    del config["DROPOUT"], config["ACTIVATION"]  # which it may leave out
    assert official._interclip_config(config, 9, text) == replace(own, dropout=0.1)


@pytest.mark.parametrize("config", [InterClipConfig, BiGRUConfig])
def test_a_folder_of_an_older_version_says_layout(config: Any) -> None:
    values = config().to_dict()
    del values["representation"]
    assert config.from_dict({**values, "layout": "interx"}).representation == "interx"


@pytest.mark.parametrize("evaluator", [interclip(), bigru()], ids=["interclip", "bigru"])
def test_a_folder_holds_configuration_weights_and_tokenizer(evaluator: Any, tmp_path: Path) -> None:
    save_evaluator(tmp_path, evaluator)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == evaluator.kind
    assert (tmp_path / "tokenizer.json").read_text() == evaluator.tokenizer_json
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert weights.metadata()["format"] == "pt"
        for name, value in evaluator.state_dict().items():
            assert torch.equal(weights.get_tensor(name), value)
    loaded = load_evaluator(tmp_path, device="meta")
    assert loaded.device.type == "meta"
    assert (type(loaded), loaded.config, loaded.representation) == (
        type(evaluator), evaluator.config, evaluator.config.representation,
    )  # fmt: skip
    for content in ('{"kind": ["interclip"]}', "[]", "{}", '{"kind": null}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: kind: expected one of \('interclip', 'bigru'\), got"):
            load_evaluator(tmp_path)


def test_weights_are_known_by_16_digits() -> None:
    assert len(weights_digest({"a": torch.zeros(2)})) == 16


def test_texts_are_checked_as_they_would_be_embedded() -> None:
    with pytest.raises(ValueError, match="expected at most max_tokens=16 word pieces, got 31"):
        interclip().check_text(["two people bow", "bow " * 30])
    interclip().check_text(["two people bow"])
    with pytest.raises(ValueError, match="texts: expected 'word/POS"):
        bigru().check_text(["walk/VERB", "walk"])
    bigru().check_text(["walk/VERB"])


def test_the_query_is_drawn_and_the_input_is_dropped_in_training() -> None:
    torch.manual_seed(0)
    encoder = InterClipMotionEncoder(replace(SMALL, width=512, dropout=0.5)).train()
    assert float(encoder.query.detach().std()) == pytest.approx(1.0, rel=0.15)
    encoder.transformer.eval()  # of the encoder's own dropout what is left is that of its input
    motion, lengths = torch.randn(2, 2, 7, 5), torch.tensor([7, 4])
    assert not torch.allclose(encoder(motion, lengths), encoder(motion, lengths))
    encoder.dropout.eval()
    assert torch.equal(encoder(motion, lengths), encoder(motion, lengths))


def test_recurrent_by_hand() -> None:
    """Linear -> GRU both ways from its start to each sequence's own end -> Linear, norm, leaky ReLU, Linear."""
    torch.manual_seed(0)
    module = Recurrent(3, 4, 5)
    torch.nn.init.normal_(module.head[1].weight)
    assert float(module.start.detach().abs().min()) > 0
    sequence, lengths = torch.randn(2, 6, 3), torch.tensor([4, 6])
    names = [f"{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    expected = []
    for row, length in zip(sequence, lengths.tolist(), strict=True):
        x = row[:length] @ module.input.weight.T + module.input.bias
        last = []
        for end, way in (("", x), ("_reverse", x.flip(0))):
            cell = torch.nn.GRUCell(4, 4)
            for own, name in zip((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), names, strict=True):
                own.data.copy_(module.gru.get_parameter(f"{name}{end}"))
            state = module.start[len(last)]
            for step in way:
                state = cell(step[None], state)
            last.append(state[0])
        first, norm, _, out = module.head
        hidden = first(torch.cat(last))
        hidden = torch.nn.functional.layer_norm(hidden, (4,), norm.weight, norm.bias)
        expected.append(out(torch.where(hidden > 0, hidden, 0.2 * hidden)))
    torch.testing.assert_close(module(sequence, lengths), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_motion_is_whole_units_normalised_first_and_zero_behind_them() -> None:
    """Of 9 frames 8 are read, and zeros to the most that there are; of 19 the first 12, which are the most."""
    model = bigru()
    model.mean.copy_(torch.linspace(-1, 1, 259))
    model.std.copy_(torch.linspace(0.5, 2, 259))
    motion, lengths = torch.randn(3, 1, 19, 263), torch.tensor([9, 19, 4])
    expected = []
    for row, (frames, units) in zip(motion, ((8, 2), (12, 3), (4, 1)), strict=True):
        columns = torch.zeros(1, 259, 12)
        columns[0, :, :frames] = ((row[0, :frames, :259] - model.mean) / model.std).T
        hidden = model.conv1(columns)
        hidden = model.conv2(torch.where(hidden > 0, hidden, 0.2 * hidden))
        hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
        expected.append(model.motion(model.movement(hidden.mT), torch.tensor([units])))
    torch.testing.assert_close(model.embed_motion(motion, lengths), torch.cat(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="lengths: expected >= 4, got 3"):
        model.embed_motion(motion, torch.tensor([9, 3, 19]))


def test_a_recurrent_evaluator_needs_layout_and_words_and_gets_all_that_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(official, "load_bigru", lambda *given: asked.append(given))
    layout = official.LAYOUT_OF_BIGRU
    for files in (Files(), Files(layout="interx"), Files(words=tmp_path)):
        with pytest.raises(
            ValueError, match=r"--layout, --words: expected both for x\.tar, a recurrent evaluator, got"
        ):
            layout.read(Path("x.tar"), files)
    assert asked == []
    layout.read(Path("x.tar"), Files(layout="humanml3d", words=tmp_path / "w", stats=tmp_path / "s"))
    assert asked == [(Path("x.tar"), "humanml3d", tmp_path / "w", tmp_path / "s")]
    assert layout.uses == ("stats", "layout", "words")
    assert layout.fits({"movement_encoder", "x"})
    assert not layout.fits({"motion_encoder", "text_encoder"})
    assert official.LAYOUT.uses == ("tokenizer",)
    assert official.LAYOUT.fits({"model.motion_encoder.x", "y"})
    assert official.LAYOUT.fits({"motion_encoder.x"})
    assert not official.LAYOUT.fits({"motion_encoder", "x.motion_encoder.y"})


def test_interclip_of_a_checkpoint_gets_its_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, given = interclip(), Files(tokenizer=tmp_path / "clip")
    asked: list[Any] = []
    monkeypatch.setattr(official, "load_interclip", lambda path: asked.append(path) or model)
    monkeypatch.setattr(official, "with_tower", lambda text, files: asked.append((text, files)))
    assert official.LAYOUT.read(Path("x.ckpt"), given) is model
    assert asked == [Path("x.ckpt"), (model.text, given)]
    official.LAYOUT.save(model, tmp_path / "out")
    assert load_evaluator(tmp_path / "out").config == model.config
