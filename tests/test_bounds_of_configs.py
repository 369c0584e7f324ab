"""Every bound of a model's, a text encoder's, an evaluator's or an evaluation's configuration: what lies beyond is
refused word for word, what lies on it is taken. Of a training's configuration: ``tests/train/test_bounds.py``."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import Any

import pytest

import intermoe.config
from intermoe.config import MAX_LAYERS, MAX_SIZE, WHOLE_NUMBER, Config, ConfigError, _require
from intermoe.diffusion import DiffusionConfig
from intermoe.eval.compare import ComparisonSettings
from intermoe.eval.runner import EvaluationSettings
from intermoe.evaluators.bigru import UNIT, BiGRUConfig
from intermoe.evaluators.interclip import InterClipConfig
from intermoe.integrations.systems import ExpertsConfig
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.systems.in2in.config import SCHEDULES, DualMDMConfig
from intermoe.systems.intergen.config import InterGenConfig, InterGenModelConfig, MotionLossConfig
from intermoe.systems.intermask.config import (
    InterMaskConfig,
    InterMaskModelConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    UnmaskingConfig,
)
from intermoe.systems.intermoe.config import DenoiserConfig, ShortcutConfig, VAEConfig
from intermoe.systems.mdm.config import ALONE, ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.text.protocol import TEXT_ENCODERS, TextConfig
from intermoe.train.ablate import AblationSettings

INF = float("inf")
KNOWN = f"one of {tuple(REPRESENTATIONS)}"
SHARE, LEVEL, SIZE = "a value in [0, 1)", "a value in [0, 1]", f"a value in [1, {MAX_SIZE}]"
FREE = "None for routing='dynamic'"
TOP = {"routing": "token_choice", "num_experts": 4}
EVALUATED = {
    "data": "d",
    "split": "val",
    "items": 20,
    "model": "m",
    "evaluator": "e",
    "batch_size": 4,
    "mm_captions": 2,
}
TEXT_OF = {"text": {"output_dim": 512}}

Row = tuple[dict[str, Any], str, Any, Any, str]
# beside which other values, the key, a value beyond, one on the bound, and what is expected
BOUNDS: dict[type[Config], list[Row]] = {
    DiffusionConfig: [
        ({}, "latent_scale", 0.0, 1e-9, "> 0"), ({}, "guidance_until", -0.1, 0.0, LEVEL),
        ({}, "guidance_until", 1.1, 1.0, LEVEL), ({}, "timestep_shift", 0.0, 1e-9, "> 0"),
        ({}, "snr_gamma", -0.1, 0.0, ">= 0"), ({}, "loss_std_floor", -0.1, 0.0, ">= 0"),
        ({}, "num_train_timesteps", 0, 1, ">= 1"), ({}, "max_beta", 0.0, 1e-9, "a value in (0, 1)"),
        ({}, "max_beta", 1.0, 0.999, "a value in (0, 1)"), ({}, "condition_dropout", -0.1, 0.0, LEVEL),
        ({}, "condition_dropout", 1.1, 1.0, LEVEL),
    ],
    TextConfig: [
        ({}, "kind", "clop", "clip", f"one of {TEXT_ENCODERS}"),
        *(({}, key, 0, 1, SIZE) for key in ("output_dim", "num_layers", "num_heads", "feedforward_dim", "max_tokens")),
        *(({}, key, 0, 1, SIZE) for key in ("vocab_size", "vector_dim")), ({"num_heads": 1}, "width", 0, 1, SIZE),
        *(({}, f"{part}_{key}", 0, 1, SIZE) for part in ("clip", "sentence") for key in ("layers", "heads")),
        *(({}, key, MAX_LAYERS + 1, MAX_LAYERS, f"<= {MAX_LAYERS}")
          for key in ("num_layers", "clip_layers", "sentence_layers")),
        ({"num_heads": 3}, "width", 8, 9, "a multiple of num_heads=3"),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE),
        ({"kind": "sentence"}, "name_or_path", None, "x", "a model name or folder"),
        ({"kind": "huggingface"}, "name_or_path", "", "x", "a model name or folder"),
    ],
    VAEConfig: [
        ({}, "representation", "walk", "interx", KNOWN), ({}, "latent_dim", 0, 1, ">= 1"),
        ({}, "num_blocks", 0, 1, ">= 1"), ({}, "kernel_size", -1, 1, "an odd number"),
        ({}, "kernel_size", 4, 5, "an odd number"), ({}, "dropout", -0.1, 0.0, SHARE),
        ({}, "dropout", 1.0, 0.99, SHARE),
    ],
    ShortcutConfig: [
        ({}, "steps", -1, 0, ">= 0"), ({}, "guidance_scale", 1.0, 1.1, "> 1"), ({}, "width", 0, 1, ">= 1"),
    ],
    DenoiserConfig: [
        *(({}, key, 0, 1, ">= 1") for key in ("input_dim", "text_dim", "num_layers", "num_heads", "expert_dim")),
        ({}, "num_experts", 0, 1, ">= 1"), ({"num_heads": 1}, "dim", 0, 2, ">= 1"),
        ({"num_heads": 3}, "dim", 16, 18, "a multiple of num_heads=3"),
        ({"num_heads": 3}, "dim", 9, 12, "an even number (sinusoidal positions)"),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE),
        ({"num_experts": 4}, "capacity", 0.0, 1e-9, "a value in (0, num_experts=4]"),
        ({"num_experts": 4}, "capacity", 4.1, 4.0, "a value in (0, num_experts=4]"),
        ({}, "fusion", "mean", "learned", "one of ('weighted', 'sum', 'learned')"),
        ({}, "alpha", -0.1, 0.0, LEVEL), ({}, "alpha", 1.1, 1.0, LEVEL), ({}, "num_shared_experts", -1, 0, ">= 0"),
        ({}, "bias_rate", -0.1, 0.0, ">= 0"), ({}, "bias_init", -1.0, -0.99, "a value strictly inside (-1, 0)"),
        ({}, "bias_init", 0.0, -0.01, "a value strictly inside (-1, 0)"),
        (TOP, "top_k", 0, 1, "a value in [1, num_experts=4] for routing='token_choice'"),
        (TOP, "top_k", 5, 4, "a value in [1, num_experts=4] for routing='token_choice'"),
        (TOP, "top_k", None, 2, "a value in [1, num_experts=4] for routing='token_choice'"),
        ({}, "top_k", 1, None, FREE),
        ({"routing": "expert_choice", "pool": "sample"}, "unit", "sequence", "frame",
         "'frame' with expert_choice in pools of one sample, which hold one row"),
        *(({}, key, "other", value, f"one of {known}") for key, value, known in (
            ("routing", "expert_choice", intermoe.config.ROUTINGS), ("pool", "sample", intermoe.config.POOLS),
            ("unit", "sequence", intermoe.config.UNITS))),
    ],
    DualMDMConfig: [
        ({}, "schedule", "cubic", "constant", f"one of {SCHEDULES}"),
        ({}, "rate", -0.1, 0.0, ">= 0"), ({}, "num_train_timesteps", 0, 1, ">= 1"),
    ],
    MDMConfig: [
        *(({}, key, 0, 1, ">= 1") for key in ("input_dim", "text_dim", "num_layers", "feedforward_dim")),
        ({}, "num_heads", 0, 1, ">= 1"), ({}, "dim", 0, 8, ">= 1"),
        ({"num_heads": 3}, "dim", 9, 6, "an even multiple of num_heads=3"),
        ({"num_heads": 3}, "dim", 8, 12, "an even multiple of num_heads=3"),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE),
    ],
    ComMDMConfig: [
        *(({"backbone": {"num_layers": 3}}, "split", beyond, on, "a value in [0, backbone.num_layers=3]")
          for beyond, on in ((-1, 0), (4, 3))),
        *(({}, key, 0, 1, ">= 1") for key in ("num_layers", "num_heads", "feedforward_dim")),
        ({"backbone": {"dim": 8}, "split": 0}, "num_heads", 3, 4, "a divisor of backbone.dim=8"),
    ],
    MDMModelConfig: [
        ({**TEXT_OF, "network": {"input_dim": 262}}, "representation", "walk", "interhuman", f"one of {ALONE}"),
        (TEXT_OF, "network.input_dim", 262, 263, "263 for humanml3d"),
        ({"network": {"text_dim": 8}}, "text.output_dim", 7, 8, "network.text_dim=8"),
    ],
    ComMDMModelConfig: [
        (TEXT_OF, "representation", "interx", "interhuman", "one of ('interhuman', 'humanml3d')"),
        (TEXT_OF, "network.backbone.input_dim", 263, 262, "262 for interhuman"),
        ({"network": {"backbone": {"text_dim": 8, "input_dim": 262}}}, "text.output_dim", 7, 8, "network.text_dim=8"),
    ],
    InterGenConfig: [
        *(({}, key, 0, 1, ">= 1") for key in ("input_dim", "text_dim", "num_layers", "num_heads", "feedforward_dim")),
        ({"num_heads": 1}, "dim", 0, 2, "even and >= 2 (sinusoids)"),
        ({"num_heads": 1}, "dim", 3, 4, "even and >= 2 (sinusoids)"),
        ({"dim": 8}, "num_heads", 3, 4, "a divisor of 8"),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE),
    ],
    InterGenModelConfig: [({"network": {"text_dim": 8}}, "text.output_dim", 9, 8, "network.text_dim=8")],
    TIMotionConfig: [({}, "conv_blocks", 0, 1, ">= 1"), ({}, "dilation_rate", 0, 1, ">= 1"),
                     ({"dim": 8}, "num_heads", 3, 16, "a divisor of 16")],
    ExpertsConfig: [
        *(({"capacity": 1.0}, key, 0, 1, ">= 1") for key in ("num_experts", "expert_dim")),
        ({"num_experts": 4}, "capacity", 0.0, 1e-9, "a value in (0, num_experts=4]"),
        ({"num_experts": 4}, "capacity", 4.1, 4.0, "a value in (0, num_experts=4]"),
        ({}, "bias_rate", -0.1, 0.0, ">= 0"),
    ],
    MotionLossConfig: [
        *(({}, key, -0.1, 0.0, ">= 0") for key in ("simple", "velocity", "bones", "feet", "distances", "touch")),
        ({}, "orientation", -0.1, 0.0, ">= 0"), ({}, "last_timestep", -1, 0, ">= 0"),
    ],
    TokenizerConfig: [
        ({}, "representation", "humanml3d", "interx", "one of ('interhuman', 'interx')"),
        *(({}, key, 0, 1, ">= 1") for key in ("num_codes", "code_dim", "width", "num_blocks", "dilation_growth")),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE),
        ({}, "messages", "all", "none", "one of ('every_frame', 'first_frame', 'first_frame_of_batch', 'none')"),
        ({}, "temperature", 0.0, 1e-9, "> 0"), ({}, "codebook_decay", -0.1, 0.0, SHARE),
        ({}, "codebook_decay", 1.0, 0.99, SHARE),
    ],
    TokenizerLossConfig: [
        ({}, key, -0.1, 0.0, ">= 0")
        for key in ("reconstruction", "position", "velocity", "bone", "rotation", "contact", "commitment")
    ],
    InterMaskConfig: [
        *(({}, key, 0, 1, ">= 1") for key in ("num_codes", "code_dim", "text_dim", "num_layers", "num_heads")),
        *(({}, key, 0, 1, ">= 1") for key in ("feedforward_dim", "num_parts")), ({}, "dim", 0, 6, ">= 1"),
        ({"num_heads": 3}, "dim", 8, 9, "a multiple of num_heads=3"), ({}, "dropout", -0.1, 0.0, SHARE),
        ({}, "dropout", 1.0, 0.99, SHARE),
    ],
    UnmaskingConfig: [
        ({}, "num_inference_steps", 1, 2, ">= 2"), ({}, "guidance_scale", 0.9, 1.0, ">= 1 and finite"),
        ({}, "keep_share", 0.0, 1e-9, "a value in (0, 1]"), ({}, "keep_share", 1.1, 1.0, "a value in (0, 1]"),
    ],
    InterMaskModelConfig: [
        ({}, "network.num_codes", 1025, 1024, "tokenizer.num_codes=1024"),
        ({}, "text.output_dim", 767, 768, "network.text_dim=768"),
        ({}, "tokenizer.messages", "first_frame_of_batch", "none", "'first_frame', or another that knows no batch"),
        ({}, "keep_share", 0.0, 1e-9, "a value in (0, 1]"), ({}, "keep_share", 1.1, 1.0, "a value in (0, 1]"),
    ],
    BiGRUConfig: [
        ({}, "representation", "walk", "interx", KNOWN), ({}, "max_frames", UNIT - 1, UNIT, f">= {UNIT}"),
        *(({}, key, 0, 1, SIZE) for key in ("input_dim", "max_words", "vocab_size", "word_dim", "movement_dim")),
        *(({}, key, 0, 1, SIZE) for key in ("motion_dim", "text_dim", "embedding_dim")),
        ({}, "input_dim", MAX_SIZE + 1, MAX_SIZE, SIZE),
    ],
    InterClipConfig: [
        ({}, "representation", "walk", "interx", KNOWN),
        *(({}, key, 0, 1, SIZE) for key in ("persons", "input_dim", "num_layers", "num_heads", "feedforward_dim")),
        ({"num_heads": 1}, "width", 0, 2, SIZE),
        ({}, "num_layers", MAX_LAYERS + 1, MAX_LAYERS, f"<= {MAX_LAYERS}"),
        ({"num_heads": 3}, "width", 8, 6, "a multiple of num_heads=3"),
        ({"num_heads": 3}, "width", 9, 12, "an even number (sinusoidal positions)"),
        ({}, "dropout", -0.1, 0.0, SHARE), ({}, "dropout", 1.0, 0.99, SHARE), ({}, "scale", 0.0, 1e-9, "> 0"),
        ({"embedding_dim": 8}, "text.output_dim", 7, 8, "embedding_dim=8"),
        ({"text": {"output_dim": 1}}, "embedding_dim", 0, 1, SIZE),
    ],
    EvaluationSettings: [
        (EVALUATED, "batch_size", 1, 2, "a value in [2, 20 items]"),
        (EVALUATED, "batch_size", 21, 20, "a value in [2, 20 items]"), (EVALUATED, "seed", -1, 0, ">= 0"),
        (EVALUATED, "mm_captions", -1, 0, "a value in [0, 20 items]"),
        (EVALUATED, "mm_captions", 21, 20, "a value in [0, 20 items]"), (EVALUATED, "mm_samples", 1, 2, ">= 2"),
        (EVALUATED, "num_inference_steps", 0, 1, ">= 1"), (EVALUATED, "generation_batch", 0, 1, ">= 1"),
        (EVALUATED, "guidance_scale", 0.9, 1.0, ">= 1 and finite"),
    ],
    ComparisonSettings: [
        ({}, "seed", -1, 0, "a value in [0, 2**32)"), ({}, "seed", 2**32, 2**32 - 1, "a value in [0, 2**32)"),
        ({}, "steps", 0, 1, ">= 1"), ({}, "guidance", 0.9, 1.0, ">= 1 and finite"), ({}, "captions", 0, 1, ">= 1"),
        ({}, "batch_size", 0, 1, ">= 1"),
    ],
    AblationSettings: [
        ({}, "steps", 0, 1, ">= 1"), ({}, "seeds", (), (0,), "at least one, each in [0, 2**32)"),
        ({}, "seeds", (3, -1), (3, 0), "at least one, each in [0, 2**32)"),
        ({}, "seeds", (2**32,), (2**32 - 1,), "at least one, each in [0, 2**32)"),
        ({}, "num_inference_steps", 0, 1, ">= 1"), ({}, "guidance_scale", 0.9, 1.0, ">= 1 and finite"),
    ],
}  # fmt: skip
ROWS = [(kind, *row) for kind, rows in BOUNDS.items() for row in rows]
OF_TYPES = ("a value of type", "a finite number", "a list", "a mapping", WHOLE_NUMBER)
SHARED = {"fps", "min_frames", "max_frames", "name", "system"}
"""Asked of every model's configuration by its base."""


def build(kind: type[Config], beside: dict[str, Any], key: str, value: Any) -> Any:
    def put(values: dict[str, Any], parts: list[str]) -> dict[str, Any]:
        first, *rest = parts
        return {**values, first: put(values.get(first, {}), rest) if rest else value}

    return kind.from_dict(put(beside, key.split(".")), where="")


@pytest.mark.parametrize(("kind", "beside", "key", "beyond", "on", "bound"), ROWS)
def test_what_lies_beyond_a_bound_is_refused_word_for_word(
    kind: type[Config], beside: dict[str, Any], key: str, beyond: Any, on: Any, bound: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        build(kind, beside, key, beyond)
    told = f"{key.replace('backbone.', '')}: expected {bound}, got {beyond!r}"
    assert re.fullmatch(re.escape(told) + r"( \(.*: the default\))?", str(refused.value))
    found = build(kind, beside, key, on)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == on


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_no_bound_is_without_a_row(kind: type[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    def heard(ok: bool, name: str, expected: str, got: object) -> None:
        if not expected.startswith(OF_TYPES):
            asked.add(name.rpartition(".")[2])
        _require(ok, name, expected, got)

    for module in {base.__module__ for base in kind.__mro__ if base is not object} | {"intermoe.config"}:
        if hasattr(sys.modules[module], "_require"):
            monkeypatch.setattr(sys.modules[module], "_require", heard)
    make = partial(EvaluationSettings, **EVALUATED) if kind is EvaluationSettings else kind
    parts = {
        key: getattr(make(), key)
        for key in ("network", "text", "backbone", "tokenizer", "shortcut")
        if hasattr(make(), key)
    }
    asked.clear()
    kind(**EVALUATED) if kind is EvaluationSettings else kind(**parts)
    known = {row[1].rpartition(".")[2] for base in kind.__mro__ for row in BOUNDS.get(base, [])}
    assert asked - SHARED <= known
