"""Builds the compiled extension where torch can be imported; otherwise attfc_cuda/_backend.py builds it at first use.

`pip install --no-build-isolation -e .` compiles now; a plain `pip install -e .` (isolated build, no torch) compiles at
the first call. Everything else about the package is in pyproject.toml.
"""

import os
import shutil
import sys
from importlib import util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def load_build_lists():
    spec = util.spec_from_file_location("_build", ROOT / "attfc_cuda" / "_build.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPyWithSources(build_py):
    """A wheel carries csrc/ inside the package, so that the build at first use finds it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "attfc_cuda" / "_csrc", dirs_exist_ok=True)


def extension_arguments():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("attfc_cuda: torch is not importable here; the extension is compiled at first use", file=sys.stderr)
        return {}
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    lists = load_build_lists()
    sources = [str(path.relative_to(ROOT)) for path in lists.cpu_sources(ROOT / "csrc")]
    extension = CppExtension("attfc_cuda._C", sources, extra_compile_args=lists.compile_flags())
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


arguments = extension_arguments()
arguments["cmdclass"] = {**arguments.get("cmdclass", {}), "build_py": BuildPyWithSources}
setup(**arguments)
