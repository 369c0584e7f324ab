"""What is installed, how the native library is built and loaded, and what happens where that is not possible."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import intermoe
from intermoe.kernels.native import library

ROOT = Path(__file__).resolve().parents[1]


def build(source: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the native part of the build as an installation does, from ``source`` into ``tmp_path``."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH (an installation brings its own)")
    command = [sys.executable, "setup.py", "-q", "build_native", f"--build-lib={tmp_path / 'lib'}"]
    command += [f"--build-temp={tmp_path / 'temp'}"]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the native build reads."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    return copy


def test_kernels_are_part_of_intermoe() -> None:
    kernels = importlib.import_module("intermoe.kernels")
    assert Path(kernels.__file__ or "").parent == ROOT / "kernels"


def test_importing_intermoe_is_light() -> None:
    code = "import sys, intermoe.backends; print(*(m for m in ('diffusers', 'transformers') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    assert done.stdout.strip() == ""


def test_what_intermoe_imports_beside_torch_is_its_own() -> None:
    """A module that takes time to import cannot come in unseen: half a millisecond, and 50 are allowed."""
    code = "import sys, time, torch; before = set(sys.modules); start = time.process_time(); import intermoe\n"
    code += "assert time.process_time() - start < 0.05; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    assert done.stdout.split() == ["intermoe"]


def test_a_missing_library_is_told_once_where_the_user_sees_it(tmp_path: Path) -> None:
    """pip hides what the build says: the first automatic choice on a CPU warns, and a forced one does not."""
    code = (
        "import sys, torch, warnings; from pathlib import Path; from intermoe.kernels.native import library\n"
        f"library.library_path = lambda: Path({str(tmp_path)!r}, 'none.so')\n"
        "from intermoe import backends\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    backends.resolve(torch.device('cpu'), torch.float32, 'reference'); assert not caught\n"
        "    for _ in range(2): assert backends.resolve(torch.device('cpu'), torch.float32) == 'reference'\n"
        "print(*(warning.message for warning in caught), sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    [told] = done.stdout.strip().split("|")
    assert "without its native CPU kernels, several times slower: none.so was not built: no C++ compiler" in told
    assert "install g++ or clang++" in told


def test_links_of_the_readme_lead_somewhere_from_the_packages_page() -> None:
    code = "import runpy, setuptools; setuptools.setup = lambda **given: print(given['long_description'])\n"
    code += "runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    links = re.findall(r"\]\(([^)]+)\)", done.stdout)
    assert len(links) > 5
    for link in links:
        assert link.startswith(("https://", "#")), link
        path = link.partition("/blob/main/")[2].partition("#")[0]
        assert (ROOT / path).exists(), link


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n")
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    assert re.fullmatch(rf"## \[{re.escape(intermoe.__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])


def test_the_source_distribution_holds_all_that_is_kept() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of the repository")
    template = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").split("\n")
    named = {name for line in template if line.startswith("include ") for name in line.split()[1:]} | {
        "MANIFEST.in", "README.md", "pyproject.toml", "setup.py", ".gitignore", ".gitattributes",
    }  # fmt: skip
    patterns = [line.split()[1:] for line in template if line.startswith("recursive-include ")]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    ).stdout.split("\n")
    for name in filter(None, listed):
        folder = any(
            name.startswith(f"{top}/") and any(Path(name).match(glob) for glob in globs) for top, *globs in patterns
        )
        assert folder or name in named, name


def test_kernels_import_nothing_of_intermoe() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        assert not [line for line in lines if line.startswith(("import intermoe", "from intermoe"))], path


def test_abi_version_matches_the_header() -> None:
    header = (ROOT / "csrc" / "intermoe.h").read_text(encoding="utf-8")
    assert f"#define INTERMOE_ABI_VERSION {library.ABI_VERSION}\n" in header


def test_every_function_of_the_header_has_a_signature() -> None:
    header = (ROOT / "csrc" / "intermoe.h").read_text(encoding="utf-8")
    declarations = [text.split(";")[0] for text in header.split("\nINTERMOE_API ")[1:]]
    kinds = {"int64_t": "l", "int32_t": "i", "float": "f", "void": "v"}
    declared = {}
    for declaration in declarations:
        head, _, arguments = declaration.partition("(")
        result, name = head.rsplit(" ", 1)
        codes = ["p" if "*" in a else kinds[a.split()[0]] for a in arguments.rstrip(")").split(",") if a != "void"]
        declared[name] = ("s" if "*" in result else kinds[result]) + ":" + "".join(codes)
    assert declared == library.SIGNATURES


def test_missing_library_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(library.LibraryUnavailable, match=r"was not built.*install g\+\+") as caught:
        library.open_library(tmp_path / "libintermoe_native.so")
    assert caught.value.reason
    assert caught.value.remedy


def test_unloadable_library_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "libintermoe_native.so"
    path.write_bytes(b"no library")
    with pytest.raises(library.LibraryUnavailable, match="cannot be loaded"):
        library.open_library(path)


@pytest.mark.parametrize("version", [0, library.ABI_VERSION - 1, library.ABI_VERSION + 1])
def test_a_library_of_another_version_is_refused(tmp_path: Path, version: int) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ or clang++ on Linux")
    source = tmp_path / "stale.cpp"
    source.write_text(f'extern "C" int intermoe_abi_version() {{ return {version}; }}', encoding="utf-8")
    path = tmp_path / "libintermoe_native.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(path)], check=True, timeout=900)
    with pytest.raises(
        library.LibraryUnavailable, match=f"ABI version {version}, this package needs {library.ABI_VERSION}"
    ):
        library.open_library(path)


TINY_PROJECT = """cmake_minimum_required(VERSION 3.24)
project(tiny LANGUAGES CXX)
add_library(intermoe_native SHARED csrc/number.cpp)
"""


def test_a_build_follows_its_sources(sources: Path, tmp_path: Path) -> None:
    """A second build into the same folders holds what the sources say now; without a compiler no old one is left."""
    (sources / "CMakeLists.txt").write_text(TINY_PROJECT, encoding="utf-8")

    def number() -> int:
        [built] = (tmp_path / "lib").rglob("*intermoe_native*")
        code = f"import ctypes; print(ctypes.CDLL({str(built)!r}).number())"
        return int(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900).stdout
        )

    for value in (1, 2):
        text = f'extern "C" int number() {{ return {value}; }}'
        (sources / "csrc" / "number.cpp").write_text(text, encoding="utf-8")
        done = build(sources, tmp_path)
        assert done.returncode == 0, done.stderr
        assert number() == value
    (tmp_path / "bin").mkdir()
    assert build(sources, tmp_path, PATH=str(tmp_path / "bin"), CXX="").returncode == 0
    assert not list((tmp_path / "lib").rglob("*intermoe_native*"))


def test_everything_that_is_compiled_is_a_source_of_the_distribution() -> None:
    """What the build reads is what an installer watches and ships."""
    code = "import sys, runpy; sys.argv = ['setup.py', '--quiet', '--name']; s = runpy.run_path('setup.py')"
    code += "; from setuptools import Distribution; print(*s['BuildNative'](Distribution()).get_source_files())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir()}
    assert files | {"CMakeLists.txt"} <= set(done.stdout.split())


def test_build_without_a_compiler_goes_on_with_a_notice(sources: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("cmake", "ninja"):
        if (found := shutil.which(tool)) is not None:
            (empty / tool).symlink_to(found)
    done = build(sources, tmp_path, PATH=str(empty), CXX="")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler found" in done.stderr
    assert not list((tmp_path / "lib").rglob("*intermoe_native*"))


def test_broken_cmake_file_fails_the_build(sources: Path, tmp_path: Path) -> None:
    with (sources / "CMakeLists.txt").open("a", encoding="utf-8") as file:
        file.write("\nthis_is_no_command()\n")
    done = build(sources, tmp_path, CMAKE_ARGS="-DINTERMOE_CUDA=OFF")  # looking for nvcc takes longest
    assert done.returncode != 0
    assert "this_is_no_command" in done.stdout + done.stderr


@pytest.mark.parametrize("generator", ["Unix Makefiles", "Ninja"])
def test_the_native_library_configures_by_itself(generator: str, tmp_path: Path) -> None:
    """With the CUDA kernels where there is nvcc: Makefiles ask for the cards of whatever links them."""
    for tool in ("cmake", {"Unix Makefiles": "make", "Ninja": "ninja"}[generator]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", generator, "-DCMAKE_BUILD_TYPE=Release"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_broken_compiler_fails_the_build(sources: Path, tmp_path: Path) -> None:
    assert build(sources, tmp_path, CXX=str(tmp_path / "no-such-compiler")).returncode != 0
