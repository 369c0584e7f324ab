"""Hosts of other libraries: transformers' ViT and Llama-like decoders, timm's ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import intermoe
from intermoe.integrations import (
    MoEFeedForward,
    load_pretrained,
    reapply_replacement,
    replace_feed_forward,
    replacement_config,
    restore_feed_forward,
)

transformers = pytest.importorskip("transformers")


def vit() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).eval()


def llama(kind: str = "Llama", **options: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": 30, "head_dim": 8, "pad_token_id": 0, **options}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def call(model: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    if hasattr(model.config, "vocab_size"):
        return model(input_ids=torch.randint(1, 30, (2, 5), generator=g)).logits
    return model(pixel_values=torch.randn(2, 3, 8, 8, generator=g)).logits


def networks(model: torch.nn.Module) -> list[MoEFeedForward]:
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]


HOSTS = {"vit": vit, "llama": llama, "tied": lambda: llama(tie_word_embeddings=True), "qwen2": lambda: llama("Qwen2")}


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_host_of_transformers_is_replaced_saved_loaded_and_restored(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HOSTS[name]()
    dense = call(model)
    assert len(replace_feed_forward(model, num_experts=3, expert_dim=8, init="residual").layers) == 2
    assert torch.equal(call(model), dense)
    for number, network in enumerate(networks(model)):
        torch.nn.init.normal_(network.moe.w_down, std=0.5)
        network.moe.selection_bias.copy_(torch.tensor([-0.3, -0.4001, -0.5]) - 0.1 * number)
    expected = call(model)
    assert not torch.allclose(expected, dense)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(type(model), tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    for network, other in zip(networks(loaded), networks(model), strict=True):
        assert torch.equal(network.moe.selection_bias, other.moe.selection_bias)
        assert network.moe.selection_bias.dtype == torch.float32
    assert torch.equal(call(loaded), expected)
    for network in networks(loaded):
        torch.nn.init.zeros_(network.moe.w_down)
    restore_feed_forward(loaded)
    assert not networks(loaded)
    torch.testing.assert_close(call(loaded), dense)


@torch.no_grad()
def test_llama_is_upcycled_and_generates() -> None:
    torch.manual_seed(0)
    model = llama()
    dense = call(model)
    replace_feed_forward(model, num_experts=2, expert_dim=24, init="upcycle")
    torch.testing.assert_close(call(model), dense)
    prompt = torch.tensor([[3, 4, 5]])
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_what_is_no_replaced_model_is_named(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"got ViTForImageClassification without; use ViTModel\."):
        load_pretrained(transformers.ViTModel, tmp_path / "dense")
    model = vit()
    replace_feed_forward(model, num_experts=2, expert_dim=8)
    model.save_pretrained(tmp_path / "moe")
    with pytest.raises(
        ValueError, match=r"model_class: expected ViTForImageClassification, which .* got LlamaForCausal"
    ):
        load_pretrained(transformers.LlamaForCausalLM, tmp_path / "moe")
    for other in (torch.nn.Linear, transformers.AutoModel):
        with pytest.raises(
            ValueError,
            match=rf"model_class: expected a model class of diffusers or transformers, got .*{other.__name__}.*"
            r"moe holds a ViTForImageClassification$",
        ):
            load_pretrained(other, tmp_path / "moe")
    duets = Path(intermoe.__file__).parent / "models" / "duets"
    with pytest.raises(
        ValueError, match=r"got a motion model of the system 'intermoe' without; use intermoe\.MotionPipeline\.from_pre"
    ):
        load_pretrained(transformers.ViTModel, duets)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got a model of unknown kind without; use what wrote it$"):
        load_pretrained(transformers.ViTModel, tmp_path / "other")
    (tmp_path / "many").mkdir()
    for number in range(30):
        (tmp_path / "many" / f"{number:02}").touch()
    with pytest.raises(FileNotFoundError, match=r"there are \['00', .* '07'\] and 22 more; save_pretrained of"):
        load_pretrained(transformers.ViTModel, tmp_path / "many")


@torch.no_grad()
def test_timm_vit_is_replaced_and_built_again() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    model, image = timm.models.VisionTransformer(**options).eval(), torch.randn(2, 3, 8, 8)
    dense = model(image)
    replace_feed_forward(model, num_experts=3, expert_dim=8, init="residual")
    assert torch.equal(model(image), dense)
    for network in networks(model):
        torch.nn.init.normal_(network.moe.w_down, std=0.5)
    again = timm.models.VisionTransformer(**options).eval()
    reapply_replacement(again, replacement_config(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(image), model(image))
    assert not torch.equal(model(image), dense)


def test_a_block_is_known_by_its_module_where_its_name_is_a_common_one() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x)

    with pytest.raises(ValueError, match="expected a known transformer block"):
        replace_feed_forward(torch.nn.Sequential(Block()), num_experts=2, expert_dim=8)
    Block.__module__ = "timm.models.vision_transformer"
    assert len(replace_feed_forward(torch.nn.Sequential(Block()), num_experts=2, expert_dim=8).layers) == 1


def test_weights_of_a_host_of_transformers_are_all_there_and_no_more(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model = vit()
    replace_feed_forward(model, num_experts=2, expert_dim=8)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    lost = next(name for name in state if name.endswith("w_down"))
    for changed, name in (
        ({key: value for key, value in state.items() if key != lost}, "w_down"),
        ({**state, "left.over": torch.zeros(1)}, "left.over"),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"^folder: expected in .* the weights of ViTForImage.*, got .*{name}"):
            load_pretrained(type(model), tmp_path)
