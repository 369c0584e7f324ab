"""A data set, a system, a metric and a format of somebody else's: a file each (``toys/``), and a line each, below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli, export
from intermoe.data import DATA_SETS, MotionDataset
from intermoe.eval.kinematics import KinematicReport
from intermoe.metrics import METRICS, Clip, measure
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.pipeline import SYSTEMS, MotionPipeline
from intermoe.registry import Registry
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds goes with it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toys"))
    registries: tuple[Registry[object], ...] = (REPRESENTATIONS, DATA_SETS, SYSTEMS, METRICS, export.FORMATS)
    for registry in registries:
        monkeypatch.setattr(registry, "_places", dict(registry._places))
        monkeypatch.setattr(registry, "_found", dict(registry._found))


def test_a_data_set(tmp_path: Path) -> None:
    REPRESENTATIONS.add("toy", "toy_data:REPRESENTATION")
    DATA_SETS.add("toy", "toy_data:DATA_SET")
    (tmp_path / "train.txt").write_text("8\n12\n20\n", encoding="utf-8")
    cache = tmp_path / "cache"
    result = CliRunner().invoke(cli.app, ["prepare", "toy", str(tmp_path), "--out", str(cache)])
    assert result.exit_code == 0, result.output
    dataset = MotionDataset(DATA_SETS["toy"], cache, "train", training=False)
    assert [dataset.num_frames(index) for index in range(len(dataset))] == [8, 12, 20]
    joints = REPRESENTATIONS["toy"].joints(dataset[1]["motion"])
    assert joints.shape == (1, 12, 2, 3)
    assert joints[0, 5].tolist() == [[5, 0, 0], [5, 1, 0]]
    vae = CausalSkeletalVAE(VAEConfig(representation="toy", latent_dim=4, num_blocks=1))
    motion = dataset[0]["motion"]
    latents = vae.encode(motion).mode()
    assert latents.shape == (1, 2, 2, 4)  # 8 frames in units of 4, 2 parts
    assert vae.decode(latents).shape == motion.shape


def test_a_system(tmp_path: Path) -> None:
    SYSTEMS.add("toy", "toy_system:ToyPipeline")
    kind = SYSTEMS["toy"]
    kind(kind.config_type(), speed=0.25).save_pretrained(tmp_path / "model")  # type: ignore[call-arg]
    pipeline = MotionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipeline, kind)
    result = pipeline(["they rise", "they go up"], num_frames=20, seed=3)
    assert result.joints.shape == (2, 2, 20, 22, 3)
    assert result.joints[1, 1, 8, 5].tolist() == [1.0, 2.0, 0.0]
    command = ["generate", "they rise", "--model", str(tmp_path / "model"), "--frames", "20", "--format", "npz"]
    written = CliRunner().invoke(cli.app, [*command, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert written.exit_code == 0, written.output
    (path,) = (tmp_path / "out").glob("*.npz")
    np.testing.assert_array_equal(np.load(path)["joints"], result.joints[0])


def test_a_metric() -> None:
    METRICS.add("toy", "toy_metric:METRIC")
    joints = np.random.default_rng(0).uniform(0, 1, (2, 12, 22, 3))
    joints[:, :, 15, 1] = 1.75
    found = measure([Clip(joints)], [Clip(joints)], paired=True)
    assert found["top"] == pytest.approx(1.75)
    assert ["highest joint (m)", "1.75"] in KinematicReport({"generation": found}, {}, {}).table()


def test_a_format(tmp_path: Path) -> None:
    export.FORMATS.add("toy", "toy_format:FORMAT")
    export.save(tmp_path / "bow.toy", torch.zeros(2, 17, 22, 3))
    assert (tmp_path / "bow.toy").read_text(encoding="utf-8") == "17"
    export.save(tmp_path / "bow.npz", np.zeros((2, 9, 22, 3)))
    command = ["export", str(tmp_path / "bow.npz"), "--format", "toy", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.toy")] == ["9"]
