"""What a wheel and a source archive hold: the package, marked as typed, and all kernel sources, but no tests; and that
what is built from a clean clone installs and works elsewhere."""

import json
import os
import shutil
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


PROBE = """
import json, sys
import torch
import attfc_cuda
from attfc_cuda import AttFC
from attfc_cuda.ops import backend

head = AttFC(16, 32, num_classes=9, backend="cpu")
loss = head(torch.randn(4, 16, requires_grad=True), torch.arange(4), torch.randn(4, 16))
loss.backward()
extension = sys.modules["attfc_cuda._C"].__file__
print(json.dumps({"package": attfc_cuda.__file__, "extension": extension, "loss": float(loss.detach())}))
"""


@pytest.mark.proof
def test_an_archive_of_a_clean_clone_installs_and_works(tmp_path):
    """`python -m build --sdist`, pip with a compiler, then a loss by the compiled kernel, the sources out of reach.

    It compiles the CPU extension anew: some minutes.
    """
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git repository to clone")
    pytest.importorskip("build", reason="build is not installed: pip install build")
    clone, dist, place, away = (tmp_path / name for name in ("clone", "dist", "place", "away"))
    away.mkdir()

    def run(*command, cwd=tmp_path, **environment):
        names = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=cwd, env={**names, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(dist), str(clone))
    (archive,) = dist.glob("attfc_cuda-*.tar.gz")
    shutil.rmtree(clone)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--target", str(place), str(archive), ATTFC_FORCE_CUDA="0")
    # Before an editable installation of this clone on the path of the interpreter.
    found = json.loads(run(sys.executable, "-c", PROBE, cwd=away, PYTHONPATH=str(place)))
    assert Path(found["package"]).is_relative_to(place) and Path(found["extension"]).is_relative_to(place)
    assert 0 < found["loss"] < 100
    info = run(sys.executable, "-m", "attfc_cuda.cli", "info", cwd=away, PYTHONPATH=str(place))
    assert "cpu" in info
