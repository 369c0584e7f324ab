"""A model's files: nothing far beyond their weights is built, and nothing that they hold goes unread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from intermoe.config import Config
from intermoe.motion.statistics import Statistics
from intermoe.systems import files
from intermoe.systems.files import read_text_encoder, read_weights, to_be_filled, write_model
from intermoe.text.protocol import TextConfig


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of ten numbers in two tensors."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(7), "b": torch.zeros(3)}, path)
    return path


def vectors(count: int, size: int) -> None:
    nn.ParameterList(nn.Parameter(torch.empty(size)) for _ in range(count))


@pytest.mark.parametrize(("count", "size", "refused"), [(2, 10, False), (3, 7, True), (1, 21, True), (5, 1, True)])
def test_up_to_twice_the_weights_of_a_file_are_built(count: int, size: int, refused: bool, weights: Path) -> None:
    """A parameter is counted where a module takes it; a list of them takes each once."""
    if not refused:
        with to_be_filled(weights):
            vectors(count, size)
        return
    told = "expected as many weights as the configuration says, got 10 in 2 tensors"
    with pytest.raises(ValueError, match=told), to_be_filled(weights):
        vectors(count, size)


def test_what_other_threads_build_is_not_counted(weights: Path) -> None:
    with to_be_filled(weights):
        thread = threading.Thread(target=vectors, args=(50, 50), daemon=True)
        failed: list[BaseException] = []
        threading.excepthook, before = lambda told: failed.append(told.exc_value), threading.excepthook
        thread.start()
        thread.join(timeout=60)
        threading.excepthook = before
    assert failed == []
    assert not thread.is_alive()


def test_weights_of_an_encoder_that_lies_elsewhere_are_not_those_of_the_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "build_text_encoder", lambda config, content: vectors(50, 50))
    read_text_encoder(weights.parent, TextConfig(kind="huggingface", name_or_path="elsewhere"))
    with pytest.raises(ValueError, match="expected as many weights"):
        read_text_encoder(weights.parent, TextConfig(kind="wordpiece"))


def test_a_weight_that_nothing_reads_is_told(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    write_model(tmp_path, Config(), {"part": module}, Statistics(np.zeros(3), np.ones(3)), None)
    assert read_weights(tmp_path, {"part": module}, 3).std.tolist() == [1.0] * 3
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "other.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: unexpected keys \['other\.weight'\]"):
        read_weights(tmp_path, {"part": module}, 3)


def test_only_wide_numbers_are_narrowed_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    """A part's weights by its name, the statistics beside them, a tokenizer where there is one of its own."""
    part = nn.Linear(3, 2)
    part.register_buffer("selection_bias", torch.full((3,), -0.123))
    part.register_buffer("steps", torch.tensor([1000001]))
    part.register_buffer("ready", torch.tensor(True))
    part.weight.data = torch.randn(3, 2).t()  # not in the order of its memory
    statistics = Statistics(np.full(3, 0.3), np.full(3, 2.7))
    write_model(tmp_path / "a" / "b", Config(), {"one": part}, statistics, "{}", torch.bfloat16)
    tensors = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert sorted(tensors) == [
        "one.bias", "one.ready", "one.selection_bias", "one.steps", "one.weight", "statistics.mean", "statistics.std"
    ]  # fmt: skip
    for name, value in part.state_dict().items():
        narrow = name in ("weight", "bias")
        assert tensors[f"one.{name}"].dtype == (torch.bfloat16 if narrow else value.dtype)
        assert torch.equal(tensors[f"one.{name}"], value.to(torch.bfloat16) if narrow else value)
    torch.testing.assert_close(tensors["statistics.std"], torch.tensor(statistics.std))
    assert (tmp_path / "a" / "b" / "tokenizer.json").read_text() == "{}"
    write_model(tmp_path / "c", Config(), {"one": part}, statistics, None)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "c" / "model.safetensors")["one.weight"].dtype == torch.float32
    with pytest.raises(TypeError, match=r"^dtype: expected one of torch\.float16"):
        write_model(tmp_path / "d", Config(), {"one": part}, statistics, None, torch.int8)
    assert not (tmp_path / "d").exists()
