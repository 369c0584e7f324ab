"""Published checkpoints of every system become models: found by their keys, read strictly, the same networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from intermoe import cli, official
from intermoe.nn.layers import sinusoid
from intermoe.official.layouts import LAYOUTS, layout_of, published_keys
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intergen import official as intergen
from intermoe.systems.intermask import official as intermask
from intermoe.systems.timotion import official as timotion
from intermoe.text import clip
from intermoe.text.wordpiece import WordPieceTextEncoder

Golden = Callable[[str], Any]
TITLES = {
    "intergen": "InterGen", "timotion": "TIMotion", "timotion_nolpa": "TIMotion", "intermask": "InterMask",
    "mdm": "MDM", "commdm": "ComMDM",
}  # fmt: skip
ARCHIVES = {
    "intergen": "intergen_denoiser",
    "timotion": "timotion_denoiser",
    "timotion_nolpa": "timotion_denoiser_nolpa",
}


def arrays(archive: Any) -> dict[str, Tensor]:
    return {key[6:]: torch.from_numpy(archive[key]) for key in archive.files if key.startswith("state/")}


def drawn(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape).uniform_(-0.1, 0.1) for key, shape in shapes.items()}


def tower_of(folder: Path, width: int, projection: int) -> Path:
    """A small CLIP text model."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=30, hidden_act="quick_gelu", projection_dim=projection,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def word_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's tokenizer is not at hand; another one does."""
    tokenizer = WordPieceTextEncoder.train_tokenizer(["two people bow"], 60)
    monkeypatch.setattr(clip, "_load_tokenizer_json", lambda name: tokenizer)


@pytest.fixture(params=list(TITLES))
def published(
    request: pytest.FixtureRequest, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, list[str], dict[str, Tensor]]:
    """A small checkpoint as published: its name, file, options to convert it with, and the expected weights."""
    name, folder = request.param, tmp_path / "published"
    folder.mkdir()
    torch.manual_seed(0)
    for file, columns in (("global_mean", 262), ("global_std", 262), ("Mean", 263), ("Std", 263)):
        np.save(folder / f"{file}.npy", np.linspace(0.1, 1, columns, dtype=np.float32))
    options: list[str] = []
    if name in ARCHIVES:
        archive = golden(f"peers/{ARCHIVES[name]}.npz")
        config, state = json.loads(str(archive["config"])), arrays(archive)
        for module in (intergen, timotion):
            monkeypatch.setattr(module, "PUBLISHED", config)
        shapes = {
            key: [60, *shape[1:]] if key == "token_embedding.weight" else shape
            for key, shape in golden("peers/keys_intergen.json")["keys"].items()
            if not key.startswith("decoder.") and (".resblocks." not in key or ".resblocks.0." in key)
        }
        whole = {f"model.decoder.net.{key}": value for key, value in state.items()}
        whole |= {f"model.{key}": value for key, value in drawn(shapes).items()}
        torch.save({"state_dict": whole, "epoch": 3}, folder / "last.ckpt")
        network: Any = official.load_network(name.split("_")[0], state, config)
        return name, folder / "last.ckpt", options, network.state_dict()
    if name == "intermask":
        archive = golden("peers/intermask_vq.npz")
        transformer = golden("peers/intermask_transformer.npz")
        state = arrays(transformer)
        monkeypatch.setattr(intermask, "PUBLISHED", json.loads(str(transformer["config"])))
        width = 16
        state["cond_emb.weight"] = state["cond_emb.weight"][:, :width].clone()
        shapes = golden("peers/keys_intermask.json")["keys_transformer"]
        adapter = {key: value for key, value in shapes.items() if key.startswith(("clipTrans.", "clipln."))}
        small = {768: width, 2048: 32, 2304: 3 * width}
        adapter = {key: [small.get(size, size) for size in shape] for key, shape in adapter.items()}
        torch.save({"vq_model": arrays(archive), "ep": 1}, folder / "vq.tar")
        torch.save({"t2m_transformer": {**state, **drawn(adapter)}, "opt": {"lr": 1e-4}}, folder / "trans.tar")
        tower = tower_of(tmp_path / "clip", width, 8)
        network = official.load_network("intermask", state, json.loads(str(transformer["config"])))
        options = ["--part", str(folder / "vq.tar"), "--text", str(tower)]
        return name, folder / "trans.tar", options, network.state_dict()
    archive = golden("peers/commdm.npz")
    config, state = json.loads(str(archive["config"])), arrays(archive)
    if name == "mdm":
        alone = {key: value for key, value in state.items() if not key.startswith("multi_person.")}
        split, state = config["args"]["multi_backbone_split"], {}
        for key, value in alone.items():
            stack, _, rest = key.partition(".layers.")
            if stack == "seqTransEncoder_end":  # its layers are counted from 0 again
                number, rest = rest.split(".", 1)
                rest = f"{split + int(number)}.{rest}"
            state[f"seqTransEncoder.layers.{rest}" if stack.startswith("seqTransEncoder_") else key] = value
    (folder / "args.json").write_text(json.dumps({**config, **config["args"]}), encoding="utf-8")
    torch.save(state, folder / "model000100.pt")
    network = official.load_network(name, state, config)
    tower = tower_of(tmp_path / "clip", 16, config["clip_dim"])
    return name, folder / "model000100.pt", ["--text", str(tower)], network.state_dict()


def test_a_checkpoint_becomes_the_model_that_it_is(published: Any, tmp_path: Path) -> None:
    name, path, options, expected = published
    result = CliRunner().invoke(cli.app, ["convert", str(path), "--out", str(tmp_path / "model"), *options])
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1] == f"{path}: {TITLES[name]}"
    pipeline: Any = MotionPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.config.system == name.split("_")[0]
    state = pipeline.network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert pipeline.statistics.std[-1] == 1
    result = pipeline(["two people bow", "bow"], num_frames=40, num_inference_steps=2)
    assert result.joints.isfinite().all()
    assert result.joints.shape[:2] == (2, 1 if name == "mdm" else 2)
    assert not torch.equal(result.motion[0], result.motion[1])
    again = official.load_checkpoint(path, part=_option(options, "--part"), text=_option(options, "--text"))
    assert again.config == pipeline.config


def _option(options: list[str], name: str) -> str | None:
    return options[options.index(name) + 1] if name in options else None


def test_keys_are_of_one_layout_alone(published: Any) -> None:
    name, path, options, _ = published
    for file in (path, *(Path(part) for part in [_option(options, "--part")] if part)):
        keys = published_keys(file)
        assert [LAYOUTS[each].title for each in LAYOUTS if LAYOUTS[each].fits(keys)] == [TITLES[name]]
        assert layout_of(file).title == TITLES[name]


def test_a_key_more_or_less_and_an_option_without_use_are_refused(published: Any, tmp_path: Path) -> None:
    name, path, options, _ = published
    loaded = torch.load(path, weights_only=True)
    state = loaded.get("state_dict", loaded.get("t2m_transformer", loaded))
    state["model.decoder.net.extra" if name in ARCHIVES else "extra"] = torch.zeros(1)
    torch.save(loaded, path)
    arguments = ["convert", str(path), "--out", str(tmp_path / "model"), *options]
    more = CliRunner().invoke(cli.app, arguments)
    assert more.exit_code == 2
    assert "unexpected keys ['extra']" in more.stderr
    useless = CliRunner().invoke(cli.app, [*arguments, "--words", "x"])
    assert f"--words: expected a checkpoint that has a use for it, got {TITLES[name]} in {path}" in useless.stderr
    assert not (tmp_path / "model").exists()


def test_a_model_in_two_files_needs_both(golden: Golden, tmp_path: Path) -> None:
    torch.save({"vq_model": arrays(golden("peers/intermask_vq.npz"))}, tmp_path / "vq.tar")
    result = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "vq.tar"), "--out", str(tmp_path / "model")])
    assert result.exit_code == 2
    assert "--part: expected the file of t2m_transformer, got none" in result.stderr
    other = {"vq_model": arrays(golden("peers/intermask_vq_interx.npz")), "t2m_transformer": {}}
    torch.save(other, tmp_path / "both.tar")
    result = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "both.tar"), "--out", str(tmp_path / "model")])
    assert "vq_model: expected the tokeniser of InterHuman" in result.stderr


@pytest.mark.full_size
@pytest.mark.parametrize("system", ["intergen", "timotion"])
def test_a_checkpoint_at_full_size(system: str, golden: Golden, tmp_path: Path) -> None:
    """Every published key at its published size arrives, and comes back from the model's folder."""
    shapes = golden(f"peers/keys_{system}.json")["keys"]
    state = {f"model.{key}": value for key, value in drawn(shapes).items()}
    for key in state:
        if key.endswith("sequence_pos_encoder.pe"):
            state[key] = sinusoid(torch.arange(len(state[key])), state[key].shape[1])
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    for file in ("global_mean", "global_std"):
        np.save(tmp_path / f"{file}.npy", np.ones(262, dtype=np.float32))
    result = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    pipeline: Any = MotionPipeline.from_pretrained(tmp_path / "model")
    tables = sum(value.numel() for key, value in state.items() if key.endswith("sequence_pos_encoder.pe"))
    read = sum(parameter.numel() for module in pipeline.modules.values() for parameter in module.parameters())
    assert read == sum(value.numel() for value in state.values()) - tables
    wanted = sum(value.double().sum() for key, value in state.items() if not key.endswith("sequence_pos_encoder.pe"))
    found = sum(
        parameter.detach().double().sum() for module in pipeline.modules.values() for parameter in module.parameters()
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)
