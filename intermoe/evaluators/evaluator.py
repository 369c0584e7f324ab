"""What an evaluator is: two encoders that put motion and its description into one space."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from intermoe.checkpoints import load_module, load_safetensors
from intermoe.config import Config
from intermoe.files import write_json, write_tensors, write_text
from intermoe.reading import read_json, read_text
from intermoe.registry import Registry
from intermoe.systems.files import to_be_filled

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"


class Evaluator(nn.Module, ABC):
    """Embeds motion and text so that what belongs together is near; the learned ruler of all metrics but kinematics.

    ``representation`` names the motion it reads. ``kind`` is the evaluator's name in ``EVALUATORS`` and in a
    folder's ``config.json``; it is built from a ``config_type`` and the content of its ``tokenizer.json``.
    ``reads_tokens`` says what ``embed_text`` takes: captions, or captions as words with their part of speech.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[Config]]
    reads_tokens: ClassVar[bool] = False
    config: Config
    representation: str
    tokenizer_json: str | None = None

    @abstractmethod
    def embed_motion(self, motion: Tensor, lengths: Tensor) -> Tensor:
        """Motion (B, P, T, ...) in the data's own representation, not normalised, of ``lengths`` (B,) frames: (B, E).

        What lies beyond a motion's length has no influence.
        """

    @abstractmethod
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Descriptions (B strings): (B, E)."""

    def check_text(self, texts: Sequence[str]) -> None:
        """Raise ``ValueError`` for what ``embed_text`` would refuse in ``texts``, without its work."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


EVALUATORS: Registry[type[Evaluator]] = Registry(
    "kind",
    {
        "interclip": "intermoe.evaluators.interclip:InterClip",
        "bigru": "intermoe.evaluators.bigru:BiGRUEvaluator",
    },
)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Which weights these are: 16 hexadecimal digits of their names, types, shapes and values."""
    content = hashlib.blake2b(digest_size=8)
    for name, value in sorted(tensors.items()):
        content.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def save_evaluator(folder: str | Path, evaluator: Evaluator) -> None:
    """Write config.json, model.safetensors and, for an own tokenizer, tokenizer.json; each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in evaluator.state_dict().items()}
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    if evaluator.tokenizer_json is not None:
        write_text(folder / TOKENIZER_FILE, evaluator.tokenizer_json)
    values = {"kind": evaluator.kind, **evaluator.config.to_dict()}
    write_json(folder / CONFIG_FILE, values)


def load_evaluator(folder: str | Path, *, device: str | torch.device = "cpu") -> Evaluator:
    """The evaluator of a folder that ``save_evaluator`` wrote, in eval mode and frozen.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is broken or does not fit the others; named.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"evaluator: {folder} holds no {name}; 'intermoe train evaluator' makes such a folder, and so does "
                "'intermoe convert' of a published evaluator's checkpoint"
            )
    path = folder / CONFIG_FILE
    values = read_json(path)
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    tokenizer = folder / TOKENIZER_FILE
    content = read_text(tokenizer) if tokenizer.exists() else None
    if not isinstance(kind, str) or kind not in EVALUATORS:
        raise ValueError(f"{path}: kind: expected one of {tuple(EVALUATORS)}, got {kind!r}")
    build: Any = EVALUATORS[kind]
    try:
        with to_be_filled(folder / WEIGHTS_FILE):
            evaluator: Evaluator = build(build.config_type.from_dict(values), content)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    load_module(evaluator, load_safetensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return evaluator.to(device).eval().requires_grad_(False)
