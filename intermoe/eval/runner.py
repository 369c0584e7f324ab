"""The evaluation of a model by a protocol: replications, in pieces that are kept, so that it can stop and go on.

A replication is a list of pieces, each a batch of motion that is embedded or generated and embedded. What a piece holds
is a function of the settings alone, so any process may do any piece, and one that is on disk is not done again. When
all pieces of a replication are there, its numbers are computed and written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from intermoe.config import Config, _require
from intermoe.data.batching import pad_motion
from intermoe.data.captions import swap_caption
from intermoe.data.items import MotionItem
from intermoe.eval.protocol import DIVERSITY_PAIRS, MULTIMODALITY_PAIRS, Protocol
from intermoe.evaluators.bigru import UNIT
from intermoe.evaluators.evaluator import Evaluator
from intermoe.files import locked, read_sealed, write_arrays, write_json, write_sealed
from intermoe.metrics.distribution import diversity, frechet_distance, multimodality, retrieval
from intermoe.reading import read_archive

if TYPE_CHECKING:
    from intermoe.data.dataset import MotionDataset
    from intermoe.pipeline import MotionPipeline

SETTINGS_FILE = "settings.json"
TRUTH, REFERENCE, GENERATED, MULTIMODAL = "truth", "reference", "generated", "multimodal"
"""Roles of pieces: the ground truth that is measured, the one that FID compares with, and generated motion."""
# what a stream of random numbers is for
_CHOICE, _DRAW, _NOISE, _METRICS = 1, 2, 3, 4
_EPOCHS = {TRUTH: 0, REFERENCE: 1, GENERATED: 2, MULTIMODAL: 2}
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class EvaluationSettings(Config):
    """What the numbers depend on; a folder of results belongs to one of these.

    ``model`` and ``evaluator`` are digests of their weights. ``batch_size`` is the protocol's number of motions that a
    text is compared with; ``mm_captions`` texts have ``mm_samples`` motions each for Multimodality.
    """

    data: str
    split: str
    items: int
    model: str
    evaluator: str
    batch_size: int
    seed: int = 0
    mm_captions: int = 100
    mm_samples: int = 30
    num_inference_steps: int = 50
    guidance_scale: float = 3.5
    scheduler: str = "ddim"
    generation_batch: int = 64

    def __post_init__(self) -> None:
        _require(
            2 <= self.batch_size <= self.items, "batch_size", f"a value in [2, {self.items} items]", self.batch_size
        )
        _require(self.seed >= 0, "seed", ">= 0", self.seed)
        _require(
            0 <= self.mm_captions <= self.items, "mm_captions", f"a value in [0, {self.items} items]", self.mm_captions
        )
        _require(self.mm_samples >= 2, "mm_samples", ">= 2", self.mm_samples)
        _require(self.num_inference_steps >= 1, "num_inference_steps", ">= 1", self.num_inference_steps)
        _require(1.0 <= self.guidance_scale < math.inf, "guidance_scale", ">= 1 and finite", self.guidance_scale)
        _require(self.generation_batch >= 1, "generation_batch", ">= 1", self.generation_batch)


@dataclass(frozen=True)
class Piece:
    """A batch of one role: for each motion the item that it is of or that its text and length are of, and a number."""

    role: str
    number: int
    draws: tuple[tuple[int, int], ...]

    @property
    def generated(self) -> bool:
        """Whether its motion is the model's."""
        return self.role in (GENERATED, MULTIMODAL)

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.role}-{self.number:04d}.npz"


def digest(folder: Path) -> str:
    """Which model or evaluator a folder holds, configuration and tokenizer included: 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).exists():
            continue
        hashed.update(f"{name}\0{(folder / name).stat().st_size}\n".encode())
        with open(folder / name, "rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return hashed.hexdigest()[:16]


class Evaluation:
    """One evaluation in one folder.

    Args:
        pipeline, evaluator, dataset, protocol, settings: what is evaluated, with what, on what and how. The data set
            draws windows, captions and persons at random (``training=True``).
        folder: for pieces and numbers; several processes may share it.
        texts: caption to the words that the evaluator reads, for one that reads words.
        keep_motions: keep the generated motion of finished replications.

    Raises:
        ValueError: the folder belongs to other settings, or parts do not fit each other.
    """

    def __init__(
        self,
        pipeline: MotionPipeline,
        evaluator: Evaluator,
        dataset: MotionDataset,
        protocol: Protocol,
        settings: EvaluationSettings,
        folder: Path,
        *,
        texts: Mapping[str, str] | None = None,
        keep_motions: bool = True,
    ) -> None:
        for name, own in (("evaluator", evaluator.representation), ("model", pipeline.representation.name)):
            if own != dataset.data_set.name:
                raise ValueError(f"{name}: expected one for {dataset.data_set.name}, the data, got one for {own}")
        if evaluator.reads_tokens and texts is None:
            raise ValueError("texts: expected words with their part of speech, which the evaluator reads, got none")
        self.pipeline, self.evaluator, self.dataset = pipeline, evaluator, dataset
        self.protocol, self.settings, self.folder = protocol, settings, folder
        self.texts, self.keep_motions = texts, keep_motions

    def open_folder(self) -> None:
        """Make the folder, or check that it belongs to the same settings. For one process, before ``run``."""
        path, now = self.folder / SETTINGS_FILE, self.identity()
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = _read(path)
            changed = [f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]]
            if changed:
                raise ValueError(
                    f"{self.folder}: expected an evaluation with the same settings, got others: {', '.join(changed)}"
                )
        else:
            write_json(path, now)
        for unfinished in (self.folder / "pieces").glob("*/.*.npz"):
            unfinished.unlink()

    def identity(self) -> dict[str, Any]:
        """All that the numbers depend on: the settings, and by content the data, the protocol and the words."""
        protocol = {key: value for key, value in vars(self.protocol).items() if key != "published"}
        words = hashlib.sha256(json.dumps(self.texts and dict(self.texts), sort_keys=True).encode()).hexdigest()[:16]
        return {**self.settings.to_dict(), "content": self.dataset.digest(), "protocol": protocol, "words": words}

    def check(self) -> None:
        """Raise ``ValueError`` that names the item whose captions the model or the evaluator would refuse."""
        for index, name in enumerate(self.dataset.names):
            captions = list(self.dataset.captions(index))
            captions += [swap_caption(caption) for caption in captions if self.protocol.swaps_persons]
            try:
                self.pipeline.check(captions, self.dataset.num_frames(index))
                self.evaluator.check_text([self._words(caption) for caption in captions])
            except ValueError as error:
                where = f"{self.dataset.root}: split {self.dataset.split!r}, item {name!r}"
                raise ValueError(f"{where}: {error}") from error

    def numbers(self, replication: int) -> dict[str, Numbers] | None:
        """Rows of a finished replication, or ``None``."""
        path = self.folder / f"replication-{replication:02d}.json"
        return _read(path) if path.exists() else None

    def pieces(self, replication: int) -> list[Piece]:
        """All pieces of a replication, motions of similar length together."""
        count, size = len(self.dataset), self.settings.generation_batch
        chosen = self._rng(_CHOICE, replication).permutation(count)[: self.settings.mm_captions]
        draws = {
            TRUTH: [(index, 0) for index in range(count)],
            REFERENCE: [(index, 0) for index in range(count)],
            GENERATED: [(index, 0) for index in range(count)],
            MULTIMODAL: [(int(index), 1 + n) for index in chosen for n in range(self.settings.mm_samples)],
        }
        pieces = []
        for role, wanted in draws.items():
            wanted.sort(key=lambda draw: (self.dataset.num_frames(draw[0]), draw))
            parts = [tuple(wanted[start : start + size]) for start in range(0, len(wanted), size)]
            pieces += [Piece(role, number, part) for number, part in enumerate(parts)]
        return pieces

    def missing(self, replication: int) -> list[Piece]:
        """The pieces of a replication that are not on disk; none if its numbers are."""
        if self.numbers(replication) is not None:
            return []
        return [piece for piece in self.pieces(replication) if not (self._place(replication) / piece.file).exists()]

    def do(self, replication: int, piece: Piece) -> None:
        """Make a piece and write it, whole or not at all."""
        place = self._place(replication)
        place.mkdir(parents=True, exist_ok=True)
        arrays = self.make(replication, piece, self.settings.num_inference_steps)
        write_arrays(place / piece.file, arrays)

    def make(self, replication: int, piece: Piece, num_inference_steps: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a piece: its draws, embeddings, and what was generated."""
        items = [self._draw(replication, piece.role, index) for index, _ in piece.draws]
        arrays: dict[str, npt.NDArray[Any]] = {"draws": np.array(piece.draws)}
        motions = [item["motion"] for item in items]
        if piece.generated:
            motions = self.pipeline.sample(
                [item["caption"] for item in items],
                [motion.shape[1] for motion in motions],
                [self._noise_seed(replication, *draw) for draw in piece.draws],
                num_inference_steps=num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                scheduler=self.settings.scheduler,
            )
        padded, lengths = pad_motion(motions)
        with torch.no_grad():
            embedded = self.evaluator.embed_motion(padded.to(self.evaluator.device), lengths)
            arrays["motion_embedding"] = embedded.cpu().numpy()
            if piece.role in (TRUTH, GENERATED):
                texts = [self._words(item["caption"]) for item in items]
                arrays["text_embedding"] = self.evaluator.embed_text(texts).cpu().numpy()
        for key, value in arrays.items():
            wrong = ~np.isfinite(value).reshape(len(items), -1).all(axis=1)
            if wrong.any():
                names = ", ".join(item["name"] for item, bad in zip(items, wrong, strict=True) if bad)
                raise FloatingPointError(f"{piece.file}: expected finite numbers, got others in {key} of items {names}")
        if piece.generated and self.keep_motions:
            captions = np.array([item["caption"] for item in items])
            arrays |= {"motion": padded.numpy(), "lengths": lengths.numpy(), "captions": captions}
        return arrays

    def finish(self, replication: int) -> dict[str, Numbers]:
        """Numbers of a replication whose pieces are all there; written, and returned."""
        parts = {role: self._gather(replication, role) for role in _EPOCHS}
        rng, size = self._rng(_METRICS, replication), self.settings.batch_size
        kept = len(self.dataset) // size * size
        orders = {role: rng.permutation(len(self.dataset))[:kept] for role in (TRUTH, REFERENCE, GENERATED)}
        reference = parts[REFERENCE]["motion_embedding"][orders[REFERENCE]]
        scaling = {"scale": self.protocol.scale, "divide_by": self.protocol.divide_by}
        rows: dict[str, Numbers] = {}
        for row, role in (("ground truth", TRUTH), ("model", GENERATED)):
            motion, text = (parts[role][f"{name}_embedding"][orders[role]] for name in ("motion", "text"))
            found = retrieval(text, motion, size)
            first, second = _pairs(rng, kept, DIVERSITY_PAIRS)
            rows[row] = {
                "fid": frechet_distance(motion, reference, scale=self.protocol.scale),
                **{f"r_precision_{k}": value for k, value in enumerate(found.r_precision, start=1)},
                "mm_dist": found.mm_dist,
                "diversity": diversity(motion, first, second, **scaling),
                "multimodality": None,
                "multimodality_scaled": None,
            }
        if self.settings.mm_captions:
            samples = self.settings.mm_samples
            embedded = parts[MULTIMODAL]["motion_embedding"].reshape(self.settings.mm_captions, samples, -1)
            first, second = _pairs(rng, samples, MULTIMODALITY_PAIRS)
            rows["model"]["multimodality"] = multimodality(embedded, first, second)
            rows["model"]["multimodality_scaled"] = multimodality(embedded, first, second, **scaling)
        write_sealed(self.folder / f"replication-{replication:02d}.json", rows)
        if not self.keep_motions:
            for piece in self.pieces(replication):
                (self._place(replication) / piece.file).unlink()
            self._place(replication).rmdir()
        return rows

    def _draw(self, replication: int, role: str, index: int) -> MotionItem:
        epoch = len(set(_EPOCHS.values())) * replication + _EPOCHS[role]
        item = self.dataset.draw(index, epoch)
        flip, start, shorter = self._rng(_DRAW, epoch, index).random(3)
        motion, caption = item["motion"], item["caption"]
        if self.protocol.swaps_persons and flip < 0.5:
            motion, caption = motion.flip(0), swap_caption(caption)
        if self.protocol.crops:
            length = max(motion.shape[1] // UNIT - int(shorter < 1 / 3), 1) * UNIT
            start = int(start * (motion.shape[1] - length + 1))
            motion = motion[:, start : start + length]
        return {"name": item["name"], "motion": motion, "caption": caption}

    def _words(self, caption: str) -> str:
        if not self.evaluator.reads_tokens or self.texts is None:
            return caption
        if caption not in self.texts:
            raise ValueError(
                f"texts: expected words with their part of speech for every caption, got none for {caption!r}"
            )
        return self.texts[caption]

    def _gather(self, replication: int, role: str) -> dict[str, npt.NDArray[np.floating]]:
        """Embeddings of all pieces of a role, in the order of their draws."""
        files = [self._place(replication) / piece.file for piece in self.pieces(replication) if piece.role == role]
        draws, found = [], []
        for file in files:
            try:
                arrays = read_archive(file)
                draws += [tuple(draw) for draw in arrays["draws"].tolist()]
                found.append({key: value for key, value in arrays.items() if key.endswith("_embedding")})
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"{file}: expected a whole piece (remove it and go on): {error}") from error
        order = sorted(range(len(draws)), key=draws.__getitem__)
        return {key: np.concatenate([part[key] for part in found])[order] for key in (found[0] if found else ())}

    def _place(self, replication: int) -> Path:
        return self.folder / "pieces" / f"{replication:02d}"

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, *key))

    def _noise_seed(self, replication: int, index: int, sample: int) -> int:
        return int(self._rng(_NOISE, replication, index, sample).integers(2**63))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected a file of this evaluation (remove it and go on): {error}") from error


def _pairs(
    rng: np.random.Generator, count: int, wanted: int
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """``wanted`` pairs drawn as published, each side without repetition; with fewer motions each and another one."""
    first = rng.permutation(count)[:wanted]
    return first, rng.permutation(count)[:wanted] if count > wanted else np.roll(first, 1)


def evaluate(
    evaluation: Evaluation,
    replications: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    wait: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Numbers]]:
    """Do what is missing of an evaluation, and return the rows of its replications.

    Args:
        rank, ranks: this process and how many share the work and the folder.
        wait: returns when all processes call it.
        progress: called as ``progress(pieces_done, pieces)``, of this process.
    """
    evaluation.check()
    with ExitStack() as stack:
        if rank == 0:
            evaluation.folder.mkdir(parents=True, exist_ok=True)
            refusal = f"{evaluation.folder}: another process is evaluating here"
            stack.enter_context(locked(evaluation.folder / ".lock", refusal))
            evaluation.open_folder()
        wait()
        mine = [evaluation.missing(number)[rank::ranks] for number in range(replications)]
        wait()
        done, total = 0, sum(map(len, mine))
        for number, pieces in enumerate(mine):
            for piece in pieces:
                evaluation.do(number, piece)
                done += 1
                if progress is not None:
                    progress(done, total)
            wait()
            if rank == 0 and evaluation.numbers(number) is None:
                evaluation.finish(number)
        wait()
        return [rows for number in range(replications) if (rows := evaluation.numbers(number)) is not None]
