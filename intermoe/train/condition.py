"""The text encoder that a training run starts with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from intermoe.data.dataset import MotionDataset
from intermoe.files import replacing
from intermoe.pipeline import TOKENIZER_FILE
from intermoe.text.build import build_text_encoder
from intermoe.text.clip import ClipTextEncoder
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import run
from intermoe.train.clip import load_tower
from intermoe.train.config import TrainConfig
from intermoe.train.denoiser import training_captions


def prepare_text(
    accelerator: Accelerator, config: TrainConfig, text: TextConfig, train: MotionDataset, output_dir: Path
) -> TextEncoder:
    """A text encoder drawn from the seed, with word pieces of the captions or with the pretrained CLIP tower.

    Writes ``tokenizer.json`` into ``output_dir`` where word pieces are trained; a resumed run reads it.
    """
    tokenizer = None
    if text.kind == "wordpiece":
        write = functools.partial(_train_tokenizer, config, text, train)
        tokenizer = run.once(accelerator, output_dir / TOKENIZER_FILE, write).read_text(encoding="utf-8")
    torch.manual_seed(config.seed)
    encoder = build_text_encoder(text, tokenizer)
    if isinstance(encoder, ClipTextEncoder):
        load_tower(encoder)
    return encoder


def _train_tokenizer(config: TrainConfig, text: TextConfig, train: MotionDataset, path: Path) -> None:
    captions = training_captions(cast(Any, config), train)
    with replacing(path) as temporary:
        temporary.write_text(WordPieceTextEncoder.train_tokenizer(captions, text.vocab_size), encoding="utf-8")
