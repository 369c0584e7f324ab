"""The text encoder that a run starts with: what is made from the captions, what is kept, what a resumed run reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from intermoe.checkpoints import load_safetensors
from intermoe.files import write_tensors
from intermoe.text.clip import ClipTower
from intermoe.text.protocol import TextConfig
from intermoe.text.sentence import SentenceTextEncoder
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import condition
from intermoe.train.condition import keep_tokenizer, prepare_text, train_word_pieces
from intermoe.train.config import DataConfig, TrainConfig


class Captions:
    """Two items with two captions and one."""

    lines = (("the first turns left", "a bow"), ("they wait",))

    def __len__(self) -> int:
        return len(self.lines)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.lines[index]


ALL = [
    "the first turns left", "a bow", "they wait", "the first turns right", "a bow", "they wait",
    "the second turns left", "a bow", "they wait", "the second turns right", "a bow", "they wait",
]  # fmt: skip
CONFIG = TrainConfig(seed=4, data=DataConfig(mirror=True, swap_persons=True))
ALONE: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


class Sentences(SentenceTextEncoder):
    """A frozen number, and a weight that is drawn; writes down what it is made from."""

    def __init__(self, config: Any, tokenizer: str | None) -> None:
        nn.Module.__init__(self)
        self.tokenizer_json = str(tokenizer)
        self.weight = nn.Parameter(torch.randn(2))
        self.register_buffer("frozen", torch.zeros(2))
        self.taken: list[tuple[str, list[str]]] = []

    def take_encoder(self, name_or_path: str, captions: list[str]) -> None:
        self.taken.append((name_or_path, captions))
        self.frozen.fill_(7.0)


class Tower(ClipTower):
    def __init__(self, config: Any, tokenizer: str | None) -> None:
        nn.Module.__init__(self)
        self.loaded = 0

    def encode_tokens(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of this file by the kind's name; the sentence encoder's tokenizer is told by name and captions."""
    kinds = {"sentence": Sentences, "clip": Tower}
    monkeypatch.setattr(condition, "build_text_encoder", lambda text, tokenizer: kinds[text.kind](text, tokenizer))
    monkeypatch.setattr(condition, "sentence_encoder_tokenizer", lambda name: f"tokenizer of {name}")
    monkeypatch.setattr(condition, "without_other_scripts", lambda whole, captions: f"{whole} for {captions}")
    monkeypatch.setattr(condition, "load_tower", lambda encoder: setattr(encoder, "loaded", encoder.loaded + 1))


def prepare(folder: Path, *, resume: bool, kind: str = "sentence") -> Any:
    text: Any = SimpleNamespace(kind=kind, name_or_path="there")
    return prepare_text(CONFIG, text, Captions(), folder, resume=resume)  # type: ignore[arg-type]


@pytest.mark.usefixtures("built")
def test_a_sentence_encoder_is_fitted_to_all_captions_and_read_again(tmp_path: Path) -> None:
    first = prepare(tmp_path, resume=True)  # there is nothing to go on with yet
    assert first.tokenizer_json == f"tokenizer of there for {ALL}"
    assert first.taken == [("there", ALL)]
    assert not list(tmp_path.iterdir()), "nothing is written before the folder is the run's"
    keep_tokenizer(ALONE, first, tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frozen.safetensors", "tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == first.tokenizer_json
    frozen = load_safetensors(tmp_path / "frozen.safetensors")
    assert list(frozen) == ["frozen"], "what is trained is in the checkpoints"
    assert frozen["frozen"].tolist() == [7.0, 7.0]

    write_tensors(tmp_path / "frozen.safetensors", {"frozen": torch.tensor([1.0, 2.0])})
    (tmp_path / "tokenizer.json").write_text("kept", encoding="utf-8")
    again = prepare(tmp_path, resume=True)
    assert (again.tokenizer_json, again.taken) == ("kept", [])
    assert again.frozen.tolist() == [1.0, 2.0]
    assert torch.equal(again.weight, first.weight), "drawn from the run's seed"
    keep_tokenizer(ALONE, again, tmp_path, resume=True)
    anew = prepare(tmp_path, resume=False)
    assert (anew.tokenizer_json, anew.taken) == (first.tokenizer_json, [("there", ALL)])
    keep_tokenizer(ALONE, anew, tmp_path, resume=True)
    assert load_safetensors(tmp_path / "frozen.safetensors")["frozen"].tolist() == [1.0, 2.0]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == "kept"
    keep_tokenizer(ALONE, anew, tmp_path, resume=False)
    assert load_safetensors(tmp_path / "frozen.safetensors")["frozen"].tolist() == [7.0, 7.0]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == first.tokenizer_json


@pytest.mark.usefixtures("built")
def test_a_tower_gets_its_weights_and_leaves_no_files(tmp_path: Path) -> None:
    tower = prepare(tmp_path, resume=False, kind="clip")
    assert tower.loaded == 1
    keep_tokenizer(ALONE, tower, tmp_path, resume=False)
    assert not list(tmp_path.iterdir())


def test_word_pieces_are_as_many_as_configured_and_lie_alone(tmp_path: Path) -> None:
    sizes = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8}
    for count in (48, 55):
        text = TextConfig(kind="wordpiece", vocab_size=count, **sizes)
        encoder = prepare_text(CONFIG, text, Captions(), tmp_path, resume=False)  # type: ignore[arg-type]
        assert isinstance(encoder, WordPieceTextEncoder)
        expected = WordPieceTextEncoder.train_tokenizer(ALL, count)
        assert encoder.tokenizer_json == train_word_pieces(CONFIG, text, Captions()) == expected  # type: ignore[arg-type]
    keep_tokenizer(ALONE, encoder, tmp_path, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == encoder.tokenizer_json
