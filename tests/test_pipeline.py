"""Generation, saving and loading of whole models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from intermoe import InterMoEPipeline
from intermoe.control import Control, Known, Target
from intermoe.hub import available_models
from intermoe.metrics.kinematics import bone_variation
from intermoe.motion.apart import with_bodies_apart
from intermoe.motion.bones import with_rigid_bones
from intermoe.motion.feet import with_planted_feet
from intermoe.motion.floor import with_persons_on_floor
from intermoe.motion.smooth import with_smooth_joints
from intermoe.pipeline import MotionPipeline, check_batch
from intermoe.pipeline.surroundings import evaluating
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE

PROMPTS = ["two people bow", "one of them turns to the left"]


def test_result_has_the_promised_form(tiny_pipeline) -> None:
    done = []
    result = tiny_pipeline(PROMPTS, num_frames=13, num_inference_steps=3, progress=lambda i, n: done.append((i, n)))
    assert result.joints.shape == (2, 2, 13, 22, 3)
    assert result.joints.dtype == torch.float32
    assert result.motion.shape == (2, 2, 13, 262)
    torch.testing.assert_close(result.joints.flatten(-2), result.motion[..., :66])
    assert result.prompts == tuple(PROMPTS)
    assert result.seeds == (0, 1)
    assert result.fps == 30
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_result_is_saved_by_suffix(tiny_pipeline, tmp_path) -> None:
    result = tiny_pipeline(PROMPTS, num_frames=13, num_inference_steps=1)
    (path,) = result.save(tmp_path / "turn.npz", index=1)
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["joints"], result.joints[1])
        np.testing.assert_array_equal(archive["motion"], result.motion[1])
        assert (str(archive["prompt"]), int(archive["seed"])) == (PROMPTS[1], 1)
    assert [each.name for each in result.save(tmp_path / "bow.bvh")] == ["bow.person1.bvh", "bow.person2.bvh"]
    rig = result.take(0).rig
    assert not rig.fitted  # the model's own rotations went in


def test_a_result_is_shown_in_a_notebook(tiny_pipeline) -> None:
    pytest.importorskip("viser", reason="pages of figures need viser")
    shown = tiny_pipeline(PROMPTS, num_frames=13, num_inference_steps=1).view(1)._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert PROMPTS[1] in shown
    assert shown.count("<") == 2  # the page is one quoted text


def test_same_seed_same_bytes_and_another_seed_another_motion(tiny_pipeline) -> None:
    run = lambda seed: tiny_pipeline(PROMPTS[0], num_frames=16, num_inference_steps=3, seed=seed).joints  # noqa: E731
    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_a_prompt_does_not_depend_on_its_company(tiny_pipeline) -> None:
    together = tiny_pipeline(PROMPTS, num_frames=16, num_inference_steps=3, seed=4)
    alone = tiny_pipeline(PROMPTS[1], num_frames=16, num_inference_steps=3, seed=5)
    torch.testing.assert_close(together.joints[1:], alone.joints, atol=1e-4, rtol=1e-4)


def test_the_prompt_is_embedded_once(tiny_pipeline, monkeypatch) -> None:
    calls = []
    forward = type(tiny_pipeline.text_encoder).forward
    monkeypatch.setattr(
        type(tiny_pipeline.text_encoder),
        "forward",
        lambda self, prompts: calls.append(prompts) or forward(self, prompts),
    )
    tiny_pipeline(PROMPTS, num_frames=8, num_inference_steps=5)
    assert len(calls) == 1


def test_encode_and_decode_are_the_vae_between_statistics(tiny_pipeline) -> None:
    motion = torch.randn(3, 2, 8, 262)
    latents = tiny_pipeline.encode(motion)
    assert latents.shape == (3, 2, 2, 28)
    normed = (motion[1, 1] - torch.tensor(tiny_pipeline.statistics.mean)) / torch.tensor(tiny_pipeline.statistics.std)
    mean = tiny_pipeline.vae.encode(normed[None]).mode()
    torch.testing.assert_close(latents[1, 1], mean[0].flatten(1))
    decoded = tiny_pipeline.decode(latents)
    assert decoded.shape == (3, 2, 8, 262)
    expected = tiny_pipeline.statistics.denormalise(tiny_pipeline.vae.decode(mean))
    torch.testing.assert_close(decoded[1, 1], expected[0])


def test_bones_are_rigid_where_the_configuration_says_so(tiny_pipeline, monkeypatch) -> None:
    latents = torch.randn(2, 2, 3, 28)
    free = tiny_pipeline.decode(latents)
    monkeypatch.setattr(tiny_pipeline, "config", replace(tiny_pipeline.config, rigid_bones=True))
    rigid = tiny_pipeline.decode(latents)
    torch.testing.assert_close(rigid, with_rigid_bones(free))
    assert bone_variation(rigid[0, ..., :66].unflatten(-1, (22, 3)).detach().numpy()) < 1e-3


@pytest.mark.parametrize(
    "names", [["planted_feet"], ["on_floor"], ["bodies_apart"], ["on_floor", "planted_feet", "bodies_apart"]]
)
def test_what_is_generated_stands_where_the_configuration_says_so(tiny_pipeline, monkeypatch, names: list[str]) -> None:
    """First the floor, then feet, then bodies; motion that is only decoded stays: a real one may be on a ladder."""
    call = {"num_frames": 24, "num_inference_steps": 2, "seed": 3}
    monkeypatch.setattr(tiny_pipeline, "config", replace(tiny_pipeline.config, rigid_bones=True))
    latents = torch.randn(2, 2, 3, 28)
    decoded, generated = tiny_pipeline.decode(latents), tiny_pipeline("two people bow", **call)
    expected = generated.motion[0]
    cleaned = {
        "planted_feet": with_planted_feet, "on_floor": with_persons_on_floor, "bodies_apart": with_bodies_apart
    }  # fmt: skip
    for name in names:
        expected = cleaned[name](expected)
    monkeypatch.setattr(tiny_pipeline, "config", replace(tiny_pipeline.config, **dict.fromkeys(names, True)))
    assert torch.equal(tiny_pipeline.decode(latents), decoded)
    found = tiny_pipeline("two people bow", **call).motion[0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, generated.motion[0], atol=1e-3)


def test_bodies_are_moved_apart_but_not_from_a_given_person_or_targets(tiny_pipeline, monkeypatch) -> None:
    call = {"num_frames": 24, "num_inference_steps": 2, "seed": 3}
    given = tiny_pipeline("two people bow", **call).motion[0]
    start, some = slice(0, 8), slice(0, 12)
    target = Target(1, "left_wrist", [5], positions=[[0.0, 1.0, 0.5]])
    cases = {
        "reaction": Control([Known(0, motion=given[0])]),
        "for a while": Control([Known(0, motion=given[0, some], frames=some)]),
        "frames": Control([Known(person, motion=given[person, start], frames=start) for person in (0, 1)]),
        "apart": Control(bodies_apart=True),
        "targets": Control(targets=[target]),
        "both": Control([Known(0, motion=given[0])], targets=[target]),
    }
    before = {
        name: tiny_pipeline("two people bow", control=control, **call).motion[0] for name, control in cases.items()
    }
    monkeypatch.setattr(tiny_pipeline, "config", replace(tiny_pipeline.config, bodies_apart=True))
    after = {
        name: tiny_pipeline("two people bow", control=control, **call).motion[0] for name, control in cases.items()
    }
    fixed = torch.zeros(2, 24, dtype=torch.bool)
    fixed[:, start] = True
    assert torch.equal(after["frames"], with_bodies_apart(before["frames"], fixed))
    assert torch.equal(after["frames"][:, start], given[:, start])
    torch.testing.assert_close(after["apart"], with_bodies_apart(before["apart"]))
    for name in ("frames", "apart"):
        assert not torch.equal(after[name], before[name])
    for name in ("reaction", "for a while", "targets", "both"):
        assert torch.equal(after[name], before[name])


def test_joints_are_smooth_where_the_configuration_says_so(tiny_pipeline, monkeypatch) -> None:
    latents = torch.randn(2, 2, 3, 28)
    smooth = with_smooth_joints(tiny_pipeline.decode(latents))
    config = replace(tiny_pipeline.config, smooth=True)
    monkeypatch.setattr(tiny_pipeline, "config", config)
    torch.testing.assert_close(tiny_pipeline.decode(latents), smooth)
    monkeypatch.setattr(tiny_pipeline, "config", replace(config, rigid_bones=True))
    torch.testing.assert_close(tiny_pipeline.decode(latents), with_rigid_bones(smooth))


@pytest.mark.parametrize("name", ["rigid_bones", "planted_feet", "on_floor", "bodies_apart", "smooth"])
def test_only_interhuman_motion_is_cleaned(tiny_pipeline, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected false for interx"):
        replace(tiny_pipeline.config, **{name: True}, vae=VAEConfig(representation="interx", latent_dim=4))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_save_and_load_give_the_same_model(tiny_pipeline, tmp_path, dtype) -> None:
    pipeline = copy.copy(tiny_pipeline)
    pipeline.denoiser = copy.deepcopy(tiny_pipeline.denoiser)
    bias = pipeline.denoiser.layers[0].moe.selection_bias
    bias.copy_(torch.tensor([-0.501, -0.4987, -0.123]))  # no numbers of float16
    assert not torch.equal(bias.half().float(), bias)
    pipeline.save_pretrained(tmp_path / "model", dtype=dtype)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    loaded = InterMoEPipeline.from_pretrained(tmp_path / "model")
    assert loaded.config == pipeline.config
    assert next(loaded.denoiser.parameters()).dtype == torch.float32
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(loaded.statistics, name), getattr(pipeline.statistics, name))
    assert torch.equal(loaded.denoiser.layers[0].moe.selection_bias, bias)
    for name, module in (("vae", loaded.vae), ("denoiser", loaded.denoiser), ("text_encoder", loaded.text_encoder)):
        for key, value in getattr(pipeline, name).state_dict().items():
            kept = key.endswith("selection_bias") or dtype is None or not value.is_floating_point()
            assert torch.equal(module.state_dict()[key], value if kept else value.to(dtype).float()), key
    arguments = {"num_frames": 16, "num_inference_steps": 3, "seed": 2}
    a, b = pipeline(PROMPTS, **arguments).joints, loaded(PROMPTS, **arguments).joints
    if dtype is None:
        assert torch.equal(a, b)
    else:
        assert ((a - b).norm() / a.norm()).item() < 0.05


def test_a_failed_save_leaves_the_old_model(tiny_pipeline, tmp_path, monkeypatch) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts: expected at least one"),
        ({"prompts": ["two people bow", "  "]}, "prompts: expected words in every prompt, got '  '"),
        ({"num_frames": 7}, r"num_frames: expected a value in \[8, 40\] for this model, got 7"),
        ({"num_frames": 41}, "num_frames"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": 0.0}, "guidance_scale"),
        ({"scheduler": "euler"}, "scheduler: expected one of"),
        ({"seed": -1}, r"seed: expected a value in \[0, \d+\], got -1"),
        ({"seed": 2**63 - 1}, "seed: expected a value in"),  # the second prompt's would be beyond
        ({"prompts": ["two people bow " * 20, "bow"]}, "prompts: expected at most max_tokens=16 word pieces, got 61"),
        ({"prompts": ["bow", "caf\udce9 dance"]}, r"prompts: expected UTF-8 text, got 'caf\\udce9 dance'"),
        ({"prompts": ["bow\0"]}, "prompts: expected UTF-8 text, got"),
    ],
)
def test_bad_call_is_named(tiny_pipeline, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**({"prompts": PROMPTS, "num_frames": 8, "num_inference_steps": 1} | changes))


def test_integers_of_any_kind_and_nothing_else(tiny_pipeline) -> None:
    plain = tiny_pipeline(PROMPTS, num_frames=8, num_inference_steps=1, seed=3)
    other = tiny_pipeline(PROMPTS, num_frames=np.int64(8), num_inference_steps=np.uint8(1), seed=np.int32(3))
    assert torch.equal(plain.joints, other.joints)
    assert other.seeds == (3, 4)
    assert all(type(seed) is int for seed in other.seeds)
    for name in ("num_frames", "num_inference_steps", "seed"):
        with pytest.raises(TypeError, match=f"{name}: expected an integer, got 8.0"):
            tiny_pipeline(PROMPTS, **{"num_frames": 8, "num_inference_steps": 1, name: 8.0})


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("statistics.mean", lambda t: torch.zeros(5), r"expected shape \(262,\), got \(5,\)"),
        ("statistics.std", lambda t: t.bfloat16(), "expected float32 or float64, got bfloat16"),
        ("statistics.std", lambda t: -t, "std: expected positive numbers"),
        (
            "statistics.mean",
            lambda t: t.masked_fill(t == t[7], torch.nan),
            r"expected finite numbers, got another at \[7\]",
        ),
        ("denoiser.layers.0.moe.selection_bias", lambda t: t.half(), "expected float32 or float64, got float16"),
        ("denoiser.out.bias", lambda t: t.int(), "expected float16 or bfloat16 or float32 or float64, got int32"),
        (
            "denoiser.out.weight",
            lambda t: t.index_fill(0, torch.tensor(2), torch.inf),
            r"expected finite numbers, got another at \[2, 0\]",
        ),
        ("text.norm.weight", lambda t: t * torch.nan, "expected finite numbers"),
        ("vae.pool_1", lambda t: t * torch.nan, "expected finite numbers"),
    ],
)
def test_a_tensor_that_cannot_be_right_is_refused_by_key(tiny_pipeline, tmp_path, key, change, message) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, key: change(weights[key])}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: '?{key}'?: {message}|statistics\.{message}"):
        InterMoEPipeline.from_pretrained(tmp_path)


def test_an_unknown_model_lists_what_there_is(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}' is neither a shipped model .* nor a folder"):
        InterMoEPipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nonexistent"):
        InterMoEPipeline.from_pretrained("nonexistent")


def test_a_broken_model_is_named(tiny_pipeline, tmp_path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "vae.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: unexpected keys \['vae.extra'\]"):
        InterMoEPipeline.from_pretrained(tmp_path)
    save_file({k: v for k, v in weights.items() if k != "denoiser.out.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing key 'denoiser.out.bias'"):
        InterMoEPipeline.from_pretrained(tmp_path)
    save_file({**weights, "denoiser.out.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'denoiser.out.bias': expected shape \(28,\), got \(3,\)"):
        InterMoEPipeline.from_pretrained(tmp_path)
    save_file({k: v for k, v in weights.items() if k != "statistics.std"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing key 'statistics.std'"):
        InterMoEPipeline.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: expected a readable safetensors file"):
        InterMoEPipeline.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected valid JSON"):
        InterMoEPipeline.from_pretrained(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(tiny_pipeline) -> None:
    config = replace(tiny_pipeline.config, vae=replace(tiny_pipeline.config.vae, latent_dim=8))
    vae, text = CausalSkeletalVAE(config.vae), tiny_pipeline.text_encoder
    foreign = InterMoEPipeline(config, vae, tiny_pipeline.denoiser, text, tiny_pipeline.statistics)
    with pytest.raises(ValueError, match=r"denoiser\.input_dim: expected 56 for this vae, got 28"):
        foreign(PROMPTS, num_frames=16)


def test_a_configuration_with_an_unknown_key_is_named(tiny_pipeline, tmp_path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["denoiser"]["num_expert"] = 4
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config.json: denoiser: unknown key 'num_expert'"):
        InterMoEPipeline.from_pretrained(tmp_path)


@pytest.mark.skipif("duets" not in available_models(), reason="the package was built without its default model")
def test_the_shipped_model_generates_without_a_network() -> None:
    pipeline = InterMoEPipeline.from_pretrained("duets")
    result = pipeline("Two people shake hands.", num_frames=40, num_inference_steps=5)
    height = result.joints[..., 1].amax((-1, -2))
    assert (height > 1.2).all()
    assert (height < 2.2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_type_computes_every_part_and_returns_float32(tiny_pipeline, dtype) -> None:
    half = copy.deepcopy(tiny_pipeline).to(dtype=dtype)
    assert half.dtype == dtype
    assert {p.dtype for module in half.modules.values() for p in module.parameters()} == {dtype}
    wide, narrow = (p(PROMPTS, num_frames=16, num_inference_steps=2, guidance_scale=1.0) for p in (tiny_pipeline, half))
    assert narrow.motion.dtype == torch.float32
    assert 0 < float((wide.motion - narrow.motion).norm() / wide.motion.norm()) < 0.05
    latents = half.encode(narrow.motion)
    assert latents.dtype == torch.float32
    assert half.decode(latents).dtype == torch.float32


def test_a_folder_with_the_name_of_a_shipped_model_is_itself(tiny_pipeline, tmp_path, monkeypatch) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "own" / "salsa")
    monkeypatch.chdir(tmp_path)
    assert MotionPipeline.from_pretrained("own/salsa").config.name == "tiny"


@pytest.mark.parametrize(("lengths", "seeds"), [([8], [0, 1]), ([8, 8], [0]), ([8, 8], [0, 1, 2]), ([8, 8, 8], [0, 1])])
def test_as_many_lengths_and_seeds_as_prompts(lengths: list[int], seeds: list[int]) -> None:
    check_batch(["bow", "turn"], [8, 9], [0, 1])
    with pytest.raises(ValueError, match=rf"expected 2 of each, got {len(lengths)} and {len(seeds)}"):
        check_batch(["bow", "turn"], lengths, seeds)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": None}, TypeError, "prompts: expected one text or several, got None"),
        ({"prompts": {"bow": 1}}, TypeError, "prompts: expected one text or several, got {'bow': 1}"),
        ({"prompts": [b"bow"]}, TypeError, "prompts: expected text, got b'bow'"),
        ({"num_frames": "16"}, TypeError, "num_frames: expected an integer, got '16'"),
        ({"num_frames": True}, TypeError, "num_frames: expected an integer, got True"),
        ({"guidance_scale": "3"}, TypeError, "guidance_scale: expected a number, got '3'"),
        ({"guidance_scale": True}, TypeError, "guidance_scale: expected a number, got True"),
        ({"scheduler": ""}, ValueError, "scheduler: expected one of .*, got ''"),
    ],
)
def test_values_of_another_kind_are_named(
    tiny_pipeline: InterMoEPipeline, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"prompts": "two people bow", "num_frames": 16, "num_inference_steps": 1, **change}
    with pytest.raises(error, match=f"^{message}"):
        tiny_pipeline(**arguments)


def test_where_and_in_what_a_model_cannot_be(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> None:
    for dtype in ("float16", torch.int8, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=rf"^torch_dtype: expected one of torch\.float16, .*, got {dtype!r}"):
            tiny_pipeline.to(dtype=dtype)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^dtype: expected one of torch\.float16, .*, got"):
            tiny_pipeline.save_pretrained(tmp_path / "model", dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device: expected a device of this machine, got 'nowhere'"):
        tiny_pipeline.to("nowhere")
    with pytest.raises(ValueError, match=r"^device: expected a device .*, got 'meta': it holds no numbers"):
        tiny_pipeline.to("meta")
    assert list(tmp_path.iterdir()) == []


def test_motions_levels_and_latents_that_there_are_not(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> None:
    result = tiny_pipeline("two people bow", num_frames=16, num_inference_steps=1)
    for index in (1, -1):
        with pytest.raises(ValueError, match=rf"index: expected a value in \[0, 0\], got {index}"):
            result.save(tmp_path / "bow.npz", index)
    assert list(tmp_path.iterdir()) == []
    for level in (1.0, -0.1, float("nan"), "0"):
        with pytest.raises(ValueError, match=r"^level: expected"):
            tiny_pipeline.denoise_once(result.motion[0], level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"latents: expected shape \(B, P, T, 28\), got \(1, 2, 2, 27\)"):
        tiny_pipeline.decode(torch.zeros(1, 2, 2, 27))
    for motion in (result.motion.long(), result.motion.numpy()):
        with pytest.raises(TypeError, match="motion: expected a floating-point tensor, got"):
            tiny_pipeline.encode(motion)  # type: ignore[arg-type]


def test_a_call_is_repeated_to_the_byte_and_a_prompt_beside_others_up_to_rounding(
    tiny_pipeline: InterMoEPipeline,
) -> None:
    """What README promises, no less and no more: prompt i is drawn with seed + i."""
    prompts = ["two people bow", "one of them turns to the left", "two people turn"]
    together = tiny_pipeline(prompts, num_frames=16, num_inference_steps=3, seed=5)
    again = tiny_pipeline(prompts, num_frames=16, num_inference_steps=3, seed=5)
    assert together.joints.numpy().tobytes() == again.joints.numpy().tobytes()
    assert together.seeds == (5, 6, 7)
    for index, prompt in enumerate(prompts):
        alone = tiny_pipeline(prompt, num_frames=16, num_inference_steps=3, seed=5 + index)
        torch.testing.assert_close(alone.joints[0], together.joints[index], atol=1e-4, rtol=0)
    other = tiny_pipeline(prompts[1], num_frames=16, num_inference_steps=3, seed=5)
    assert (other.joints[0] - together.joints[1]).abs().max() > 1e-2


def test_parts_that_train_make_the_same_motion_and_train_on(tiny_pipeline: InterMoEPipeline) -> None:
    tiny_pipeline = copy.deepcopy(tiny_pipeline)
    parts = [part for module in tiny_pipeline.modules.values() for part in module.modules()]

    def make() -> list[torch.Tensor]:
        latents = tiny_pipeline.encode(torch.zeros(1, 2, 16, 262))
        return [
            tiny_pipeline("two people bow", num_frames=16, num_inference_steps=2).joints,
            tiny_pipeline.timeline([("two people bow", 45)], num_inference_steps=1).joints,
            next(tiny_pipeline.live("two people bow", num_inference_steps=1)),
            *tiny_pipeline.sample(["two people bow"], [16], [3], num_inference_steps=2),
            latents,
            tiny_pipeline.decode(latents),
        ]

    expected = make()
    for module in tiny_pipeline.modules.values():
        module.train()
    parts[0].training = False  # a part of its own mind
    flags = [part.training for part in parts]
    state = {name: module.state_dict() for name, module in tiny_pipeline.modules.items()}
    before = {(name, key): value.clone() for name, each in state.items() for key, value in each.items()}
    for one, other in zip(make(), expected, strict=True):
        assert torch.equal(one, other)
    assert [part.training for part in parts] == flags
    assert all(torch.equal(state[name][key], value) for (name, key), value in before.items())
    with pytest.raises(ValueError, match="lengths"):
        tiny_pipeline.sample(["two people bow"], [0], [3])
    assert [part.training for part in parts] == flags


def test_parts_of_several_threads_train_on_after_the_last_of_them() -> None:
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    network[1].eval()
    first, second = evaluating([network]), evaluating([network])
    first.__enter__()
    second.__enter__()
    assert not any(part.training for part in network.modules())
    first.__exit__(None, None, None)
    assert not any(part.training for part in network.modules())
    second.__exit__(None, None, None)
    assert [part.training for part in network.modules()] == [True, True, False]


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "surroundings",
    [default_dtype, lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["default dtype", "default device", "autocast"],
)
def test_what_a_caller_says_of_new_tensors_is_not_for_a_pipeline(
    tiny_pipeline: InterMoEPipeline, tmp_path: Path, surroundings: Callable[[], AbstractContextManager[None]]
) -> None:
    tiny_pipeline.save_pretrained(tmp_path)

    def make() -> list[torch.Tensor]:
        pipeline = MotionPipeline.from_pretrained(tmp_path)
        return [
            pipeline("two people bow", num_frames=16, num_inference_steps=2).joints,
            pipeline.timeline([("two people bow", 45)], num_inference_steps=1).joints,
            next(pipeline.live("two people bow", num_inference_steps=1)),
        ]

    expected = make()
    with surroundings():
        found = make()
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
