"""The published model's checkpoint as a whole: outputs, every key, and what is not loaded."""

from __future__ import annotations

import collections
import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from intermoe import cli, official
from intermoe.checkpoints import StrictReader, read_checkpoint
from intermoe.nn.layers import sinusoid
from intermoe.official.checkpoint import PUBLISHED
from intermoe.official.layouts import layout_of
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.text.clip import ClipTextEncoder

Golden = Callable[[str], Any]
FIXED = ("adj_matrix", "skeleton_pool", "skeleton_unpool")
SMALL = {
    "INPUT_DIM": 42,
    "LATENT_DIM": 32,
    "FF_SIZE": 40,
    "NUM_LAYERS": 2,
    "NUM_HEADS": 4,
    "MoE_config": {"num_experts": 4, "capacity": 1, "n_shared_experts": 0},
}


def drawn_text(archive: Any) -> dict[str, Tensor]:
    """The weights that ``text_condition.npz`` describes by a rule."""
    draws = np.random.RandomState(json.loads(str(archive["config"]))["weights_seed"])
    state = {}
    for key, shape in sorted(json.loads(str(archive["shapes"])).items()):
        value = draws.standard_normal(shape).astype(np.float32) * np.float32(0.03)
        state[key] = torch.from_numpy(value + 1.0 if len(shape) == 1 and key.endswith("weight") else value)
    return state


def arrays(archive: Any) -> dict[str, Tensor]:
    return {key[6:]: torch.from_numpy(archive[key]) for key in archive.files if key.startswith("state/")}


@pytest.fixture(scope="module")
def small(golden: Golden) -> dict[str, Any]:
    """A checkpoint of the three parts that there are arrays of."""
    vae, denoiser, text = (golden(f"{name}.npz") for name in ("vae_interhuman", "denoiser", "text_condition"))
    state = {f"model.vae.{key}": value for key, value in arrays(vae).items()}
    state |= {f"model.denoiser.net.{key}": value for key, value in arrays(denoiser).items()}
    state |= {f"model.{key}": value for key, value in drawn_text(text).items()}
    sizes = json.loads(str(denoiser["config"]))
    named = {"INPUT_DIM": "input_feats", "MoE_config": "MoE_config"}
    config = {name: sizes[named.get(name, name.lower())] for name in SMALL}
    config |= {"vae": json.loads(str(vae["config"])), "CFG_WEIGHT": 3.5}
    return {"state_dict": state, "hyper_parameters": config, "epoch": 3, "optimizer_states": [{"lr": np.float64(0.1)}]}


@pytest.fixture(scope="module")
def alike(published_file: Callable[..., dict[str, Tensor]]) -> dict[str, Any]:
    """A checkpoint as the published one, of drawn weights."""
    denoiser = {"input_feats": 42, "latent_dim": 16, "ff_size": 12, "num_layers": 2, "num_heads": 2}
    config = {**SMALL, "LATENT_DIM": 16, "FF_SIZE": 12, "NUM_HEADS": 2, "CFG_WEIGHT": 3.5}
    denoiser |= {"MoE_config": config["MoE_config"]}
    config["vae"] = {"latent_dim": 6, "dataset_name": "interhuman"}
    tables = {f"{name}sequence_pos_encoder.pe": sinusoid(torch.arange(9), 16) for name in ("", "embed_timestep.")}
    text = {"token_embedding.weight": (9, 24), "positional_embedding": (6, 24)}
    text["clipTransEncoder.layers.0.linear1.weight"] = (12, 24)
    parts = {
        "model.vae.": published_file(lambda state: official.load_vae(state, config["vae"]), {}),
        "model.denoiser.net.": published_file(
            lambda state: official.load_denoiser(state, denoiser), {"text_embed.weight": (16, 24), **tables}
        ),
        "model.": published_file(lambda state: official.load_text_encoder(state, {"clip_layers": 2}), text),
    }
    state = {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.items()}
    return {"state_dict": state, "hyper_parameters": config, "epoch": 3, "optimizer_states": [{"lr": np.float64(0.1)}]}


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    folder = tmp_path / "stats"
    folder.mkdir()
    np.save(folder / "global_mean.npy", np.linspace(-1, 1, 262))
    np.save(folder / "global_std.npy", np.linspace(0.1, 2, 262))
    return folder


def save(path: Path, checkpoint: Any) -> Path:
    torch.save(checkpoint, path)
    return path


def test_outputs_equal_the_published_ones(
    golden: Golden, small: Any, stats: Path, tmp_path: Path, relative_error: Any
) -> None:
    arguments = ["convert", save(tmp_path / "small.ckpt", small), "--stats", stats, "--out", tmp_path / "model"]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    pipeline = InterMoEPipeline.from_pretrained(tmp_path / "model")
    assert {block.fusion for block in pipeline.denoiser.moe_blocks()} == {"sum"}
    vae, denoiser, text = (golden(f"{name}.npz") for name in ("vae_interhuman", "denoiser", "text_condition"))
    with torch.no_grad():
        posterior = pipeline.vae.encode(torch.from_numpy(vae["motion"]))
        assert relative_error(posterior.mean, vae["latent_mean"]) < 1e-5
        assert relative_error(pipeline.vae.decode(posterior.mean), vae["decoded"]) < 1e-5
        valid = torch.from_numpy(denoiser["mask"])[..., 0] > 0
        out = pipeline.denoiser(
            torch.from_numpy(denoiser["x"]).unflatten(-1, (2, -1)).transpose(1, 2),
            torch.from_numpy(denoiser["timesteps"]),
            torch.from_numpy(denoiser["cond"]),
            valid,
        )
        assert relative_error(out.transpose(1, 2).flatten(2)[valid], torch.from_numpy(denoiser["y"])[valid]) < 1e-5
        assert isinstance(pipeline.text_encoder, ClipTextEncoder)
        condition = pipeline.text_encoder.encode_tokens(torch.from_numpy(text["tokens"]))
        assert relative_error(condition, text["cond"]) < 1e-5
    assert np.array_equal(pipeline.statistics.mean, np.load(stats / "global_mean.npy").astype(np.float32))


@pytest.fixture(scope="module")
def full_size(golden: Golden) -> dict[str, Tensor]:
    """Every key at full size. Each tensor repeats one stored number of its own, exact in half precision."""
    shapes = {f"model.vae.{key}": shape for key, shape in golden("keys_vae.json").items()}
    shapes |= {f"model.denoiser.net.{key}": shape for key, shape in golden("keys_denoiser.json").items()}
    for key, shape in json.loads(str(golden("text_condition.npz")["shapes"])).items():
        if ".resblocks.0." in key:
            shapes |= {f"model.{key.replace('.0.', f'.{layer}.', 1)}": shape for layer in range(12)}
        elif ".resblocks." not in key:
            shapes[f"model.{key}"] = [49408, 768] if key == "token_embedding.weight" else shape
    values = np.random.default_rng(0).permutation(2048)[: len(shapes)]
    state = {}
    for value, (key, shape) in zip(values, shapes.items(), strict=True):
        number = 0.0 if key.endswith(FIXED) else -float(value + 1) / 4096  # a bias of the selection lies in (-1, 0)
        state[key] = torch.tensor(number).expand(shape)
        if key.endswith(".pe"):
            state[key] = sinusoid(torch.arange(shape[0]), shape[1])
    return state


def test_full_size_round_trip(full_size: dict[str, Tensor], stats: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "full.ckpt", {"state_dict": full_size})
    official.load_checkpoint(path, stats).save_pretrained(tmp_path / "model", dtype=torch.float16)
    pipeline = InterMoEPipeline.from_pretrained(tmp_path / "model")
    parameters = [p for part in (pipeline.vae, pipeline.denoiser, pipeline.text_encoder) for p in part.parameters()]
    weights = {key: value for key, value in full_size.items() if not key.endswith((*FIXED, ".pe"))}
    unused = sum(
        value.numel() for key, value in weights.items() if key.endswith(("aux_bias", "expert_threshold", "ema_decay"))
    )
    assert sum(p.numel() for p in parameters) == sum(value.numel() for value in weights.values()) - unused
    # each tensor holds numbers of the file, and each number of the file is in some tensor
    expected = {float(value.flatten()[0]) for key, value in weights.items() if not key.endswith(("threshold", "decay"))}
    ends = (p.detach() if p.dim() == 1 else p.detach()[..., :: max(1, p.shape[-1] - 1)] for p in parameters)
    found = {number for part in ends for number in part.unique().tolist()}
    found |= {float(block.selection_bias[0]) for block in pipeline.denoiser.moe_blocks()}
    assert found == expected
    assert pipeline.config.text.clip_layers == 12
    assert pipeline.config.denoiser.num_layers == 8


def test_keys_are_strict(alike: Any, stats: Path, tmp_path: Path) -> None:
    state = alike["state_dict"]
    for prefix, key in (("vae.", "dist.bias"), ("denoiser.net.", "blocks.1.ffn.aux_bias"), ("", "clip_ln.weight")):
        without = {name: value for name, value in state.items() if name != f"model.{prefix}{key}"}
        path = save(tmp_path / "missing.ckpt", {**alike, "state_dict": without})
        with pytest.raises(ValueError, match=f"missing key '{key}'"):
            official.load_checkpoint(path, stats)
    for key in (
        "model.vae.surplus",
        "model.denoiser.net.surplus",
        "model.surplus",
        "model.denoiser.surplus",
        "surplus",
    ):
        path = save(tmp_path / "surplus.ckpt", {**alike, "state_dict": {**state, key: torch.zeros(1)}})
        with pytest.raises(ValueError, match=r"unexpected keys \[.*surplus"):
            official.load_checkpoint(path, stats)


def test_settings_of_the_file_reach_the_model(alike: Any, stats: Path, tmp_path: Path) -> None:
    experts = {"num_experts": 4, "capacity": 2, "n_shared_experts": 0}
    settings = {"MoE_config": experts, "DIFFUSION_STEPS": 400, "DROPOUT": 0.3}
    config = {**alike["hyper_parameters"], **settings}
    path = save(tmp_path / "other.ckpt", {**alike, "hyper_parameters": config})
    pipeline: Any = official.load_checkpoint(path, stats)
    assert {block.capacity for block in pipeline.denoiser.moe_blocks()} == {2.0}
    assert pipeline.config.diffusion.num_train_timesteps == 400
    sizes = pipeline.config.denoiser
    assert (sizes.dropout, sizes.num_layers, sizes.num_heads, sizes.expert_dim) == (0.3, 2, 2, 12)
    assert (pipeline.config.vae.latent_dim, pipeline.config.text.clip_layers) == (6, 2)
    without = {key: value for key, value in config.items() if key not in settings or key == "MoE_config"}
    pipeline = official.load_checkpoint(save(path, {**alike, "hyper_parameters": without}), stats)
    published = (PUBLISHED["DIFFUSION_STEPS"], PUBLISHED["DROPOUT"])
    assert (pipeline.config.diffusion.num_train_timesteps, pipeline.config.denoiser.dropout) == published


class Surprise:
    """What a checkpoint should not hold."""


def test_other_objects_are_refused_by_name(alike: Any, stats: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "surprise.ckpt", {**alike, "callbacks": Surprise()})
    with pytest.raises(ValueError, match=r"Surprise, which could run code.*torch\.save"):
        official.load_checkpoint(path, stats)
    with pytest.raises(ValueError, match="which could run code"):
        read_checkpoint(save(tmp_path / "call.ckpt", {"state_dict": {}, "x": collections.ChainMap()}))


def test_a_configuration_of_objects_is_read_without_their_library(
    alike: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning stores OmegaConf's objects: containers with ``_content``, values with ``_val``."""
    modules = {"omegaconf.dictconfig": "DictConfig", "omegaconf.listconfig": "ListConfig", "omegaconf.nodes": "AnyNode"}
    classes = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, name in modules.items():
        classes[name] = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, classes[name])

    def stored(value: Any) -> Any:
        if isinstance(value, dict):
            node, content = classes["DictConfig"](), {key: stored(item) for key, item in value.items()}
        elif isinstance(value, list):
            node, content = classes["ListConfig"](), [stored(item) for item in value]
        else:
            node = classes["AnyNode"]()
            node.__dict__["_val"] = value
            return node
        node.__dict__["_content"] = content
        return node

    config = alike["hyper_parameters"]
    path = save(tmp_path / "objects.ckpt", {"state_dict": {}, "hyper_parameters": stored(config)})
    monkeypatch.undo()
    assert read_checkpoint(path) == ({}, config)


def test_settings_that_are_not_implemented_are_named(alike: Any, stats: Path, tmp_path: Path) -> None:
    for changed, message in (
        ({"BETA_SCHEDULER": "linear"}, "BETA_SCHEDULER: expected 'cosine', got 'linear'"),
        ({"use_moe": "other"}, "use_moe"),
        ({"vae": {**PUBLISHED["vae"], "dataset_name": "interx"}}, "dataset_name"),
        ({"MoE_config": {"num_experts": 4, "capacity": 1, "n_shared_experts": 1}}, "n_shared_experts"),
    ):
        config = {**alike["hyper_parameters"], **changed}
        path = save(tmp_path / "other.ckpt", {**alike, "hyper_parameters": config})
        with pytest.raises(ValueError, match=message):
            official.load_checkpoint(path, stats)


def test_files_that_are_no_checkpoint(alike: Any, stats: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.ckpt").write_bytes(b"noise" * 100)
    (tmp_path / "pickled.ckpt").write_bytes(pickle.dumps(Path()))
    with pytest.raises(
        ValueError,
        match=r"pickled\.ckpt: expected a checkpoint of torch\.save, whose weights .* alone, got another file$",
    ):
        official.load_checkpoint(tmp_path / "pickled.ckpt")
    with pytest.raises(IsADirectoryError, match="expected a checkpoint's file, got a folder"):
        official.load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"noise\.ckpt: expected a checkpoint"):
        layout_of(tmp_path / "noise.ckpt")
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        layout_of(tmp_path / "absent.ckpt")
    with pytest.raises(ValueError, match="expected a mapping"):
        read_checkpoint(save(tmp_path / "list.ckpt", [1]))
    with pytest.raises(ValueError, match="expected a state dict"):
        read_checkpoint(save(tmp_path / "numbers.ckpt", {"state_dict": {"a": 1}}))
    vae = {key: value for key, value in alike["state_dict"].items() if key.startswith("model.vae.")}
    with pytest.raises(ValueError, match=r"expected a published checkpoint of InterMoE, InterGen"):
        official.load_checkpoint(save(tmp_path / "vae.ckpt", {"state_dict": vae}), stats)


def test_statistics_are_checked(alike: Any, stats: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "small.ckpt", alike)
    with pytest.raises(FileNotFoundError, match=r"holds no global_mean\.npy"):
        official.load_checkpoint(path)
    for name in ("global_mean.npy", "global_std.npy"):
        np.save(tmp_path / name, np.load(stats / name))
    official.load_checkpoint(path)
    np.save(tmp_path / "global_std.npy", np.ones(12))
    with pytest.raises(ValueError, match=r"global_std\.npy: expected shape \(262,\), got \(12,\)"):
        official.load_checkpoint(path)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_a_size_is_read_from_a_tensor_of_its_dimensions_alone(shape: tuple[int, ...]) -> None:
    reader = StrictReader({"table": torch.zeros(2, 3), "other": torch.zeros(shape)}, "file")
    assert reader.peek("table", 2) == (2, 3)
    with pytest.raises(ValueError, match="file: 'other': expected 2 dimensions, got shape"):
        reader.peek("other", 2)
    with pytest.raises(ValueError, match="file: missing key 'none'"):
        reader.peek("none", 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_tensor_without_data_is_told_by_key(dtype: torch.dtype) -> None:
    reader = StrictReader({"table": torch.empty(2, 3, dtype=dtype, device="meta")}, "file")
    with pytest.raises(
        ValueError, match="file: 'table': expected numbers, got a tensor without data, on the meta device"
    ):
        reader.take("table", (2, 3))
