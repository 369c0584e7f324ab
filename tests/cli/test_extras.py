"""A package that is not installed is told with the extra that brings it."""

from __future__ import annotations

import pytest
import typer

from intermoe.cli.common import extra_of, reported
from intermoe.export import FORMATS


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("tokenizers", "generate"),
        ("huggingface_hub", "generate"),
        ("yaml", "generate"),
        ("rich.progress", "generate"),
        ("accelerate", "train"),
        ("h5py", "interx"),
        ("scipy", "eval"),
        ("PIL", "viz"),
        ("matplotlib", "viz"),
        ("viser", "view"),
        ("trimesh", "view"),
        ("elsewhere", "all"),
    ],
)
def test_the_extra_of_a_module_is_told(module: str, extra: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert extra_of(module) == extra
    with pytest.raises(typer.Exit) as end, reported():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert end.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {module} is needed: pip install 'intermoe[{extra}]'\n"


def test_what_tells_its_extra_itself_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), reported():
        raise ModuleNotFoundError("html: needs viser: pip install 'intermoe[view]'", name="viser")
    assert capsys.readouterr().err == "error: html: needs viser: pip install 'intermoe[view]'\n"


def test_a_page_needs_what_makes_its_balls() -> None:
    assert {"viser", "trimesh"} <= set(FORMATS["html"].needs)
