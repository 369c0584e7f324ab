import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.eval import evaluate_kinematics
from intermoe.motion.interhuman import joints
from intermoe.motion.representation import REPRESENTATIONS


class StubPipeline:
    """Reconstructs with a known error; "generates" the item that a caption belongs to."""

    device = torch.device("cpu")
    frame_multiple = 4
    has_latents = True
    representation = REPRESENTATIONS["interhuman"]

    def __init__(self, dataset, shift=0.0):
        self.shift = shift
        self.calls = []
        self.motions = {}
        for index in range(len(dataset)):
            self.motions.update(dict.fromkeys(dataset.captions(index), dataset[index]["motion"]))

    def check(self, prompts, num_frames):
        assert prompts
        assert num_frames

    def encode(self, motion):
        assert motion.shape[2] % 4 == 0
        return motion

    def decode(self, latents):
        motion = latents.clone()
        motion[..., :66] += self.shift
        return motion

    def __call__(self, prompts, num_frames, num_inference_steps, guidance_scale, seed):
        self.calls.append((tuple(prompts), num_frames, seed))
        assert (num_inference_steps, guidance_scale) == (7, 2.0)
        motion = torch.stack([self.motions[prompt][:, :num_frames] for prompt in prompts])
        return SimpleNamespace(joints=joints(motion).contiguous())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three items, two of them of one length, with two captions each."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
        (root / folder).mkdir(parents=True)
    for i, frames in enumerate((31, 40, 31)):
        for person in ("person1", "person2"):
            np.save(root / "motions_processed" / person / f"{i}.npy", rng.normal(size=(frames, 492)).astype(np.float32))
        (root / "annots" / f"{i}.txt").write_text(f"the first dancer makes {i + 2} turns to the left\nthey dance {i}")
    (root / "split" / "val.txt").write_text("0\n1\n2\n")
    (root / "split" / "one.txt").write_text("0\n")
    return InterHumanDataset(root, "val")


@pytest.fixture(scope="module")
def evaluated(dataset):
    pipeline = StubPipeline(dataset, shift=0.01)
    steps = []
    report = evaluate_kinematics(
        pipeline,
        dataset,
        seeds=(5, 6),
        num_inference_steps=7,
        guidance_scale=2.0,
        batch_size=3,
        progress=lambda done, total: steps.append((done, total)),
    )
    return report, pipeline, steps


def test_rows(evaluated):
    report, _, _ = evaluated
    truth, reconstruction, generation = (report.rows[k] for k in ("ground truth", "reconstruction", "generation"))
    assert truth["joint_error_cm"] == 0
    assert truth["pelvis_wasserstein_cm"] == 0
    assert reconstruction["joint_error_cm"] == pytest.approx(np.sqrt(3), rel=1e-4)
    assert reconstruction["pelvis_wasserstein_cm"] == pytest.approx(0, abs=1e-4)
    assert generation["joint_error_cm"] is None
    assert (truth["clips"], generation["clips"]) == (3, 12)
    assert generation["jitter"] == pytest.approx(truth["jitter"], rel=0.1)  # the same clips, each twice a seed
    assert (truth["turn_direction_captions"], generation["turn_direction_captions"]) == (3, 6)
    assert [row["clips"] for row in report.generation_by_seed.values()] == [6, 6]


def test_every_caption_is_generated_at_its_length_with_its_own_seed(evaluated, dataset):
    _, pipeline, steps = evaluated
    assert [(len(prompts), frames) for prompts, frames, _ in pipeline.calls] == 2 * [(3, 30), (1, 30), (2, 39)]
    seeds = [seed + i for prompts, _, seed in pipeline.calls for i in range(len(prompts))]
    assert sorted(seeds) == [*range(30, 36), *range(36, 42)]
    prompts = [prompt for prompts, _, _ in pipeline.calls for prompt in prompts]
    assert sorted(prompts) == sorted(2 * [c for i in range(3) for c in dataset.captions(i)])
    assert steps == [(3, 12), (4, 12), (6, 12), (9, 12), (10, 12), (12, 12)]


def test_report_files_and_tables(evaluated, tmp_path):
    report, _, _ = evaluated
    report.save(tmp_path / "kinematics.json")
    saved = json.loads((tmp_path / "kinematics.json").read_text())
    assert saved == report.to_dict()
    assert saved["rows"]["generation"]["joint_error_cm"] is None
    assert saved["settings"] == {
        "split": "val", "items": 3, "captions": 6, "seeds": [5, 6], "num_inference_steps": 7, "guidance_scale": 2.0
    }  # fmt: skip
    assert set(saved["generation_by_seed"]) == {"5", "6"}
    header, *lines = report.table()
    assert header == ["metric", "ground truth", "reconstruction", "generation"]
    assert lines[0] == ["joint error (cm)", "0.00", "1.73", "–"]
    assert lines[-1][0] == "turn count as in caption (%), of 3 / 6"
    assert all(len(line) == 4 for line in lines)
    text = report.markdown().splitlines()
    assert text[0] == "| metric | ground truth | reconstruction | generation |"
    assert text[1] == "| --- | ---: | ---: | ---: |"
    assert len(text) == len(lines) + 2


def test_a_whole_model_can_be_evaluated(tiny_pipeline, dataset):
    report = evaluate_kinematics(tiny_pipeline, dataset, seeds=(0,), num_inference_steps=2)
    assert report.rows["generation"]["clips"] == 6
    assert report.rows["reconstruction"]["joint_error_cm"] > 0
    motion = dataset[0]["motion"]  # 30 frames: the last of the model's groups of four is filled up
    filled = torch.cat([motion, motion[:, -1:], motion[:, -1:]], dim=1)
    expected = joints(tiny_pipeline.decode(tiny_pipeline.encode(filled[None]))[0, :, :30])
    error = torch.linalg.norm(expected - joints(motion), dim=-1).mean().item() * 100
    alone = InterHumanDataset(dataset.root, "one")
    row = evaluate_kinematics(tiny_pipeline, alone, seeds=(0,), num_inference_steps=2).rows["reconstruction"]
    assert row["joint_error_cm"] == pytest.approx(error, rel=1e-5)


def test_real_ground_truth(salsa):
    """The sanity row: rigid bones, nothing below the floor, turns as the captions say."""
    dataset = InterHumanDataset(salsa, "val")
    pipeline = StubPipeline(dataset)
    report = evaluate_kinematics(pipeline, dataset, seeds=(0,), num_inference_steps=7, guidance_scale=2.0)
    truth = report.rows["ground truth"]
    assert report.rows["reconstruction"] == truth
    assert truth["bone_variation"] < 0.1
    assert truth["floor_penetration_cm"] == 0
    assert truth["turn_direction"] == 100
    assert 5 < truth["foot_skating_share"] < 20
    assert truth["turn_direction_captions"] == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"seeds": (1, 1)}, "seeds: expected at least one, none twice"),
        ({"batch_size": 0}, "batch_size: expected >= 1"),
    ],
)
def test_bad_arguments(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_kinematics(StubPipeline(dataset), dataset, **options)


@pytest.mark.parametrize("options", [{"training": True}, {"mirror": True}, {"swap_persons": True}])
def test_random_items_are_refused(dataset, options):
    with pytest.raises(ValueError, match="dataset: expected training=False and no augmentation"):
        evaluate_kinematics(StubPipeline(dataset), InterHumanDataset(dataset.root, "val", **options))
