"""The text encoder that a training run starts with."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from accelerate import Accelerator

from intermoe.checkpoints import load_safetensors
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.dataset import MotionDataset
from intermoe.files import write_tensors, write_text
from intermoe.hub import TOKENIZER_FILE
from intermoe.reading import read_text
from intermoe.text.build import build_text_encoder
from intermoe.text.clip import ClipTower
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.text.sentence import SentenceTextEncoder, sentence_encoder_tokenizer, without_other_scripts
from intermoe.text.tower import load_tower
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import run
from intermoe.train.config import TrainConfig

FROZEN_FILE = "frozen.safetensors"


def prepare_text(
    config: TrainConfig, text: TextConfig, train: MotionDataset, output_dir: Path, *, resume: bool
) -> TextEncoder:
    """A text encoder drawn from the seed, with word pieces of the captions or what comes from a pretrained encoder.

    Word pieces are those of the run in ``output_dir`` on ``resume``. Nothing is written yet: see ``keep_tokenizer``.
    """
    tokenizer, path = None, output_dir / TOKENIZER_FILE
    known = resume and path.exists()
    if text.kind == "wordpiece":
        tokenizer = read_text(path) if known else train_word_pieces(config, text, train)
    elif text.kind == "sentence":
        whole = None if known else sentence_encoder_tokenizer(str(text.name_or_path))
        tokenizer = read_text(path) if whole is None else without_other_scripts(whole, training_captions(config, train))
    torch.manual_seed(config.seed)
    encoder = build_text_encoder(text, tokenizer)
    if isinstance(encoder, ClipTower):
        load_tower(encoder)
    if isinstance(encoder, SentenceTextEncoder):
        if known:  # as the tokenizer: the sentence encoder is not needed again
            encoder.load_state_dict(load_safetensors(output_dir / FROZEN_FILE), strict=False)
        else:
            encoder.take_encoder(str(text.name_or_path), training_captions(config, train))
    return encoder


def keep_tokenizer(accelerator: Accelerator, text: TextEncoder, output_dir: Path, *, resume: bool) -> None:
    """Write ``tokenizer.json`` of an encoder with word pieces of its own into the run's folder, and a frozen part."""
    if isinstance(text, SentenceTextEncoder):
        frozen = dict(text.named_buffers())
        run.once(accelerator, output_dir / FROZEN_FILE, lambda path: write_tensors(path, frozen), resume=resume)
    if isinstance(text, (WordPieceTextEncoder, SentenceTextEncoder)):
        write = functools.partial(write_text, content=str(text.tokenizer_json))
        run.once(accelerator, output_dir / TOKENIZER_FILE, write, resume=resume)


def train_word_pieces(config: TrainConfig, text: TextConfig, train: MotionDataset) -> str:
    """The word pieces of all captions that training can show."""
    return WordPieceTextEncoder.train_tokenizer(training_captions(config, train), text.vocab_size)


def training_captions(config: TrainConfig, train: MotionDataset) -> list[str]:
    """Every caption that training can show: as written, mirrored and with the persons exchanged, as configured."""
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    if config.data.mirror:
        captions += [mirror_caption(caption) for caption in captions]
    if config.data.swap_persons:
        captions += [swap_caption(caption) for caption in captions]
    return captions
