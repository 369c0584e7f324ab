"""What a trained model's configuration takes from that of its training, whatever the system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intermoe.diffusion import DiffusionConfig
from intermoe.motion.statistics import Statistics
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intermask.config import InterMaskConfig, TokenizerConfig
from intermoe.systems.mdm.config import ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.text.protocol import TextConfig
from intermoe.train import intermask, mdm, motion
from intermoe.train.config import DataConfig
from intermoe.train.intermask import InterMaskTrainConfig
from intermoe.train.mdm import ComMDMTrainConfig, MDMTrainConfig
from intermoe.train.motion import MotionTrainConfig

DATA = DataConfig(root="somewhere", min_frames=21, max_frames=123)
TEXT = TextConfig(output_dim=8, width=8, num_layers=3, num_heads=2, feedforward_dim=8, vocab_size=60)
DIFFUSION = DiffusionConfig(num_train_timesteps=77, condition_dropout=0.3)
OTHER = DiffusionConfig(num_train_timesteps=9)
STATISTICS = Statistics(np.zeros(262), np.ones(262))
SIZES = {"text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16}
Written = list[dict[str, Any]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Written]:
    """``written(module)``: what ``write_model`` and ``write_config`` of a module are called with."""

    def watch(module: Any) -> Written:
        calls: Written = []

        def write(folder: Path, made: Any, parts: Any, statistics: Any, tokenizer: Any) -> None:
            calls.append({"made": made, "parts": parts, "statistics": statistics, "tokenizer": tokenizer})

        monkeypatch.setattr(module, "write_model", write)
        monkeypatch.setattr(module.run, "write_config", lambda path, config: calls.append({path.name: config}))
        return calls

    return watch


class Whole(nn.Module):
    """An objective with its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.text, self.statistics = nn.Linear(2, 2), nn.Linear(2, 3), STATISTICS
        self.text.tokenizer_json = "its tokenizer"  # type: ignore[assignment]


def same(call: dict[str, Any], objective: Whole) -> None:
    assert (call["parts"]["network"], call["parts"]["text"]) == (objective.network, objective.text)
    assert (call["statistics"], call["tokenizer"]) == (STATISTICS, "its tokenizer")


def shared(made: Any) -> None:
    assert (made.fps, made.min_frames, made.max_frames) == (30, 21, 123)


def trained_by(call: dict[str, Any], config: Any) -> None:
    saved = call["training.json"]
    assert saved.data.root is None
    assert saved.to_dict() | {"data": config.to_dict()["data"]} == config.to_dict()


@pytest.mark.parametrize("system", ["intergen", "timotion"])
def test_a_model_of_raw_motion(system: str, written: Callable[[Any], Written], tmp_path: Path) -> None:
    config = MotionTrainConfig(name="own", system=system, network=SIZES, text=TEXT, diffusion=DIFFUSION, data=DATA)
    calls, objective = written(motion), Whole()
    motion._save_pipeline(tmp_path / "model", config, objective)  # type: ignore[arg-type]
    model, training = calls
    made = model["made"]
    assert (made.system, made.name, made.text, made.diffusion) == (system, "own", TEXT, DIFFUSION)
    assert isinstance(made.network, InterGenConfig)
    assert {name: getattr(made.network, name) for name in SIZES} == SIZES
    shared(made)
    same(model, objective)
    trained_by(training, config)


def test_a_model_of_mdm_and_of_two_of_them(written: Callable[[Any], Written], tmp_path: Path) -> None:
    single = MDMTrainConfig(name="own", model=MDMConfig(262, **SIZES), text=TEXT, diffusion=DIFFUSION, data=DATA)
    both = ComMDMTrainConfig(name="two", model=ComMDMConfig(single.model, split=1), diffusion=DIFFUSION, data=DATA)
    for config, name in ((single, "own"), (both, "two")):
        values = mdm._shared(config)
        assert values == {"name": name, "fps": 30, "min_frames": 21, "max_frames": 123}
    model_config = MDMModelConfig(**mdm._shared(single), representation="interhuman", network=single.model, text=TEXT)
    calls, objective = written(mdm), Whole()
    state = {name: value + 1 for name, value in objective.state_dict().items()}
    mdm._save_pipeline(tmp_path / "model", single, model_config, objective, state, STATISTICS)  # type: ignore[arg-type]
    model, training = calls
    assert model["made"] is model_config
    same(model, objective)
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items()), "averaged weights"
    trained_by(training, single)


def test_two_persons_take_the_text_of_the_one_and_have_a_noise_schedule_of_their_own(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Callable[[Any], Written]
) -> None:
    backbone = MDMConfig(262, **SIZES)
    config = ComMDMTrainConfig(
        name="two", model=ComMDMConfig(backbone, split=1, num_layers=1), diffusion=DIFFUSION, data=DATA, seed=3
    )
    text: Any = nn.Linear(1, 1)
    text.check, text.tokenizer_json = lambda captions: None, "its tokenizer"
    single = SimpleNamespace(
        config=MDMModelConfig(representation="interhuman", network=backbone, text=TEXT, diffusion=OTHER),
        network=mdm.MDM(backbone), text_encoder=text, statistics=STATISTICS,
    )  # fmt: skip
    monkeypatch.setattr(mdm.MDMPipeline, "from_pretrained", lambda folder: single)
    caught: list[Any] = []

    def fit(accelerator: Any, objective: Any, *_: Any, **__: Any) -> Any:
        caught.append(objective)
        return objective.state_dict()

    monkeypatch.setattr(mdm, "fit", fit)
    calls = written(mdm)
    path = tmp_path / "commdm.json"
    monkeypatch.setattr(mdm.ComMDMTrainConfig, "load", classmethod(lambda kind, path: config))
    mdm.run_commdm(path, tmp_path / "run", "mdm", data=pairs)
    made = next(call["made"] for call in calls if "made" in call)
    assert isinstance(made, ComMDMModelConfig)
    assert (made.name, made.text, made.diffusion, made.network) == ("two", TEXT, DIFFUSION, config.model)
    shared(made)
    (objective,) = caught
    assert objective.num_timesteps == 77
    backbone_weights = single.network.state_dict()
    assert all(torch.equal(value, backbone_weights[k]) for k, value in objective.network.backbone.state_dict().items())
    np.testing.assert_array_equal(objective.std, STATISTICS.std)


def test_a_model_of_intermask(written: Callable[[Any], Written], tmp_path: Path) -> None:
    sizes = InterMaskConfig(12, code_dim=8, **SIZES)
    config = InterMaskTrainConfig(name="own", model=sizes, text=TEXT, data=DATA)
    tokenizer: Any = nn.Linear(2, 4)
    for messages in ("every_frame", "first_frame"):
        tokenizer.config = TokenizerConfig(num_codes=12, code_dim=8, messages=messages)
        calls, objective = written(intermask), Whole()
        intermask._save_pipeline(tmp_path / messages, config, objective, tokenizer, STATISTICS)  # type: ignore[arg-type]
        model, training = calls
        made = model["made"]
        assert (made.name, made.network, made.text, made.tokenizer) == ("own", sizes, TEXT, tokenizer.config)
        shared(made)
        same(model, objective)
        assert model["parts"]["tokenizer"] is tokenizer
        trained_by(training, config)
