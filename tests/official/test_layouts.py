"""Which system a file is of, by a key or two of it; who reads which; and the published numbers of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import official
from intermoe.evaluators import official as evaluators
from intermoe.motion.interhuman import INTERHUMAN
from intermoe.official import checkpoint
from intermoe.official.checkpoint import MAX_FRAMES, MIN_FRAMES, PUBLISHED, split_state
from intermoe.official.layouts import LAYOUTS, layout_of, published_keys
from intermoe.official.networks import NETWORKS
from intermoe.systems.intergen import official as intergen
from intermoe.systems.intermask import official as intermask
from intermoe.systems.intermoe import official as intermoe_official
from intermoe.systems.intermoe.config import DenoiserConfig, VAEConfig
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.systems.mdm import official as mdm
from intermoe.systems.published import Files
from intermoe.systems.timotion import official as timotion

FOUND = [
    ("intermoe", "InterMoE", ["model.denoiser.net.out.weight"], "stats tokenizer"),
    ("intergen", "InterGen", ["model.decoder.net.a", "model.decoder.net.blocks.0.ca_block.w"], "stats tokenizer"),
    ("timotion", "TIMotion", ["model.decoder.net.a", "model.x.ca_block.w"], "stats tokenizer"),
    ("intermask", "InterMask", ["vq_model/quantizer.codebook"], "stats tokenizer part text"),
    ("intermask", "InterMask", ["t2m_transformer/w"], "stats tokenizer part text"),
    ("intermask", "InterMask", ["net/quantizer.w"], "stats tokenizer part text"),
    ("intermask", "InterMask", ["trans/token_emb.w"], "stats tokenizer part text"),
    ("mdm", "MDM", ["seqTransEncoder.layers.0.w"], "stats tokenizer text"),
    ("commdm", "ComMDM", ["multi_person.w"], "stats tokenizer text"),
    ("interclip", "InterCLIP", ["motion_encoder.w"], "tokenizer"),
    ("interclip", "InterCLIP", ["model.motion_encoder.w"], "tokenizer"),
    ("bigru", "a recurrent evaluator", ["movement_encoder"], "stats layout words"),
]


@pytest.mark.parametrize(("name", "title", "keys", "uses"), FOUND)
def test_a_file_is_of_the_system_that_its_keys_are_of(name: str, title: str, keys: list[str], uses: str) -> None:
    """Also among keys of no system, and of no other one."""
    found = {each: LAYOUTS[each] for each in LAYOUTS if LAYOUTS[each].fits([*keys, "epoch", "w"])}
    assert {each: (layout.title, layout.uses) for each, layout in found.items()} == {name: (title, tuple(uses.split()))}


def test_every_system_is_read_by_its_own_reader() -> None:
    assert {name: LAYOUTS[name] for name in LAYOUTS} == {
        "intermoe": checkpoint.LAYOUT, "intergen": intergen.LAYOUT, "timotion": timotion.LAYOUT,
        "intermask": intermask.LAYOUT, "mdm": mdm.LAYOUT, "commdm": mdm.LAYOUT_OF_TWO, "interclip": evaluators.LAYOUT,
        "bigru": evaluators.LAYOUT_OF_BIGRU,
    }  # fmt: skip
    assert {name: NETWORKS[name] for name in NETWORKS} == {
        "intergen": intergen.load_network, "timotion": timotion.load_network, "mdm": mdm.load_mdm,
        "commdm": mdm.load_commdm, "intermask_tokenizer": intermask.load_tokenizer,
        "intermask": intermask.load_network,
    }  # fmt: skip
    for name, where in {
        "load_bigru": evaluators, "load_interclip": evaluators, "load_evaluator_motion_encoder": evaluators,
        "load_checkpoint": checkpoint, "load_denoiser": intermoe_official, "load_vae": intermoe_official,
        "load_moe_block": intermoe_official, "load_text_encoder": intermoe_official,
    }.items():  # fmt: skip
        assert getattr(official, name) is getattr(where, name)
    assert set(official.__all__) <= {name for name in official.__all__ if callable(getattr(official, name))}
    with pytest.raises(AttributeError, match=r"^module 'intermoe.official' has no attribute 'nothing'$"):
        _ = official.nothing
    with pytest.raises(ValueError, match=r"^system: expected one of intergen, .*, got 'nothing'$"):
        official.load_network("nothing", {}, {})


def test_the_first_layout_that_fits_is_taken_or_all_are_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {"z": torch.zeros(1), "b": torch.zeros(1), "a": torch.zeros(1)}}, tmp_path / "a.pt")
    torch.save({"state_dict": {f"{key}": torch.zeros(1) for key in "dcba"}}, tmp_path / "b.pt")
    titles = "InterMoE, InterGen, TIMotion, InterMask, MDM, ComMDM, InterCLIP, a recurrent evaluator"
    for name, keys in (("a", r"\['a', 'b', 'z'\]"), ("b", r"\['a', 'b', 'c'\]")):
        told = rf"{name}\.pt: expected a published checkpoint of {titles}, got one with the keys {keys}\.\.\.$"
        with pytest.raises(ValueError, match=told):
            layout_of(tmp_path / f"{name}.pt")


def test_keys_of_parts_have_the_names_of_their_parts(tmp_path: Path) -> None:
    """Tensors alone, of a checkpoint's state dict or of the file itself, and of nested ones."""
    nested = {"x": torch.zeros(1), "lr": 0.1}
    for whole, expected in (
        ({"w": torch.zeros(1), "part": nested, "epoch": 3}, {"w", "part", "part/x"}),
        ({"state_dict": {"w": torch.zeros(1), "part": nested}, "v": torch.zeros(1)}, {"w", "part", "part/x"}),
        ({"state_dict": [torch.zeros(1)]}, set()),
        ({1: torch.zeros(1)}, {"1"}),
    ):
        torch.save(whole, tmp_path / "a.pt")
        assert published_keys(tmp_path / "a.pt") == expected


def test_a_state_is_split_by_what_its_keys_begin_with() -> None:
    keys = {
        "model.vae.w": ("vae", "w"),
        "model.denoiser.net.w": ("denoiser", "w"),
        "model.denoiser.w": ("text", "denoiser.w"),
        "model.clip.vae.w": ("text", "clip.vae.w"),
        "model.model.w": ("text", "model.w"),
    }
    parts = split_state({key: torch.tensor(float(number)) for number, key in enumerate(keys)})
    assert list(parts) == ["vae", "denoiser", "text"]
    for number, (part, name) in enumerate(keys.values()):
        assert parts[part].pop(name).item() == number
    assert parts == {"vae": {}, "denoiser": {}, "text": {}}
    with pytest.raises(ValueError, match=r"^state_dict: unexpected keys \['a', 'models.w'\]: all keys of a checkpoint"):
        split_state({"models.w": torch.zeros(1), "model.w": torch.zeros(1), "a": torch.zeros(1)})


def test_the_published_numbers_are_those_of_a_model_as_published() -> None:
    """What configurations here have by default is the published size; a latent has 7 coarse joints of 64 numbers."""
    ours, vae, experts = DenoiserConfig(), PUBLISHED["vae"], PUBLISHED["MoE_config"]
    assert (PUBLISHED["INPUT_DIM"], PUBLISHED["LATENT_DIM"], PUBLISHED["FF_SIZE"]) == (
        7 * 64,
        ours.dim,
        ours.expert_dim,
    )
    assert (PUBLISHED["NUM_LAYERS"], PUBLISHED["NUM_HEADS"]) == (ours.num_layers, ours.num_heads)
    assert (PUBLISHED["DROPOUT"], PUBLISHED["DIFFUSION_STEPS"]) == (ours.dropout, 1000)
    assert experts == {"num_experts": ours.num_experts, "capacity": ours.capacity, "n_shared_experts": 0}
    sizes = VAEConfig("interhuman", vae["latent_dim"], vae["n_extra_layers"] + 1, vae["kernel_size"], vae["dropout"])
    assert (sizes, vae["dataset_name"]) == (VAEConfig(), "interhuman")
    assert (MIN_FRAMES, MAX_FRAMES) == (INTERHUMAN.min_frames, INTERHUMAN.max_frames) == (15, 300)


def test_our_own_is_of_its_files_and_asks_for_its_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, rate and lengths are the published data's; files that are given beside it reach who reads them."""
    read: list[Any] = []

    def stand_in(name: str) -> Callable[..., Any]:
        return lambda *given: read.append((name, *given))

    class Part:
        def __init__(self, config: Any) -> None:
            self.config = config

    config = {"INPUT_DIM": 42, "vae": {"latent_dim": 6, "dataset_name": "interhuman"}, "CFG_WEIGHT": 3.5}
    state = {"model.vae.w": torch.zeros(1), "model.denoiser.net.w": torch.ones(1)}
    layers = {
        f"model.clip_transformer.resblocks.{number}.{key}": torch.ones(1) for number in (0, 1, 10) for key in "ab"
    }
    torch.save({"state_dict": {**state, **layers}, "hyper_parameters": config}, tmp_path / "a.ckpt")
    for name, low in (("global_mean", 1.0), ("global_std", 2.0)):
        np.save(tmp_path / f"{name}.npy", np.full(262, low, dtype=np.float32))
    for name in ("vae", "denoiser", "text_encoder"):
        monkeypatch.setattr(
            checkpoint, f"load_{name}", lambda state, config, name=name: (read.append((name, config)), Part(config))[1]
        )
    monkeypatch.setattr(checkpoint, "PipelineConfig", lambda **of: of)
    monkeypatch.setattr(checkpoint, "InterMoEPipeline", lambda *parts: parts)
    monkeypatch.setattr(checkpoint, "with_tower", stand_in("tower"))
    files = Files(tokenizer=Path("t"))
    of, vae, denoiser, text, statistics = checkpoint._read(tmp_path / "a.ckpt", files)
    sizes = {"input_feats": 42, "latent_dim": 768, "ff_size": 1024, "num_layers": 8, "num_heads": 8, "dropout": 0.1}
    assert read == [
        ("vae", config["vae"]), ("denoiser", {**sizes, "MoE_config": PUBLISHED["MoE_config"]}),
        ("text_encoder", {"clip_layers": 3}), ("tower", text, files),
    ]  # fmt: skip
    assert of.pop("diffusion").num_train_timesteps == 1000
    assert of == {
        "name": "intermoe-interhuman", "fps": 30, "min_frames": 15, "max_frames": 300, "vae": vae.config,
        "denoiser": denoiser.config, "text": text.config,
    }  # fmt: skip
    assert (statistics.mean[0], statistics.std[0]) == (1.0, 2.0)


def test_files_beside_a_checkpoint_reach_its_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    pipeline = object.__new__(InterMoEPipeline)

    class Layout:
        title = "a kind"
        made: Any = pipeline

        def read(self, path: Path, files: Files) -> Any:
            given.append((path, files))
            return self.made

    layout = Layout()
    monkeypatch.setattr(checkpoint, "layout_of", lambda path: layout)
    assert official.load_checkpoint("a.ckpt", "s", part="p", text="clip") is pipeline
    assert official.load_checkpoint(Path("a.ckpt")) is pipeline
    assert given == [
        (Path("a.ckpt"), Files(stats=Path("s"), part=Path("p"), text="clip")), (Path("a.ckpt"), Files()),
    ]  # fmt: skip
    layout.made = "an evaluator"
    with pytest.raises(
        ValueError, match=r"^a.ckpt: expected a model's checkpoint, got that of an evaluator \(a kind\)"
    ):
        official.load_checkpoint("a.ckpt")
