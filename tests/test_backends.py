"""Choosing, forcing and explaining a backend."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_the_reference_is_last_and_serves_anything() -> None:
    assert (*BACKENDS, "reference") == backends.NAMES
    assert backends.available()["reference"] == contract.Status("reference", True, ("any",))
    assert backends._problem("reference", torch.device("meta"), torch.int8) is None


def test_a_choice_within_a_choice_ends_with_its_block(broken_native: None) -> None:
    """Also by an error; what cannot be used is refused before the block, and is both kinds of error."""
    told = r"^name: expected a usable backend, got 'native', which is not usable here\. Backends on this machine:"
    with backends.use("reference"):
        with pytest.raises(KeyError), backends.use("reference"):
            raise KeyError
        with pytest.raises(backends.BackendError, match=told), backends.use("native"):
            pytest.fail("within")
        assert backends._forced.get() == "reference"
    assert backends._forced.get() is None
    assert issubclass(backends.BackendError, RuntimeError)
    assert issubclass(backends.BackendError, ValueError)
    with pytest.raises(ValueError, match=r"^name: expected one of \(.*'reference'\), got unknown backend 'x'$"):
        backends.check("x", "name")


def test_nan_is_looked_for_within_the_block_alone() -> None:
    assert not backends.detects_nan()
    with backends.detect_nan():
        with pytest.raises(KeyError), backends.detect_nan():
            raise KeyError
        assert backends.detects_nan()
    assert not backends.detects_nan()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three backends in place of all: of a GPU alone, of the CPU but for one dtype, and one that is absent."""
    statuses = {
        "fast": contract.Status("fast", True, ("cuda", "xpu"), "a reason"),
        "small": contract.Status("small", True, ("cpu",)),
        "absent": contract.Status("absent", False, (), "no library", "build it"),
    }

    def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
        return "no float64" if dtype == torch.float64 else None

    packages: dict[str, Any] = {
        name: SimpleNamespace(AUTOMATIC=status.devices, refusal=refusal, status=lambda status=status: status)
        for name, status in statuses.items()
    }
    monkeypatch.setattr(backends, "NAMES", (*statuses, "reference"))
    monkeypatch.setattr(backends, "load", packages.__getitem__)
    return packages


def test_the_first_that_can_serve_does(made_up: dict[str, Any]) -> None:
    cuda, xpu = torch.device("cuda"), torch.device("xpu:1")
    for device, dtype, expected in (
        (CPU, torch.float32, "small"),
        (CPU, torch.float64, "reference"),
        (cuda, torch.float32, "fast"),
        (xpu, torch.bfloat16, "fast"),
        (cuda, torch.float64, "reference"),
        (torch.device("meta"), torch.float32, "reference"),
    ):
        assert backends.resolve(device, dtype) == expected, (device, dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "told"),
    [
        ("fast", torch.float32, "fast' cannot serve torch.float32 on cpu: serves cuda and xpu only (a reason)"),
        ("small", torch.float64, "small' cannot serve torch.float64 on cpu: no float64"),
        ("absent", torch.float32, "absent' cannot serve torch.float32 on cpu: no library"),
    ],
)
def test_a_forced_backend_says_why_it_cannot_and_what_others_can(
    name: str, dtype: torch.dtype, told: str, made_up: dict[str, Any]
) -> None:
    listed = [
        "  fast: usable on cuda, xpu (a reason)",
        "  small: usable on cpu",
        "  absent: not usable (no library; build it)",
        "  reference: usable on any",
    ]
    whole = "\n".join([f"backend='{told}. Backends on this machine:", *listed])
    with pytest.raises(backends.BackendError, match=f"^{re.escape(whole)}$"):
        backends.resolve(CPU, dtype, name)


def test_a_processor_without_its_kernels_is_told_once(made_up: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that serve it without being asked; a device that is none of theirs is not slower for it."""
    backends._tell_what_is_missing.cache_clear()
    made_up["small"].AUTOMATIC = ()
    made_up["absent"].AUTOMATIC = ("cpu",)
    card = contract.Status("card", False, (), "no card", "a card")
    others = SimpleNamespace(AUTOMATIC=("cuda",), status=lambda: card)
    monkeypatch.setattr(backends, "loaded", lambda: [others, *made_up.values()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert backends.resolve(torch.device("meta"), torch.float32) == "reference"
        assert caught == []
        assert backends.resolve(CPU, torch.float32) == "reference"
        assert backends.resolve(CPU, torch.bfloat16) == "reference"
    told = "intermoe runs without its absent CPU kernels, several times slower: no library; build it"
    assert [(each.category, str(each.message)) for each in caught] == [(RuntimeWarning, told)]
    backends._tell_what_is_missing.cache_clear()


def test_a_package_is_imported_once_and_so_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> str:
        asked.append(name)
        if name.endswith("broken"):
            raise ImportError("no compiler")
        return "a package"

    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends.importlib, "import_module", find)
    assert [backends.load("whole"), backends.load("whole")] == ["a package", "a package"]
    for _ in range(2):
        with pytest.raises(ImportError, match="no compiler"):
            backends.load("broken")
    assert asked == ["intermoe.kernels.whole", "intermoe.kernels.broken"]
    assert backends.loaded() == ["a package"]
    remedy = "pip install --upgrade broken (where there is one for this system)"
    status = contract.Status("broken", False, (), "cannot be imported: no compiler", remedy)
    assert backends._status("broken") == status
