"""Tensors of files, read strictly: what is taken, what is left, and what is refused by key."""

from __future__ import annotations

import collections
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from intermoe.checkpoints import (
    StrictReader,
    check_dtype,
    check_finite,
    check_weight_dtype,
    keeps_float32,
    load_module,
    load_safetensors,
    load_statistics,
    load_tensors,
    plain,
    read_checkpoint,
    require_setting,
    setting,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def test_a_reader_knows_what_nobody_asked_for() -> None:
    """To look at a tensor or to list its key is not to take it; to take it twice is nothing special."""
    state = {key: torch.arange(6.0).reshape(2, 3) for key in ("a.y", "a.x", "b.x", "c")}
    reader = StrictReader(state, "file")
    assert reader.keys("a.") == ["a.y", "a.x"]
    assert reader.peek("c", 2) == (2, 3)
    assert reader.take("b.x", (2, 3)) is not None
    assert reader.take("b.x", (2, 3)).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert reader.keys("b.") == ["b.x"]
    with pytest.raises(ValueError, match=r"^file: unexpected keys \['a\.x', 'a\.y', 'c'\]$"):
        reader.finish()
    for key in ("a.x", "a.y", "c"):
        reader.take(key, (2, 3))
    reader.finish()


def test_a_tensor_is_taken_as_it_must_be() -> None:
    reader = StrictReader({"w": torch.zeros(2, 3, requires_grad=True), "nan": torch.tensor([0.0, float("nan")])})
    assert not reader.take("w", (2, 3)).requires_grad
    for key, shape, told in (
        ("v", (2, 3), "state_dict: missing key 'v'"),
        ("w", (3, 2), "state_dict: 'w': expected shape (3, 2), got (2, 3)"),
        ("nan", (2,), "state_dict: 'nan': expected finite numbers, got another at [1]"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            reader.take(key, shape)
    with pytest.raises(ValueError, match=r"unexpected keys \['nan'\]"):  # refused is not taken
        reader.finish()


def test_a_parameter_takes_every_float_and_no_integer() -> None:
    values = torch.tensor([[1.0, -2.0, 0.5]])
    layer = nn.Linear(3, 1, bias=False)
    for dtype in (F16, BF16, F32, F64):
        nn.init.zeros_(layer.weight)
        StrictReader({"w": values.to(dtype)}).copy(layer.weight, "w")
        assert (layer.weight.tolist(), layer.weight.dtype, layer.weight.requires_grad) == (values.tolist(), F32, True)
    with pytest.raises(
        ValueError, match=r"^state_dict: 'w': expected float16 or bfloat16 or float32 or float64, got int64$"
    ):
        StrictReader({"w": values.long()}).copy(layer.weight, "w")


@pytest.mark.parametrize(
    ("key", "target", "fits"),
    [
        ("w", torch.zeros(1), (F16, BF16, F32, F64)),
        ("w", torch.zeros(1, dtype=F16), (F16, BF16, F32, F64)),
        ("statistics.mean", torch.zeros(1), (F32, F64)),
        ("block.selection_bias", torch.zeros(1), (F32, F64)),
        ("selection_bias.w", torch.zeros(1), (F16, BF16, F32, F64)),
        ("w.statistics.", torch.zeros(1), (F16, BF16, F32, F64)),
        ("w", torch.zeros(1, dtype=torch.int64), (torch.int64,)),
        ("w", torch.zeros(1, dtype=torch.bool), (torch.bool,)),
    ],
)
def test_what_a_tensor_may_be_stored_as(key: str, target: Tensor, fits: tuple[torch.dtype, ...]) -> None:
    """Statistics and the bias of a selection are never narrower than float32."""
    assert keeps_float32(key) is (fits == (F32, F64))
    for dtype in (F16, BF16, F32, F64, torch.int64, torch.int32, torch.bool):
        if dtype in fits:
            check_dtype(torch.zeros(1, dtype=dtype), target, key, "file")
            continue
        words = [str(each).removeprefix("torch.") for each in (*fits, dtype)]
        told = f"file: '{key}': expected {' or '.join(words[:-1])}, got {words[-1]}"
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            check_dtype(torch.zeros(1, dtype=dtype), target, key, "file")


def test_networks_compute_in_four_types() -> None:
    for dtype in (F16, BF16, F32, F64):
        check_weight_dtype(dtype, "dtype")
    listed = "torch.float16, torch.bfloat16, torch.float32, torch.float64"
    for other in (torch.int64, torch.complex64, torch.float8_e4m3fn, "float32", None):
        with pytest.raises(TypeError, match=f"^{re.escape(f'dtype: expected one of {listed}, got {other!r}')}$"):
            check_weight_dtype(other, "dtype")


@pytest.mark.parametrize("dtype", [F16, F32, torch.float8_e5m2])
def test_the_first_number_that_is_not_finite_is_told_by_its_place(dtype: torch.dtype) -> None:
    value = torch.zeros(2, 3, 4)
    check_finite(value.to(dtype), "w", "file")
    value[1, 0, 3] = -float("inf")
    value[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^file: 'w': expected finite numbers, got another at \[1, 0, 3\]$"):
        check_finite(value.to(dtype), "w", "file")


def test_a_tensor_that_is_not_dense_is_refused() -> None:
    check_finite(torch.arange(3), "w", "file")
    with pytest.raises(ValueError, match=r"^file: 'w': expected a dense tensor, got one of layout torch\.sparse_coo$"):
        check_finite(torch.eye(2).to_sparse(), "w", "file")


def test_a_module_takes_what_has_its_prefix_and_leaves_the_rest() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {f"net.{key}": value.clone() for key, value in nn.Sequential(*module).state_dict().items()}
    state["net.0.weight"] = torch.arange(6, dtype=F16).reshape(2, 3)
    state["net.1.num_batches_tracked"] = torch.tensor(7)
    others = {"network.w": torch.zeros(1), "0.bias": torch.ones(2)}
    tensors = {**others, **state}
    load_module(module, tensors, "file", prefix="net.")
    assert tensors.keys() == others.keys()
    weights = module.state_dict()
    assert weights["0.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (weights["0.weight"].dtype, int(weights["1.num_batches_tracked"])) == (F32, 7)
    for change, told in (
        ({"net.0.bias": None}, "file: missing key 'net.0.bias'"),
        ({"net.0.bias": torch.zeros(3)}, "file: 'net.0.bias': expected shape (2,), got (3,)"),
        ({"net.0.bias": torch.tensor([0.0, float("inf")])}, "file: 'net.0.bias': expected finite numbers, got another"),
        ({"net.1.num_batches_tracked": torch.tensor(7.0)}, "'net.1.num_batches_tracked': expected int64, got float32"),
        ({"net.z": torch.zeros(1), "net.b": torch.zeros(1)}, "file: unexpected keys ['net.b', 'net.z']"),
    ):
        given = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=re.escape(told)):
            load_module(module, given, "file", prefix="net.")
    assert module.state_dict()["0.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_statistics_are_moved_out_of_a_files_tensors() -> None:
    mean, std = torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([4.0, 5.0, 6.0])
    tensors = {"statistics.mean": mean, "w": torch.zeros(1), "statistics.std": std}
    found = load_statistics(tensors, "file", columns=3)
    assert (found.mean.tolist(), found.std.tolist()) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (found.mean.dtype, found.std.dtype) == (np.float32, np.float32)
    assert tensors.keys() == {"w"}
    whole = {"statistics.mean": mean, "statistics.std": std}
    for change, told in (
        ({"statistics.mean": None}, "file: missing key 'statistics.mean'"),
        ({"statistics.std": None}, "file: missing key 'statistics.std'"),
        ({"statistics.std": torch.ones(4)}, "file: 'statistics.std': expected shape (3,), got (4,)"),
        ({"statistics.mean": torch.ones(1, 3)}, "file: 'statistics.mean': expected shape (3,), got (1, 3)"),
        ({"statistics.std": std.half()}, "file: 'statistics.std': expected float32 or float64, got float16"),
        ({"statistics.mean": mean / 0}, "file: 'statistics.mean': expected finite numbers, got another at [0]"),
        ({"statistics.std": -std}, "file: statistics.std: "),
    ):
        given = {key: value for key, value in {**whole, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
            load_statistics(given, "file", columns=3)


def test_settings_are_read_strictly() -> None:
    require_setting({"a": 1}, "a", 1, 2)
    require_setting({}, "a", 1, 1)
    for config, default, got in (({"a": 2}, 1, "2"), ({}, 3, "3"), ({"a": None}, 1, "None")):
        with pytest.raises(ValueError, match=f"^config: a: expected 1, got {got}$"):
            require_setting(config, "a", 1, default)
    assert setting({"a": None}, "a") is None
    with pytest.raises(ValueError, match=r"^config: missing key 'b'$"):
        setting({"a": 1}, "b")


def test_a_bare_state_dict_has_no_configuration(tmp_path: Path) -> None:
    state = {"hyper_parameters": torch.ones(1), "w": torch.zeros(2)}
    torch.save(state, tmp_path / "bare.pt")
    found, config = read_checkpoint(tmp_path / "bare.pt")
    assert ({key: value.tolist() for key, value in found.items()}, config) == (
        {"hyper_parameters": [1.0], "w": [0.0, 0.0]}, {},
    )  # fmt: skip
    for whole, expected in (
        ({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": {"a": [1, {"b": 2}]}}, {"a": [1, {"b": 2}]}),
        ({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": [1]}, {}),
        ({"state_dict": {"w": torch.zeros(2)}, "epoch": 3}, {}),
    ):
        torch.save(whole, tmp_path / "whole.pt")
        found, config = read_checkpoint(str(tmp_path / "whole.pt"))
        assert (list(found), config) == (["w"], expected)
    torch.save({"state_dict": {1: torch.zeros(1)}}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match=r"numbers\.pt: expected names as keys, got 1$"):
        read_checkpoint(tmp_path / "numbers.pt")
    torch.save({"a": torch.zeros(1), "b": [1]}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match=r"mixed\.pt: expected a state dict, or a checkpoint with one under"):
        read_checkpoint(tmp_path / "mixed.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_read_in_both_formats_of_torch(zipped: bool, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert load_tensors(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2]
    (tmp_path / "half.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"half\.pt: expected a checkpoint of torch\.save"):
        load_tensors(tmp_path / "half.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt: no such file$"):
        load_tensors(tmp_path / "absent.pt")


def test_safetensors_are_read_or_told_by_file(tmp_path: Path) -> None:
    save_file({"w": torch.arange(3)}, tmp_path / "a.safetensors")
    assert load_safetensors(str(tmp_path / "a.safetensors"))["w"].tolist() == [0, 1, 2]
    (tmp_path / "b.safetensors").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"b\.safetensors: expected a readable safetensors file: "):
        load_safetensors(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "absent.safetensors")


def test_plain_values_stay_as_they_are() -> None:
    values: dict[str, Any] = {"a": [1, {"b": None}], "c": ("x", 2.5), "d": SimpleNamespace()}
    found = plain(values)
    assert found == values
    assert found["a"] is not values["a"]


FOREIGN = [
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    *(("omegaconf.nodes", f"{kind}Node") for kind in ("Any", "String", "Integer", "Float", "Boolean")),
    ("numpy.core.multiarray", "scalar"),
]
MAPPINGS = [
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("yacs.config", "CfgNode"),
]
"""Classes of the objects in published files."""


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """``foreign(module, name, base, make)``: a file of what ``make`` makes of a class that is not there afterwards."""

    def save(module: str, name: str, base: type, make: Callable[[type], Any]) -> Path:
        kind = type(name, (base,), {"__module__": module, "__qualname__": name})
        with monkeypatch.context() as patch:
            for above in (module.rsplit(".", each)[0] for each in range(module.count("."), -1, -1)):
                patch.setitem(sys.modules, above, types.ModuleType(above))
            setattr(sys.modules[module], name, kind)
            torch.save({"state_dict": {}, "hyper_parameters": make(kind)}, tmp_path / "a.pt")
        return tmp_path / "a.pt"

    return save


@pytest.mark.parametrize(("module", "name"), FOREIGN)
def test_objects_of_published_files_are_read_without_their_libraries(
    module: str, name: str, foreign: Callable[..., Path]
) -> None:
    """As what they hold: a value, a content, or nothing that is known."""

    def make(kind: type) -> dict[str, Any]:
        value, content, other = kind(), kind(), kind()
        value._val, content._content, other._parent = 2.5, [value, {"b": value}], value  # type: ignore[attr-defined]
        return {"x": content, "y": other}

    assert read_checkpoint(foreign(module, name, object, make)) == ({}, {"x": [2.5, {"b": 2.5}], "y": {}})


@pytest.mark.parametrize(("module", "name"), MAPPINGS)
def test_mappings_of_published_files_are_read_with_their_entries(
    module: str, name: str, foreign: Callable[..., Path]
) -> None:
    """One within another, whatever else they keep."""

    def make(kind: type) -> Any:
        inner, outer = kind(b=[1, 2]), kind(a=1)
        outer["inner"] = inner  # type: ignore[index]
        outer.__dict__["immutable"] = True
        return outer

    found, config = read_checkpoint(foreign(module, name, dict, make))
    assert (found, config) == ({}, {"a": 1, "inner": {"b": [1, 2]}})
    assert {type(config), type(config["inner"])} == {dict}


@pytest.mark.parametrize("value", [dict, list, str, int, float, bool, Any, np.float64(1.5), np.dtype("int64")])
def test_types_and_numbers_of_a_configuration_are_read(value: Any, tmp_path: Path) -> None:
    """As OmegaConf's metadata and schedules of learning rates have them; nothing is made of them."""
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": [value]}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt")[0]) == ["w"]


def test_a_dictionary_with_a_default_is_read(tmp_path: Path) -> None:
    given = collections.defaultdict(dict, {"a": {"b": 1}})
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": given}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt")[1] == {"a": {"b": 1}}
