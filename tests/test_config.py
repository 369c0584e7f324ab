"""Configurations: exact round trips and refusals that name the key."""

from __future__ import annotations

import dataclasses
import json

import pytest

from intermoe.config import Config
from intermoe.diffusion import DiffusionConfig
from intermoe.systems.intermoe.config import DenoiserConfig, PipelineConfig, VAEConfig
from intermoe.text.protocol import TextConfig


@dataclasses.dataclass(frozen=True)
class Sample(Config):
    rates: tuple[float, ...] = (0.1,)
    name: str | None = None
    strict: bool = False
    count: int = 1


@pytest.mark.parametrize("config", [PipelineConfig(), DenoiserConfig(dim=32), Sample(rates=(1.0, 2.0), name="x")])
def test_round_trip(config, tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert type(config).load(path) == config


def test_yaml_and_integers_for_floats(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("rates: [1, 0.5]\nname: null\n")
    loaded = Sample.load(path)
    assert loaded == Sample(rates=(1.0, 0.5))
    assert isinstance(loaded.rates[0], float)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PipelineConfig, {"fbs": 30}, "config: unknown key 'fbs'"),
        (PipelineConfig, {"denoiser": {"dims": 1}}, r"config.denoiser: unknown key 'dims'"),
        (PipelineConfig, {"denoiser": 3}, "config.denoiser: must be a mapping, got int"),
        (PipelineConfig, {"min_frames": 400}, r"min_frames: must be in \[4, max_frames\], got 400"),
        (PipelineConfig, {"text": {"output_dim": 5}}, "text.output_dim: must be denoiser.text_dim=768, got 5"),
        (DenoiserConfig, {"dim": "768"}, "config.dim: must be of type int, got '768'"),
        (DenoiserConfig, {"dim": True}, "config.dim: must be of type int"),
        (DenoiserConfig, {"dim": 10}, "dim: must be a multiple of num_heads=8, got 10"),
        (DenoiserConfig, {"dim": 3, "num_heads": 3}, "dim: must be even"),
        (DenoiserConfig, {"capacity": 9}, r"capacity: must be in \(0, num_experts\], got 9.0"),
        (DenoiserConfig, {"fusion": "max"}, "fusion: must be one of"),
        (VAEConfig, {"representation": "kit"}, "representation: must be one of"),
        (VAEConfig, {"kernel_size": 2}, "kernel_size: must be odd"),
        (TextConfig, {"kind": "bert"}, "kind: must be one of"),
        (TextConfig, {"kind": "huggingface"}, "name_or_path: must be a model name or folder, got None"),
        (DiffusionConfig, {"condition_dropout": 1.5}, "condition_dropout"),
        (Sample, {"rates": 3}, "config.rates: must be a list, got 3"),
        (Sample, {"rates": [1, "x"]}, r"config.rates\[1\]: must be of type float"),
        (Sample, [], "config: must be a mapping, got list"),
    ],
)
def test_bad_values_are_named(kind, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_dict(values)


def test_names_of_earlier_versions_are_read() -> None:
    assert VAEConfig.from_dict({"layout": "interx"}) == VAEConfig(representation="interx")
    assert "layout" not in VAEConfig(representation="interx").to_dict()
