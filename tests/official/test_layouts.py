"""What a published file is, by a few of its keys alone, and which options have a use for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intermoe.official.layouts import LAYOUTS, layout_of
from intermoe.systems.intermask.official import _parts

NETWORK, TEXT = "model.decoder.net.", ["model.clip_ln.weight", "model.token_embedding.weight"]
INTERGEN = [
    f"{NETWORK}blocks.0.sa_block.norm.emb_layers.1.weight",
    f"{NETWORK}blocks.0.ca_block.norm.emb_layers.1.bias",
]
TIMOTION = [INTERGEN[0], f"{NETWORK}blocks.0.linear.weight"]
PART = "quantizer.layers.0.codebook"
KEYS: dict[str, list[list[str]]] = {
    "intermoe": [["model.denoiser.net.blocks.0.sa_block.norm.emb_layers.1.weight", *TEXT]],
    "intergen": [[*INTERGEN, *TEXT]],
    "timotion": [[*TIMOTION, *TEXT], [*TIMOTION, f"{NETWORK}blocks.0.conv.blocks.0.conv1.weight", *TEXT]],
    "intermask": [
        ["vq_model", f"vq_model/{PART}"], ["net", f"net/{PART}"],
        ["t2m_transformer", "t2m_transformer/token_emb.weight"], ["trans", "trans/token_emb.weight"],
    ],
    "mdm": [["input_process.poseEmbedding.weight", "seqTransEncoder.layers.0.linear1.weight"]],
    "commdm": [["seqTransEncoder_start.layers.0.linear1.weight", "multi_person.canon_agg.weight"]],
    "interclip": [["motion_encoder.embed_motion.weight"], ["model.motion_encoder.embed_motion.weight"]],
    "bigru": [["text_encoder", "motion_encoder", "movement_encoder"]],
}  # fmt: skip
USES = {
    "intermoe": ("stats", "tokenizer"), "intergen": ("stats", "tokenizer"), "timotion": ("stats", "tokenizer"),
    "intermask": ("stats", "tokenizer", "part", "text"), "mdm": ("stats", "tokenizer", "text"),
    "commdm": ("stats", "tokenizer", "text"), "interclip": ("tokenizer",), "bigru": ("stats", "layout", "words"),
}  # fmt: skip


def test_keys_are_of_one_layout_alone() -> None:
    assert list(LAYOUTS) == list(KEYS) == list(USES)
    for name, files in KEYS.items():
        assert LAYOUTS[name].uses == USES[name]
        for keys in files:
            assert [each for each in LAYOUTS if LAYOUTS[each].fits(frozenset(keys))] == [name], keys
    for nothing in ([], TEXT, ["decoder.net.blocks.0.ca_block.x"], ["net/other.weight"], ["trans"], ["movement"]):
        assert not any(LAYOUTS[each].fits(frozenset(nothing)) for each in LAYOUTS), nothing


def test_a_file_is_known_by_its_keys(tmp_path: Path) -> None:
    """Of a nested state dict, of several, or plain; what is no tensor counts for nothing."""
    path, one = tmp_path / "a.ckpt", torch.zeros(1)
    for value, name in (
        ({"state_dict": dict.fromkeys(KEYS["intergen"][0], one), "epoch": 3}, "intergen"),
        (dict.fromkeys(KEYS["mdm"][0], one), "mdm"),
        ({"trans": {"token_emb.weight": one}, "ep": 1}, "intermask"),
    ):
        torch.save(value, path)
        assert layout_of(path) is LAYOUTS[name]
    torch.save({"trans": {"token_emb.weight": 3}, "b": one}, path)
    with pytest.raises(ValueError, match=r"a\.ckpt: expected a published checkpoint of InterMoE, .* got one with"):
        layout_of(path)


def test_the_two_networks_of_intermask_have_one_of_two_names_each(tmp_path: Path) -> None:
    first, second = {"a": torch.tensor([1.0])}, {"b": torch.tensor([2.0])}
    for names in (("vq_model", "t2m_transformer"), ("net", "trans")):
        torch.save({names[0]: first, "ep": 3}, tmp_path / "vq.tar")
        torch.save({names[1]: second, "opt": {"lr": 1.0}}, tmp_path / "trans.tar")
        found = _parts(tmp_path / "trans.tar", tmp_path / "vq.tar")
        assert found == {"tokenizer": first, "network": second}
        assert list(_parts(tmp_path / "vq.tar")) == ["tokenizer"]
