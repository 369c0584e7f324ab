"""README's and the documentation's commands and snippets are run as they are written, page by page, top to bottom.

Each page runs in a folder that has what its text supposes. A recipe's name stands for a small recipe there: a file of
that name in the folder goes before the shipped one. What is not run is listed with its reason, and parsed all the same.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import intermoe
from intermoe.data.solo import METRES
from intermoe.motion.rig import REST_POSE, at_rest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = Path(intermoe.__file__).parent / "train" / "configs"
NOT_RUN = {
    "pip install": "needs a network; .ci/run installs as README says",
    "pytest": "is what runs this",
    "mkdocs serve": "does not end; CI builds the pages, strictly",
    "intermoe tune": "needs a GPU",
    "intermoe live": "does not end; tests/cli runs it for a while",
    "intermoe convert": "needs the authors' files",
    "intermoe bench": "takes minutes; tests/benchmarks and tests/cli run it on tiny shapes",
    "accelerate launch": "starts processes; tests/cli and tests/eval run two of each command",
    "python examples/": "takes minutes; tests/examples runs each for a few steps",
}
SHORTER = {
    "intermoe ablate": ["--train-steps", "2"],
    "intermoe evaluate interhuman": ["--dry-run"],
    "intermoe evaluate activities": ["--judge-steps", "2"],
    "intermoe evaluate control": ["--limit", "2", "--best-of", "1", "--steps", "2"],
    "intermoe compare small": ["--budget", "2", "--steps", "2", "--only", "intergen", "--evaluator", "EVALUATOR"],
    "intermoe compare single": ["--budget", "2", "--steps", "2", "--only", "mdm"],
}
"""Commands whose numbers are worth something take long: with these options they do everything else."""
SNIPPETS = {"README.md", "export.md", "identity.md"}
"""Pages whose snippets are run here; test_docs.py runs those of the others but gpu.md, whose table needs a GPU."""


def written(page: Path) -> list[str]:
    """The commands of the bash blocks and of the inline code, in order."""
    text = page.read_text(encoding="utf-8")
    pattern = r"^```bash\n(?P<block>.*?)^```|^```\w*\n.*?^```|`(?P<inline>[^`]+)`"
    found: list[str] = []
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match["block"]:
            found += [
                command for line in match["block"].splitlines() for command in line.partition("  #")[0].split("&&")
            ]
        elif match["inline"] and _is_command(" ".join(match["inline"].split())):
            found += " ".join(match["inline"].split()).split("&&")
    return [command.strip() for command in found if command.strip()]


def _is_command(code: str) -> bool:
    """Inline code that can be run as it is: more than the name of a command."""
    return code == "intermoe backends" or (code.startswith("intermoe ") and " --" in code) or " && " in code


def reason(command: str) -> str | None:
    if " ... " in command:
        return "is not written out"
    return next((why for start, why in NOT_RUN.items() if command.removeprefix("time ").startswith(start)), None)


COMMANDS = [(page.name, command) for page in PAGES for command in written(page)]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(shlex.split(command, comments=True)[1:], id=f"{page}: {command}")
        for page, command in COMMANDS
        if command.startswith("intermoe ") and "--" in command
    ],
)
def test_a_command_is_as_it_is_written(words: list[str]) -> None:
    """It names a command and options that there are, with all that it needs; nothing is run."""
    import typer

    from intermoe.cli import app

    name, command, rest = "intermoe", typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        context = command.context_class(command, info_name=name)
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, rest)


def test_there_are_commands_to_check() -> None:
    names = {command.split()[1] for _, command in COMMANDS if command.startswith("intermoe ")}
    assert {"generate", "train", "evaluate", "ablate", "routing", "export", "tune", "view", "prepare"} <= names


@pytest.fixture
def place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two_people: Callable[..., Path],
    salsa: Path,
) -> Path:
    """The folder in which a page is followed: the names in capitals are folders, those of recipes small recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    # the shipped autoencoder, which `ablate` takes, makes sense of its own kind of motion alone
    names = {split: (salsa / "split" / f"{split}.txt").read_text().split()[:2] for split in ("train", "val")}
    two_people(tmp_path / "DATA", {"test": {f"9{number}": 44 for number in range(96)}}, "Two people dance.\nThey bow.")
    for split, chosen in names.items():
        Path("DATA", "split", f"{split}.txt").write_text("\n".join(chosen), encoding="utf-8")
        for name in chosen:
            for place in (f"motions_processed/person{number}/{name}.npy" for number in (1, 2)):
                Path("DATA", place).symlink_to(salsa / place)
            Path("DATA", "annots", f"{name}.txt").symlink_to(salsa / "annots" / f"{name}.txt")
    tagged = [{"name": name, "tags": {"activity": f"dance {i}"}} for i, name in enumerate(names["train"])]
    Path("DATA", "items.json").write_text(json.dumps(tagged), encoding="utf-8")
    (tmp_path / "FOLDER").symlink_to("DATA")
    small = {"steps": 2, "warmup_steps": 1}
    denoiser = {"dim": 16, "num_layers": 1, "num_heads": 2, "expert_dim": 8, "text_dim": 8}
    text = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8}
    recipe("salsa_vae", optim=small, data={"batch_size": 2})
    recipe("salsa_decoder", optim=small, data={"batch_size": 2})
    recipe("salsa_denoiser", optim=small, denoiser=denoiser, text=text, text_pretraining={"steps": 2})
    alike = {**small, "mixed_precision": "no"}  # that of the others: a process has one
    recipe("duets_distill", optim=alike, data={"batch_size": 2}, trajectories=4, teacher_steps=8)
    recipe("duets_between", optim=alike, data={"batch_size": 2})
    judge = {
        "width": 8,
        "embedding_dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "feedforward_dim": 8,
        "text": {"kind": "wordpiece", **text},
    }
    recipe("salsa_evaluator", optim=small, model=judge, data={"batch_size": 2})
    run("intermoe train evaluator salsa_evaluator --data DATA --out made")
    Path("made", "model").rename("EVALUATOR")
    single_persons(tmp_path / "SOLO")
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "expert_dim": 8, "text_dim": 8}
    recipe("solo_vae", optim=small, data={"batch_size": 2})
    recipe("solo_denoiser", optim=small, denoiser=sizes, text=text, text_pretraining={"steps": 2})
    recipe("solo_mdm", optim=small, data={"batch_size": 2})
    for name in ("salsa_intergen", "salsa_mdm", "salsa_commdm", "salsa_tokenizer", "salsa_intermask"):
        recipe(name, optim=small, data={"batch_size": 2})
    matrix = yaml.safe_load((CONFIGS / "ablations" / "salsa.yaml").read_text(encoding="utf-8"))
    matrix |= {"base": "salsa_denoiser", "variants": matrix["variants"][:2]}
    Path("salsa").write_text(json.dumps(matrix), encoding="utf-8")
    Path("prompts.txt").write_text("Two people dance salsa.\nThey turn.\n", encoding="utf-8")
    joints = np.stack([at_rest(REST_POSE) + np.linspace(0, 1, 60)[:, None, None] + (0, 0.95, z) for z in (0, 1)])
    for name in ("mine.bvh", "leader.npz", "dance.amass.npz"):
        intermoe.export.save(name, joints, 30)
    intermoe.export.save("leader.bvh", joints[:1], 30)
    intermoe.export.save("follower.bvh", joints[1:], 30)
    page = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
    control, *_ = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    Path("control.json").write_text(control, encoding="utf-8")
    return tmp_path


def recipe(name: str, **changes: Any) -> None:
    """The shipped recipe of that name with other sizes."""
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    for section, own in changes.items():
        values[section] = {**values.get(section, {}), **own} if isinstance(own, dict) else own
    Path(name).write_text(json.dumps(values), encoding="utf-8")


def single_persons(root: Path) -> None:
    """Two clips a split of one person who walks along, in the layout of ``intermoe.data.solo``."""
    for part in ("motions", "annots", "split"):
        (root / part).mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"{split}{number}" for number in (1, 2)]
        (root / "split" / f"{split}.txt").write_text("\n".join(names), encoding="utf-8")
        for number, name in enumerate(names):
            joints = at_rest(REST_POSE) + np.linspace(0, 1 + number, 90)[:, None, None] * (0, 0, 1) + (0, 0.95, 0)
            positions = np.round(joints[..., [0, 2, 1]] / METRES).astype(np.int16)
            turns = np.tile([8192, 0, 0, 0, 8192, 0], (90, 21, 1)).astype(np.int16)
            np.savez_compressed(root / "motions" / f"{name}.npz", pos=positions, rot6d=turns)
            (root / "annots" / f"{name}.txt").write_text("A person walks.\n", encoding="utf-8")


def snippets(page: Path, names: dict[str, Any]) -> None:
    """Run the page's Python blocks one after the other."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


def supposed() -> dict[str, Any]:
    """The names that snippets of README and of the page on export take for given."""
    network = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32, norm_first=True), 1)
    return {
        "hidden": torch.randn(2, 6, 768),
        "condition": torch.randn(2, 768),
        "mask": torch.ones(2, 6, dtype=torch.bool),
        "loss": sum(parameter.sum() for parameter in network.parameters()),
        "optimizer": torch.optim.AdamW(network.parameters()),
        "model": network,
        "joints": intermoe.export.load("mine.bvh").joints,
        "np": np,
        "betas": torch.zeros(1, 10),
        "body_model": lambda **arguments: SimpleNamespace(joints=np.zeros((1, 24, 3), np.float32)),
    }


def run(command: str) -> None:
    """Follow one command of the command line in this process."""
    from intermoe.cli import app

    more = next((options for start, options in SHORTER.items() if command.startswith(start)), [])
    result = CliRunner().invoke(app, [*shlex.split(command, comments=True)[1:], *more], catch_exceptions=False)
    assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_followed(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for need in ("diffusers", "viser", "imageio_ffmpeg", "accelerate", "tensorboard"):
        pytest.importorskip(need)
    from intermoe.viz.viewer import Viewer

    def interrupted(_: Viewer, stop: Any = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "run", interrupted)  # a page stays until Ctrl+C
    for command in written(page):
        if reason(command) is None:
            assert command.startswith("intermoe "), f"{page.name}: neither run nor listed: {command}"
            run(command)
    if page.name in SNIPPETS:
        snippets(page, supposed())
