"""Where models are: shipped with the package, in folders and on the Hugging Face Hub; and their cards there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from intermoe.config import check_flag, check_text

if TYPE_CHECKING:
    from intermoe.motion.representation import Representation

MODELS = Path(__file__).parent / "models"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
ANSWER_SECONDS = 10

CARD = """---
library_name: intermoe
pipeline_tag: other
tags:
{tags}
---

# {name}

Text to {what}: a model of the system `{system}` for [intermoe](https://pypi.org/project/intermoe/).

| | |
|---|---|
| representation | `{representation}` |
| parameters | {millions:.1f} million |
| motion | {low} to {high} frames at {fps} a second |

```bash
intermoe generate "two people bow to each other" --model {name} --out results/
```

```python
from intermoe import MotionPipeline

result = MotionPipeline.from_pretrained("{name}")("two people bow to each other", num_frames={frames}, seed=0)
result.save("bow.glb")
```
"""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_ID = re.compile(f"{_PART}/{_PART}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` of a repository's id."""
    return _ID.fullmatch(name) is not None and len(name) <= 96 and "--" not in name and ".." not in name


def download(repo_id: str, files: list[str], revision: str | None = None) -> Path:
    """The local folder of a repository's ``files``, read from the Hub unless the local cache has them.

    What the environment says of tokens, cache and being offline (``HF_TOKEN``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``)
    is huggingface_hub's affair.

    Args:
        revision: branch, tag or commit; by default the main branch.

    Raises:
        ModuleNotFoundError: huggingface_hub is absent; names the extra.
        FileNotFoundError: no such repository or revision, or neither the Hub can be reached nor the cache has it.
    """
    hub = _huggingface_hub()
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=files, library_name="intermoe"))
    except (OSError, ValueError) as error:  # every error of the Hub is one of both
        raise FileNotFoundError(
            f"model: {repo_id!r}{at} is not in the local cache and could not be read from the Hub: {error}"
        ) from error


def is_local(name: str) -> bool:
    """Whether a model has to be had from this machine: ``name`` is a path, or the Hub does not answer within seconds.

    One short question in place of those that libraries ask again and again, for minutes, before they give up.
    """
    if Path(name).exists():
        return True
    hub = _huggingface_hub()
    try:
        hub.HfApi(library_name="intermoe").model_info(name, timeout=ANSWER_SECONDS)
    except hub.errors.HfHubHTTPError:
        return False  # an answer, which the download tells better
    except Exception:  # whatever its HTTP library raises
        return True
    return False


def upload(
    repo_id: str,
    folder: Path,
    *,
    card: str,
    private: bool | None,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Write a folder's files to a repository, made if absent, as one commit; returns the commit's address.

    ``card`` becomes its README.md where it has none.

    Raises:
        ModuleNotFoundError, ValueError: as ``check_upload``. OSError: the Hub cannot be reached or refuses; names the
            repository. A commit is whole or not there.
    """
    check_upload(repo_id, private, revision)
    api = _huggingface_hub().HfApi(token=token, library_name="intermoe")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if not api.file_exists(repo_id, "README.md", revision=revision):
            (folder / "README.md").write_text(card, encoding="utf-8")
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:  # whatever its HTTP library raises
        raise OSError(f"repo_id: {repo_id!r} could not be written to: {' '.join(str(error).split())}") from error
    return str(commit.commit_url)


def check_upload(repo_id: str, private: bool | None, revision: str | None) -> None:
    """Raise ``ValueError`` or ``TypeError`` for no id of a repository or no branch, ``TypeError`` for no truth value,
    ``ModuleNotFoundError`` where huggingface_hub is absent.
    """
    _huggingface_hub()
    if not is_hub_id(check_text(repo_id, "repo_id", "owner/name")):
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")
    if private is not None:
        check_flag(private, "private")
    if revision is not None:
        check_text(revision, "revision", "a branch")


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "huggingface_hub is needed for models of the Hub: pip install 'intermoe[generate]'"
        ) from error
    return huggingface_hub


def model_card(
    name: str, *, system: str, representation: Representation, parameters: int, fps: int, frames: tuple[int, int]
) -> str:
    """A model card to begin with: what the Hub's search asks for, and how the model is used.

    Args:
        name: the repository's.
        frames: least and most of a motion.
    """
    persons = representation.persons
    tags = ["text-to-motion", "human-motion", "motion-generation", "diffusion", system]
    return CARD.format(
        tags="\n".join(f"- {tag}" for tag in tags),
        name=name,
        what=f"motion of {persons} {'person' if persons == 1 else 'people'}",
        system=system,
        representation=representation.name,
        millions=parameters / 1e6,
        fps=fps,
        low=frames[0],
        high=frames[1],
        frames=min(120, frames[1]),
    )


def available_models() -> list[str]:
    """Names of the models shipped with the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG_FILE}"))


def model_folder(path_or_name: str | Path, revision: str | None = None) -> Path:
    """Folder of a model given by path, shipped name or id of the Hub, as ``MotionPipeline.from_pretrained`` says.

    Raises:
        FileNotFoundError: it is none of them; says what there is. ValueError: a revision of what is not of the Hub, or
            an empty one. TypeError: a model or a revision that is no text.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise TypeError(f"model: expected a folder, a shipped name or owner/name, got {path_or_name!r}")
    if revision is not None:
        check_text(revision, "revision", "a branch, tag or commit")
    shipped = available_models()
    folder = Path(path_or_name)
    if is_hub_id(str(path_or_name)) and not folder.exists():
        folder = download(str(path_or_name), [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE], revision)
    elif revision is not None:
        raise ValueError(f"revision: expected none for a model that is not of the Hub, got {revision!r}")
    elif str(path_or_name) in shipped:
        return MODELS / str(path_or_name)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"model: {str(path_or_name)!r} is neither a shipped model ({', '.join(shipped) or 'none'}) "
                f"nor a folder or a repository of the Hub (owner/name) with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    return folder
