"""Published files of every system, made up by their readers: the models that they become, without reference arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intermoe import official
from intermoe.systems.intergen import official as intergen
from intermoe.systems.intermask.official import load_tokenizer
from intermoe.systems.timotion import official as timotion
from intermoe.text import clip
from intermoe.text.clip import ClipPooledEncoder, ClipTextEncoder
from intermoe.text.protocol import TextConfig
from intermoe.text.tower import load_tower
from intermoe.text.wordpiece import WordPieceTextEncoder

transformers = pytest.importorskip("transformers")

Drawn = Callable[..., dict[str, Tensor]]
INTERHUMAN = {"fps": 30, "min_frames": 15, "max_frames": 300}
HUMANML3D = {"representation": "humanml3d", "fps": 20, "min_frames": 40, "max_frames": 196}
STATISTICS = {"global_mean": 262, "global_std": 262, "Mean": 263, "Std": 263}
PUBLISHED = {"input_feats": 262, "latent_dim": 8, "ff_size": 12, "num_layers": 2, "num_heads": 2, "activation": "gelu"}
PATTERNS = {"conv_layers": 2, "dilation_rate": 1}
TOWER = {"width": 16, "clip_layers": 1, "clip_heads": 2, "vocab_size": 60}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files and their statistics are, each of numbers of its own, and a small CLIP text model."""
    for number, (file, columns) in enumerate(STATISTICS.items(), start=1):
        np.save(tmp_path / f"{file}.npy", np.linspace(number, number + 0.5, columns, dtype=np.float32))
    tokenizer = WordPieceTextEncoder.train_tokenizer(["two people bow"], 60)
    monkeypatch.setattr(clip, "_load_tokenizer_json", lambda name: tokenizer)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=30, hidden_act="quick_gelu", projection_dim=6,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "clip")
    return tmp_path


def assert_is(pipeline: Any, name: str, motion: dict[str, Any], network: torch.nn.Module, text: dict[str, Any]) -> None:
    """The model: its name, motion, statistics, the network as its reader gives it, and what its text encoder is."""
    config = pipeline.config
    assert config.name == name
    assert {key: getattr(config, key) for key in motion} == motion
    first = 1 if motion is INTERHUMAN else 3
    columns = len(pipeline.statistics.mean)
    for value, found in ((first, pipeline.statistics.mean), (first + 1, pipeline.statistics.std)):
        np.testing.assert_allclose(found, np.linspace(value, value + 0.5, columns), rtol=1e-6)
    assert config.network == network.config == pipeline.network.config
    assert not network.training
    expected, state = network.state_dict(), pipeline.network.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert config.text == pipeline.text_encoder.config
    assert config.text.name_or_path is None  # the folder was one of this machine
    assert {key: getattr(config.text, key) for key in text} == text
    result = pipeline(["two people bow"], num_frames=40, num_inference_steps=2)
    assert result.motion.isfinite().all()


@pytest.mark.parametrize("system", ["intergen", "timotion", "timotion without patterns"])
def test_a_file_built_like_intergens(
    system: str, published_file: Drawn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**PUBLISHED, "cfg": {"LPA": system == "timotion", **PATTERNS}}
    kind = system.split()[0]
    state = published_file(lambda state: official.load_network(kind, state, config), {"text_embed.weight": (8, 24)})
    known = {"token_embedding.weight": (60, 24), "positional_embedding": (30, 24)}
    known["clipTransEncoder.layers.0.linear1.weight"] = (20, 24)
    text = published_file(lambda state: official.load_text_encoder(state, {"clip_layers": 3}), known)
    whole = {f"model.decoder.net.{key}": value for key, value in state.items()}
    torch.save({"state_dict": whole | {f"model.{key}": value for key, value in text.items()}}, folder / "last.ckpt")
    monkeypatch.setattr(intergen, "PUBLISHED", PUBLISHED)
    monkeypatch.setattr(timotion, "PUBLISHED", {**PUBLISHED, "cfg": {"LPA": None, **PATTERNS}})
    pipeline: Any = official.load_checkpoint(folder / "last.ckpt")
    network = official.load_network(kind, state, config)
    sizes = {"width": 24, "clip_layers": 3, "feedforward_dim": 20, "max_tokens": 30, "vocab_size": 60}
    assert_is(pipeline, f"{kind}-interhuman", INTERHUMAN, network, sizes)
    assert pipeline.config.system == kind
    expected = official.load_text_encoder(text, {"clip_layers": 3}).state_dict()
    assert all(torch.equal(pipeline.text_encoder.state_dict()[key], value) for key, value in expected.items())


def test_the_two_files_of_intermask(published_file: Drawn, folder: Path) -> None:
    options = {"joints_num": 22, "messages": "first_frame"}
    known: dict[str, Any] = {"quantizer.layers.0.codebook": (9, 6), "decoder.model.0.weight": (4, 6, 3, 3)}
    codes = published_file(lambda state: load_tokenizer(state, options), known)
    known = {f"Transformer.blocks.{i}.ffn_combined.model.0.weight": (14, 12) for i in range(2)}
    known |= {"input_process.poseEmbedding.weight": (12, 6), "output_process.poseFinal.weight": (9, 12)}
    known |= {
        "cond_emb.weight": (12, 16),
        "position_enc.positional_encoding.inv_freq": 10.0 ** -torch.tensor([0, 4 / 3, 8 / 3]),
    }
    network = published_file(lambda state: official.load_network("intermask", state, {}), known)
    sizes = {"kind": "clip", **TOWER, "output_dim": 16, "num_layers": 3, "feedforward_dim": 20, "max_tokens": 30}
    made = ClipTextEncoder(TextConfig(**sizes, name_or_path=str(folder / "clip")))
    load_tower(made)
    adapter = {f"clipTrans.{key}": value for key, value in made.adapter.state_dict().items()}
    adapter |= {f"clipln.{key}": value + 0.5 for key, value in made.adapter_norm.state_dict().items()}
    torch.save({"net": codes, "ep": 1}, folder / "vq.tar")
    torch.save({"t2m_transformer": {**network, **adapter}}, folder / "trans.tar")
    read = {"part": folder / "vq.tar", "text": str(folder / "clip")}
    pipeline: Any = official.load_checkpoint(folder / "trans.tar", **read)
    assert_is(pipeline, "intermask-interhuman", INTERHUMAN, official.load_network("intermask", network, {}), sizes)
    tokenizer, expected = pipeline.tokenizer, load_tokenizer(codes, options)
    assert pipeline.config.tokenizer == tokenizer.config == expected.config
    assert (tokenizer.config.messages, tokenizer.config.width) == ("first_frame", 4)
    for found, wanted in (
        (tokenizer, expected.state_dict()),
        (pipeline.text_encoder.adapter, made.adapter.state_dict()),
    ):
        assert all(torch.equal(found.state_dict()[key], value) for key, value in wanted.items())
    torch.testing.assert_close(pipeline.text_encoder.adapter_norm.weight, made.adapter_norm.weight + 0.5)
    torch.testing.assert_close(pipeline.text_encoder.token_embedding.weight, made.token_embedding.weight)
    with pytest.raises(ValueError, match=r"--part: expected the file of vq_model, got none"):
        official.load_checkpoint(folder / "trans.tar", text=read["text"])
    with pytest.raises(ValueError, match=r"--part: expected the file of t2m_transformer, got none"):
        official.load_checkpoint(folder / "vq.tar", text=read["text"])
    torch.save({"vq_model": {"model.0.weight": torch.zeros(1)}}, folder / "vq.tar")
    with pytest.raises(ValueError, match="vq_model: expected the tokeniser of InterHuman, got one without graph"):
        official.load_checkpoint(folder / "trans.tar", **read)


def test_a_tokeniser_is_read_with_what_its_options_say(published_file: Drawn) -> None:
    """Every layer once, in its place; the vectors stay where they are at the first update of the codebook."""
    known = {"quantizer.layers.0.codebook": (9, 6), "decoder.model.0.weight": (4, 6, 3, 3)}
    options = {"joints_num": 22, "depth": 1, "dilation_growth_rate": 2, "mu": 0.9}
    for given in (options, {"args": options}):
        state = published_file(lambda state, given=given: load_tokenizer(state, given), known)
        tokenizer = load_tokenizer(state, given)
        config = tokenizer.config
        assert (config.num_codes, config.code_dim, config.width, config.num_blocks) == (9, 6, 4, 1)
        assert (config.dilation_growth, config.codebook_decay, config.messages) == (2, 0.9, "first_frame_of_batch")
        assert not tokenizer.training
        codebook = tokenizer.codebook
        assert bool(codebook.initialised)
        torch.testing.assert_close(codebook.vectors, state["quantizer.layers.0.codebook"])
        torch.testing.assert_close(codebook.sums / codebook.counts[:, None], codebook.vectors)
        assert (codebook.counts == 1).all()
        numbers = [value.sum().item() for key, value in state.items() if key != "quantizer.layers.0.codebook"]
        found = [value.sum().item() for value in tokenizer.parameters()]
        assert sorted(found) == pytest.approx(sorted(numbers))
    defaults = load_tokenizer(
        published_file(lambda state: load_tokenizer(state, {"joints_num": 22}), known), {"joints_num": 22}
    ).config
    assert (defaults.num_blocks, defaults.dilation_growth, defaults.codebook_decay) == (2, 3, 0.99)
    for name, wrong in {"num_quantizers": 2, "down_t": 3, "stride_t": 1, "activation": "gelu", "norm": "BN"}.items():
        with pytest.raises(ValueError, match=f"config: {name}: expected .*, got {wrong!r}"):
            load_tokenizer(state, {**options, name: wrong})
    with pytest.raises(ValueError, match=r"joints_num: expected one of \(22, 56\), got 21"):
        load_tokenizer(state, {"joints_num": 21})


@pytest.mark.parametrize("beside", [None, {"num_heads": 2}])
@pytest.mark.parametrize("system", ["mdm", "commdm"])
def test_a_file_of_mdm_and_the_options_beside_it(
    system: str, beside: dict[str, int] | None, published_file: Drawn, folder: Path
) -> None:
    names = ("seqTransEncoder_start.layers.0", "seqTransEncoder_end.layers.0", "multi_person.model.layers.0")
    if system == "mdm":
        names = ("seqTransEncoder.layers.0", "seqTransEncoder.layers.1", "seqTransEncoder.layers.2")
    known: dict[str, Any] = {f"{layer}.linear1.weight": (12, 8) for layer in names}
    known |= {"input_process.poseEmbedding.weight": (8, 263), "embed_text.weight": (8, 6)}
    options = beside or {}
    state = published_file(lambda state: official.load_network(system, state, options), known)
    torch.save(state, folder / "model000100.pt")
    if beside is not None:
        (folder / "args.json").write_text('{"num_heads": 2}', encoding="utf-8")
    pipeline: Any = official.load_checkpoint(folder / "model000100.pt", text=str(folder / "clip"))
    sizes = {"kind": "clip_pooled", **TOWER, "output_dim": 6, "max_tokens": 22}
    network = official.load_network(system, state, options)
    assert_is(pipeline, f"{system}-humanml3d", HUMANML3D, network, sizes)
    backbone = network.config if system == "mdm" else network.config.backbone
    assert backbone.num_heads == (4 if beside is None else 2)
    made = ClipPooledEncoder(TextConfig(**sizes, name_or_path=str(folder / "clip")))
    load_tower(made)
    assert all(torch.equal(pipeline.text_encoder.state_dict()[key], value) for key, value in made.state_dict().items())
    (folder / "args.json").write_text("[2]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"args\.json: expected a mapping, got list"):
        official.load_checkpoint(folder / "model000100.pt", text=str(folder / "clip"))
