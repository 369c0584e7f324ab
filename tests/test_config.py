"""Configurations: exact round trips and refusals that name the key."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from intermoe.config import Config, check_integer
from intermoe.diffusion import DiffusionConfig
from intermoe.systems.intermoe.config import DenoiserConfig, PipelineConfig, VAEConfig
from intermoe.text.protocol import TextConfig
from intermoe.train.config import DenoiserTrainConfig, VAETrainConfig


@dataclasses.dataclass(frozen=True)
class Sample(Config):
    rates: tuple[float, ...] = (0.1,)
    name: str | None = None
    strict: bool = False
    count: int = 1


@pytest.mark.parametrize("config", [PipelineConfig(), DenoiserConfig(dim=32), Sample(rates=(1.0, 2.0), name="x")])
def test_round_trip(config, tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert type(config).load(path) == config


def test_yaml_and_integers_for_floats(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("rates: [1, 0.5]\nname: null\n")
    loaded = Sample.load(path)
    assert loaded == Sample(rates=(1.0, 0.5))
    assert isinstance(loaded.rates[0], float)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PipelineConfig, {"fbs": 30}, "config: unknown key 'fbs'"),
        (PipelineConfig, {"denoiser": {"dims": 1}}, r"config.denoiser: unknown key 'dims'"),
        (PipelineConfig, {"denoiser": 3}, "config.denoiser: expected a mapping, got int"),
        (
            PipelineConfig,
            {"min_frames": 400},
            r"min_frames: expected a value in \[4, max_frames=300\], got 400 \(max_frames: the default\)",
        ),
        (PipelineConfig, {"text": {"output_dim": 5}}, "text.output_dim: expected denoiser.text_dim=768, got 5"),
        (DenoiserConfig, {"dim": "768"}, "config.dim: expected a value of type int, got '768'"),
        (DenoiserConfig, {"dim": True}, "config.dim: expected a value of type int"),
        (DenoiserConfig, {"dim": 10}, "dim: expected a multiple of num_heads=8, got 10"),
        (DenoiserConfig, {"dim": 3, "num_heads": 3}, "dim: expected an even number"),
        (
            DenoiserConfig,
            {"capacity": 9},
            r"capacity: expected a value in \(0, num_experts=8\], got 9.0 \(num_experts: the default\)",
        ),
        (DenoiserConfig, {"fusion": "max"}, "fusion: expected one of"),
        (VAEConfig, {"representation": "kit"}, "representation: expected one of"),
        (VAEConfig, {"kernel_size": 2}, "kernel_size: expected an odd number"),
        (TextConfig, {"kind": "bert"}, "kind: expected one of"),
        (TextConfig, {"kind": "huggingface"}, "name_or_path: expected a model name or folder, got None"),
        (DiffusionConfig, {"condition_dropout": 1.5}, "condition_dropout"),
        (Sample, {"rates": 3}, "config.rates: expected a list, got 3"),
        (Sample, {"rates": [1, "x"]}, r"config.rates\[1\]: expected a finite number, got 'x'"),
        (Sample, {"rates": [True]}, r"config.rates\[0\]: expected a finite number, got True"),
        (Sample, {"rates": [float("inf")]}, r"config.rates\[0\]: expected a finite number, got inf"),
        (Sample, {"rates": [10**400]}, r"config.rates\[0\]: expected a finite number, got 10"),
        (Sample, [], "config: expected a mapping, got list"),
    ],
)
def test_bad_values_are_named(kind, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_dict(values)


def test_names_of_earlier_versions_are_read() -> None:
    assert VAEConfig.from_dict({"layout": "interx"}) == VAEConfig(representation="interx")
    assert "layout" not in VAEConfig(representation="interx").to_dict()
    with pytest.raises(
        ValueError, match="config: key 'representation' is there twice, once by its earlier name 'layout'"
    ):
        VAEConfig.from_dict({"layout": "interx", "representation": "interx"})


@dataclasses.dataclass(frozen=True)
class Whole(Config):
    name: str = "whole"
    part: Sample = dataclasses.field(default_factory=Sample)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: [1\n", r"line 2, column 1: expected valid YAML: while parsing a flow sequence expected ',' or ']'"),
        (
            "\tname: x\n",
            "line 1, column 1: expected valid YAML: while scanning for the next token found character '.t'",
        ),
        ("name: !!python/name:os.system\n", "line 1, column 7: expected valid YAML: could not determine a constructor"),
        ("name: !!bool perhaps\n", "expected valid YAML"),
        ("name: 1\npart: {}\nname: 2\n", "line 3, column 1: expected valid YAML: key 'name' is there twice"),
        ("part: {count: 1, count: 2}\n", "line 1, column 18: expected valid YAML: key 'count' is there twice"),
        ("? [1, 2]\n: x\n", "line 1, column 3: expected valid YAML: while constructing a mapping found unhashable key"),
        (
            "a: 1\n---\nb: 1\n",
            "line 2, column 1: expected valid YAML: expected a single document in the stream but found another",
        ),
        ("part: {count: 010}\n", "part.count: expected a value of type int, got '010'"),
        ("part: {count: 1:30}\n", "part.count: expected a value of type int, got '1:30'"),
        ("part: {count: 1e3}\n", "part.count: expected a value of type int, got '1e3'"),
        ("part: {strict: yes}\n", "part.strict: expected a value of type bool, got 'yes'"),
        ("part: {rates: [1:30.5]}\n", r"part.rates\[0\]: expected a finite number, got '1:30.5'"),
        ("part: {rates: [.inf]}\n", r"part.rates\[0\]: expected a finite number, got '.inf'"),
        ("part: {rates: &a [*a]}\n", r"part.rates\[0\]: expected a finite number"),
        ("part: {counts: 1}\n", "part: unknown key 'counts', expected any of"),
        ("parts: {}\n", "unknown key 'parts', expected any of"),
        ("", "expected a mapping, got NoneType"),
    ],
)
def test_a_slip_in_yaml_is_told_by_file_place_and_value(text, message, tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml: {message}") as caught:
        Whole.load(path)
    assert "\n" not in str(caught.value)


def test_yaml_values_are_what_they_look_like(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    for written, name in (("010", "010"), ("no", "no"), ("2001-01-01", "2001-01-01"), ("1:30", "1:30"), ("1e3", "1e3")):
        path.write_text(f"name: {written}\n")
        assert Whole.load(path).name == name
    path.write_text("rates: [1e-3, 1E+2, .5, 2., 1.5e1, 3, 0x10]\ncount: 1_000\nstrict: True\nname: ~\n")
    assert Sample.load(path) == Sample(rates=(1e-3, 100.0, 0.5, 2.0, 15.0, 3.0, 16.0), count=1000, strict=True)
    path.write_text("base: &b {count: 3}\n")
    with pytest.raises(ValueError, match="unknown key 'base'"):
        Sample.load(path)
    path.write_text("<<: {count: 3}\ncount: 4\n")
    assert Sample.load(path).count == 4


def test_a_bound_is_told_with_its_value_and_whether_it_is_a_default(tmp_path) -> None:
    path = tmp_path / "train.yaml"
    for written, message in (
        ("{steps: 20}", r"a value in \[0, steps=20\), got 200 \(warmup_steps: the default\)"),
        ("{warmup_steps: 20000}", r"a value in \[0, steps=10000\), got 20000 \(steps: the default\)"),
        ("{steps: 20, warmup_steps: 20}", r"a value in \[0, steps=20\), got 20$"),
    ):
        path.write_text(f"optim: {written}\n")
        with pytest.raises(ValueError, match=rf"train\.yaml: optim\.warmup_steps: expected {message}"):
            VAETrainConfig.load(path)
    path.write_text("window: 64\ndata: {max_frames: 60}\n")
    with pytest.raises(ValueError, match=r"train\.yaml: window: expected a multiple of 4 .*max_frames=60\], got 64$"):
        VAETrainConfig.load(path)


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("kind", [VAETrainConfig, DenoiserTrainConfig, PipelineConfig])
def test_whatever_stands_in_a_place_is_taken_or_told_by_the_key(kind) -> None:
    whole = kind().to_dict()
    for path in leaves(whole):
        for odd in (None, True, -1, 0, 1.5, "x", "1e-3", "", [], {}, [[]], {"a": 1}, float("nan"), -(10**400)):
            values = copy.deepcopy(whole)
            place = values
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            try:
                loaded = kind.from_dict(values)
            except ValueError as error:
                told = str(error)
            else:
                told = ".".join(path)
                assert kind.from_dict(loaded.to_dict()) == loaded
            assert path[-1] in told or path[0] in told, f"{path}, {odd!r}: {told}"


@dataclasses.dataclass(frozen=True)
class Changed(Config):
    changes: dict[str, object] = dataclasses.field(default_factory=dict)


def test_numbers_of_numpy_within_a_mapping_are_plain_in_the_end() -> None:
    plain = Changed({"a": np.float32(0.5), "b": [np.int64(2)]}).to_dict()["changes"]
    assert plain == {"a": 0.5, "b": [2]}
    assert [type(value) for value in (plain["a"], plain["b"][0])] == [float, int]


def test_numbers_of_numpy_are_numbers() -> None:
    values = {"rates": [np.float32(0.5), np.int64(2)], "count": np.uint8(3)}
    loaded = Sample.from_dict(values)
    assert loaded == Sample(rates=(0.5, 2.0), count=3)
    assert [type(value) for value in (*loaded.rates, loaded.count)] == [float, float, int]
    assert Sample(rates=(np.float32(0.5),), count=np.int64(3)).to_dict() == Sample(rates=(0.5,), count=3).to_dict()
    for bad in ({"rates": [np.float64("nan")]}, {"rates": [np.float32("inf")]}, {"count": np.float32(3)}):
        with pytest.raises(ValueError, match=r"expected (a finite number|a value of type int), got"):
            Sample.from_dict(bad)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DenoiserConfig, {"dim": "16"}, "dim: expected a value of type int, got '16'"),
        (DenoiserConfig, {"num_layers": None}, "num_layers: expected a value of type int, got None"),
        (DenoiserConfig, {"capacity": float("inf")}, "capacity: expected a finite number, got inf"),
        (PipelineConfig, {"vae": 3}, "vae: expected a mapping, got int"),
        (Sample, {"count": 2**63}, "count: expected a whole number of 64 bits, got 9223372036854775808"),
        (Sample, {"rates": 0.5}, "rates: expected a list, got 0.5"),
        (Sample, {"strict": "yes"}, "strict: expected a value of type bool, got 'yes'"),
    ],
)
def test_values_given_to_a_class_are_as_those_of_a_file(kind, values, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(**values)


def test_a_class_takes_what_a_file_may_hold() -> None:
    assert Sample(rates=[1, np.float32(0.5)], count=np.int8(2)) == Sample(rates=(1.0, 0.5), count=2)
    inner = DenoiserConfig(capacity=2, num_experts=np.int64(4))
    assert (type(inner.capacity), type(inner.num_experts)) == (float, int)
    assert PipelineConfig(denoiser=inner).denoiser is inner
    assert PipelineConfig(denoiser=inner.to_dict()).denoiser == inner


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_any_kind(value) -> None:
    number = check_integer(value, "seed", low=0, high=5)
    assert type(number) is int
    for bad in (3.0, np.float32(3), "3", None, True, np.True_):
        with pytest.raises(TypeError, match="seed: expected an integer, got"):
            check_integer(bad, "seed")
    with pytest.raises(ValueError, match=r"seed: expected a value >= 4, got 3"):
        check_integer(value, "seed", low=4)
    with pytest.raises(ValueError, match=r"seed: expected a value <= 2, got 3"):
        check_integer(value, "seed", high=2)
    with pytest.raises(ValueError, match=r"seed: expected a value in \[4, 9\], got 3"):
        check_integer(value, "seed", low=4, high=9)
    with pytest.raises(ValueError, match="seed: expected a whole number of 64 bits, got"):
        check_integer(2**64, "seed", low=0)
