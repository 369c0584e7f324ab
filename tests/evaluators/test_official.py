"""The published evaluators' weights: InterCLIP against its arrays, the recurrent ones against torch's modules."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from intermoe import official
from intermoe.evaluators.evaluator import load_evaluator, save_evaluator
from intermoe.evaluators.interclip import InterClipConfig, InterClipMotionEncoder
from intermoe.evaluators.words import read_texts, read_word_vectors
from intermoe.nn.layers import sinusoid
from intermoe.text.protocol import TextConfig

VOCABULARY, WIDTH = 40, 16


@pytest.fixture(scope="module")
def encoder_state(golden: Any) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    archive = golden("interclip_motion_encoder.npz")
    state = {key[6:]: torch.from_numpy(archive[key]) for key in archive.files if key.startswith("state/")}
    return archive, state, json.loads(str(archive["config"]))


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch takes its fused path
def test_motion_encoder_equals_the_published_one(encoder_state: Any, relative_error: Any, grad: bool) -> None:
    archive, state, config = encoder_state
    encoder = official.load_evaluator_motion_encoder(state, config)
    motion = torch.from_numpy(archive["motions"]).unflatten(-1, (2, -1)).transpose(1, 2)
    with torch.set_grad_enabled(grad):
        embedded = encoder(motion, torch.from_numpy(archive["lengths"]))
    assert relative_error(embedded, archive["motion_emb"]) < 1e-5


def test_motion_encoder_is_strict(published_file: Any) -> None:
    config = {"INPUT_DIM": 10, "LATENT_DIM": 32, "FF_SIZE": 12, "NUM_LAYERS": 1, "NUM_HEADS": 2, "ACTIVATION": "gelu"}
    known = {"sequence_pos_encoder.pe": sinusoid(torch.arange(9), 32), "out.weight": (16, 32)}
    state = published_file(lambda state: official.load_evaluator_motion_encoder(state, config), known)
    with pytest.raises(ValueError, match=r"missing key 'out_ln\.bias'"):
        official.load_evaluator_motion_encoder({k: v for k, v in state.items() if k != "out_ln.bias"}, config)
    with pytest.raises(ValueError, match=r"unexpected keys .*surplus"):
        official.load_evaluator_motion_encoder({**state, "surplus": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="expected the sinusoidal table"):
        official.load_evaluator_motion_encoder({**state, "sequence_pos_encoder.pe": torch.zeros(2000, 32)}, config)
    with pytest.raises(ValueError, match="ACTIVATION: expected 'gelu'"):
        official.load_evaluator_motion_encoder(state, {**config, "ACTIVATION": "relu"})


def interclip_state(encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """A small InterCLIP in its published module names."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 8, 24, activation="gelu", batch_first=True)
    text = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).state_dict()
    return {
        **{f"model.motion_encoder.{key}": value for key, value in encoder.items()},
        **{f"model.textTransEncoder.{key}": value for key, value in text.items()},
        "model.token_embedding.weight": torch.randn(VOCABULARY, WIDTH),
        "model.positional_embedding": torch.randn(6, WIDTH),
        "model.text_ln.weight": torch.randn(WIDTH),
        "model.text_ln.bias": torch.randn(WIDTH),
        "model.out.weight": torch.randn(512, WIDTH),
        "model.out.bias": torch.randn(512),
        "model.latent_scale": torch.tensor([1.7]),
    }


def test_interclip_from_its_checkpoint(encoder_state: Any, tmp_path: Path, relative_error: Any) -> None:
    archive, state, config = encoder_state
    full = interclip_state(state)
    torch.save({"state_dict": full, "hyper_parameters": config}, tmp_path / "interclip.ckpt")
    save_evaluator(tmp_path / "evaluator", official.load_interclip(tmp_path / "interclip.ckpt"))
    evaluator: Any = load_evaluator(tmp_path / "evaluator")
    assert evaluator.config.text == TextConfig(
        kind="clip", output_dim=512, width=WIDTH, feedforward_dim=24, max_tokens=6, vocab_size=VOCABULARY
    )
    motion = torch.from_numpy(archive["motions"]).unflatten(-1, (2, -1)).transpose(1, 2)
    expected = torch.nn.functional.normalize(torch.from_numpy(archive["motion_emb"]), dim=-1) * 1.7
    assert relative_error(evaluator.embed_motion(motion, torch.from_numpy(archive["lengths"])), expected) < 1e-5


def test_text_side_of_interclip_by_modules_of_torch(tmp_path: Path, relative_error: Any) -> None:
    """Eight heads, post-norm, padding attended to, the state at the end of text; its file does not tell the heads."""
    config = {"INPUT_DIM": 5, "LATENT_DIM": 8, "FF_SIZE": 12, "NUM_LAYERS": 1, "NUM_HEADS": 2}
    own = InterClipMotionEncoder(
        InterClipConfig(input_dim=5, width=8, num_layers=1, num_heads=2, feedforward_dim=12, embedding_dim=512)
    )
    published = {"query": "query_token", "embed": "embed_motion", "norm": "out_ln"}
    motion = {
        ".".join([published.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]]): v
        for k, v in own.state_dict().items()
    }
    full = interclip_state({**motion, "sequence_pos_encoder.pe": sinusoid(torch.arange(20), 8)})
    torch.save({"state_dict": full, "hyper_parameters": config}, tmp_path / "interclip.ckpt")
    evaluator: Any = official.load_interclip(tmp_path / "interclip.ckpt")
    tokens = torch.tensor([[1, 5, 39, 0, 0, 0], [1, 39, 0, 0, 0, 0]])
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 8, 24, activation="gelu", batch_first=True)
    stack = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    prefix = "model.textTransEncoder."
    stack.load_state_dict({k.removeprefix(prefix): v for k, v in full.items() if k.startswith(prefix)})
    hidden = stack(full["model.token_embedding.weight"][tokens] + full["model.positional_embedding"])
    hidden = torch.nn.functional.layer_norm(hidden, (WIDTH,), full["model.text_ln.weight"], full["model.text_ln.bias"])
    out = hidden[[0, 1], [2, 1]] @ full["model.out.weight"].T + full["model.out.bias"]
    assert relative_error(evaluator.text.encode_tokens(tokens), out) < 1e-5
    # the motion side and the scale of both
    frames, lengths = torch.randn(2, 2, 9, 5), torch.tensor([9, 6])
    expected = 1.7 * torch.nn.functional.normalize(own.eval()(frames, lengths))
    assert relative_error(evaluator.embed_motion(frames, lengths), expected) < 1e-5
    assert not any(module.training for module in evaluator.modules())
    assert evaluator.config == InterClipConfig(
        input_dim=5, width=8, num_layers=1, num_heads=2, feedforward_dim=12, embedding_dim=512, dropout=0.1,
        text=TextConfig(
            kind="clip", output_dim=512, width=WIDTH, num_layers=2, num_heads=8, feedforward_dim=24, max_tokens=6,
            vocab_size=VOCABULARY,
        ),
    )  # fmt: skip


def test_interclip_is_strict(encoder_state: Any, tmp_path: Path) -> None:
    _, state, config = encoder_state
    full = interclip_state(state)
    path = tmp_path / "interclip.ckpt"
    for key in ("model.latent_scale", "model.textTransEncoder.layers.1.norm2.bias"):
        without = {name: value for name, value in full.items() if name != key}
        torch.save({"state_dict": without, "hyper_parameters": config}, path)
        with pytest.raises(ValueError, match=rf"interclip\.ckpt: missing key '{key.removeprefix('model.')}'"):
            official.load_interclip(path)
    torch.save({"state_dict": {**full, "model.clip.surplus": torch.zeros(1)}, "hyper_parameters": config}, path)
    with pytest.raises(ValueError, match=r"unexpected keys .*clip\.surplus"):
        official.load_interclip(path)


def recurrent(prefix: dict[str, tuple[int, ...]], dim: int, input_dim: int) -> dict[str, Tensor]:
    shapes = {
        **prefix,
        "hidden": (2, 1, dim),
        "input_emb.weight": (dim, input_dim),
        "input_emb.bias": (dim,),
        "output_net.0.weight": (dim, 2 * dim),
        "output_net.0.bias": (dim,),
        "output_net.1.weight": (dim,),
        "output_net.1.bias": (dim,),
        "output_net.3.weight": (7, dim),
        "output_net.3.bias": (7,),
    }
    for end in ("", "_reverse"):
        shapes |= {f"gru.weight_{side}_l0{end}": (3 * dim, dim) for side in ("ih", "hh")}
        shapes |= {f"gru.bias_{side}_l0{end}": (3 * dim,) for side in ("ih", "hh")}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


@pytest.fixture
def bigru_files(tmp_path: Path) -> Path:
    """Files of a small recurrent evaluator as they are published: weights, word vectors and statistics."""
    torch.manual_seed(0)
    words = ["sos", "eos", "unk", "walk", "person"]
    for columns, name, prefix in ((259, "humanml3d.tar", "our_vab"), (56 * 12, "interx.tar", "hhi_vab")):
        movement = {"main.0.weight": (6, columns, 4), "main.0.bias": (6,), "main.3.weight": (6, 6, 4)}
        movement |= {"main.3.bias": (6,), "out_net.weight": (6, 6), "out_net.bias": (6,)}
        checkpoint = {
            "movement_encoder": {key: torch.randn(shape) * 0.1 for key, shape in movement.items()},
            "motion_encoder": recurrent({}, 8, 6),
            "text_encoder": recurrent({"pos_emb.weight": (9, 15), "pos_emb.bias": (9,)}, 5, 9),
            "epoch": 3,
        }
        torch.save(checkpoint, tmp_path / name, _use_new_zipfile_serialization=False)
        np.save(tmp_path / f"{prefix}_data.npy", np.random.default_rng(0).normal(size=(len(words), 9)))
        (tmp_path / f"{prefix}_words.pkl").write_bytes(pickle.dumps(words))
    np.save(tmp_path / "mean.npy", np.linspace(-0.5, 0.5, 263))  # a number of its own for every column
    np.save(tmp_path / "std.npy", np.linspace(0.5, 2.0, 263))
    return tmp_path


@pytest.mark.parametrize("layout", ["humanml3d", "interx"])
def test_recurrent_evaluators_round_trip(bigru_files: Path, layout: str) -> None:
    stats = bigru_files if layout == "humanml3d" else None
    save_evaluator(bigru_files / "out", official.load_bigru(bigru_files / f"{layout}.tar", layout, bigru_files, stats))
    evaluator: Any = load_evaluator(bigru_files / "out")
    if stats is not None:
        for name in ("mean", "std"):
            expected = np.load(bigru_files / f"{name}.npy")[:259].astype(np.float32)
            np.testing.assert_array_equal(getattr(evaluator, name).numpy(), expected)
    vectors = np.load(bigru_files / f"{'our' if layout == 'humanml3d' else 'hhi'}_vab_data.npy").astype(np.float32)
    np.testing.assert_array_equal(evaluator.vectors.numpy(), vectors)
    longest = (evaluator.config.max_frames, evaluator.config.max_words)
    assert longest == {"humanml3d": (196, 20), "interx": (150, 35)}[layout]  # as published
    motion = torch.randn(2, 1, 21, 263) if layout == "humanml3d" else torch.randn(2, 2, 21, 55, 12)
    lengths = torch.tensor([21, 9])
    embedded = evaluator.embed_motion(motion, lengths)
    assert embedded.shape == (2, 7)
    alone = evaluator.embed_motion(motion[1:, :, :8], torch.tensor([8]))
    torch.testing.assert_close(alone, embedded[1:])
    texts = evaluator.embed_text(["a/DET person/NOUN walk/VERB", "walk/NOUN"])
    torch.testing.assert_close(texts[1:], evaluator.embed_text(["walk/VERB"]))  # words of movement are their own kind
    assert not torch.equal(texts[0], texts[1])
    with pytest.raises(ValueError, match="lengths: expected >= 4"):
        evaluator.embed_motion(motion, torch.tensor([21, 3]))
    with pytest.raises(ValueError, match="motion: expected"):
        evaluator.embed_motion(torch.randn(2, 2, 21, 262), lengths)


def test_recurrent_evaluator_equals_its_parts(bigru_files: Path, relative_error: Any) -> None:
    """The convolutions and the GRU once more, with torch's own modules under their published names."""
    evaluator = official.load_bigru(bigru_files / "humanml3d.tar", "humanml3d", bigru_files, bigru_files)
    parts = torch.load(bigru_files / "humanml3d.tar", weights_only=True)
    main = torch.nn.Sequential(
        torch.nn.Conv1d(259, 6, 4, 2, 1),
        torch.nn.Identity(),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv1d(6, 6, 4, 2, 1),
        torch.nn.Identity(),
        torch.nn.LeakyReLU(0.2),
    )
    movement = parts["movement_encoder"]
    main.load_state_dict({k.removeprefix("main."): v for k, v in movement.items() if k.startswith("main.")})
    motion = torch.randn(1, 1, 20, 263)
    mean, std = (torch.from_numpy(np.load(bigru_files / name))[:259].float() for name in ("mean.npy", "std.npy"))
    padded = torch.cat([(motion[:, 0, :, :259] - mean) / std, torch.zeros(1, 176, 259)], dim=1)
    hidden = main(padded.transpose(1, 2)).transpose(1, 2) @ movement["out_net.weight"].T + movement["out_net.bias"]
    weights = parts["motion_encoder"]
    gru = torch.nn.GRU(8, 8, batch_first=True, bidirectional=True)
    gru.load_state_dict({k.removeprefix("gru."): v for k, v in weights.items() if k.startswith("gru.")})
    _, last = gru(hidden[:, :5] @ weights["input_emb.weight"].T + weights["input_emb.bias"], weights["hidden"])
    head = torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.LayerNorm(8), torch.nn.LeakyReLU(0.2), torch.nn.Linear(8, 7)
    )
    head.load_state_dict({k.removeprefix("output_net."): v for k, v in weights.items() if k.startswith("output_net.")})
    expected = head(torch.cat([last[0], last[1]], dim=-1))
    assert relative_error(evaluator.embed_motion(motion, torch.tensor([20])), expected) < 1e-5


def test_recurrent_evaluators_are_strict(bigru_files: Path) -> None:
    path = bigru_files / "interx.tar"
    with pytest.raises(ValueError, match="stats: expected some"):
        official.load_bigru(bigru_files / "humanml3d.tar", "humanml3d", bigru_files)
    with pytest.raises(ValueError, match="stats: expected none"):
        official.load_bigru(path, "interx", bigru_files, bigru_files)
    with pytest.raises(ValueError, match="representation: expected one of"):
        official.load_bigru(path, "interhuman", bigru_files)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["text_encoder"]["gru.bias_hh_l0_reverse"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"text_encoder: missing key 'gru\.bias_hh_l0_reverse'"):
        official.load_bigru(path, "interx", bigru_files)
    del checkpoint["motion_encoder"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="missing key 'motion_encoder'"):
        official.load_bigru(path, "interx", bigru_files)


class Surprise:
    """What a list of words should not hold."""


def test_word_lists_are_not_unpickled(bigru_files: Path) -> None:
    (bigru_files / "hhi_vab_words.pkl").write_bytes(pickle.dumps(["sos", "eos", "unk", "walk", Surprise()]))
    with pytest.raises(ValueError, match="expected a list of words and nothing else"):
        official.load_bigru(bigru_files / "interx.tar", "interx", bigru_files)
    (bigru_files / "hhi_vab_words.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no hhi_vab_words\.pkl"):
        official.load_bigru(bigru_files / "interx.tar", "interx", bigru_files)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_of_a_word_vector_that_is_not_finite_is_enough(bigru_files: Path, value: float) -> None:
    path = bigru_files / "hhi_vab_data.npy"
    vectors = np.load(path)
    words, read = read_word_vectors(bigru_files, "hhi_vab")
    assert words == ["sos", "eos", "unk", "walk", "person"]
    np.testing.assert_array_equal(read, vectors.astype(np.float32))
    vectors[3, 2] = value
    np.save(path, vectors)
    with pytest.raises(ValueError, match=r"hhi_vab_data\.npy: expected a finite vector for each of 5 words"):
        read_word_vectors(bigru_files, "hhi_vab")


@pytest.mark.parametrize(
    "words", ["sos eos unk walk walk", "a eos unk walk sit", "sos a unk walk sit", "sos eos a walk sit"]
)
def test_words_are_different_and_have_the_three_special_ones(bigru_files: Path, words: str) -> None:
    (bigru_files / "hhi_vab_words.pkl").write_bytes(pickle.dumps(words.split()))
    with pytest.raises(ValueError, match=r"hhi_vab_words\.pkl: expected different words with sos, eos and unk"):
        read_word_vectors(bigru_files, "hhi_vab")


@pytest.mark.parametrize("shape", [(5,), (4, 9), (6, 9), (5, 9, 1)])
def test_word_vectors_are_a_row_for_each_word(bigru_files: Path, shape: tuple[int, ...]) -> None:
    np.save(bigru_files / "hhi_vab_data.npy", np.ones(shape))
    with pytest.raises(ValueError, match=r"expected a finite vector for each of 5 words, got shape"):
        read_word_vectors(bigru_files, "hhi_vab")


def test_folders_that_hold_no_evaluator(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json.*intermoe train evaluator"):
        load_evaluator(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "other"}', encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="kind: expected one of"):
        load_evaluator(tmp_path)


def test_a_broken_evaluator_is_told_by_file_and_key(bigru_files: Path) -> None:
    folder = bigru_files / "out"
    save_evaluator(folder, official.load_bigru(bigru_files / "interx.tar", "interx", bigru_files))
    words, weights = folder / "tokenizer.json", folder / "model.safetensors"
    whole = words.read_text()
    for broken in (
        "[",
        "3",
        '["sos", "eos", "unk", "walk", "walk"]',
        '["sos", "eos", "unk", "walk", [1]]',
        "[1, 2, 3, 4, 5]",
    ):
        words.write_text(broken)
        with pytest.raises(ValueError, match=r"out: words: expected"):
            load_evaluator(folder)
    words.write_text(whole)
    tensors = load_file(weights)
    for key, value, message in (
        ("vectors", tensors["vectors"] * torch.nan, "expected finite numbers"),
        ("vectors", tensors["vectors"].int(), "expected float16 or"),
        ("vectors", tensors["vectors"][:2], "expected shape"),
    ):
        save_file({**tensors, key: value}, weights)
        with pytest.raises(ValueError, match=rf"model\.safetensors: '{key}': {message}"):
            load_evaluator(folder)
    weights.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a readable safetensors file"):
        load_evaluator(folder)


def test_a_checkpoint_that_is_not_finite_is_told_by_key(bigru_files: Path) -> None:
    path = bigru_files / "interx.tar"
    checkpoint = torch.load(path, weights_only=True)
    for value, message in (
        (torch.nan, r"expected finite numbers, got another at \[0, 0\]"),
        (1, "expected float16 or .*, got int64"),
    ):
        weight = torch.full_like(
            checkpoint["motion_encoder"]["input_emb.weight"], value, dtype=torch.tensor(value).dtype
        )
        torch.save({**checkpoint, "motion_encoder": {**checkpoint["motion_encoder"], "input_emb.weight": weight}}, path)
        with pytest.raises(ValueError, match=f"motion_encoder: 'input_emb.weight': {message}"):
            official.load_bigru(path, "interx", bigru_files)


def test_captions_and_words_are_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "1.txt"
    path.write_bytes("\ufeffa man\u2028walks#a/DET man/NOUN#0#0\r\n\r\nno words\r\n".encode())
    with pytest.raises(ValueError, match=r"1\.txt: line 3: expected 'caption#word/POS .*', got 'no words'"):
        read_texts(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    assert read_texts(tmp_path) == {"a man walks": "a/DET man/NOUN"}
