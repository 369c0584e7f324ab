"""Autoencoder, denoiser and pipeline of the data sets that are not InterHuman, from folder to generated joints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from intermoe import InterMoEPipeline
from intermoe.data import DATA_SETS, MotionDataset, prepare
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.train import load_vae_folder, run_denoiser, run_vae
from intermoe.train.config import DataConfig, VAELossConfig
from intermoe.train.losses import vae_losses


def _smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.cumsum(rng.normal(scale=0.05, size=shape), axis=0).astype(np.float32)


@pytest.fixture(scope="session")
def humanml3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("humanml3d"), np.random.default_rng(0)
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir()
    for split, names in {"train": "abc", "val": "de"}.items():
        (root / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            np.save(root / "new_joint_vecs" / f"{name}.npy", _smooth(rng, 48, 263))
            (root / "texts" / f"{name}.txt").write_text("a man walks left.#a/DET#0.0#0.0\n")
    return root


@pytest.fixture(scope="session")
def interx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files, prepared with a skeleton."""
    h5py = pytest.importorskip("h5py", reason="Inter-X's files need h5py")
    root, rng = tmp_path_factory.mktemp("interx"), np.random.default_rng(0)
    for folder in ("motions", "splits", "texts"):
        (root / folder).mkdir()
    for split, names in {"train": "abc", "val": "de"}.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
        with h5py.File(root / "motions" / f"{split}.h5", "w") as file:
            for name in names:
                file[name] = _smooth(rng, 32, 56, 6)
                (root / "texts" / f"{name}.txt").write_text("the first person hugs the second\n")
    np.save(root / "rest.npy", rng.normal(scale=0.3, size=(55, 3)))
    return prepare(DATA_SETS["interx"], root, root / "cache", skeleton=root / "rest.npy").folder


@pytest.mark.parametrize(
    ("kind", "joints", "columns", "swap"),
    [("interx", (2, 24, 55, 3), 12, True), ("humanml3d", (1, 24, 22, 3), 263, False)],
)
def test_from_data_to_generated_joints(
    kind: str,
    joints: tuple[int, ...],
    columns: int,
    swap: bool,
    request: pytest.FixtureRequest,
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    root = request.getfixturevalue(kind)
    data = {"data.representation": kind, "data.mirror": False, "data.swap_persons": swap, "data.min_frames": 24}
    short = {"optim.steps": 2, "run.validate_every": 2, "run.checkpoint_every": 2}
    vae = run_vae(write_config("vae", **data, **short, **{"model.representation": kind}), tmp_path / "vae", data=root)
    loaded, statistics = load_vae_folder(vae)
    assert loaded.config.representation == kind
    assert statistics.mean.shape == (columns,)
    config = write_config("denoiser", **data, **short)
    model = run_denoiser(config, tmp_path / "denoiser", vae=vae, data=root)
    pipeline = InterMoEPipeline.from_pretrained(model)
    assert pipeline.config.fps == DATA_SETS[kind].representation.fps
    result = pipeline(["a man walks"], num_frames=24, num_inference_steps=2)
    assert result.joints.shape == (1, *joints)
    assert torch.isfinite(result.joints).all()
    motion = MotionDataset(DATA_SETS[kind], root, "val")[0]["motion"][None, :, :24]
    assert pipeline.decode(pipeline.encode(motion)).shape == motion.shape


def test_the_vae_must_be_of_the_same_kind(
    trained_vae: Path, humanml3d: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(
        "denoiser", **{"data.representation": "humanml3d", "data.mirror": False, "data.swap_persons": False}
    )
    with pytest.raises(ValueError, match=r"data\.representation: expected 'interhuman', which this VAE is for"):
        run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=humanml3d)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"representation": "dance"}, "representation: expected one of"),
        ({"representation": "interx"}, "mirror: expected false for interx"),
        ({"kind": "humanml3d", "mirror": False}, "swap_persons: expected false for humanml3d"),
    ],
)
def test_augmentation_that_a_kind_lacks_is_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DataConfig.from_dict(values)


@pytest.mark.parametrize("kind", ["interhuman", "interx", "humanml3d"])
def test_losses_compare_the_columns_of_the_representation(kind: str) -> None:
    """An error in one group of columns shows in its own terms, and a perfect reconstruction costs nothing."""
    own = REPRESENTATIONS[kind]
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(2, 8, *own.frame_shape, generator=rng)
    columns = own.frame_shape[-1]
    mean, std = torch.randn(columns, generator=rng), torch.rand(columns, generator=rng) + 0.5
    posterior = CausalSkeletalVAE(VAEConfig(representation=kind, latent_dim=4, num_blocks=1)).encode(target)

    def terms(output: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = VAELossConfig(kl=0.0)
        return vae_losses(output, target, posterior, mean, std, weights, own)

    assert terms(target)["loss"] == 0
    rotated, faster = target.clone(), target.clone()
    rotated[..., own.rotation] += 1
    faster[..., own.velocity] += 1
    found = terms(rotated)
    assert found["rotation"] == 1
    assert found["position"] == found["velocity"] == found["bone"] == 0
    found = terms(faster)
    torch.testing.assert_close(found["velocity"], torch.tensor(1.0))
    assert found["position"] == found["rotation"] == 0
    # one metre to the side of every joint
    moved = target * std + mean
    where = slice(0, 66, 3) if kind == "interhuman" else 0 if kind == "interx" else slice(4, 67, 3)
    moved[..., where] += 1
    moved = (moved - mean) / std
    share = 21 / 22 if kind == "humanml3d" else 1  # the root is the centre there
    torch.testing.assert_close(terms(moved)["position"], torch.tensor(10.0 * share), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="expected both of"):
        vae_losses(target[:, :1], target[:, :1], posterior, mean, std, VAELossConfig(), own)
