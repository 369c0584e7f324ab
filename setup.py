"""Build of the native kernels: CMake compiles csrc/ into one shared library beside ``kernels/native/library.py``.

The library has a plain C interface, so nothing of torch is needed here and one binary serves every torch version.
Without any C++ compiler the package installs without it and says so; every other failure fails the install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
NATIVE_PACKAGE = "intermoe.kernels.native"
LIBRARIES = ("libintermoe_native.so", "libintermoe_native.dylib", "intermoe_native.dll")

NO_COMPILER = """
================================================================================
intermoe: no C++ compiler found, installing WITHOUT the native CPU kernels.
The package works on its reference (and Triton) backend. To get the fast kernels
install g++ or clang++ (Windows: Visual Studio Build Tools) and install again.
================================================================================
"""


def has_compiler() -> bool:
    """Whether there is any C++ compiler to try; one that is named but does not work fails the build later."""
    if os.environ.get("CXX"):
        return True
    if any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl", "clang-cl")):
        return True
    installer = Path(os.environ.get("PROGRAMFILES(X86)", "/"), "Microsoft Visual Studio", "Installer", "vswhere.exe")
    return sys.platform == "win32" and installer.exists()


class BuildNative(Command):
    """Configure and build with CMake, then put the library into the package (in place for editable installs)."""

    description = "build the native kernels with CMake"
    user_options: ClassVar = [
        ("build-lib=", "d", "where the package is assembled"),
        ("build-temp=", "t", "CMake's build folder"),
    ]
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def target_folder(self) -> Path:
        if self.editable_mode:
            return Path(self.get_finalized_command("build_py").get_package_dir(NATIVE_PACKAGE))
        return Path(self.build_lib, *NATIVE_PACKAGE.split("."))

    def run(self) -> None:
        target = self.target_folder()
        for name in LIBRARIES:
            # A library of an earlier build must not outlive its sources.
            (target / name).unlink(missing_ok=True)
        if not has_compiler():
            print(NO_COMPILER, file=sys.stderr)
            return
        folder = Path(self.build_temp, "native").resolve()
        generator = [] if sys.platform == "win32" or os.environ.get("CMAKE_GENERATOR") else ["-G", "Ninja"]
        options = os.environ.get("CMAKE_ARGS", "").split()
        configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *generator, *options]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(folder), "--config", "Release", "--parallel"], check=True)
        built = [path for name in LIBRARIES for path in folder.rglob(name)]
        if len(built) != 1:
            raise RuntimeError(f"the native build must leave one of {LIBRARIES} in {folder}, found {built}")
        target.mkdir(parents=True, exist_ok=True)
        temporary = target / (built[0].name + ".tmp")
        shutil.copy2(built[0], temporary)
        # A process that has the old library mapped keeps its file; writing into it would crash that process.
        os.replace(temporary, target / built[0].name)

    def get_source_files(self) -> list[str]:
        return ["CMakeLists.txt", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").iterdir() if p.is_file())]

    def get_outputs(self) -> list[str]:
        return [str(path) for name in LIBRARIES if (path := self.target_folder() / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands: ClassVar = [*build.sub_commands, ("build_native", None)]


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """The library binds to no Python ABI: one wheel per platform serves every Python."""
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


def long_description() -> str:
    """README with links that work where it is shown beside no repository: on the package's page."""
    source = re.search(r'^Source = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if source is None:
        raise RuntimeError("pyproject.toml: expected an address Source in [project.urls], got none")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)", f"]({source[1]}/blob/main/", readme)


PACKAGES = [
    "intermoe",
    "intermoe.benchmarks",
    "intermoe.benchmarks.harness",
    "intermoe.cli",
    "intermoe.cli.evaluate",
    "intermoe.control",
    "intermoe.data",
    "intermoe.eval",
    "intermoe.evaluators",
    "intermoe.export",
    "intermoe.integrations",
    "intermoe.metrics",
    "intermoe.motion",
    "intermoe.nn",
    "intermoe.official",
    "intermoe.ops",
    "intermoe.pipeline",
    "intermoe.routing",
    "intermoe.systems",
    "intermoe.systems.in2in",
    "intermoe.systems.intergen",
    "intermoe.systems.intermask",
    "intermoe.systems.intermoe",
    "intermoe.systems.mdm",
    "intermoe.systems.timotion",
    "intermoe.text",
    "intermoe.train",
    "intermoe.viz",
    "intermoe.kernels",
    "intermoe.kernels.native",
    "intermoe.kernels.triton",
]

setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    packages=PACKAGES,
    # A top-level module named `kernels` belongs to another project: ours is reachable as intermoe.kernels only.
    package_dir={"intermoe.kernels": "kernels", "intermoe.benchmarks": "benchmarks"},
    package_data={
        "intermoe": ["py.typed", "models/duets/*"],
        "intermoe.benchmarks.harness": ["standin.cpp"],
        "intermoe.systems": ["published.json"],
        "intermoe.data": ["*.tsv"],
        "intermoe.train": [
            "configs/*.yaml",
            "configs/accelerate/*.yaml",
            "configs/ablations/*.yaml",
            "configs/comparisons/*.yaml",
        ],
    },
    include_package_data=False,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": PlatformWheel},
    distclass=BinaryDistribution,
)
