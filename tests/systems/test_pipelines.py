"""What every system promises through ``MotionPipeline``, on tiny models, freshly drawn; and one more system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intermoe.control import Control, Known
from intermoe.data import InterHumanDataset
from intermoe.eval import evaluate_kinematics
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import SYSTEMS, ModelConfig, MotionPipeline
from intermoe.systems.files import write_model
from intermoe.systems.intermask.tokenizer import MotionTokenizer
from intermoe.systems.mdm.canonical import to_own_frame
from intermoe.text.wordpiece import WordPieceTextEncoder

PROMPTS = ["two people bow", "one of them turns to the left"]
TEXT = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8, "vocab_size": 60}
SMALL = {"text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16}
PARTS: dict[str, dict[str, Any]] = {
    "intergen": {"network": SMALL},
    "timotion": {"network": SMALL},
    "in2in": {"network": SMALL},
    "intergen-experts": {"network": {**SMALL, "num_experts": 3, "expert_dim": 6}},
    "timotion-experts": {"network": {**SMALL, "num_experts": 3, "expert_dim": 6}},
    "intermask": {
        "network": {**SMALL, "num_codes": 12, "code_dim": 8},
        "tokenizer": {"num_codes": 12, "code_dim": 6, "width": 8, "num_blocks": 1},
    },
    "mdm": {"network": {**SMALL, "input_dim": 262}, "representation": "interhuman"},
    "commdm": {
        "network": {
            "backbone": {**SMALL, "input_dim": 262}, "split": 1, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16,
        },
    },
}  # fmt: skip


def write(folder: Path, system: str, **changes: Any) -> Path:
    """A model of ``system`` whose every weight matters: what starts at zero is drawn too."""
    pipeline_type = SYSTEMS[system]
    values = {"system": system, "name": "tiny", "fps": 30, "min_frames": 8, "max_frames": 40, "text": TEXT}
    config: Any = pipeline_type.config_type.from_dict({**values, **PARTS[system], **changes})
    torch.manual_seed(0)
    made: Any = pipeline_type
    modules: dict[str, nn.Module] = {
        "text": WordPieceTextEncoder(config.text, WordPieceTextEncoder.train_tokenizer(PROMPTS, 60))
    }
    if system == "intermask":
        from intermoe.systems.intermask.network import InterMask

        modules |= {"network": InterMask(config.network), "tokenizer": MotionTokenizer(config.tokenizer)}
        nn.init.normal_(modules["tokenizer"].codebook.vectors)
    else:
        modules["network"] = made.build_network(config.network)
    for parameter in modules["network"].parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 if system == "intermask" else 0.1)
    size = REPRESENTATIONS[values_of(config)].frame_size
    statistics = Statistics(np.linspace(-1, 1, size), np.linspace(0.1, 2, size))
    write_model(folder, config, modules, statistics, modules["text"].tokenizer_json)
    return folder


def values_of(config: Any) -> str:
    """The representation of a model's motion."""
    return str(getattr(config, "representation", "interhuman"))


@pytest.fixture(scope="module", params=list(SYSTEMS))
def pipeline(
    request: pytest.FixtureRequest, tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory
) -> MotionPipeline:
    if request.param == "intermoe":
        made: MotionPipeline = tiny_pipeline
        return made
    return MotionPipeline.from_pretrained(write(tmp_path_factory.mktemp("model"), request.param))


def test_motions_have_the_asked_lengths(pipeline: MotionPipeline) -> None:
    done: list[tuple[int, int]] = []
    motions = pipeline.sample(
        PROMPTS, [13, 18], [3, 4], num_inference_steps=3, progress=lambda i, n: done.append((i, n))
    )
    persons = 1 if pipeline.config.system == "mdm" else 2
    assert [tuple(motion.shape) for motion in motions] == [(persons, 13, 262), (persons, 18, 262)]
    assert all(motion.isfinite().all() and motion.dtype == torch.float32 for motion in motions)
    assert all(motion.std(dim=1).max() > 1e-2 for motion in motions)  # it moves
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert pipeline.representation.persons == persons


def test_seed_and_text_decide_and_company_does_not(pipeline: MotionPipeline) -> None:
    def made(prompts: list[str], seed: int, num_frames: int = 16) -> Tensor:
        return pipeline(prompts, num_frames=num_frames, num_inference_steps=3, seed=seed).motion

    together = made(PROMPTS, 4)
    assert torch.equal(together, made(PROMPTS, 4))
    assert not torch.equal(together, made(PROMPTS, 5))
    assert not torch.equal(together[:1], made(PROMPTS[1:], 4))
    torch.testing.assert_close(together[1:], made(PROMPTS[1:], 5), atol=1e-4, rtol=1e-4)


def test_padding_does_not_reach_a_motion(pipeline: MotionPipeline) -> None:
    for scheduler in pipeline.schedulers:
        arguments: dict[str, Any] = {"num_inference_steps": 3, "scheduler": scheduler}
        short, _ = pipeline.sample(PROMPTS, [13, 25], [1, 2], **arguments)
        (alone,) = pipeline.sample(PROMPTS[:1], [13], [1], **arguments)
        torch.testing.assert_close(short, alone, atol=1e-4, rtol=1e-4)


def test_without_guidance_the_network_is_asked_once_for_each_prompt(pipeline: MotionPipeline) -> None:
    asked: list[int] = []
    network = pipeline.modules.get("network") or pipeline.modules["denoiser"]
    hook = network.register_forward_pre_hook(lambda _, arguments: asked.append(len(arguments[0])))
    pipeline(PROMPTS, num_frames=16, num_inference_steps=3, guidance_scale=1.0)
    hook.remove()
    assert set(asked) == {2}


@pytest.mark.parametrize("system", ["intergen", "mdm"])
def test_guidance_ends_where_the_configuration_says(system: str, tmp_path: Path) -> None:
    """Below which share of the schedule nothing is guided: of all of it, as if there were no guidance."""

    def made(until: float, scale: float) -> Tensor:
        model = MotionPipeline.from_pretrained(
            write(tmp_path / f"{until}-{scale}", system, diffusion={"guidance_until": until})
        )
        return model(PROMPTS[0], num_frames=16, num_inference_steps=3, guidance_scale=scale).motion

    plain, all_along, half = made(0.0, 1.0), made(0.0, 3.5), made(0.5, 3.5)
    assert torch.equal(made(1.0, 3.5), plain)
    assert not any(torch.equal(a, b) for a, b in ((all_along, plain), (half, plain), (half, all_along)))


def test_every_sampler_of_a_system_works_and_no_other(pipeline: MotionPipeline) -> None:
    for name in pipeline.schedulers:
        assert pipeline(PROMPTS[0], num_frames=8, num_inference_steps=2, scheduler=name).joints.isfinite().all()
    first = pipeline(PROMPTS[0], num_frames=8, num_inference_steps=2, scheduler=pipeline.schedulers[0]).motion
    assert torch.equal(pipeline(PROMPTS[0], num_frames=8, num_inference_steps=2).motion, first)
    with pytest.raises(ValueError, match="scheduler: expected one of"):
        pipeline(PROMPTS[0], num_frames=8, num_inference_steps=2, scheduler="euler")


DEFAULTS = {"intermask": (20, 2.0), "mdm": (1000, 2.5), "commdm": (1000, 1.0)}


def test_steps_and_guidance_are_the_systems_own_where_nobody_asks(
    pipeline: MotionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def sample(*_: Any, **settings: Any) -> list[Tensor]:
        asked.update(settings)
        return [torch.zeros(pipeline.representation.persons, 16, 262)]

    monkeypatch.setattr(pipeline, "sample", sample)
    pipeline(PROMPTS[0], num_frames=16)
    expected = DEFAULTS.get(pipeline.config.system, (50, 3.5))
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == expected
    pipeline(PROMPTS[0], num_frames=16, num_inference_steps=7, guidance_scale=1.5)
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (7, 1.5)


def test_steps_beyond_the_schedule_are_refused_before_any_work(
    pipeline: MotionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("work began")

    monkeypatch.setattr(pipeline, "sample", fail)
    wrong, bound = ((1,), ">= 2") if pipeline.config.system == "intermask" else ((0, 1001), r"a value in \[1, 1000\]")
    for steps in wrong:
        expected = f"num_inference_steps: expected {bound} for {pipeline.config.system}, got {steps}"
        with pytest.raises(ValueError, match=expected):
            pipeline(PROMPTS[0], num_frames=16, num_inference_steps=steps)


def test_guidance_changes_a_motion(pipeline: MotionPipeline) -> None:
    motions = [
        pipeline(PROMPTS[0], num_frames=16, num_inference_steps=2, guidance_scale=scale).motion for scale in (1, 3, 4)
    ]
    assert not torch.allclose(motions[0], motions[1])
    assert not torch.allclose(motions[1], motions[2])
    for wrong in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"guidance_scale: expected (>= 1 and finite|a finite number), got"):
            pipeline(PROMPTS[0], num_frames=16, num_inference_steps=2, guidance_scale=wrong)


def test_values_of_other_kinds_are_named(pipeline: MotionPipeline) -> None:
    for prompts in ([3], b"they bow"):
        with pytest.raises(TypeError, match=r"^prompts: expected (text|one text or several), got"):
            pipeline(prompts, num_frames=16, num_inference_steps=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^control: expected a Control, got 3"):
        pipeline(PROMPTS[0], num_frames=16, num_inference_steps=2, control=3)  # type: ignore[arg-type]
    for lengths in ([-4], [0]):
        with pytest.raises(ValueError, match=r"^lengths: expected at least one, each >= 1, got"):
            pipeline.sample(PROMPTS[:1], lengths, [0], num_inference_steps=2)


def test_what_is_saved_comes_back_bit_for_bit(pipeline: MotionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["system"] == pipeline.config.system
    again = MotionPipeline.from_pretrained(tmp_path)
    assert type(again) is type(pipeline)
    assert again.config == pipeline.config
    assert again.modules.keys() == pipeline.modules.keys()
    for name, module in pipeline.modules.items():
        state = again.modules[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    motions = [each(PROMPTS, num_frames=16, num_inference_steps=2).motion for each in (pipeline, again)]
    assert torch.equal(*motions)


def test_refusals_come_before_any_work(pipeline: MotionPipeline) -> None:
    for prompts, frames, message in (
        ([], 16, "prompts: expected at least one"),
        (["two people bow", " "], 16, "prompts: expected words in every prompt, got ' '"),
        (["bow " * 200], 16, "prompts: "),
        (PROMPTS, 41, r"num_frames: expected a value in \[8, 40\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.check(prompts, frames)
    with pytest.raises(ValueError, match="lengths, seeds: expected 2 of each, got 1 and 2"):
        pipeline.sample(PROMPTS, [16], [0, 1])


def test_codes_and_noise_levels_where_there_are_some(pipeline: MotionPipeline) -> None:
    system, persons = pipeline.config.system, pipeline.representation.persons
    motion = torch.randn(1, persons, 16, 262)
    if system in ("intermoe", "intermask"):
        latents = pipeline.encode(motion)
        assert latents.shape[:3] == (1, 2, 4)
        assert pipeline.decode(latents).shape == motion.shape
    else:
        for call in (pipeline.encode, pipeline.decode):
            with pytest.raises(ValueError, match=f"code: expected a system with latents, got {system}"):
                call(motion)
    if system == "intermask":
        with pytest.raises(ValueError, match="denoise_once: expected a system with noise levels, got intermask"):
            pipeline.denoise_once(motion[0], 0.5)
    else:
        assert pipeline.denoise_once(motion[0], 0.5) == pipeline.denoise_once(motion[0], 0.5, prompt="bow") == 500
    assert "zebra" in pipeline.unknown_words("a zebra bow") or system == "intermoe"


def test_kinematics_are_measured_of_every_system(pipeline: MotionPipeline, two_people: Any, tmp_path: Path) -> None:
    """With a reconstruction where motion is coded; of one person alone there is nothing beside two."""
    root = two_people(tmp_path / "two", {"val": {"1": 31, "2": 31}}, "two people bow")
    dataset = InterHumanDataset(root, "val", min_frames=8, max_frames=40)
    options: dict[str, Any] = {"seeds": (0,), "num_inference_steps": 2, "guidance_scale": 1.0}
    system = pipeline.config.system
    if system == "mdm":
        with pytest.raises(ValueError, match=r"^model: expected one that makes two persons, got mdm, which makes 1"):
            evaluate_kinematics(pipeline, dataset, **options)
        return
    coded = ["reconstruction"] if system in ("intermoe", "intermask") else []
    assert list(evaluate_kinematics(pipeline, dataset, **options).rows) == ["ground truth", *coded, "generation"]


def test_codes_of_intermask_are_its_tokenizers(tmp_path: Path) -> None:
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intermask"))
    motion = torch.randn(3, 2, 8, 262)
    codes = pipeline.encode(motion)
    assert (codes.shape, codes.dtype) == ((3, 2, 2, 5), torch.int64)
    one = pipeline.tokenizer.encode(pipeline.statistics.normalise(motion[1:2, 1]))
    assert torch.equal(codes[1, 1], one[0].T)
    decoded = pipeline.statistics.denormalise(pipeline.tokenizer.decode(one))
    torch.testing.assert_close(pipeline.decode(codes)[1, 1], decoded[0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("person", [0, 1])
def test_a_person_of_intermask_reacts(tmp_path: Path, person: int) -> None:
    """Whoever is given comes back, and what the other does follows from the codes of all that they do."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intermask", keep_share=1.0))
    asked: list[Tensor] = []
    pipeline.network.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0].clone()))
    motions = pipeline.statistics.denormalise(0.5 * torch.randn(2, 38, 262))
    filled = torch.cat([motions, motions[:, -1:], motions[:, -1:]], dim=1)  # to a multiple of four frames
    for parameter in (*pipeline.tokenizer.parameters(), *pipeline.network.parameters()):
        nn.init.normal_(parameter, std=0.4)
    codes = pipeline.tokenizer.encode(pipeline.statistics.normalise(filled))
    assert not torch.equal(*codes)
    made = []
    for motion, expected in zip(motions, codes, strict=True):
        control = Control([Known(person, motion=motion)])
        made.append(pipeline(PROMPTS[0], 38, num_inference_steps=6, seed=1, control=control).motion[0])
        assert len(asked) == 3  # half of the rounds
        assert all(torch.equal(each[:, 0], expected.expand(len(each), -1, -1)) for each in asked)
        assert torch.equal(made[-1][person], motion)
        mirrored = pipeline.statistics.denormalise(pipeline.tokenizer.decode(expected[None]).detach())[0, :38]
        apart = (made[-1][1 - person] - mirrored).norm() / mirrored.norm()
        assert apart > 1e-2  # the other has codes of their own
        asked.clear()
    assert not torch.allclose(made[0][1 - person], made[1][1 - person])
    settings: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 2.0, "control": control}
    together = pipeline.sample(PROMPTS, [38, 38], [1, 2], **settings)
    torch.testing.assert_close(together[0], made[1], atol=1e-4, rtol=1e-4)
    for known in ([Known(person, motion=motions[0, :9])], [Known(p, motion=motions[p]) for p in (0, 1)]):
        with pytest.raises(ValueError, match=r"^control: expected all 38 frames of one person for intermask, got"):
            pipeline(PROMPTS[0], 38, num_inference_steps=6, control=Control(known))


def test_intermask_refuses_parts_that_do_not_fit(tmp_path: Path) -> None:
    tokenizer = PARTS["intermask"]["tokenizer"]
    for changes, message in (
        ({"tokenizer": {**tokenizer, "num_codes": 9}}, "network.num_codes: expected tokenizer.num_codes=9, got 12"),
        (
            {"tokenizer": {**tokenizer, "messages": "first_frame_of_batch"}},
            "tokenizer.messages: expected 'first_frame'",
        ),
        ({"keep_share": 0.0}, "keep_share: expected a value in"),
        ({"text": {**TEXT, "output_dim": 9}}, "text.output_dim: expected network.text_dim=8, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path, "intermask", **changes)


def test_intermask_draws_from_the_share_that_it_keeps(tmp_path: Path) -> None:
    made = [
        MotionPipeline.from_pretrained(write(tmp_path / str(share), "intermask", keep_share=share))
        for share in (0.01, 1.0)
    ]
    greedy, free = (
        [each.sample(PROMPTS[:1], [40], [seed], num_inference_steps=2)[0] for seed in (0, 1)] for each in made
    )
    assert torch.equal(*greedy)  # the likeliest code alone leaves nothing to chance
    assert not torch.equal(*free)


def test_persons_of_commdm_are_placed_by_their_entries(tmp_path: Path) -> None:
    """Against the arithmetic: a motion with person 1 at the origin, facing Z+, survives the way there and back."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "commdm"))
    motion = torch.randn(2, 2, 9, 262)
    motion[:, 0], _ = to_own_frame(motion[:, 0])
    x = pipeline.from_motion(motion)
    assert x.shape == (2, 2, 10, 262)
    assert x[:, 1, 0, :4].abs().min() > 0
    torch.testing.assert_close(pipeline.to_motion(x), motion, atol=1e-4, rtol=1e-4)


def test_mdm_of_another_representation(tmp_path: Path) -> None:
    parts = {"representation": "humanml3d", "fps": 20, "network": SMALL}
    pipeline = MotionPipeline.from_pretrained(write(tmp_path, "mdm", **parts))
    result = pipeline(PROMPTS[0], num_frames=12, num_inference_steps=2)
    assert (result.motion.shape, result.joints.shape, result.fps) == ((1, 1, 12, 263), (1, 1, 12, 22, 3), 20)
    with pytest.raises(ValueError, match="representation: expected one of"):
        write(tmp_path, "mdm", representation="interx")
    with pytest.raises(ValueError, match=r"network\.input_dim: expected 263 for humanml3d, got 262"):
        write(tmp_path, "mdm", representation="humanml3d")


def test_commdm_of_humanml3d_makes_interhumans_motion(tmp_path: Path) -> None:
    """Joints of each person by HumanML3D's own rule, then placed by the entries as any pair is."""
    parts = {**PARTS["commdm"]["network"], "backbone": SMALL}
    written = write(tmp_path, "commdm", representation="humanml3d", fps=20, network=parts)
    pipeline: Any = MotionPipeline.from_pretrained(written)
    result = pipeline(PROMPTS[0], num_frames=12, num_inference_steps=2)
    assert (result.motion.shape, result.joints.shape, result.fps) == ((1, 2, 12, 262), (1, 2, 12, 22, 3), 20)
    assert pipeline.representation.fps == 20
    x = 0.1 * torch.randn(1, 2, 10, 263)
    x[:, 0, 0, :4] = torch.tensor([0.1, 0.0, 0.0, 0.0])  # turned by nothing
    x[:, 1, 0, :4] = torch.tensor([0.0, 0.1, 0.3, -0.2])  # a quarter turn, 3 m and -2 m away
    made = pipeline.to_motion(x)[0]
    humanml3d, interhuman = REPRESENTATIONS["humanml3d"], REPRESENTATIONS["interhuman"]
    own = humanml3d.joints(pipeline.statistics.denormalise(x[0, :, 1:]))
    torch.testing.assert_close(interhuman.joints(made[0]), own[0])
    there = interhuman.joints(made[1])
    torch.testing.assert_close(there[..., 1], own[1][..., 1])
    # person 2's own turn took (x, z) to face Z+; it is undone: x' = -z + 3, z' = x - 2
    turned = torch.stack([3 - own[1][..., 2], own[1][..., 0] - 2], dim=-1)
    torch.testing.assert_close(there[..., [0, 2]], turned, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="motion: expected a network of interhuman, got humanml3d"):
        pipeline.denoise_once(result.motion[0], 0.5)


def test_texts_of_in2in(tmp_path: Path) -> None:
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "in2in"))
    assert pipeline.split_prompt("they bow", 2) == ["they bow"] * 3
    assert pipeline.split_prompt("they bow | one bows|one turns ", 2) == ["they bow", "one bows", "one turns"]
    for prompt in ("a | b", "a | | c", "a|b|c|d"):
        with pytest.raises(ValueError, match="prompts: expected one text, or 3 with"):
            pipeline.check([prompt], 16)
    prompts = ["two people bow", "two people bow | two people bow | two people bow", "two people bow | left | one"]
    motions = pipeline.sample(prompts, [16] * 3, [0] * 3, num_inference_steps=2)
    torch.testing.assert_close(motions[1], motions[0])
    assert not torch.allclose(motions[2], motions[0], atol=1e-2)


def test_weights_of_in2ins_passes_are_the_configurations(tmp_path: Path) -> None:
    made = [
        MotionPipeline.from_pretrained(write(tmp_path / str(weight), "in2in", guidance={"interaction": weight}))
        for weight in (3.0, 8.0)
    ]
    assert not torch.allclose(*(each(PROMPTS[0], 16, num_inference_steps=2).motion for each in made))


class ToyPipeline(MotionPipeline):
    """One more system: it stands still where its only weight says."""

    config_type = ModelConfig
    schedulers = ("none",)

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.representation = REPRESENTATIONS["interhuman"]
        self.place = nn.Linear(1, 262)

    @classmethod
    def load(cls, folder: Path) -> ToyPipeline:
        made = cls(ModelConfig.load(folder / "config.json"))
        made.place.load_state_dict({"weight": torch.ones(262, 1), "bias": torch.zeros(262)})
        return made

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        write_model(folder, self.config, self.modules, Statistics(np.zeros(262), np.ones(262)), None, dtype)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"place": self.place}

    def sample(self, prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> list[Tensor]:
        return [
            self.place(torch.full((2, length, 1), float(seed))) for length, seed in zip(lengths, seeds, strict=True)
        ]


def test_one_more_system_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SYSTEMS, "_places", dict(SYSTEMS._places))  # what is added goes with the test
    SYSTEMS.add("toy", f"{__name__}:ToyPipeline")
    monkeypatch.setitem(SYSTEMS._found, "toy", ToyPipeline)
    ToyPipeline(ModelConfig(system="toy")).save_pretrained(tmp_path)
    pipeline = MotionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline, ToyPipeline)
    result = pipeline(PROMPTS, num_frames=20, seed=5)
    assert result.joints.shape == (2, 2, 20, 22, 3)
    assert (result.joints[0] == 5).all()
    result.save(tmp_path / "toy.npz")
    with np.load(tmp_path / "toy.npz") as archive:
        np.testing.assert_array_equal(archive["joints"], result.joints[0])


@pytest.mark.parametrize("system", list(PARTS))
def test_a_half_type_computes_and_returns_float32(system: str, tmp_path: Path) -> None:
    folder = write(tmp_path, system)
    whole, half = (MotionPipeline.from_pretrained(folder, torch_dtype=dtype) for dtype in (None, torch.bfloat16))
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    motions = [
        each.sample(PROMPTS, [13, 18], [3, 4], num_inference_steps=2, guidance_scale=1.0) for each in (whole, half)
    ]
    assert all(motion.isfinite().all() and motion.dtype == torch.float32 for motion in motions[1])
    if system != "intermask":  # codes jump
        for wide, narrow in zip(*motions, strict=True):
            assert 0 < float((wide - narrow).norm() / wide.norm()) < 0.05


def test_a_dtype_of_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^torch_dtype: expected one of torch.float16, .*, got torch.int8"):
        MotionPipeline.from_pretrained(write(tmp_path, "intergen"), torch_dtype=torch.int8)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("denoiser", "num_layers", 10**9),
        ("denoiser", "dim", 2**40),
        ("denoiser", "num_experts", 10**30),
        ("vae", "num_blocks", 10**9),
        ("vae", "latent_dim", 2**30),
        ("text", "num_layers", 10**9),
        ("text", "vocab_size", 10**15),
    ],
)
def test_a_model_file_with_sizes_that_nobody_has_is_refused(
    tiny_pipeline: Any, tmp_path: Path, section: str, key: str, value: int
) -> None:
    """Its configuration is believed as far as its weights reach, and no module is built beyond that."""
    tiny_pipeline.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    values[section][key] = value
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    bound = "(<= |a value in |a whole number of 64 bits)"
    with pytest.raises(ValueError, match=rf"model\.safetensors: expected as many weights as|{key}: expected {bound}"):
        MotionPipeline.from_pretrained(tmp_path)


def test_a_reaction_is_as_long_as_what_it_is_to(tmp_path: Path) -> None:
    """Each of a list by its own length: a shorter one would leave out the end of what is given."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intermask"))
    control = Control([Known(0, motion=torch.zeros(24, 262))])
    with pytest.raises(ValueError, match=r"^known\[0\]\.frames: expected within \[0, 16\), got \[0, 24\)"):
        pipeline.sample(["they bow"] * 2, [24, 16], [0, 1], num_inference_steps=2, control=control)
