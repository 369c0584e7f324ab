from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from intermoe.data import InterHumanDataset, collate
from intermoe.motion.statistics import Statistics
from intermoe.train import load_vae_folder, run_vae
from intermoe.train import vae as module
from intermoe.train.config import VAETrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.vae import VAEObjective, Windows


def test_run_leaves_a_model_its_configuration_and_its_logs(trained_vae: Path) -> None:
    names = {path.name for path in (trained_vae / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "statistics.json", "training.json"}
    assert json.loads((trained_vae / "model" / "training.json").read_text())["data"]["root"] is None
    vae, statistics = load_vae_folder(trained_vae / "model")
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())
    assert vae.config.latent_dim == 4
    assert statistics.mean.shape == (262,)
    events = EventAccumulator(str(trained_vae / "logs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/position", "train/items_per_second", "train/learning_rate"} <= tags
    assert [event.step for event in events.Scalars("validation/joint_error_cm")] == [4]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]


def test_same_seed_same_bytes(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    again = run_vae(write_config("vae"), tmp_path / "again", data=pairs)
    other = run_vae(write_config("vae", seed=1), tmp_path / "other", data=pairs)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (trained_vae / "model", again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_workers_do_not_change_the_result(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run_vae(write_config("vae", **{"data.num_workers": 2}), tmp_path / "run", data=pairs)
    assert (folder / "model.safetensors").read_bytes() == (trained_vae / "model" / "model.safetensors").read_bytes()


def test_validation_error_is_in_centimetres_and_ignores_padding(trained_vae: Path, pairs: Path) -> None:
    vae, statistics = load_vae_folder(trained_vae / "model")
    objective = VAEObjective(VAETrainConfig.load(trained_vae / "config.json"), statistics).eval()
    objective.vae.load_state_dict(vae.state_dict())
    dataset = InterHumanDataset(pairs, "val", min_frames=16)
    draws = ItemDraws((0,), range(2), torch.device("cpu"))
    together = objective(collate([dataset[0], dataset[1]]), draws, validating=True)["joint_error_cm"]
    expected = []
    for index in range(2):
        motion = dataset[index]["motion"]
        motion = motion[:, : motion.shape[1] // 4 * 4]
        output = statistics.denormalise(vae.decode(vae.encode(statistics.normalise(motion)).mode()))
        error = (output - motion)[..., :66].reshape(-1, 22, 3)
        expected.append(100 * torch.linalg.vector_norm(error, dim=-1).mean())
    torch.testing.assert_close(together, torch.stack(expected).mean(), rtol=1e-4, atol=0)


def test_windows_depend_on_seed_epoch_and_index_alone(pairs: Path) -> None:
    dataset = InterHumanDataset(pairs, "train", min_frames=16, training=True)
    windows = Windows(dataset, 16)
    first = windows.draw(2, 5)
    whole = dataset.draw(2, 5)["motion"]
    dataset.set_epoch(3)
    assert torch.equal(first["motion"], windows.draw(2, 5)["motion"])
    assert first["motion"].shape == (2, 16, 262)
    assert any(torch.equal(first["motion"], whole[:, s : s + 16]) for s in range(whole.shape[1] - 15))
    assert len({windows.draw(2, epoch)["motion"].sum().item() for epoch in range(6)}) > 1


class Lengths:
    """A data set that tells which frames of which item it is asked for."""

    seed = 0

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def num_frames(self, index: int) -> int:
        return self.lengths[index]

    def draw(self, index: int, epoch: int, frames: slice) -> Any:
        return index, epoch, frames.start, frames.stop


def test_windows_begin_at_every_place_that_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stride at all its multiples to the last that fits; at random at any, the first and the last included."""
    dataset: Any = Lengths(10, 7, 4, 12)
    strided: Any = Windows(dataset, 4, stride=3)
    starts = [(0, 0), (0, 3), (0, 6), (1, 0), (1, 3), (2, 0), (3, 0), (3, 3), (3, 6)]
    assert [strided.draw(place, 5) for place in range(len(strided))] == [(i, 5, s, s + 4) for i, s in starts]
    random: Any = Windows(dataset, 4)
    assert (len(random), random.num_frames(3)) == (4, 4)
    for number, expected in ((0.0, [0, 0, 0, 0]), (0.5, [3, 2, 0, 4]), (1 - 2**-53, [6, 3, 0, 8])):
        monkeypatch.setattr(random, "_numbers", lambda epoch, number=number: np.full((4, 1), number))
        assert [random.draw(index, 2) for index in range(4)] == [(i, 2, s, s + 4) for i, s in enumerate(expected)]


def test_a_run_is_not_overwritten(trained_vae: Path, pairs: Path, write_config: Callable[..., Path]) -> None:
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_vae(write_config("vae"), trained_vae, data=pairs)


def test_resuming_with_another_configuration_is_refused(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path]
) -> None:
    changed = write_config("vae", **{"optim.learning_rate": 0.5, "run.log_every": 1})
    with pytest.raises(ValueError, match=r"got another: optim\.learning_rate was 0\.001, is 0\.5$"):
        run_vae(changed, trained_vae, resume=True, data=pairs)


def test_data_must_be_given_and_exist(write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root: expected a folder in the configuration or as data"):
        run_vae(write_config("vae"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"data.root: expected a folder, got"):
        run_vae(write_config("vae"), tmp_path / "run", data=tmp_path / "absent")
    assert not (tmp_path / "run").exists()


def test_a_vae_folder_that_does_not_fit_is_refused(trained_vae: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained_vae / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    for size in (8, 10**9):  # of far more weights than the file has none is made
        (folder / "config.json").write_text(json.dumps({**config, "latent_dim": size}))
        with pytest.raises(ValueError, match=r"model\.safetensors: expected as many weights as the configuration says"):
            load_vae_folder(folder)
    (folder / "config.json").write_text(json.dumps({**config, "latent_dim": 3}))
    message = r"model\.safetensors: 'joint_encoder\.weight': expected shape \(268, 3\), got \(268, 4\)"
    with pytest.raises(ValueError, match=message):
        load_vae_folder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    Statistics(np.zeros(5), np.ones(5)).save(folder / "statistics.json")
    with pytest.raises(ValueError, match=r"statistics\.json: expected 262 columns, got 5"):
        load_vae_folder(folder)
    (folder / "statistics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no statistics\.json"):
        load_vae_folder(folder)


def test_refining_the_decoder_leaves_the_latents_alone(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config("vae", decoder_only=True, **{"losses.bone": 5.0, "losses.skating": 1.0})
    with pytest.raises(ValueError, match="init: expected the folder of a trained VAE for decoder_only"):
        run_vae(config, tmp_path / "none", data=pairs)
    folder = run_vae(config, tmp_path / "run", data=pairs, init=trained_vae / "model")
    (before, statistics), (after, same) = load_vae_folder(trained_vae / "model"), load_vae_folder(folder)
    assert (statistics.mean == same.mean).all()
    motion = torch.randn(1, 16, 262)
    latents = before.encode(motion).mode()
    assert torch.equal(after.encode(motion).mode(), latents)
    assert not torch.equal(after.decode(latents), before.decode(latents))


def test_latent_noise_reaches_the_decoder_at_a_level_of_its_own_for_each_sequence(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, statistics = load_vae_folder(trained_vae / "model")
    batch = collate([InterHumanDataset(pairs, "train", min_frames=16)[i] for i in range(4)])
    batch["motion"] = batch["motion"][:, :, :16]
    seen = []
    for noise in (0.0, 0.5):
        config = VAETrainConfig.load(write_config("vae", latent_noise=noise))
        objective = VAEObjective(config, statistics)
        objective.vae.load_state_dict(vae.state_dict())
        decode = objective.vae.decode
        monkeypatch.setattr(
            objective.vae, "decode", lambda latents, decode=decode: seen.append(latents) or decode(latents)
        )
        objective(batch, ItemDraws((0,), range(len(batch["names"])), torch.device("cpu")))
    levels = (seen[1] - seen[0]).flatten(1).std(dim=1)
    assert levels.max() < 0.6
    assert levels.min() > 0
    assert levels.max() > 1.5 * levels.min()


def test_starting_from_another_configuration_is_refused(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"init: expected the configuration of model"):
        run_vae(
            write_config("vae", **{"model.latent_dim": 8}), tmp_path / "run", data=pairs, init=trained_vae / "model"
        )


def started(
    pairs: Path, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, init: Path | None = None
) -> tuple[VAEObjective, Any, Any]:
    """Objective and both data sets of a run that trains nothing."""
    seen: list[Any] = []
    monkeypatch.setattr(module, "fit", lambda *given, **_: seen.extend((given[1], given[3], given[4])))
    run_vae(config, folder, data=pairs, init=init)
    return seen[0], seen[1], seen[2]


def test_items_shorter_than_a_window_are_for_validation_alone(
    pairs: Path, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40, 29, 33, 26 and 30 frames one is too short for a window of 28; of 31 and 24 none is."""
    with pytest.warns(UserWarning, match="1 of 5 items cannot be used"):
        _, windows, validation = started(pairs, write_config("vae", window=28), tmp_path / "run", monkeypatch)
    assert windows.dataset.names == ["1", "2", "3", "5"]
    assert (windows.dataset.split, validation.split, len(validation)) == ("train", "val", 2)


def test_a_run_that_starts_from_a_model_has_its_statistics_and_weights(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever those of the data are."""
    shutil.copytree(trained_vae / "model", tmp_path / "start")
    own = Statistics(np.linspace(-3, 2, 262), np.linspace(0.5, 4, 262))
    own.save(tmp_path / "start" / "statistics.json")
    objective, *_ = started(pairs, write_config("vae", seed=5), tmp_path / "run", monkeypatch, tmp_path / "start")
    np.testing.assert_allclose(objective.mean, own.mean)
    np.testing.assert_allclose(objective.std, own.std)
    assert Statistics.load(tmp_path / "run" / "statistics.json").digest() == own.digest()
    before = load_vae_folder(trained_vae / "model")[0].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in objective.vae.state_dict().items())
    fresh, *_ = started(pairs, write_config("vae", seed=5), tmp_path / "fresh", monkeypatch)
    again, *_ = started(pairs, write_config("vae", seed=5), tmp_path / "again", monkeypatch)
    assert all(map(torch.equal, fresh.vae.parameters(), again.vae.parameters()))
    assert not torch.equal(fresh.vae.head.weight, before["head.weight"])


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_the_losses_are_asked_and_whose_numbers_are_whose(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items in a batch get what they get alone, each person of them; all that they are compared by is handed on."""
    config = VAETrainConfig.from_dict(
        {"window": 16, "latent_noise": noise, "model": {"latent_dim": 4, "num_blocks": 1}, "losses": {"kl": 0.25}}
    )
    statistics = Statistics(np.linspace(-1, 1, 262), np.linspace(0.5, 2, 262))
    torch.manual_seed(0)
    objective = VAEObjective(config, statistics).eval()  # without dropout
    decoded: list[torch.Tensor] = []
    asked: list[tuple[Any, ...]] = []
    decode = objective.vae.decode
    monkeypatch.setattr(objective.vae, "decode", lambda latents: decoded.append(latents) or decode(latents))
    monkeypatch.setattr(module, "vae_losses", lambda *given: asked.append(given) or {})
    raw, lengths = torch.randn(3, 2, 16, 262), torch.tensor([16, 16, 12])
    for rows, numbers in ((slice(0, 3), range(3)), (slice(1, 2), range(1, 2))):
        batch = {"motion": raw[rows], "lengths": lengths[rows]}
        objective(batch, ItemDraws((4,), numbers, torch.device("cpu")))
    torch.testing.assert_close(decoded[0][2:4], decoded[1], rtol=1e-4, atol=1e-5)
    output, target, posterior, mean, std, weights, representation = asked[0]
    normalised = (raw - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)
    normalised[2, :, 12:] = 0.0
    torch.testing.assert_close(target, normalised.flatten(0, 1).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, decode(decoded[0]))
    torch.testing.assert_close(posterior.mean, objective.vae.encode(target).mean)
    assert (mean is objective.mean, std is objective.std, weights.kl) == (True, True, 0.25)
    assert representation.name == "interhuman"
    drawn = (decoded[0] - posterior.mean) / torch.exp(0.5 * posterior.log_var)
    if noise == 0:
        assert drawn.std().item() == pytest.approx(1, abs=0.1)
        assert len({row.sum().item() for row in drawn}) == 6, "every person has numbers of their own"


def test_every_sequence_gets_noise_of_its_own_level() -> None:
    """Two items of three persons: six levels, and noise of all frames and parts."""

    class Told:
        def uniform(self, *shape: int) -> torch.Tensor:
            assert shape == (3, 1, 1, 1)
            return torch.arange(6.0).view(2, 3, 1, 1, 1) / 10

        def normal(self, frames: int, *shape: int) -> torch.Tensor:
            assert (frames, shape) == (2, (3, 7, 4))
            return torch.arange(2 * 2 * 3 * 7 * 4.0).view(2, 2, 3, 7, 4)

    config = VAETrainConfig.from_dict({"latent_noise": 0.5, "model": {"latent_dim": 4, "num_blocks": 1}})
    objective = VAEObjective(config, Statistics(np.zeros(262), np.ones(262)))
    latents = torch.randn(6, 2, 7, 4)
    found = objective._disturbed(latents, Told(), 3)  # type: ignore[arg-type]
    for item in range(2):
        for person in range(3):
            noise = Told().normal(2, 3, 7, 4)[item, :, person]
            row = 3 * item + person
            torch.testing.assert_close(found[row], latents[row] + 0.5 * (row / 10) * noise)
