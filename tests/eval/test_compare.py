"""What a comparison measures of one system: cost, motion and embeddings, by hand on a system that only counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intermoe.eval import compare
from intermoe.eval.compare import ComparisonSettings, _of_each_person, cost, measure_system, measure_truth, prompts_of
from intermoe.eval.protocol import PROTOCOLS
from intermoe.metrics.identity import SWAP_THRESHOLD
from intermoe.metrics.kinematics import bone_variation, jitter
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.nn.moe import InterMoEBlock
from intermoe.pipeline import ModelConfig
from intermoe.text.protocol import TextEncoder


class Dataset:
    """Items of 20, 24 and 30 frames with two or three captions."""

    data_set = SimpleNamespace(representation=REPRESENTATIONS["interhuman"], name="interhuman")
    root, split, names = "folder", "val", ("x", "y", "z")
    frames = (20, 24, 30)
    words = (("a", "b", "c"), ("d", "e"), ("f", "g"))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"motion": torch.randn(2, self.frames[index], 262, generator=generator)}

    def num_frames(self, index: int) -> int:
        return self.frames[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return self.words[index]


class Counting:
    """Motion is a product with one matrix, as often as there are steps; it notes what it is asked for."""

    config = ModelConfig()
    representation = REPRESENTATIONS["interhuman"]

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 262, bias=False)
        self.calls: list[dict[str, Any]] = []

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"layer": self.layer}

    def check(self, prompts: list[str], num_frames: int) -> None:
        if prompts == ["refused"]:
            raise ValueError("prompts: refused")

    def sample(self, prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> list[Tensor]:
        self.calls.append({"prompts": list(prompts), "lengths": list(lengths), "seeds": list(seeds), **settings})
        made = []
        for length, seed in zip(lengths, seeds, strict=True):
            noise = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(seed))
            for _ in range(settings["num_inference_steps"]):
                motion = self.layer(noise)
            made.append(motion)
        return made


def test_cost_by_hand() -> None:
    pipeline: Any = Counting()
    found = cost(pipeline, Dataset(), steps=3, guidance=1.0)  # type: ignore[arg-type]
    assert found["flops"] == 3 * 2 * (2 * 24) * 5 * 262 / 1e9  # two for each multiply-add, of the middle length
    assert found["parameters"] == 5 * 262 / 1e6
    assert found["experts_per_token"] is None
    assert found["seconds"] > 0


class Viewing(Counting):
    """Its network is called with a row of one of its parameters, as masked transformers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 5)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"layer": self.layer, "table": self.table}

    def sample(self, prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> list[Tensor]:
        self.layer(self.table.weight[1])
        return super().sample(prompts, lengths, seeds, **settings)


def test_a_view_of_a_parameter_is_counted_too() -> None:
    pipeline: Any = Viewing()
    with torch.no_grad():
        found = cost(pipeline, Dataset(), steps=1, guidance=1.0)  # type: ignore[arg-type]
    assert found["flops"] == 2 * (2 * 24 + 1) * 5 * 262 / 1e9


def test_settings_reach_the_generation() -> None:
    pipeline: Any = Counting()
    settings = ComparisonSettings(seed=2, steps=4, guidance=1.5, captions=2, batch_size=4)
    found = measure_system(pipeline, Dataset(), settings)  # type: ignore[arg-type]
    of_items = pipeline.calls[:2]
    assert [len(call["prompts"]) for call in of_items] == [4, 2]
    asked = [row for call in of_items for row in zip(call["prompts"], call["lengths"], call["seeds"], strict=True)]
    # first captions of all items, then second ones; seeds by place; short ones together
    wanted = [("a", 20, 12), ("d", 24, 13), ("f", 30, 14), ("b", 20, 15), ("e", 24, 16), ("g", 30, 17)]
    assert sorted(asked) == sorted(wanted)
    assert [length for _, length, _ in asked] == [20, 20, 24, 24, 30, 30]
    assert {(call["num_inference_steps"], call["guidance_scale"]) for call in pipeline.calls} == {(4, 1.5)}
    assert np.isfinite(found["jitter"])
    assert "fid" not in found  # nobody judges

    pipeline = Counting()
    measure_system(pipeline, Dataset(), ComparisonSettings())  # type: ignore[arg-type]
    assert {(call["num_inference_steps"], call["guidance_scale"]) for call in pipeline.calls} == {(50, 3.5)}


def test_as_many_captions_as_every_item_has() -> None:
    dataset: Any = Dataset()
    assert prompts_of(dataset, 9) == [(0, "a"), (1, "d"), (2, "f"), (0, "b"), (1, "e"), (2, "g")]
    assert prompts_of(dataset, 1) == [(0, "a"), (1, "d"), (2, "f")]


@pytest.mark.parametrize("captions", [1, 2])
def test_the_data_are_measured_with_the_captions_that_systems_are_asked_for(captions: int) -> None:
    """By a judge to whom every motion is a place of its own, and a caption the one of its item, but for the last."""
    dataset: Any = Dataset()
    asked = [words[turn] for turn in range(captions) for words in dataset.words]
    seen: list[Any] = []

    def embed_motion(motion: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([torch.tensor([float(dataset.frames.index(n)), 0.0]) for n in lengths.tolist()])

    def embed_text(texts: list[str]) -> Tensor:
        seen.append(list(texts))
        items = [next(i for i, words in enumerate(dataset.words) if text in words) for text in texts]
        return torch.tensor([[float(item), 0.0] for item in [*items[:-1], 1]])  # the last one's item is number 2

    judge: Any = SimpleNamespace(
        representation="interhuman", device="cpu", embed_motion=embed_motion, embed_text=embed_text
    )
    found = measure_truth(dataset, ComparisonSettings(captions=captions), judge)
    assert seen == [asked]
    assert found["r_precision_1"] == pytest.approx((3 * captions - 1) / (3 * captions))
    assert found["mm_dist"] == pytest.approx(1 / (3 * captions))
    # of neighbours in the order of the captions 1, 1 and 2 apart, as interhuman's protocol has it three times as much
    assert found["diversity"] == pytest.approx(3 * 4 / 3)
    assert "fid" not in found
    assert measure_truth(dataset, ComparisonSettings(captions=captions))["jitter"] == found["jitter"]


def test_what_a_system_refuses_is_told_before_it_works() -> None:
    pipeline: Any = Counting()
    dataset: Any = Dataset()
    dataset.words = (("a",), ("refused",), ("b",))
    with pytest.raises(ValueError, match="folder: split 'val', item 'y': prompts: refused"):
        measure_system(pipeline, dataset, ComparisonSettings())
    assert not pipeline.calls


class Told(TextEncoder):
    """A text encoder of seven numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7))

    def forward(self, prompts: Any) -> Tensor:
        return self.weight.expand(len(prompts), 7)


class Routed(Counting):
    """Its frames pass a block of which every expert takes its share: ``capacity`` experts a token."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Told()
        self.block = InterMoEBlock(8, 4, 8, cond_dim=None, capacity=1.5, routing="expert_choice")

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"layer": self.layer, "text": self.text, "block": self.block}

    def sample(self, prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> list[Tensor]:
        self.block(torch.randn(2, lengths[0], 8))
        return super().sample(prompts, lengths, seeds, **settings)


def test_text_encoders_cost_no_parameters_and_experts_are_counted_by_token() -> None:
    pipeline: Any = Routed()
    with torch.no_grad():
        found = cost(pipeline, Dataset(), steps=1, guidance=1.0)  # type: ignore[arg-type]
    block = sum(parameter.numel() for parameter in pipeline.block.parameters())
    assert found["parameters"] == (5 * 262 + block) / 1e6
    assert found["experts_per_token"] == 1.5  # each of 4 experts takes 1.5 / 4 of the 48 tokens


def test_one_person_alone_by_hand() -> None:
    """Floor by frames, sliding by contacts: 4 frames 8 cm below it and 12 above, feet that slide in the short one."""
    joints = [np.full((1, frames, 22, 3), height) for frames, height in ((4, -0.08), (12, 0.5))]
    joints[0][0, :, :, 0] += 0.5 * np.arange(4)[:, None]
    joints[1][0, :, 10, 1] = 0.0
    found = _of_each_person(joints, 30.0)
    assert found["floor_penetration_cm"] == pytest.approx(8.0 * 4 / 16)
    assert found["foot_skating_share"] == pytest.approx(100 * 6 / (6 + 11))
    assert _of_each_person([joints[1] + 5.0], 30.0)["foot_skating_share"] is None
    for rate in (20.0, 30.0):  # averages weigh every clip alike
        found = _of_each_person(joints, rate)
        assert found["jitter"] == pytest.approx(sum(jitter(each, fps=rate) for each in joints) / 2)
        assert found["bone_variation"] == pytest.approx(sum(bone_variation(each) for each in joints) / 2)


class Numbered:
    """An evaluator that embeds a motion as its first number, and a caption as the number that it is."""

    representation, device = "interhuman", torch.device("cpu")

    def embed_motion(self, motion: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([motion[:, 0, 0, 0], torch.zeros(len(motion))], dim=1)

    def embed_text(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(text), 0.0] for text in texts])


@pytest.mark.parametrize("published", [True, False])
def test_embeddings_are_compared_by_hand(published: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text finds its own motion; the second motion would rather find the third text. Without a protocol numbers
    are as they are."""
    if not published:
        monkeypatch.setattr(compare, "PROTOCOLS", {})
    made, truth = [0.2, 1.6, 2.1], [1.0, 2.0, 6.0]

    def of(value: float) -> Tensor:
        return torch.full((2, 4, 262), value)

    dataset: Any = type(
        "Items", (), {"__len__": lambda self: 3, "__getitem__": lambda self, i: {"motion": of(truth[i])}}
    )()
    evaluator: Any = Numbered()
    found = compare._of_embeddings([(of(m), t) for m, t in zip(made, "012", strict=True)], dataset, evaluator)
    assert [found[f"r_precision_{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert found["mm_dist"] == pytest.approx((0.2 + 0.6 + 0.1) / 3, rel=1e-6)
    protocol = PROTOCOLS["interhuman"] if published else SimpleNamespace(scale=1.0, divide_by=1.0)
    apart = (np.mean(made) - np.mean(truth)) ** 2 + (np.std(made, ddof=1) - np.std(truth, ddof=1)) ** 2
    assert found["fid"] == pytest.approx(protocol.scale**2 * apart, rel=1e-5)
    diverse = np.mean([1.4, 0.5, 1.9]) * protocol.scale / protocol.divide_by
    assert found["diversity"] == pytest.approx(diverse, rel=1e-5)


def test_identities_are_shares_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four clips one has its persons exchanged, and two merge into each other."""
    values = iter(
        SimpleNamespace(bone_inconsistency=bones, swap_score=SWAP_THRESHOLD + swap, separation_cm=apart)
        for bones, swap, apart in ((1.0, 0.1, 14.9), (2.0, -0.1, 15.1), (3.0, -1.0, 300.0), (6.0, -2.0, 0.5))
    )
    monkeypatch.setattr(compare, "measure_identity", lambda joints, *, fps: next(values))
    monkeypatch.setattr(compare, "measure", lambda *_, **__: {"clips": 4})
    dataset: Any = Dataset()
    motion = torch.randn(2, 300, 262)
    found = compare._of_motion([(motion, "they bow")] * 4, dataset)
    assert (found["bone_inconsistency"], found["swaps"], found["merges"]) == (3.0, 25.0, 50.0)


def test_judged_are_only_motions_of_as_many_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_of_motion", lambda *_: {})
    monkeypatch.setattr(compare, "_of_embeddings", lambda *_: {"fid": 1.0})
    dataset: Any = Dataset()
    pair, alone = (
        SimpleNamespace(representation=SimpleNamespace(persons=persons))
        for persons in (2, 1)
    )  # fmt: skip
    evaluator: Any = Numbered()
    found = [
        compare._judged([], pipeline, dataset, judge)
        for pipeline, judge in ((pair, evaluator), (alone, evaluator), (pair, None))
    ]  # type: ignore[arg-type]
    assert found == [{"fid": 1.0}, {}, {}]


def test_a_column_of_nothing_but_zeros_is_one() -> None:
    report = compare.ComparisonReport({"a": {"swaps": 0.0, "fid": None}}, (), {})
    assert report.table() == [["system", "identity: swaps (%)"], ["a", "0"]]
