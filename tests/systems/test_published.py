"""What every published model's reader shares: statistics, tables of sinusoids, names on this machine; and where no
system has a name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import intermoe
from intermoe.checkpoints import StrictReader
from intermoe.nn.attention import Attention
from intermoe.nn.layers import sinusoid
from intermoe.pipeline import SYSTEMS
from intermoe.systems.published import (
    Files,
    check_sinusoids,
    read_attention,
    read_statistics,
    statistics_of,
    with_tower,
)
from intermoe.text.clip import ClipTextEncoder
from intermoe.text.protocol import TextConfig

NAMES = ("mean.npy", "std.npy")
PACKAGE = Path(intermoe.__file__).parent


def statistics(folder: Path, value: float, shape: tuple[int, ...] = (3,)) -> Path:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        np.save(folder / name, np.full(shape, value))
    return folder


def test_statistics_are_of_the_folder_that_is_given_or_beside_the_file(tmp_path: Path) -> None:
    beside, given = statistics(tmp_path / "beside", 1.0), statistics(tmp_path / "given", 2.0)
    path = beside / "model.ckpt"
    assert statistics_of(path, Files(), NAMES, 3).mean.tolist() == [1.0] * 3
    assert statistics_of(path, Files(stats=given), NAMES, 3).mean.tolist() == [2.0] * 3


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), (2, 3)])
def test_statistics_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mean\.npy: expected shape \(3,\), got"):
        read_statistics(statistics(tmp_path / "stats", 1.0, shape), NAMES, 3)


def test_a_table_that_is_nearly_sinusoidal_is_not_the_models() -> None:
    table = sinusoid(torch.arange(9), 8)
    check_sinusoids(StrictReader({"pe": table + 1e-6}), "pe", 8)
    for other in (table + 0.01, table.flip(0), table[:, torch.arange(8) ^ 1]):
        with pytest.raises(ValueError, match="'pe': expected the sinusoidal table"):
            check_sinusoids(StrictReader({"pe": other}), "pe", 8)


def test_tables_and_attention_are_read_in_the_types_of_weights_alone() -> None:
    table = sinusoid(torch.arange(5), 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        check_sinusoids(StrictReader({"pe": table.to(dtype)}), "pe", 8)
        check_sinusoids(StrictReader({"pe": table[:, None].to(dtype)}), "pe", 8, num_dims=3)
    for other, told in (
        (table.to(torch.int64), "expected float16 or bfloat16 or float32 or float64, got int64"),
        (table[:, :6], "expected shape .5, 8., got .5, 6."),
    ):
        with pytest.raises(ValueError, match=f"'pe': {told}"):
            check_sinusoids(StrictReader({"pe": other}), "pe", 8)
    attention = Attention(8, 2)
    weights = {"a.out_proj.weight": torch.ones(8, 8), "a.out_proj.bias": torch.ones(8)}
    weights |= {"a.in_proj_weight": torch.ones(24, 8), "a.in_proj_bias": torch.ones(24)}
    read_attention(StrictReader(weights), "a", attention)
    for key in ("a.in_proj_weight", "a.in_proj_bias"):
        for dtype in (torch.int64, torch.complex64):
            with pytest.raises(ValueError, match=f"'{key}': expected float16 or bfloat16 or float32"):
                read_attention(StrictReader(weights | {key: weights[key].to(dtype)}), "a", attention)


def test_sparse_tensors_and_numbers_of_eight_bits_are_refused_by_key() -> None:
    layer = torch.nn.Linear(2, 2)
    for value, told in (
        (torch.eye(2).to_sparse(), "expected a dense tensor, got one of layout torch.sparse_coo"),
        (torch.eye(2).to(torch.float8_e4m3fn), "expected float16 or bfloat16 or float32 or float64, got float8_e4m3fn"),
    ):
        with pytest.raises(ValueError, match=f"'a.weight': {told}"):
            StrictReader({"a.weight": value}).copy(layer.weight, "a.weight")


def test_a_folder_of_this_machine_is_no_name_in_a_model(tmp_path: Path) -> None:
    def named(name: str) -> str | None:
        config = TextConfig(
            kind="clip", output_dim=8, width=8, num_layers=1, num_heads=2, feedforward_dim=8, clip_layers=1,
            clip_heads=2, max_tokens=6, vocab_size=20, name_or_path=name,
        )  # fmt: skip
        return with_tower(ClipTextEncoder(config), Files()).config.name_or_path

    assert named(str(tmp_path)) is None
    assert named("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"


@pytest.mark.parametrize("room", ["cli", "eval", "control", "export", "viz"])
def test_no_system_is_named_where_all_are_served(room: str) -> None:
    names = "|".join(name for name in SYSTEMS if name != "intermoe")
    word = re.compile(rf"\b({names})\b", re.IGNORECASE)
    sources = [path for path in (PACKAGE / room).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(sources) > 3
    for path in sources:
        found = word.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert found is None, f"{path}: {found}"
