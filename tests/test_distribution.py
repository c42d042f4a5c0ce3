"""What a wheel and a source archive hold: the package, marked as typed, and all kernel sources, but no tests."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path.relative_to(ROOT / "csrc").as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that a wheel is packed from, and the files of a source archive."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    command += ["build_py", "--build-lib", str(folder / "lib"), "sdist", "--dist-dir", str(folder / "dist")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (folder / "dist").iterdir()
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    return folder / "lib", names


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_holds_the_package_and_the_kernels_sources(built):
    found = files(built[0])
    assert {name for name in found if not name.startswith("attfc_cuda/")} == set()
    assert {"attfc_cuda/__init__.py", "attfc_cuda/py.typed", "attfc_cuda/ops/triton/configs.py"} <= found
    carried = {name.removeprefix("attfc_cuda/_csrc/") for name in found if name.startswith("attfc_cuda/_csrc/")}
    assert carried == SOURCES and "cuda/sweep_kernel.h" in carried and "ops/register.cpp" in carried


def test_a_source_archive_can_be_built_and_holds_no_tests(built):
    found = built[1]
    assert {f"csrc/{name}" for name in SOURCES} <= found
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "attfc_cuda/py.typed"} <= found
    assert not any(name.startswith("tests/") for name in found)


def test_neither_holds_the_simulator_of_a_gpu(built):
    # Names that the kernels' own sources have as well (a header and its twin) tell nothing.
    simulator = {path.name for path in (ROOT / "tests" / "csrc" / "host_gpu").iterdir()}
    simulator -= {Path(name).name for name in SOURCES}
    assert {"fiber.h", "block.h", "host.h"} <= simulator
    for name in files(built[0]) | built[1]:
        assert "host_gpu" not in name and Path(name).name not in simulator, name
