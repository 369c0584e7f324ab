"""Files that were cut, edited or exchanged: never an error that nothing catches, always a name, the others are used.

Each reader gets files that it can read, of which one is spoilt at a time; with ``pytest -m fuzz`` ten thousand times.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import export
from intermoe.checkpoints import read_checkpoint
from intermoe.cli.generate import _collect_prompts
from intermoe.data import DATA_SETS, MotionDataset, prepare
from intermoe.data.interx import load_skeleton
from intermoe.data.sets import train_statistics
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train.config import DenoiserTrainConfig

FEW, MANY = 25, 10_000
CAPTION = "the first person turns left\nboth walk, in 2 steps\n"
YAML = """\
seed: 3
data: {batch_size: 4, min_frames: 16, max_frames: 60, mirror: true}
optim:
  steps: 20  # few
  warmup_steps: 1
  learning_rate: 2.0e-4
  betas: [0.9, 0.999]
  mixed_precision: "no"
text_pretraining: {steps: 0}
"""
FOREIGN = (
    b"",
    b"[]",
    b"{}",
    b"null",
    b'{"mean": [1], "std": [NaN]}',
    b"two people\n",
    "caf\u00e9\n".encode("latin-1"),
    "two people\n".encode("utf-16"),
    b"\xef\xbb\xbf1\r\n\r2\x0c\n",
    b"../../1\n/1\n",
    b"PK\x03\x04" + bytes(40),
    b"\x89HDF\r\n\x1a\n" + bytes(90),
    bytes(300),
    b"\x80\x02}q\x00.",
)


@dataclass
class Reader:
    """``files`` to spoil, one at a time; ``read(file)`` reads them all and checks what is told of ``file``."""

    files: list[Path]
    read: Callable[[Path], None]
    foreign: Sequence[bytes] = field(default=FOREIGN)


def spoil(content: bytes, rng: np.random.Generator, foreign: Sequence[bytes]) -> bytes:
    """``content`` with one thing wrong."""
    data = bytearray(content)
    size = len(data)
    # headers are where most can go wrong
    place = int(rng.integers(min(size, 256) if rng.random() < 0.5 else size)) if size else 0
    length = int(rng.integers(1, 16))
    noise = rng.integers(256, size=length, dtype=np.uint8).tobytes()
    kind = int(rng.integers(10))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        return foreign[int(rng.integers(len(foreign)))]
    if kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = noise
    elif kind == 4:
        data[place : place + length] = bytes([int(rng.choice([0, 0xFF, 0x7F, 0x20]))]) * length
    elif kind == 5:
        data[place:place] = data[place : place + 40 * length]
    elif kind == 6:
        return _reencoded(content, rng)
    elif kind == 7:  # a number
        digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
        if digits:
            written = (b"-1", b"0", b"007", b"nan", b"1e999", b'"5"', b"null", b"[1]", b"1.5", b"true", b"{}")
            data[(at := digits[int(rng.integers(len(digits)))]) : at + 1] = written[int(rng.integers(len(written)))]
    else:
        for _ in range(kind - 7):
            data[int(rng.integers(size)) if size else 0 :][:1] = noise[:1]
            if size:
                data[int(rng.integers(min(size, 128)))] ^= 1 << int(rng.integers(8))
                data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _reencoded(content: bytes, rng: np.random.Generator) -> bytes:
    text = content.decode("latin-1")
    forms = (
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-32-be"),
        lambda: ("\ufeff" + text).encode(),
        lambda: text.replace("\n", "\r").encode("latin-1"),
        lambda: text.replace("e", "\u00e9").encode("latin-1"),
        lambda: text.replace(" ", "\u2028").encode(),
        lambda: text.replace(" ", "\0", 1).encode("latin-1"),
        lambda: text.replace("\n", "\x0c\n").encode("latin-1"),
    )
    return forms[int(rng.integers(len(forms)))]()


def told(file: Path, read: Callable[[], Any], *, by: str | None = None) -> Any:
    """What ``read`` gives, or ``None`` where it refuses ``file`` by name, as what a user can mend."""
    try:
        return read()
    except (ValueError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
    if (by or file.name) not in message:
        pytest.fail(f"{file.name} is not named: {message}")
    return None


def motion_reader(name: str, root: Path, lists: Sequence[Path], items: dict[str, Sequence[Path]]) -> Reader:
    """``items`` are the files of each item, which is told by its name and the file's, and stops no other."""
    data_set = DATA_SETS[name]
    options: dict[str, Any] = {"min_frames": 4, "mirror": data_set.mirror is not None}
    owner = {file: item for item, files in items.items() for file in files}

    def read(file: Path) -> None:
        opened = told(file, lambda: MotionDataset(data_set, root, "train", **options), by=file.stem)
        if file in owner:
            assert opened is not None, "one item stops all"
            assert {clip.split("@")[0] for clip in opened.names} >= items.keys() - {owner[file]}
        if opened is None:
            return
        for index in range(len(opened)):
            assert all(torch.isfinite(opened.draw(index, epoch)["motion"]).all() for epoch in range(2))
            assert all(caption.strip() for caption in opened.captions(index))
        lost = [detail for details in opened.report.problems.values() for detail in details]
        if file in owner and lost:
            assert len(lost) == 1
            assert owner[file] in lost[0]
            assert file.name in lost[0] or "shorter than" in str(opened.report.problems)
        if lost:
            with pytest.raises(ValueError, match="items cannot be used"):
                MotionDataset(data_set, root, "train", **options, strict=True)
        # nothing is lost without a word: a name is used, or told
        assert len({clip.split("@")[0] for clip in opened.names}) + len(lost) >= len(
            set(_names(root, data_set, opened))
        )

    return Reader([*lists, *owner], read)


def _names(root: Path, data_set: Any, opened: MotionDataset) -> list[str]:
    return data_set.reader(root).names(opened.split)[0]


def interhuman(folder: Path, rng: np.random.Generator) -> Reader:
    for part in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
        (folder / part).mkdir(parents=True)
    items = {}
    for item in ("11", "22", "33"):
        files = [folder / "motions_processed" / person / f"{item}.npy" for person in ("person1", "person2")]
        for file in files:
            np.save(file, rng.normal(size=(8, 492)).astype(np.float32))
        (folder / "annots" / f"{item}.txt").write_text(CAPTION)
        items[item] = [*files, folder / "annots" / f"{item}.txt"]
    (folder / "split" / "train.txt").write_text("11\n22\n33\n")
    (folder / "ignore_list.txt").write_text("44\n")
    return motion_reader("interhuman", folder, [folder / "split" / "train.txt", folder / "ignore_list.txt"], items)


def humanml3d(folder: Path, rng: np.random.Generator) -> Reader:
    for part in ("new_joint_vecs", "texts"):
        (folder / part).mkdir(parents=True)
    items = {}
    for item in ("000011", "000022", "000033"):
        files = [folder / "new_joint_vecs" / f"{item}.npy", folder / "texts" / f"{item}.txt"]
        np.save(files[0], rng.normal(size=(40, 263)).astype(np.float32))
        files[1].write_text("a man walks.#a/DET man/NOUN#0.0#0.0\nhe sits#he/PRON#0.5#1.5\nhe#he/PRON#nan#nan\n")
        items[item] = files
    (folder / "train.txt").write_text("000011\n000022\n000033\n")
    return motion_reader("humanml3d", folder, [folder / "train.txt"], items)


def solo(folder: Path, rng: np.random.Generator) -> Reader:
    for part in ("motions", "annots", "split"):
        (folder / part).mkdir(parents=True)
    items = {}
    for item in ("11", "22", "33"):
        files = [folder / "motions" / f"{item}.npz", folder / "annots" / f"{item}.txt"]
        columns = np.tile([8192, 0, 0, 0, 8192, 0], (20, 21, 1)).astype(np.int16)
        np.savez_compressed(files[0], pos=rng.integers(0, 5000, (20, 22, 3)).astype(np.int16), rot6d=columns)
        files[1].write_text(CAPTION)
        items[item] = files
    (folder / "split" / "train.txt").write_text("11\n22\n33\n")
    return motion_reader("solo", folder, [folder / "split" / "train.txt"], items)


def interx(folder: Path, rng: np.random.Generator) -> Reader:
    h5py = pytest.importorskip("h5py", reason="Inter-X's files need h5py")
    for part in ("motions", "splits", "texts"):
        (folder / part).mkdir(parents=True)
    with h5py.File(folder / "motions" / "train.h5", "w") as file:
        for item in ("G11", "G22"):
            file[item] = rng.normal(size=(6, 55, 24)).astype(np.float32)
            (folder / "texts" / f"{item}.txt").write_text(CAPTION)
    (folder / "splits" / "train.txt").write_text("G11\nG22\n")
    items = {item: [folder / "texts" / f"{item}.txt"] for item in ("G11", "G22")}
    return motion_reader("interx", folder, [folder / "splits" / "train.txt", folder / "motions" / "train.h5"], items)


def cache(folder: Path, rng: np.random.Generator) -> Reader:
    source = folder.with_name("source")
    interhuman(source, rng)
    data_set, options = DATA_SETS["interhuman"], {"mirror": True, "swap_persons": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for person in ("person1", "person2"):
            for item in ("11", "22", "33"):
                path = source / "motions_processed" / person / f"{item}.npy"
                np.save(path, rng.normal(size=(20, 492)).astype(np.float32))
        prepare(data_set, source, folder)
    files = sorted(folder.iterdir())

    def open_all() -> tuple[Any, ...]:
        opened = MotionDataset(data_set, folder, "train", **options)
        statistics = train_statistics(opened)
        items = [opened.draw(index, 1) for index in range(len(opened))]
        return [(i["name"], i["caption"], i["motion"].numpy().tobytes()) for i in items], statistics.mean.tobytes()

    before = open_all()

    def read(file: Path) -> None:
        after = told(file, open_all, by=file.name if file.name != "index.json" else "cache")
        assert after is None or after == before, "an edited cache was taken for whole"

    return Reader(files, read)


def statistics(folder: Path, rng: np.random.Generator) -> Reader:
    folder.mkdir()
    files = [folder / "own.json", folder / "own.npz"]
    for file in files:
        Statistics(rng.normal(size=9).astype(np.float32), rng.uniform(1, 2, size=9).astype(np.float32)).save(file)

    def read(file: Path) -> None:
        loaded = told(file, lambda: Statistics.load(file))
        assert loaded is None or (np.isfinite(loaded.mean).all() and (loaded.std > 0).all())

    return Reader(files, read)


def skeleton(folder: Path, rng: np.random.Generator) -> Reader:
    folder.mkdir()
    np.save(folder / "rest.npy", rng.normal(size=(55, 3)))
    np.savez_compressed(folder / "smplx.npz", J_regressor=rng.normal(size=(55, 9)), v_template=rng.normal(size=(9, 3)))

    def read(file: Path) -> None:
        loaded = told(file, lambda: load_skeleton(file))
        assert loaded is None or (loaded.shape == (55, 3) and np.isfinite(loaded).all())

    return Reader([folder / "rest.npy", folder / "smplx.npz"], read)


def model(folder: Path, rng: np.random.Generator, pipeline: InterMoEPipeline) -> Reader:
    pipeline.save_pretrained(folder, dtype=torch.float16)

    def read(file: Path) -> None:
        loaded = told(file, lambda: InterMoEPipeline.from_pretrained(folder), by=folder.name)
        if loaded is not None:
            tensors = [
                t for part in (loaded.vae, loaded.denoiser, loaded.text_encoder) for t in part.state_dict().values()
            ]
            assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
            assert torch.isfinite(loaded.text_encoder(["two people bow", "zz"])).all()

    return Reader([folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")], read)


def checkpoint(folder: Path, rng: np.random.Generator) -> Reader:
    folder.mkdir()
    state = {"model.weight": torch.randn(3, 4), "model.bias": torch.zeros(3)}
    torch.save({"state_dict": state, "hyper_parameters": {"DROPOUT": 0.1}, "epoch": 3}, folder / "zipped.ckpt")
    torch.save(state, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)

    def read(file: Path) -> None:
        told(file, lambda: read_checkpoint(file))

    return Reader([folder / "zipped.ckpt", folder / "legacy.ckpt"], read)


def configuration(folder: Path, rng: np.random.Generator) -> Reader:
    folder.mkdir()
    (folder / "run.yaml").write_text(YAML)
    (folder / "run.json").write_text(json.dumps(DenoiserTrainConfig.load(folder / "run.yaml").to_dict(), indent=1))

    def read(file: Path) -> None:
        loaded = told(file, lambda: DenoiserTrainConfig.load(file))
        assert loaded is None or DenoiserTrainConfig.from_dict(loaded.to_dict()) == loaded

    return Reader([folder / "run.yaml", folder / "run.json"], read)


def prompts(folder: Path, rng: np.random.Generator) -> Reader:
    folder.mkdir()
    (folder / "prompts.txt").write_text(CAPTION)

    def read(file: Path) -> None:
        collected = told(file, lambda: _collect_prompts([], file), by="prompts")
        assert collected is None or all(
            (prompt.strip() and prompt.isprintable()) or prompt.split() for prompt in collected
        )

    return Reader([folder / "prompts.txt"], read)


def takes(folder: Path, rng: np.random.Generator) -> Reader:
    """Files of other programs, and our own, as ``export.load`` reads them."""
    (folder / "person1").mkdir(parents=True)
    steps = rng.normal(scale=0.01, size=(1, 5, 22, 3)).cumsum(axis=1)
    joints = at_rest(REST_POSE) + steps + (0, 0.95, 0)
    turns = rng.normal(scale=0.1, size=(1, 5, 21, 3, 3)) + np.eye(3)
    take = export.Take(joints, 30, ("Ann",), "they bow", rotations=turns, details={"seed": 3})
    files = [folder / "own.npz", folder / "mixamo.bvh", folder / "smpl.amass.npz", folder / "person1" / "raw.npy"]
    for file in files[:-1]:
        export.save_take(file, take)
    raw = np.zeros((6, 492), np.float32)
    raw[:, :66] = np.concatenate([joints[0], joints[0, :1]])[..., [0, 2, 1]].reshape(6, -1)
    raw[:, 186:312] = np.tile([1, 0, 0, 0, 1, 0], 21)
    np.save(files[-1], raw)

    def read(file: Path) -> None:
        loaded = told(file, lambda: export.load(file))
        if loaded is not None:
            assert 0 < loaded.fps < np.inf
            assert all(np.isfinite(part).all() for part in (loaded.rig.rotations, loaded.rig.offsets, loaded.rig.rest))

    return Reader(files, read)


READERS = {
    maker.__name__: maker
    for maker in (
        interhuman,
        humanml3d,
        solo,
        interx,
        cache,
        statistics,
        skeleton,
        checkpoint,
        configuration,
        prompts,
        takes,
    )
}


def run(name: str, count: int, folder: Path, pipeline: InterMoEPipeline) -> None:
    rng = np.random.default_rng((zlib.crc32(name.encode()), count))
    reader = model(folder, rng, pipeline) if name == "model" else READERS[name](folder, rng)
    for file in reader.files:
        reader.read(file)  # whole, it is read
    whole = {file: file.read_bytes() for file in reader.files}
    for number in range(count):
        file = reader.files[number % len(reader.files)]
        spoilt = spoil(whole[file], rng, reader.foreign)
        file.write_bytes(spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader.read(file)
            except BaseException as error:
                raise AssertionError(f"{name}, {file.name}, mutation {number}: {spoilt[:200]!r}") from error
        file.write_bytes(whole[file])
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*READERS, "model"])
def test_a_spoilt_file_is_told_by_name(name: str, tmp_path: Path, tiny_pipeline: InterMoEPipeline) -> None:
    run(name, FEW, tmp_path / name, tiny_pipeline)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", [*READERS, "model"])
def test_ten_thousand_spoilt_files(name: str, tmp_path: Path, tiny_pipeline: InterMoEPipeline) -> None:
    run(name, -(-MANY // (len(READERS) + 1)), tmp_path / name, tiny_pipeline)
