"""Loading a replaced model of diffusers' kind, file by file: names, several files, types, weights that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intermoe.integrations import BlockAdapter, load_pretrained, replace_feed_forward, replacement_config
from intermoe.nn.layers import SwiGLU


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff: Any = SwiGLU(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ff(x)  # type: ignore[no-any-return]


class Own(nn.Sequential):
    """A model that is built from its configuration, as those of diffusers are."""

    built: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def load_config(cls, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Own:
        cls.built.append(config)
        return cls(Block(), Block())


ADAPTERS = [BlockAdapter(Block, ("ff",))]
NAME = "diffusion_pytorch_model"


@pytest.fixture
def model() -> Own:
    torch.manual_seed(0)
    model = Own(Block(), Block())
    replace_feed_forward(model, num_experts=3, expert_dim=6, capacity=2.0, init="residual", adapters=ADAPTERS)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for number, block in enumerate(model):
        block.ff.moe.selection_bias.fill_(-0.3001 - 0.1 * number)  # type: ignore[union-attr]
    return model


def write(model: Own, folder: Path, file: str = f"{NAME}.safetensors") -> dict[str, Tensor]:
    folder.mkdir(exist_ok=True)
    config = {"_class_name": "Own", "size": 3, "intermoe": replacement_config(model)}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / file)
    return state


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    assert found.keys() == state.keys()
    return all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in state.items())


def load(folder: Path, variant: str | None = None) -> Any:
    return load_pretrained(Own, folder, variant=variant, adapters=ADAPTERS)


def test_a_model_is_built_without_its_note_and_gets_its_weights(model: Own, tmp_path: Path) -> None:
    state = write(model, tmp_path)
    Own.built.clear()
    loaded = load(tmp_path)
    assert Own.built == [{"_class_name": "Own", "size": 3}]
    assert same(loaded, state)
    assert not any(module.training for module in loaded.modules())
    assert replacement_config(loaded) == replacement_config(model)
    assert [network.ff.moe.capacity for network in loaded] == [2.0, 2.0]
    x = torch.randn(2, 5, 8)
    assert torch.equal(loaded(x), model.eval()(x))


def test_a_model_of_another_type_keeps_it_but_for_its_biases(model: Own, tmp_path: Path) -> None:
    state = write(model.to(torch.bfloat16), tmp_path)
    assert {str(value.dtype) for value in state.values()} == {"torch.bfloat16", "torch.float32"}
    loaded = load(tmp_path)
    assert same(loaded, state)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_weights_that_are_missing_or_left_over_are_named(model: Own, tmp_path: Path) -> None:
    state = write(model, tmp_path)
    missing, more = "1.ff.moe.w_down", {**state, "2.extra": torch.zeros(1)}
    save_file({name: value for name, value in state.items() if name != missing}, tmp_path / f"{NAME}.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1\.ff\.moe\.w_down\""):
        load(tmp_path)
    save_file(more, tmp_path / f"{NAME}.safetensors")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"2\.extra\""):
        load(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_those_that_are_listed(model: Own, tmp_path: Path, variant: str | None) -> None:
    """And no others that lie beside: not the whole file of the same name, nor another variant's."""
    middle = "" if variant is None else f".{variant}"
    state = write(model, tmp_path, f"{NAME}{middle}.safetensors")
    assert same(load(tmp_path, variant), state)
    wrong = {name: value + 1 for name, value in state.items()}
    save_file(wrong, tmp_path / f"{NAME}{middle}.safetensors")
    if variant is not None:
        save_file(wrong, tmp_path / f"{NAME}.safetensors")
    names = sorted(state)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for number in range(2):
        own = {name: state[name] for name in names[number::2]}
        save_file(own, tmp_path / f"part-{number}.safetensors")
    index = tmp_path / f"{NAME}.safetensors.index{middle}.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(load(tmp_path, variant), state)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"^folder: .*part-1\.safetensors not found, there are \['conf"):
        load(tmp_path, variant)
    index.unlink()
    assert same(load(tmp_path, variant), load_file(tmp_path / f"{NAME}{middle}.safetensors"))


def test_a_model_of_another_class_is_refused(model: Own, tmp_path: Path) -> None:
    write(model, tmp_path)

    class Other(Own):
        pass

    with pytest.raises(ValueError, match=r"^model_class: expected Own, which .* holds, got Other$"):
        load_pretrained(Other, tmp_path, adapters=ADAPTERS)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected a mapping, got list$"):
        load(tmp_path)
