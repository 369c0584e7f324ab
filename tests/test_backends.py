"""Choosing, forcing and explaining a backend."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import intermoe
from intermoe import backends
from intermoe.cli.backends import report
from intermoe.kernels import BACKENDS, contract

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable, and no choice remembered from before a test changed what is usable."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    backends._serving.cache_clear()
    yield
    backends._serving.cache_clear()


@pytest.fixture
def broken_native(monkeypatch: pytest.MonkeyPatch) -> None:
    status = backends.Status("native", False, (), "the library was not built", "install g++")
    original = backends._status
    monkeypatch.setattr(backends, "_status", lambda name: status if name == "native" else original(name))


def test_every_backend_explains_itself() -> None:
    table = backends.available()
    assert tuple(table) == backends.NAMES
    assert table["reference"].usable
    for status in table.values():
        assert status.usable or (status.reason and status.remedy)


def test_report_names_every_backend() -> None:
    text = report()
    for name in (*backends.NAMES, "torch", "intermoe"):
        assert name in text


def test_use_forces_and_restores() -> None:
    before = backends.resolve(CPU, torch.float32)
    with backends.use("reference"):
        assert backends.resolve(CPU, torch.float32) == "reference"
    assert backends.resolve(CPU, torch.float32) == before


def test_use_holds_in_its_own_thread_only() -> None:
    seen: list[str] = []
    before = backends.resolve(CPU, torch.float32)
    with backends.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.resolve(CPU, torch.float32)), daemon=True)
        thread.start()
        thread.join(timeout=60)
    assert seen == [before]


def test_precedence(monkeypatch: pytest.MonkeyPatch, broken_native: None) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "native")
    with pytest.raises(RuntimeError, match="INTERMOE_BACKEND='native' cannot serve"):
        backends.resolve(CPU, torch.float32)
    with backends.use("reference"):
        assert backends.resolve(CPU, torch.float32) == "reference"
        with pytest.raises(RuntimeError, match="backend='native' cannot serve"):
            backends.resolve(CPU, torch.float32, "native")


def test_refusal_lists_every_backend(broken_native: None) -> None:
    with pytest.raises(RuntimeError) as caught, backends.use("native"):
        pass
    for name in backends.NAMES:
        assert f"  {name}: " in str(caught.value)
    assert "the library was not built" in str(caught.value)
    assert "install g++" in str(caught.value)


def test_without_native_the_reference_serves(broken_native: None) -> None:
    assert backends.resolve(CPU, torch.float32) == "reference"


@pytest.mark.parametrize("name", ["cuda", "", "Native"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backend"):
        backends.resolve(CPU, torch.float32, name)
    with pytest.raises(ValueError, match="unknown backend"), backends.use(name):
        pass


def test_unknown_name_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"INTERMOE_BACKEND: expected one of .*, got unknown backend 'fast'"):
        backends.resolve(CPU, torch.float32)


def test_float64_is_served_by_the_reference_only() -> None:
    assert backends.resolve(CPU, torch.float64) == "reference"
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        backends.resolve(CPU, torch.float64, "native")


def test_unknown_device_is_served_by_the_reference() -> None:
    assert backends.resolve(torch.device("meta"), torch.float32) == "reference"


@pytest.mark.parametrize("name", ["native", "triton"])
def test_usable_backend_offers_every_step(name: str) -> None:
    if not backends.available()[name].usable:
        pytest.skip(f"{name} backend: {backends.available()[name].reason}")
    module = backends.load(name)
    steps = ("route_forward", "route_backward", "select", "select_backward", "experts_forward", "experts_backward")
    whole = [name for name in vars(contract.Backend) if not name.startswith("_")]
    assert all(hasattr(module, offered) for offered in (*steps, "combine", *whole))


def test_an_empty_variable_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = backends.resolve(CPU, torch.float32)
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "")
    assert backends.resolve(CPU, torch.float32) == before


def test_what_serves_a_device_for_tests_alone_is_not_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that serves this device, but not without being asked to, as Triton's interpreter does."""

    class Slow:
        AUTOMATIC = ("cuda",)

        @staticmethod
        def refusal(device: torch.device, dtype: torch.dtype) -> None:
            return None

    name = backends.NAMES[0]
    status, load = backends._status, backends.load
    monkeypatch.setattr(
        backends,
        "_status",
        lambda which: backends.Status(name, True, ("cpu", "cuda")) if which == name else status(which),
    )
    monkeypatch.setattr(backends, "load", lambda which: Slow if which == name else load(which))
    assert backends.resolve(CPU, torch.float32) != name
    assert backends.resolve(torch.device("cuda"), torch.float32) == name
    assert backends.resolve(CPU, torch.float32, name) == name


def test_only_the_backends_packages_name_a_backend() -> None:
    """A backend more is a package and a word in ``kernels/__init__.py``: what chooses and calls them has no names."""
    root = Path(intermoe.__path__[0])
    for path in (root / "backends.py", *(root / "ops").glob("*.py"), *(root / "nn").glob("*.py")):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_text(node)}
        assert not texts & set(BACKENDS), path


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_a_backend_whose_parts_are_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError("No module named 'triton.language'", name="triton.language")

    monkeypatch.setattr(backends, "load", absent)
    remedy = "pip install --upgrade triton (where there is one for this system)"
    reason = "cannot be imported: No module named 'triton.language'"
    assert backends._status("triton") == contract.Status("triton", False, (), reason, remedy)
