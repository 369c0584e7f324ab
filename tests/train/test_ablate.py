"""The ablation table: its variants, one trained row like the trainer's, what is kept, and refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import ablate
from intermoe.train.ablate import AblationConfig, AblationSettings, run_ablation, save_autoencoder, variant_configs
from intermoe.train.config import DataConfig, DenoiserTrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.vae import load_vae_folder

MATRIX = Path(ablate.__file__).parent / "configs" / "ablations" / "salsa.yaml"
SETTINGS = AblationSettings(steps=2, num_inference_steps=2)
VARIANTS = [
    {"name": "full", "title": "whole", "published": {"fid": 4.677, "r_precision_1": 0.512}},
    {"name": "pool", "title": "no batch", "changes": {"denoiser.pool": "sample"}, "published": {"fid": 6.036}},
    {"name": "top", "title": "fixed", "changes": {"denoiser.routing": "token_choice", "denoiser.top_k": 2}},
]


class StubEvaluator:
    """Embeds a motion as its length and a text as the length of the item that it describes."""

    device, representation, kind, reads_tokens = torch.device("cpu"), "interhuman", "stub", False

    def embed_motion(self, motion: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert (motion.shape[1], motion.shape[3]) == (2, 262)
        return torch.stack([lengths, torch.zeros_like(lengths)], dim=-1).float()

    def check_text(self, texts: list[str]) -> None:
        assert texts

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[30.0, 0.0] if "first" in text else [24.0, 0.0] for text in texts])


@pytest.fixture(scope="module")
def matrix(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "matrix.json"
    path.write_text(json.dumps({"base": str(write_config("denoiser")), "variants": VARIANTS}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ablation(matrix: Path, pairs: Path, trained_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, seen = tmp_path_factory.mktemp("ablation"), []
    report = run_ablation(
        matrix,
        folder,
        data=pairs,
        vae=trained_vae / "model",
        settings=SETTINGS,
        evaluator=StubEvaluator(),
        progress=lambda *step: seen.append(step),
    )
    return SimpleNamespace(folder=folder, report=report, seen=seen)


def test_shipped_variants_change_what_they_say() -> None:
    configs = variant_configs(MATRIX, steps=30)
    base = configs["full"].to_dict()
    assert base["optim"]["steps"] == 30
    assert base["optim"]["warmup_steps"] == 3
    assert base["text_pretraining"]["steps"] <= 30
    changes = {v.name: v.changes for v in AblationConfig.load(MATRIX).variants}
    for name, config in configs.items():
        now = config.to_dict()
        changed = {f"denoiser.{key}": v for key, v in now["denoiser"].items() if v != base["denoiser"][key]}
        assert changed == changes[name]
        assert {k: v for k, v in now.items() if k != "denoiser"} == {k: v for k, v in base.items() if k != "denoiser"}
    assert {frozenset(change.items()) for change in changes.values()} == {
        frozenset(change.items())
        for change in (
            {},
            *({"denoiser.alpha": a} for a in (0.0, 0.25, 0.75, 1.0)),
            *({"denoiser.num_experts": n} for n in (2, 4, 16)),
            *({"denoiser.capacity": c} for c in (0.5, 2.0)),
            {"denoiser.fusion": "learned"},
            {"denoiser.pool": "sample"},
            {"denoiser.unit": "sequence"},
            {"denoiser.routing": "token_choice", "denoiser.top_k": 1},
            {"denoiser.routing": "token_choice", "denoiser.top_k": 2, "denoiser.num_shared_experts": 1},
            {"denoiser.routing": "expert_choice"},
        )
    }


def test_every_shipped_switch_builds_and_trains_a_step() -> None:
    """On a denoiser small enough that sixteen of them take a second."""
    from intermoe.systems.intermoe.denoiser import Denoiser

    for name, config in variant_configs(MATRIX).items():
        small = {"input_dim": 8, "text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "expert_dim": 4}
        torch.manual_seed(0)
        model = Denoiser(type(config.denoiser).from_dict(config.denoiser.to_dict() | small)).train()
        out, balance = model(torch.randn(2, 4, 2, 8), torch.tensor([3, 500]), torch.randn(2, 8), balance=True)
        (out.square().mean() + balance + out.sum()).backward()
        model.update_selection_bias()
        assert model.out.weight.grad is not None, name


def test_rows_and_their_measures(ablation: Any) -> None:
    rows = ablation.report.rows
    assert list(rows) == ["ground truth", "full", "pool", "top"]
    assert ablation.seen == [("full", 0, 3), ("pool", 1, 3), ("top", 2, 3)]
    assert rows["top"]["experts_per_token"] == 2
    assert rows["top"]["tokens_without_expert"] == 0
    # generated motion is as long as its item, so embeddings differ in how often each length comes alone
    fid = 36 * (np.std(3 * [31, 24], ddof=1) - np.std([31, 24], ddof=1)) ** 2
    for name in ("full", "pool", "top"):
        assert np.isfinite(rows[name]["validation_loss"])
        assert rows[name]["fid"] == pytest.approx(fid)
        assert rows[name]["bone_variation"] > 0
    assert {"validation_loss", "fid"}.isdisjoint(rows["ground truth"])
    assert rows["ground truth"]["mm_dist"] >= 0
    assert rows["ground truth"]["pelvis_wasserstein_cm"] == 0


def test_validation_loss_is_the_trainers(ablation: Any, pairs: Path, matrix: Path) -> None:
    from intermoe.data import InterHumanDataset
    from intermoe.data.batching import collate
    from intermoe.train.denoiser import DenoiserObjective
    from intermoe.train.draws import ItemDraws
    from intermoe.train.latents import LatentEncoder

    pipeline = InterMoEPipeline.from_pretrained(ablation.folder / "full" / "run" / "model")
    config = variant_configs(matrix, steps=2)["full"]
    dataset = InterHumanDataset(pairs, "val", training=False)
    objective = DenoiserObjective(config, LatentEncoder(pipeline.codec), pipeline.text_encoder)
    objective.denoiser.load_state_dict(pipeline.denoiser.state_dict())
    items = [dataset.draw(index, 0) for index in range(len(dataset))]
    with torch.no_grad():
        values = objective.eval()(
            collate(items), ItemDraws((0, 1), range(len(items)), torch.device("cpu")), validating=True
        )
    assert ablation.report.rows["full"]["validation_loss"] == pytest.approx(values["loss"].item(), rel=1e-6)


def test_a_trained_evaluator_measures(ablation: Any, pairs: Path, matrix: Path) -> None:
    from intermoe.data import InterHumanDataset
    from intermoe.evaluators.interclip import InterClip, InterClipConfig
    from intermoe.text.protocol import TextConfig

    pipeline = InterMoEPipeline.from_pretrained(ablation.folder / "full" / "run" / "model")
    small = {"num_layers": 1, "num_heads": 2, "width": 8, "feedforward_dim": 8}
    text = TextConfig(output_dim=4, vocab_size=60, **small)
    torch.manual_seed(0)
    evaluator = InterClip(InterClipConfig(embedding_dim=4, text=text, **small), pipeline.text_encoder.tokenizer_json)
    dataset = InterHumanDataset(pairs, "val", training=False)
    config = variant_configs(matrix, steps=2)["full"]
    found = ablate.measure_variant(pipeline, config, dataset, SETTINGS, evaluator.eval())
    assert found["fid"] > 0
    assert 0 <= found["r_precision_1"] <= found["r_precision_2"] == found["r_precision_3"] == 1
    assert found["mm_dist"] > 0
    same = ablate.measure_variant(pipeline, config, dataset, SETTINGS)
    assert same.items() < found.items()
    evaluator.representation = "interx"
    with pytest.raises(ValueError, match="evaluator: expected one that reads captions of interhuman, got interclip"):
        run_ablation(matrix, ablation.folder, data=pairs, vae=pairs, settings=SETTINGS, evaluator=evaluator)


def test_table_puts_published_numbers_beside(ablation: Any) -> None:
    header, truth, full, pool, top = ablation.report.table()
    assert header[-2:] == ["published FID (InterHuman)", "published R@1 (InterHuman)"]
    assert (truth[0], truth[-2:]) == ("ground truth", ["–", "–"])
    assert (full[0], full[-2:]) == ("whole", ["4.677", "0.512"])
    assert pool[-2:] == ["6.036", "–"]
    assert top[header.index("experts per token")] == "2.00"
    saved = json.loads((ablation.folder / "ablation.json").read_text())
    assert saved["rows"] == ablation.report.rows
    assert saved["published"] == {"on": "InterHuman", "full": VARIANTS[0]["published"], "pool": {"fid": 6.036}}
    lines = (ablation.folder / "ablation.md").read_text().splitlines()
    assert lines[0] == f"| {' | '.join(header)} |"
    assert "Published numbers are of other data" in lines[-1]


def test_finished_rows_are_read(
    ablation: Any, matrix: Path, pairs: Path, trained_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("trained again")

    monkeypatch.setattr(ablate, "run_denoiser", fail)
    options = {"data": pairs, "vae": trained_vae / "model", "evaluator": StubEvaluator()}
    again = run_ablation(matrix, ablation.folder, settings=SETTINGS, **options)
    assert again.rows == ablation.report.rows
    alone = run_ablation(matrix, ablation.folder, settings=SETTINGS, only=["pool"], **options)
    assert list(alone.rows) == ["ground truth", "pool"]
    with pytest.raises(RuntimeError, match="trained again"):
        run_ablation(matrix, ablation.folder, settings=dataclasses.replace(SETTINGS, guidance_scale=2.0), **options)


def test_nothing_is_made_before_all_is_checked(matrix: Path, pairs: Path, tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    options = {"vae": out / "vae", "model": tmp_path / "model"}
    with pytest.raises(FileNotFoundError, match=r"split/val\.txt: no such file"):
        run_ablation(matrix, out, data=tmp_path / "model", settings=SETTINGS, **options)
    late = dataclasses.replace(SETTINGS, num_inference_steps=2000)
    with pytest.raises(ValueError, match=r"num_inference_steps: expected a value in \[1, 1000\], got 2000"):
        run_ablation(matrix, out, data=pairs, settings=late, **options)
    assert not out.exists()


def test_a_result_that_was_edited_is_named(
    ablation: Any, matrix: Path, pairs: Path, trained_vae: Path, tmp_path: Path
) -> None:
    shutil.copytree(ablation.folder, tmp_path / "again")
    path = tmp_path / "again" / "pool" / "result.json"
    path.write_text(path.read_text().replace('"validation_loss": ', '"validation_loss": 1'))
    options = {"data": pairs, "vae": trained_vae / "model", "evaluator": StubEvaluator()}
    with pytest.raises(ValueError, match=r"pool/result\.json: not as it was written"):
        run_ablation(matrix, tmp_path / "again", settings=SETTINGS, only=["pool"], **options)


def test_rows_of_other_data_are_not_read(
    ablation: Any, matrix: Path, pairs: Path, trained_vae: Path, tmp_path: Path
) -> None:
    shutil.copytree(pairs, tmp_path / "pairs")
    (tmp_path / "pairs" / "annots" / "1.txt").write_text("two people dance\n", encoding="utf-8")
    options = {"data": tmp_path / "pairs", "vae": trained_vae / "model", "evaluator": StubEvaluator()}
    with pytest.raises(ValueError, match=r"expected the data that .* was started with, got other data of train"):
        run_ablation(matrix, ablation.folder, settings=SETTINGS, **options)


def test_another_training_in_the_same_folder_is_refused(
    ablation: Any, matrix: Path, pairs: Path, trained_vae: Path
) -> None:
    options = {"data": pairs, "vae": trained_vae / "model"}
    with pytest.raises(ValueError, match=r"optim\.steps was 2, is 3"):
        run_ablation(matrix, ablation.folder, settings=AblationSettings(steps=3, num_inference_steps=2), **options)


def test_the_autoencoder_of_a_pipeline(tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "model")
    vae, statistics = load_vae_folder(save_autoencoder(tmp_path / "model", tmp_path / "vae"))
    for key, value in tiny_pipeline.vae.state_dict().items():
        assert torch.equal(vae.state_dict()[key], value)
    np.testing.assert_array_equal(statistics.mean, tiny_pipeline.statistics.mean)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "variants: expected at least one, no name twice"),
        ([VARIANTS[0], VARIANTS[0]], "variants: expected at least one, no name twice"),
        *(
            ([{"name": name, "title": ""}], f"name: expected a name usable for a folder, .*, got {name!r}")
            for name in ("a/b", "..", " ", "ground truth", "ablation.md")
        ),
        ([{"name": "a", "title": "", "changes": {"denoiser.heads": 2}}], "a.denoiser: unknown key 'heads'"),
        ([{"name": "a", "title": "", "changes": {"nn.heads": 2}}], "a: unknown key 'nn.heads'"),
        (
            [{"name": "a", "title": "", "changes": {"denoiser.alpha": 2.0}}],
            r"alpha: expected a value in \[0, 1\], got 2.0",
        ),
        ([{"name": "a", "title": "", "published": {"kid": 1}}], "published: expected a mapping of"),
    ],
)
def test_bad_matrices(write_config: Any, tmp_path: Path, variants: list[Any], message: str) -> None:
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps({"base": str(write_config("denoiser")), "variants": variants}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        variant_configs(path)


def test_unknown_names(matrix: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only: expected some of the variants full, pool, top, got \['nobody'\]"):
        run_ablation(matrix, tmp_path / "out", data=pairs, vae=tmp_path, settings=SETTINGS, only=["nobody"])
    assert not (tmp_path / "out").exists()


def test_every_clip_of_every_seed_and_caption_has_noise_of_its_own() -> None:
    """Captions of all items are generated in turn, whatever order their lengths give the batches."""
    seen: list[tuple[str, int, int]] = []

    def sample(prompts: list[str], lengths: list[int], seeds: list[int], **options: Any) -> list[str]:
        assert options == {"num_inference_steps": 2, "guidance_scale": 1.5}
        seen.extend(zip(prompts, lengths, seeds, strict=True))
        return [f"{prompt} by {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]

    class Three:
        def __len__(self) -> int:
            return 3

        def captions(self, index: int) -> tuple[str, ...]:
            return (f"a{index}", f"b{index}")

        def num_frames(self, index: int) -> int:
            return (60, 20, 40)[index]

    settings = AblationSettings(seeds=(0, 1), num_inference_steps=2, guidance_scale=1.5)
    pipeline, dataset = SimpleNamespace(sample=sample), Three()
    made: Any = ablate._generate(pipeline, dataset, settings, 2)
    assert made == [(f"{name} by {seed}", name) for seed, name in enumerate(2 * ["a0", "a1", "a2", "b0", "b1", "b2"])]
    assert [length for _, length, _ in seen[:3]] == [20, 40, 60]


def test_what_is_measured_on_the_data_is_of_every_valid_token_of_every_layer_and_level(
    tiny_pipeline: Any, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three items and then two: the loss is the mean over items, experts are counted over what is no padding."""
    seen: list[tuple[int, int, int]] = []

    def count(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = dict(zip(("hidden", "condition", "mask"), args, strict=False)) | kwargs
        hidden, condition, mask = call["hidden"], call["condition"], call["mask"]
        chosen = block.chosen_pairs(hidden, condition, mask)[mask]
        seen.append((int(mask.sum()), int(chosen.sum()), int((~chosen.any(dim=-1)).sum())))

    losses: list[tuple[int, float]] = []
    forward = ablate.DenoiserObjective.forward

    def watched(self: Any, batch: Any, *given: Any, **options: Any) -> Any:
        values = forward(self, batch, *given, **options)
        losses.append((len(batch["names"]), values["loss"].item()))
        return values

    config = DenoiserTrainConfig(
        denoiser=tiny_pipeline.config.denoiser, text=tiny_pipeline.config.text, data=DataConfig(batch_size=3)
    )
    dataset = InterHumanDataset(pairs, "train", training=False)
    expected_draws = [
        ItemDraws((config.seed, 1), range(start, stop), torch.device("cpu")) for start, stop in ((0, 3), (3, 5))
    ]
    drawn: list[torch.Tensor] = []
    own = ItemDraws.normal
    monkeypatch.setattr(ItemDraws, "normal", lambda self, *shape: drawn.append(own(self, *shape)) or drawn[-1])
    monkeypatch.setattr(ablate.DenoiserObjective, "forward", watched)
    denoiser = copy.deepcopy(tiny_pipeline.denoiser)
    for block in denoiser.moe_blocks():
        torch.nn.init.normal_(block.motion_router)
        block.selection_bias.fill_(-0.6)
        block.register_forward_pre_hook(count, with_kwargs=True)
    parts = (tiny_pipeline.vae, denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    with torch.no_grad():
        loss, per_token, idle = ablate._validate(InterMoEPipeline(tiny_pipeline.config, *parts), config, dataset)
    assert [size for size, _ in losses] == [3, 2]
    assert loss == pytest.approx((3 * losses[0][1] + 2 * losses[1][1]) / 5)
    tokens, pairs_taken, none = (sum(values) for values in zip(*seen, strict=True))
    assert len(seen) == 2 * 5
    assert tokens == 5 * 2 * sum(frames // 4 for frames in (40, 29, 33, 26, 30))
    assert 0 < none < tokens
    assert per_token == pytest.approx(pairs_taken / tokens)
    assert idle == pytest.approx(none / tokens)
    for found, draws in zip(drawn, expected_draws, strict=True):
        lengths = [int(row.flatten(1).any(dim=1).sum()) for row in found]
        assert torch.equal(found, own(draws, lengths, *found.shape[2:])), "as in training's validation"


def test_captions_that_all_items_have() -> None:
    class Three:
        def __len__(self) -> int:
            return 3

        def captions(self, index: int) -> tuple[str, ...]:
            return tuple(f"{line}{index}" for line in "abc"[: (3, 2, 3)[index]])

    assert ablate._captions(Three()) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]  # type: ignore[arg-type]


def test_numbers_of_a_table_by_hand(tmp_path: Path) -> None:
    """Each column with its digits, those that no row has left out; what is not known is a dash."""
    variants = (ablate.Variant("a", "A", {}, {"fid": 4.5}), ablate.Variant("b", "B", {}, {"r_precision_1": 0.5}))
    rows: dict[str, Any] = {
        "ground truth": {"jitter": 123.456, "bone_variation": 0.126},
        "b": {"parameters": 1.005, "validation_loss": 0.123456, "fid": 2.0, "r_precision_1": 0.12345, "jitter": None},
        "a": {"fid": None, "experts_per_token": 1.256},
    }
    report = ablate.AblationReport(AblationConfig("base", variants, "There"), {"steps": 3, "seed": 0}, rows)
    assert report.table() == [
        ["variant", "denoiser (M)", "validation loss", "experts per token", "bone variation (%)", "jitter (m/s³)",
         "FID", "R@1", "published FID (There)", "published R@1 (There)"],
        ["ground truth", "–", "–", "–", "0.13", "123", "–", "–", "–", "–"],
        ["B", "1.00", "0.1235", "–", "–", "–", "2.0000", "0.123", "–", "0.500"],
        ["A", "–", "–", "1.26", "–", "–", "–", "–", "4.500", "–"],
    ]  # fmt: skip
    report.save(tmp_path)
    lines = (tmp_path / "ablation.md").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 9
    assert lines[3] == "| B | 1.00 | 0.1235 | – | – | – | 2.0000 | 0.123 | – | 0.500 |"
    assert lines[-1] == "Settings: steps 3, seed 0. Published numbers are of other data and another evaluator."
    assert json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8")) == {
        "settings": {"steps": 3, "seed": 0}, "rows": rows,
        "published": {"on": "There", "a": {"fid": 4.5}, "b": {"r_precision_1": 0.5}},
    }  # fmt: skip
