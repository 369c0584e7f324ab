"""Steps and guidance of a command: the model's own where nobody asks, and refused early where it has no such."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from intermoe.cli import app
from intermoe.cli.common import check_sampling, load_pipeline, own_sampling, usable_device
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intergen.config import InterGenModelConfig
from intermoe.systems.intermask.config import InterMaskModelConfig
from intermoe.systems.mdm.config import ComMDMModelConfig


@pytest.mark.parametrize(
    ("config", "expected"),
    [(InterGenModelConfig(), (50, 3.5)), (InterMaskModelConfig(), (20, 2.0)), (ComMDMModelConfig(), (1000, 1.0))],
)
def test_the_models_own_numbers_where_nobody_asks(config: Any, expected: tuple[int, float]) -> None:
    pipeline: Any = SimpleNamespace(config=config, default_guidance=lambda control: config.default_guidance)
    assert own_sampling(pipeline, None, None) == expected
    assert own_sampling(pipeline, 7, None) == (7, expected[1])
    assert own_sampling(pipeline, None, 1.5) == (expected[0], 1.5)


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        (InterMaskModelConfig(), 1, "--steps: expected >= 2 for model 'there', got 1"),
        (
            InterGenModelConfig(),
            1001,
            r"--steps: expected a value in \[1, 1000\], the schedule of model 'there', got 1001",
        ),
        (
            ComMDMModelConfig(),
            1001,
            r"--steps: expected a value in \[1, 1000\], the schedule of model 'there', got 1001",
        ),
    ],
)
def test_steps_that_a_model_does_not_have_are_refused_before_its_weights_are_read(
    config: Any, steps: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("work began")

    monkeypatch.setattr("intermoe.pipeline.model_config", lambda model: config)
    monkeypatch.setattr(MotionPipeline, "from_pretrained", fail)
    with pytest.raises(ValueError, match=message):
        load_pipeline("there", "cpu", steps=steps)
    for own in (None, 2):
        with pytest.raises(RuntimeError, match="work began"):
            load_pipeline("there", "cpu", steps=own)


def test_what_no_model_takes() -> None:
    check_sampling(None, None, 0)
    for steps, guidance, name in ((0, None, "--steps"), (None, 0.5, "--guidance"), (None, float("inf"), "--guidance")):
        with pytest.raises(ValueError, match=name):
            check_sampling(steps, guidance, 0)


def test_a_scene_counts_on_from_its_seed() -> None:
    check_sampling(None, None, 2**62, scene=True)
    check_sampling(None, None, 2**63 - 1)
    with pytest.raises(ValueError, match=r"--seed: expected a value in \[0, 2\*\*62\] for a scene"):
        check_sampling(None, None, 2**62 + 1, scene=True)


ASKING = {
    "generate": ("generate", "bow", "turn"),  # the second has the seed after it
    "generate, a scene": ("generate", "--timeline", "two people bow:90"),
    "live": ("live",),
    "routing": ("routing", "bow"),
    "ablate": ("ablate", "--data", ".", "--out", "out"),
    "evaluate control": ("evaluate", "control", "--data", "."),
    "evaluate kinematics": ("evaluate", "kinematics", "--data", "."),
    "evaluate identity": ("evaluate", "identity", "--data", ".", "--model", "duets"),
    "evaluate identity, of the data alone": ("evaluate", "identity", "--data", "."),
    "evaluate activities": ("evaluate", "activities", "--data", "."),
    "evaluate routing": ("evaluate", "routing", "--data", "."),
    "evaluate interhuman": ("evaluate", "interhuman", "--data", ".", "--evaluator", ".", "--out", "out"),
}
SEVERAL = {name for name in ASKING if name.startswith(("ablate", "evaluate kin", "evaluate id", "evaluate act"))}
"""Commands of several seeds."""
MOST = {"generate": 2**63 - 2, "generate, a scene": 2**62, "live": 2**62}


@pytest.mark.parametrize("command", ASKING)
def test_every_command_refuses_what_no_model_samples_with(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one line by its option, before weights or an evaluator are read."""
    pytest.importorskip("viser")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("work began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MotionPipeline, "from_pretrained", fail)
    monkeypatch.setattr("intermoe.evaluators.evaluator.load_evaluator", fail)
    monkeypatch.setattr("intermoe.train.ablate.run_ablation", fail)
    wrong = [("--steps", 0), ("--guidance", 0.5), ("--guidance", "inf"), ("--guidance", "nan")]
    wrong += (
        [("--seeds", 2**32)] if command in SEVERAL else [("--seed", -1), ("--seed", MOST.get(command, 2**63 - 1) + 1)]
    )
    for option, value in wrong:
        done = CliRunner().invoke(app, [*ASKING[command], f"{option}={value}"])
        assert done.exit_code == 2, (option, value, done.output)
        assert done.stderr.startswith(f"error: {option}: expected "), done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_device_without_numbers_is_refused() -> None:
    assert usable_device("cpu").type == "cpu"
    for name in ("meta", "nothing", "hpu"):
        with pytest.raises(ValueError, match=rf"--device: expected a device .*, got '{name}'"):
            usable_device(name)
