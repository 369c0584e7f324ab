"""What every system keeps: prompts in, motion of several persons out; the result, and where models are found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MODELS = Path(__file__).parent / "models"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class PipelineResult:
    """Generated motion of N prompts."""

    joints: Tensor
    """(N, P, T, J, 3) float32 on CPU, metres, Y up, at ``fps``; two persons of 22 joints, for interhuman."""
    motion: Tensor
    """(N, P, T, ...) float32 on CPU in the model's representation, (N, 2, T, 262) for interhuman."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    fps: int


def available_models() -> list[str]:
    """Names of the models shipped with the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG_FILE}"))


def model_folder(path_or_name: str | Path) -> Path:
    """Folder of a model given by path or shipped name. Raises ``FileNotFoundError`` that says what there is."""
    shipped = available_models()
    if str(path_or_name) in shipped:
        return MODELS / str(path_or_name)
    folder = Path(path_or_name)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"model: {str(path_or_name)!r} is neither a shipped model ({', '.join(shipped) or 'none'}) "
                f"nor a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    return folder
