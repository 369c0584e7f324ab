"""Recorded routing: what it says is what happened, and watching changes nothing; pictures show the numbers."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intermoe import InterMoEBlock
from intermoe.routing.picture import RoutingScene, draw_routing, routing_panel
from intermoe.routing.record import record_routing
from intermoe.routing.trace import RoutingTrace, read_trace, trace_generation, trace_motion, trace_record

KINDS: list[dict[str, Any]] = [
    {},
    {"routing": "token_choice", "top_k": 2},
    {"routing": "expert_choice"},
    {"pool": "sample", "unit": "sequence"},
]


class Host(nn.Module):
    """Two blocks one after the other, in any model."""

    def __init__(self, **kinds: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [InterMoEBlock(8, 4, 6, cond_dim=None, bias_init=-0.5, **kinds) for _ in range(2)]
        for block in blocks:
            nn.init.normal_(block.motion_router, std=0.5)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x, mask=mask)
        return x


@pytest.mark.parametrize("kinds", KINDS)
def test_the_record_is_what_the_blocks_did(kinds: dict[str, Any]) -> None:
    host = Host(**kinds).train()
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    with record_routing(host) as record:
        host(x, mask)
    assert list(record.calls) == ["blocks.0", "blocks.1"]
    for name, block in zip(record.calls, host.blocks, strict=True):
        (chosen,) = record.calls[name]
        assert chosen.shape == (3, 5, 4)
        assert not chosen[1, 3:].any()
        np.testing.assert_array_equal(chosen.sum(axis=(0, 1)), block.expert_counts)


@pytest.mark.parametrize("kinds", KINDS)
def test_watching_changes_nothing(kinds: dict[str, Any]) -> None:
    x = torch.randn(2, 5, 8)
    results = []
    for watched in (False, True):
        host = Host(**kinds).train()
        if watched:
            with record_routing(host):
                out = host(x)
                out.sum().backward()
        else:
            out = host(x)
            out.sum().backward()
        for block in host.blocks:
            block.update_selection_bias()
        results.append([out, *(p.grad for p in host.parameters() if p.grad is not None), *host.buffers()])
        assert not any(block._forward_pre_hooks for block in host.blocks)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_hooks_leave_when_the_model_fails() -> None:
    host = Host()
    with pytest.raises(ValueError, match="hidden"), record_routing(host):
        host(torch.randn(2, 5, 7))
    assert not any(block._forward_pre_hooks for block in host.blocks)


def test_calls_of_another_model_become_a_trace() -> None:
    host = Host().eval()
    with record_routing(host) as record:
        for _ in range(3):
            host(torch.randn(2, 6, 8))
    trace = trace_record(record, row=1, persons=2)
    assert trace.chosen.shape == (3, 2, 2, 3, 4)
    np.testing.assert_array_equal(trace.chosen[2, 1, 1], record.calls["blocks.1"][2][1, 3:])
    assert trace.experts_per_token[2, 1] == record.calls["blocks.1"][2][1].sum(-1).mean()
    np.testing.assert_allclose(trace.load[0], np.mean([call[1] for call in record.calls["blocks.0"]], axis=(0, 1)))
    np.testing.assert_allclose(trace.share.mean(axis=(1, 2)), trace.load)


def test_what_cannot_be_recorded() -> None:
    with pytest.raises(ValueError, match="model: expected at least one InterMoEBlock in it, got Linear"):
        record_routing(nn.Linear(2, 2)).__enter__()
    host = Host()
    with record_routing(host) as record:
        pass
    with pytest.raises(ValueError, match="record: expected a block that is called"):
        record.stacked()
    with record_routing(host) as record:
        host(torch.randn(2, 5, 8))
        host(torch.randn(2, 6, 8))
    with pytest.raises(ValueError, match=r"record: expected calls that are alike, to be stacked, got "):
        record.stacked()
    with pytest.raises(ValueError, match=r"layers: expected a pattern of \['blocks.0', 'blocks.1'\], got '\*.moe'"):
        trace_record(record, layers="*.moe")
    with record_routing(host) as record:
        host(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=r"row: expected a value in \[0, 2\), got 2"):
        trace_record(record, row=2)
    with pytest.raises(ValueError, match="persons: expected a divisor of the 5 tokens of a row, got 2"):
        trace_record(record, persons=2)


def test_a_generation_is_the_same_when_traced(tiny_pipeline: Any) -> None:
    options = {"num_frames": 16, "num_inference_steps": 3, "seed": 4}
    trace = trace_generation(tiny_pipeline, "Two people bow.", **options)
    expected = tiny_pipeline("Two people bow.", **options)
    np.testing.assert_array_equal(trace.joints, expected.joints[0])
    assert trace.chosen.shape == (3, 1, 2, 4, 3)  # steps, layers, persons, latent frames, experts
    np.testing.assert_array_equal(trace.timesteps, [666, 333, 0])
    assert trace.title == "Two people bow."
    # of the guided calls the half that hears the prompt: at the first step that is a call without guidance
    with record_routing(tiny_pipeline.modules["denoiser"]) as record:
        tiny_pipeline("Two people bow.", **options)
    first, without_text = next(iter(record.calls.values()))[0]
    assert not np.array_equal(first, without_text)
    plain = trace_generation(tiny_pipeline, "Two people bow.", guidance_scale=1.0, **options)
    np.testing.assert_array_equal(trace.chosen[0], plain.chosen[0])
    np.testing.assert_array_equal(trace.chosen[0].ravel(), first.ravel())


def test_a_system_without_a_denoiser_of_experts_is_refused_by_name() -> None:
    pipeline: Any = SimpleNamespace(modules={"network": nn.Linear(2, 2)}, config=SimpleNamespace(system="mdm"))
    refusal = r"^pipeline: expected a system with a denoiser of experts, got mdm"
    with pytest.raises(ValueError, match=refusal):
        trace_generation(pipeline, "two people bow", num_frames=16)
    with pytest.raises(ValueError, match=refusal):
        trace_motion(pipeline, torch.zeros(2, 16, 262), level=0.5)


def test_a_generation_that_is_guided_in_part(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = dataclasses.replace(tiny_pipeline.config.diffusion, guidance_until=0.5)
    monkeypatch.setattr(tiny_pipeline, "config", dataclasses.replace(tiny_pipeline.config, diffusion=diffusion))
    trace = trace_generation(tiny_pipeline, "Two people bow.", num_frames=16, num_inference_steps=4, guidance_scale=2.0)
    assert trace.chosen.shape[0] == 4
    assert trace.timesteps.tolist() == [750, 500, 250, 0]


def test_a_motion_is_noised_to_a_level(tiny_pipeline: Any) -> None:
    motion = torch.randn(2, 18, 262, generator=torch.Generator().manual_seed(0))
    trace = trace_motion(tiny_pipeline, motion, level=0.25, prompt="Two people bow.")
    assert trace.chosen.shape == (1, 1, 2, 4, 3)  # 16 of the 18 frames fill groups of four
    np.testing.assert_array_equal(trace.timesteps, [250])
    np.testing.assert_array_equal(trace.joints, motion[:, :16, :66].reshape(2, 16, 22, 3))
    again = trace_motion(tiny_pipeline, motion, level=0.25, prompt="Two people bow.")
    np.testing.assert_array_equal(trace.chosen, again.chosen)
    assert trace_motion(tiny_pipeline, motion, level=0.25).title == "no text"
    with pytest.raises(ValueError, match=r"level: expected a value in \[0, 1\), got 1"):
        trace_motion(tiny_pipeline, motion, level=1)
    with pytest.raises(ValueError, match="motion: expected shape"):
        trace_motion(tiny_pipeline, motion[:, :3], level=0.5)


@pytest.fixture
def trace() -> RoutingTrace:
    """Two calls, two layers, two persons, five tokens, three experts: few enough to know every cell."""
    chosen = np.zeros((2, 2, 2, 5, 3), dtype=np.bool_)
    chosen[:, 0, 0, :, 1] = True  # layer 1, person 1: expert 2 takes all, always
    chosen[0, 1, 1, 2:4, 0] = True  # layer 2, person 2: expert 1 takes two tokens, half the time
    joints = np.random.default_rng(0).normal(size=(2, 10, 22, 3)).astype(np.float32) * 0.2 + np.float32(1)
    return RoutingTrace(chosen, np.array([500, 0]), ("first", "second"), joints, "a <b> & c")


def test_archive_holds_the_numbers(trace: RoutingTrace, tmp_path: Path) -> None:
    trace.save_npz(tmp_path / "routing.npz")
    with np.load(tmp_path / "routing.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["chosen"], trace.chosen)
        np.testing.assert_array_equal(archive["share"][1, 1, :, 0], np.float32([0, 0, 0.5, 0.5, 0]))
        np.testing.assert_array_equal(archive["experts_per_token"], np.float32([[0.5, 0.2], [0.5, 0]]))
        np.testing.assert_array_equal(archive["load"], np.float32([[0, 0.5, 0], [0.1, 0, 0]]))
        assert archive["layers"].tolist() == ["first", "second"]
        assert archive["joints"].shape == (2, 10, 22, 3)


def test_page_shows_the_cells(trace: RoutingTrace, tmp_path: Path) -> None:
    image, _ = pytest.importorskip("PIL.Image"), pytest.importorskip("matplotlib")
    page = draw_routing(trace)
    page.save(tmp_path / "routing.svg")
    page.save(tmp_path / "routing.png")
    texts = words_of(tmp_path / "routing.svg")
    assert {"a <b> & c", "first", "second", "50 %", "10 %", "noise"} <= set(texts)
    with image.open(tmp_path / "routing.png") as picture:
        assert picture.size == (2 * 1120, 2 * 214)
        pixels = np.asarray(picture.convert("RGB"))
    blue = (pixels == (0x24, 0x68, 0xD8)).all(axis=2)
    rows, columns = (np.flatnonzero(blue.any(axis=axis)) for axis in (1, 0))
    assert len(columns) == 2 * 300  # all of the time
    assert columns[0] == 2 * 64
    assert 16 <= len(rows) <= 20  # one expert, between two white lines
    assert 2 * 84 <= rows[0] < rows[-1] < 2 * 94  # the second


def words_of(svg: Path) -> list[str | None]:
    """What is written in a page."""
    return [node.text for node in ElementTree.parse(svg).iter() if node.tag.endswith("text")]


def test_blocks_that_see_other_tokens_are_traced_apart() -> None:
    host = Host().eval()
    with record_routing(host) as record:
        host.blocks[0](torch.randn(2, 5, 8))
        host.blocks[1](torch.randn(2, 3, 8))
    with pytest.raises(ValueError, match="choose blocks that are alike with layers='PATTERN'"):
        trace_record(record)
    trace = trace_record(record, layers="*.1")
    assert trace.layers == ("blocks.1",)
    assert trace.chosen.shape == (1, 1, 1, 3, 4)


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        (["blocks.0.ff.moe", "blocks.1.ff.moe"], ["blocks.0", "blocks.1"]),
        (
            ["blocks.0.ff.moe", "blocks.0.ff_context.moe", "blocks.1.ff.moe"],
            ["blocks.0.ff", "blocks.0.ff_context", "blocks.1.ff"],
        ),
        (["down.1.attention.0.moe", "mid.attention.0.moe"], ["down.1", "mid"]),
        (["layer 1", "layer 2"], ["layer 1", "layer 2"]),
        (["moe", "blocks.0.moe"], ["moe", "blocks.0.moe"]),
        (["a.moe", "a.moe.b"], ["moe", "moe.b"]),
        (["x" * 30], ["x" * 23 + "…"]),
    ],
)
def test_layers_are_told_apart(trace: RoutingTrace, tmp_path: Path, layers: list[str], labels: list[str]) -> None:
    pytest.importorskip("matplotlib")
    chosen = np.repeat(trace.chosen[:1, :1], len(layers), axis=1)
    draw_routing(RoutingTrace(chosen, np.zeros(1, dtype=np.int64), tuple(layers))).save(tmp_path / "a.svg")
    assert [text for text in words_of(tmp_path / "a.svg") if text in labels] == labels


def test_scene_moves_the_line(trace: RoutingTrace) -> None:
    pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    scene = RoutingScene(trace, size=(320, 200))
    assert len(scene) == 10
    assert scene.size[0] % 2 == scene.size[1] % 2 == 0
    first, last = scene.frame(0), scene.frame(9)
    assert first.shape == (scene.size[1], 320, 3)
    columns = [np.flatnonzero((frame[210:-6] == (46, 50, 60)).all(axis=(0, 2))) for frame in (first, last)]
    assert len(columns[0]) == len(columns[1]) == 4  # two pixels for each person
    assert columns[1].min() - columns[0].min() > 50
    with pytest.raises(ValueError, match="trace: expected joints"):
        RoutingScene(RoutingTrace(trace.chosen, trace.timesteps, trace.layers))


def test_a_panel_tells_where_time_runs(trace: RoutingTrace) -> None:
    """Everything at twice the size is everything at once; the first and the last moment are the maps' edges."""
    pytest.importorskip("matplotlib")
    once, twice = routing_panel(trace, 320), routing_panel(trace, 320, scale=2)
    assert twice.image.shape == (2 * once.image.shape[0], 640, 3)
    np.testing.assert_allclose(twice.moments(0.25), 2 * np.array(once.moments(0.25)))
    first, last = twice.moments(0.0), twice.moments(1.0)
    for start, stop in zip(first, last, strict=True):
        inside = twice.image[30, round(start) + 1 : round(stop) - 1]
        assert (inside < 250).any(-1).all()  # no paper between
        assert (twice.image[30, [round(start) - 4, round(stop) + 4]] >= 250).all()


def test_a_trace_is_read_as_it_was_written(trace: RoutingTrace, tmp_path: Path) -> None:
    trace.save_npz(tmp_path / "trace.npz")
    found = read_trace(tmp_path / "trace.npz")
    assert found is not None
    for field in dataclasses.fields(RoutingTrace):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(trace, field.name))
    np.savez(tmp_path / "other.npz", joints=trace.joints)
    assert read_trace(tmp_path / "other.npz") is None
    entries = dict(np.load(tmp_path / "trace.npz"))
    for hurt in ({"chosen": entries["chosen"][0]}, {"layers": entries["layers"][:1]}, {"fps": np.zeros(3)}):
        np.savez(tmp_path / "hurt.npz", **{**entries, **hurt})
        with pytest.raises(ValueError, match=r"hurt\.npz: "):
            read_trace(tmp_path / "hurt.npz")


def test_a_model_without_persons_or_steps_is_drawn(trace: RoutingTrace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chosen = trace.chosen[:1, :, :1]
    page = draw_routing(RoutingTrace(chosen, np.zeros(1, dtype=np.int64), trace.layers, title="from $5 to $6"))
    page.save(tmp_path / "page.svg")
    words = words_of(tmp_path / "page.svg")
    assert {"experts over tokens", "5 tokens", "from $5 to $6"} <= set(words)
    assert "noise" not in words
    before = (tmp_path / "page.svg").read_bytes()
    page.save(tmp_path / "page.svg")
    assert (tmp_path / "page.svg").read_bytes() == before
    with pytest.raises(ValueError, match=r"path: expected a \.png or \.svg file, got page.pdf"):
        page.save("page.pdf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": np.zeros((2, 2, 2, 5, 3))}, "chosen: expected bool"),
        ({"timesteps": np.zeros(3, dtype=np.int64)}, r"timesteps: expected integers of shape \(2,\)"),
        ({"layers": ("one",)}, "layers: expected 2 names, got 1"),
        ({"joints": np.zeros((1, 10, 22, 3), dtype=np.float32)}, r"joints: expected shape \(2, frames, 22, 3\)"),
    ],
)
def test_inconsistent_traces(trace: RoutingTrace, changes: dict[str, Any], message: str) -> None:
    values = {"chosen": trace.chosen, "timesteps": trace.timesteps, "layers": trace.layers, "joints": trace.joints}
    with pytest.raises(ValueError, match=message):
        RoutingTrace(**(values | changes))
