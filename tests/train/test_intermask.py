"""The two stages of InterMask's training: losses fall, runs resume bit for bit, codes do not depend on a batch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from intermoe.data import InterHumanDataset, collate
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intermask.config import InterMaskConfig, TokenizerConfig
from intermoe.systems.intermask.losses import MaskDraws, mask_codes
from intermoe.systems.intermask.tokenizer import MotionTokenizer
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train.config import DataConfig, OptimConfig, RunConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.intermask import (
    CodeDataset,
    InterMaskTrainConfig,
    TokenizerObjective,
    TokenizerTrainConfig,
    UnmaskingObjective,
    _save_pipeline,
    load_tokenizer_folder,
    run_intermask,
    run_tokenizer,
)
from intermoe.train.run import write_config

CPU = torch.device("cpu")
TOKENIZER = TokenizerConfig(num_codes=12, code_dim=6, width=8, num_blocks=1, dropout=0.0)


def tokenizer_config(**changes: Any) -> TokenizerTrainConfig:
    optim = OptimConfig(steps=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
    every = RunConfig(log_every=2, validate_every=4, checkpoint_every=2)
    arguments: dict[str, Any] = {"data": DataConfig(batch_size=2), "optim": optim, "run": every, **changes}
    return TokenizerTrainConfig(window=16, model=TOKENIZER, **arguments)


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one tiny tokeniser run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_config(folder / "config.json", tokenizer_config())
    run_tokenizer(folder / "config.json", folder / "run", data=pairs)
    return folder / "run"


def statistics() -> Statistics:
    return Statistics(torch.zeros(262).numpy(), torch.ones(262).numpy())


def test_a_few_steps_lower_the_tokenizers_loss_and_move_its_codebook(pairs: Path) -> None:
    torch.manual_seed(0)
    objective = TokenizerObjective(tokenizer_config(), statistics())
    batch = collate([InterHumanDataset(pairs, "train", min_frames=16, max_frames=16)[index] for index in range(3)])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        terms = objective(batch, ItemDraws((0, step), range(3), CPU))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
        if step == 0:
            first = objective.tokenizer.codebook.vectors.clone()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not torch.equal(objective.tokenizer.codebook.vectors, first)
    assert "commitment" in terms
    values = objective.eval()(batch, ItemDraws((0, 0), range(3), CPU), validating=True)
    assert values.keys() == {"joint_error_cm"}


def test_the_tokenizers_validation_is_in_centimetres_of_whole_groups(trained: Path, pairs: Path) -> None:
    tokenizer, found = load_tokenizer_folder(trained / "model")
    objective = TokenizerObjective(tokenizer_config(), found).eval()
    objective.tokenizer.load_state_dict(tokenizer.state_dict())
    dataset, draws = InterHumanDataset(pairs, "val", min_frames=16), ItemDraws((0,), range(2), CPU)
    lengths = [dataset.num_frames(index) for index in range(2)]
    assert lengths[1] < lengths[0]
    assert lengths[0] % 4  # a last group that is not whole
    batch = dict(collate([dataset[0], dataset[1]]))
    beyond = torch.arange(batch["motion"].shape[2]) >= batch["lengths"][:, None]
    batch["motion"] = batch["motion"].masked_fill(beyond[:, None, :, None], torch.nan)  # whatever padding holds
    together = objective(batch, draws, validating=True)["joint_error_cm"]
    expected = []
    for index, length in enumerate(lengths):
        motion = found.normalise(dataset[index]["motion"])
        padded = torch.nn.functional.pad(motion, (0, 0, 0, -(-lengths[0] // 4) * 4 - length))
        output = tokenizer.decode(tokenizer.encode(padded))[:, :length]
        error = (found.denormalise(output) - found.denormalise(motion))[:, : length // 4 * 4, :66]
        expected.append(100 * torch.linalg.vector_norm(error.unflatten(-1, (22, 3)), dim=-1).mean())
    torch.testing.assert_close(together, torch.stack(expected).mean(), rtol=1e-4, atol=0)


def test_a_run_leaves_a_model_and_resumes_bit_for_bit(trained: Path, pairs: Path, tmp_path: Path) -> None:
    names = {path.name for path in (trained / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "statistics.json", "training.json"}
    weights = load_file(trained / "model" / "model.safetensors")
    assert weights["codebook.initialised"]
    assert {"codebook.vectors", "codebook.sums", "codebook.counts"} <= weights.keys()

    write_config(tmp_path / "config.json", tokenizer_config())
    run_tokenizer(tmp_path / "config.json", tmp_path / "run", data=pairs)
    for path in (tmp_path / "run" / "checkpoints" / "step-00000004").iterdir():
        path.unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000004").rmdir()
    run_tokenizer(tmp_path / "config.json", tmp_path / "run", data=pairs, resume=True)
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_a_folder_that_is_no_tokenizer_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer: .* holds no config.json"):
        load_tokenizer_folder(tmp_path)
    for name in ("model.safetensors", "statistics.json"):
        (tmp_path / name).write_bytes((trained / "model" / name).read_bytes())
    write_config(tmp_path / "config.json", TokenizerConfig(num_codes=5))
    with pytest.raises(ValueError, match=r"model\.safetensors: expected as many weights as the configuration says"):
        load_tokenizer_folder(tmp_path)
    config = TokenizerConfig.load(trained / "model" / "config.json")
    write_config(tmp_path / "config.json", config)
    load_tokenizer_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(key for key, value in weights.items() if value.is_floating_point())
    save_file({**weights, name: weights[name] * torch.nan}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{name}"):
        load_tokenizer_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a readable safetensors file"):
        load_tokenizer_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes())
    Statistics(np.zeros(5), np.ones(5)).save(tmp_path / "statistics.json")
    with pytest.raises(ValueError, match=r"statistics\.json: expected 262 columns, got 5"):
        load_tokenizer_folder(tmp_path)


def code_datasets(trained: Path, pairs: Path) -> CodeDataset:
    tokenizer, found = load_tokenizer_folder(trained / "model")
    dataset = InterHumanDataset(pairs, "train", min_frames=16, max_frames=44, training=True, mirror=True)
    return CodeDataset(dataset, tokenizer, found, CPU)


def test_codes_are_those_of_the_padded_motion_and_are_kept(trained: Path, pairs: Path) -> None:
    codes = code_datasets(trained, pairs)
    item = codes.draw(1, 3)
    frames = codes.num_frames(1)
    motion = torch.nn.functional.pad(
        codes.statistics.normalise(codes.dataset.draw(1, 3)["motion"]), (0, 0, 0, 44 - frames)
    )
    assert torch.equal(item["codes"], codes.tokenizer.encode(motion)[..., : frames // 4])
    assert codes.draw(1, 3)["codes"] is item["codes"]
    assert item["caption"] == codes.dataset.draw(1, 3)["caption"]
    mirrored = {codes.dataset.choose(1, epoch)[0].mirrored for epoch in range(8)}
    assert mirrored == {False, True}
    assert len({id(codes.draw(1, epoch)["codes"]) for epoch in range(8)}) == 2


def unmasking_objective(person_share: float = 0.2) -> UnmaskingObjective:
    torch.manual_seed(0)
    text = TextConfig(output_dim=8, width=8, num_layers=1, num_heads=2, feedforward_dim=8, vocab_size=60, dropout=0.0)
    config = InterMaskTrainConfig(
        person_share=person_share,
        data=DataConfig(max_frames=44),
        model=InterMaskConfig(
            12, code_dim=8, text_dim=8, dim=16, num_layers=1, num_heads=2, feedforward_dim=16, dropout=0.0
        ),
        text=text,
    )
    tokenizer = WordPieceTextEncoder.train_tokenizer(["two people dance", "the first dancer turns to the left"], 60)
    return UnmaskingObjective(config, WordPieceTextEncoder(text, tokenizer))


def test_a_few_steps_lower_the_masked_transformers_loss(trained: Path, pairs: Path) -> None:
    objective, codes = unmasking_objective(), code_datasets(trained, pairs)
    batch = objective.collate([codes.draw(index, 0) for index in range(3)])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for step in range(25):
        terms = objective(batch, ItemDraws((0, step), range(3), CPU))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["cross_entropy"].item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_the_second_stage_runs_on_the_first_and_resumes(trained: Path, pairs: Path, tmp_path: Path) -> None:
    text = TextConfig(output_dim=8, width=8, num_layers=1, num_heads=2, feedforward_dim=8, vocab_size=60)
    model = InterMaskConfig(12, code_dim=8, text_dim=8, dim=16, num_layers=1, num_heads=2, feedforward_dim=16)
    config = InterMaskTrainConfig(
        name="masked",
        data=DataConfig(batch_size=2),
        optim=OptimConfig(steps=4, learning_rate=1e-3, warmup_steps=1),
        run=RunConfig(log_every=2, validate_every=4, checkpoint_every=2),
        model=model,
        text=text,
    )
    write_config(tmp_path / "config.json", config)
    first = run_intermask(tmp_path / "config.json", tmp_path / "one", trained / "model", data=pairs)
    pipeline: Any = MotionPipeline.from_pretrained(first)
    assert (pipeline.config.system, pipeline.config.name) == ("intermask", "masked")
    tokenizer, found = load_tokenizer_folder(trained / "model")
    assert pipeline.statistics.digest() == found.digest()
    codes = pipeline.tokenizer.state_dict()
    assert all(torch.equal(codes[name], value) for name, value in tokenizer.state_dict().items())
    assert pipeline("two people dance", num_frames=18, num_inference_steps=2).joints.shape == (1, 2, 18, 22, 3)
    run_intermask(tmp_path / "config.json", tmp_path / "two", trained / "model", data=pairs)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "two" / "model")
    again = run_intermask(tmp_path / "config.json", tmp_path / "two", trained / "model", data=pairs, resume=True)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert json.loads((again / "training.json").read_text())["data"]["root"] is None

    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "codebook.counts": weights["codebook.counts"] + 1}, other / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected the weights of .*, with which the run was started"):
        run_intermask(tmp_path / "config.json", tmp_path / "two", other, data=pairs, resume=True)
    write_config(tmp_path / "config.json", dataclasses.replace(config, model=dataclasses.replace(model, num_codes=9)))
    with pytest.raises(ValueError, match=r"model.num_codes: expected 12 for this tokeniser, got 9"):
        run_intermask(tmp_path / "config.json", tmp_path / "three", trained / "model", data=pairs)


def test_a_saved_model_hears_of_no_batch(tmp_path: Path) -> None:
    """A tokeniser that was trained on messages in the batch's first motion is saved as one of every motion's first."""
    objective = unmasking_objective()
    tokenizer = MotionTokenizer(dataclasses.replace(TOKENIZER, code_dim=8, messages="first_frame_of_batch"))
    config = InterMaskTrainConfig(model=objective.network.config, text=objective.text.config)
    _save_pipeline(tmp_path / "model", config, objective, tokenizer, statistics())
    saved: Any = MotionPipeline.from_pretrained(tmp_path / "model")
    assert saved.config.tokenizer.messages == "first_frame"
    assert dataclasses.replace(saved.config.tokenizer, messages="first_frame_of_batch") == tokenizer.config


@torch.no_grad()
def test_an_items_loss_does_not_depend_on_its_batch(trained: Path, pairs: Path) -> None:
    objective, codes = unmasking_objective().eval(), code_datasets(trained, pairs)
    for parameter in objective.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    items = [codes.draw(index, 0) for index in range(3)]
    losses, counts = [], []
    for number, item in enumerate(items):
        draws = ItemDraws((7,), [number], CPU)
        losses.append(objective(objective.collate([item]), draws, validating=True)["cross_entropy"])
        numbers = ItemDraws((7,), [number], CPU)
        numbers.uniform()
        counts.append(_chosen(objective, objective.collate([item]), numbers))
    together = objective(objective.collate(items), ItemDraws((7,), range(3), CPU), validating=True)["cross_entropy"]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected)


def _chosen(objective: UnmaskingObjective, batch: Any, draws: ItemDraws) -> int:
    numbers = MaskDraws(draws.uniform(3), draws.uniform(*objective.grid, 4))
    return int(mask_codes(objective.network, batch["codes"], batch["mask"], numbers, 0.2).chosen.sum())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TokenizerTrainConfig, {"window": 30}, "window: expected a multiple of 4 frames"),
        (
            TokenizerTrainConfig,
            {"data": DataConfig(representation="interx", mirror=False)},
            "data.representation: expected interhuman",
        ),
        (InterMaskTrainConfig, {"data": DataConfig(num_workers=2)}, r"data.num_workers: expected 0"),
        (InterMaskTrainConfig, {"person_share": 1.5}, r"person_share: expected a value in \[0, 1\]"),
        (InterMaskTrainConfig, {"text": TextConfig(output_dim=8)}, "text.output_dim: expected model.text_dim=768"),
    ],
)
def test_wrong_configurations_are_refused(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
