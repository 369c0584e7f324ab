from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intermoe.data.batching import collate
from intermoe.data.interhuman import InterHumanDataset
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.vae import CausalSkeletalVAE, LatentDistribution
from intermoe.train import latents as module
from intermoe.train import load_vae_folder
from intermoe.train.latents import (
    LatentDataset,
    LatentEncoder,
    collate_latents,
    error_metric,
    position_map,
    read_fitted,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(trained_vae: Path) -> tuple[CausalSkeletalVAE, Statistics]:
    return load_vae_folder(trained_vae / "model")


def test_posteriors_are_the_vaes(vae: tuple[CausalSkeletalVAE, Statistics], pairs: Path) -> None:
    dataset = InterHumanDataset(pairs, "val", min_frames=16)
    posterior, mask = LatentEncoder(LatentCodec(*vae))(collate([dataset[0], dataset[1]]))
    assert mask.sum(dim=1).tolist() == [31 // 4, 24 // 4]
    motion = dataset[1]["motion"][:, :24]
    expected = vae[0].encode(vae[1].normalise(motion))
    for name in ("mean", "log_var"):
        wanted = getattr(expected, name).flatten(2)
        torch.testing.assert_close(getattr(posterior, name)[1, :, :6], wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_of_latents_is_that_of_its_motion(vae: tuple[CausalSkeletalVAE, Statistics], pairs: Path) -> None:
    dataset, encoder = InterHumanDataset(pairs, "train", min_frames=16, mirror=True), LatentEncoder(LatentCodec(*vae))
    encoded = LatentDataset(dataset, encoder, CPU)
    draws = [(0, 3), (2, 5), (0, 4)]
    batch = collate_latents([encoded.draw(*draw) for draw in draws])
    items = [dataset.draw(*draw) for draw in draws]
    posterior, mask = encoder(collate(items))
    assert torch.equal(batch["mask"], mask)
    assert batch["frames"] == mask.sum(dim=1).tolist()
    assert batch["captions"] == [item["caption"] for item in items]
    for k, wanted in enumerate((posterior.mean, posterior.log_var)):
        found, valid = batch["posterior"][:, k], mask[:, None, :, None].expand_as(wanted)
        torch.testing.assert_close(found[valid], wanted[valid], rtol=1e-5, atol=1e-6)
        assert not found[~valid].any()


def test_equal_choices_are_encoded_once(
    vae: tuple[CausalSkeletalVAE, Statistics], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = InterHumanDataset(pairs, "train", min_frames=16, mirror=True)
    encoded = LatentDataset(dataset, LatentEncoder(LatentCodec(*vae)), CPU)
    first = [encoded.draw(1, epoch) for epoch in range(12)]
    assert len(encoded.kept) == 2  # as it is, and mirrored
    monkeypatch.setattr(dataset, "motion", lambda _: pytest.fail("read again"))
    again = [encoded.draw(1, epoch) for epoch in range(12)]
    assert all(torch.equal(a["posterior"], b["posterior"]) for a, b in zip(first, again, strict=True))


def test_what_is_kept_is_bounded(
    vae: tuple[CausalSkeletalVAE, Statistics], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    encoded = LatentDataset(InterHumanDataset(pairs, "val", min_frames=16), LatentEncoder(LatentCodec(*vae)), CPU)
    size = encoded.draw(0, 0)["posterior"].nbytes
    assert not encoded.kept
    for room, kept in ((size - 1, False), (size, True)):
        encoded.free = room
        encoded.draw(0, 0)
        assert (bool(encoded.kept), encoded.free) == (kept, 0 if kept else room)


def test_on_a_gpu_a_share_of_its_free_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    encoded = LatentDataset(None, None, torch.device("cuda"))  # type: ignore[arg-type]
    assert encoded.free == int(module.CACHE_SHARE * 1000) > 0


def test_errors_weigh_by_the_root_of_what_latents_vary_by() -> None:
    generator = torch.Generator().manual_seed(0)
    std = torch.tensor([7.0, 2.0, 0.5, 0.01])
    turned = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    latents = (torch.randn(100_000, 4, generator=generator) * std) @ turned.T + 3
    metric = error_metric(latents, 0.1)
    size = (turned.T @ metric).square().sum(dim=1)  # of a unit error along each direction
    expected = 1 / std.clamp(min=0.1)
    torch.testing.assert_close(size / size[0], expected / expected[0], rtol=2e-2, atol=0)
    centred = latents - latents.mean(dim=0)
    torch.testing.assert_close((centred @ metric).square().mean(), centred.square().mean(), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="std_floor: expected > 0, got 0"):
        error_metric(latents, 0)


def test_positions_move_with_latents_by_a_linear_map_in_decimetres() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, metres = torch.randn(500, 6, generator=generator) + 2, torch.randn(6, 9, generator=generator)
    torch.testing.assert_close(position_map(latents, latents @ metres + 5), 10 * metres, rtol=3e-3, atol=2e-2)
    latents[:, 3] = 1 + 1e-5 * torch.randn(
        500, generator=generator
    )  # what hardly varies tells nothing, and moves nothing
    metres[3] = 1e3
    found = position_map(latents, latents @ metres)
    assert found[3].abs().max() < 0.2
    torch.testing.assert_close(found[[0, 1, 2, 4, 5]], 10 * metres[[0, 1, 2, 4, 5]], rtol=3e-3, atol=2e-2)


def test_the_map_to_positions_by_hand() -> None:
    """10 (C + 0.03^2)^-1 D for the covariances C of the latents and D of latents and positions, over N."""
    latents = torch.tensor([[1.0, 0.0], [3.0, 0.1], [5.0, -0.1], [7.0, 0.0]])
    positions = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.5, 2.5], [2.0, 1.0, 0.0], [3.0, 0.5, -1.0]])
    off, moved = latents - latents.mean(dim=0), positions - positions.mean(dim=0)
    covariance = [[sum(a * b for a, b in zip(x, y, strict=True)) / 4 for y in off.T.tolist()] for x in off.T.tolist()]
    (a, b), (c, d) = covariance
    a, d = a + 0.0009, d + 0.0009
    inverse = torch.tensor([[d, -b], [-c, a]]) / (a * d - b * c)
    expected = 10 * inverse @ (off.T @ moved / 4)
    torch.testing.assert_close(position_map(latents, positions), expected, rtol=1e-4, atol=1e-4)


def test_the_metric_by_hand() -> None:
    """Deviations 4, 1 and 0.1 along the axes, whose floor is 0.5: weights in the ratio of 1/4, 1 and 2."""
    std = torch.tensor([4.0, 1.0, 0.1])
    latents = 5 + torch.cat([torch.diag(std), -torch.diag(std)]) * 3**0.5  # variance std^2 over six rows
    metric = error_metric(latents, 0.5)
    weights = torch.tensor([0.25, 1.0, 2.0])
    weights = weights * std.square().sum() / (weights * std.square()).sum()
    torch.testing.assert_close(metric @ metric.T, torch.diag(weights), rtol=1e-4, atol=1e-5)
    assert metric.dtype == torch.float32
    assert metric.is_contiguous()
    flat = error_metric(torch.ones(4, 2) + torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]), 0.1)
    assert flat.isfinite().all()  # a direction that does not vary at all


def test_what_was_fitted_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "metric.safetensors"
    save_file({"metric": torch.eye(2), "other": torch.tensor([torch.inf])}, path)
    assert torch.equal(read_fitted(path, "metric"), torch.eye(2))
    with pytest.raises(ValueError, match=r"metric\.safetensors: missing key 'positions'"):
        read_fitted(path, "positions")
    with pytest.raises(ValueError, match=r"metric\.safetensors: 'other': expected finite"):
        read_fitted(path, "other")


def test_how_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LatentDataset(None, None, CPU).free == 2**30  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    assert LatentDataset(None, None, torch.device("cuda")).free == 125  # type: ignore[arg-type]


def test_the_number_of_whole_latent_frames_decides_what_is_encoded() -> None:
    """Of one motion whole groups of four, of a batch as many as its longest has; the rest is the mean motion."""
    seen: list[torch.Tensor] = []

    def encode(motion: torch.Tensor) -> LatentDistribution:
        seen.append(motion)
        frames = motion.shape[2] // 4
        return LatentDistribution(torch.ones(len(motion), 2, frames, 3), torch.full((len(motion), 2, frames, 3), 2.0))

    codec = SimpleNamespace(
        encode=encode, vae=SimpleNamespace(downsampling=4), statistics=SimpleNamespace(mean=np.array([5.0, 6.0]))
    )
    encoder = LatentEncoder(codec)  # type: ignore[arg-type]
    posterior = encoder.posterior(torch.zeros(2, 11, 2))
    assert seen[-1].shape == (1, 2, 8, 2)
    assert posterior.mean.shape == (1, 2, 2, 3)
    motion = torch.arange(2 * 2 * 15 * 2.0).view(2, 2, 15, 2)
    posterior, mask = encoder({"motion": motion, "lengths": torch.tensor([14, 7])})  # type: ignore[typeddict-item]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(seen[-1][0], motion[0, :, :12])
    assert torch.equal(seen[-1][1, :, :4], motion[1, :, :4])
    assert torch.equal(seen[-1][1, :, 4:], torch.tensor([5.0, 6.0]).expand(2, 8, 2))
    for values, own in ((posterior.mean, 1.0), (posterior.log_var, 2.0)):
        assert torch.equal(values, own * mask[:, None, :, None].expand(2, 2, 3, 3))
