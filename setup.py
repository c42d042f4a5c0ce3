"""Builds the compiled extensions where torch can be imported; elsewhere attfc_cuda/ops/backend.py does at first use.

`pip install --no-build-isolation -e .` compiles now; a plain `pip install -e .` (isolated build, no torch) compiles at
the first call. The operators for CUDA devices are built where a GPU is visible and a CUDA toolkit is found, for that
GPU, and left out with the reason elsewhere; ATTFC_FORCE_CUDA=1 builds them anywhere or fails, ATTFC_FORCE_CUDA=0 never.
Everything else about the package is in pyproject.toml.
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
    spec = util.spec_from_file_location("_attfc_build", ROOT / "attfc_cuda" / "ops" / "build.py")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def tell(text):
    print(f"attfc_cuda: {text}", file=sys.stderr)


class BuildPyWithSources(build_py):
    """A wheel carries csrc/ inside the package, so that the build at first use finds it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "attfc_cuda" / "_csrc", dirs_exist_ok=True)


def extension_arguments():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        tell("torch is not importable here; the extension is compiled at first use")
        return {}
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    lists = load_build_lists()
    csrc = ROOT / "csrc"

    def relative(paths):
        return [str(path.relative_to(ROOT)) for path in paths]

    class BuildExtension(cpp_extension.BuildExtension):
        """An optional extension that does not compile is told of and left out. A binary that an earlier build left
        never stands in for one that this build leaves out."""

        def run(self):
            for folder in (ROOT, Path(self.build_lib)):
                for stale in (folder / "attfc_cuda").glob("_C_cuda.*"):
                    stale.unlink()
            super().run()

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as cause:
                if not ext.optional:
                    raise
                tell(f"{ext.name} could not be compiled and is left out: {cause}")

    arguments = lists.compile_flags()
    extensions = [
        cpp_extension.CppExtension("attfc_cuda._C", relative(lists.cpu_sources(csrc)), extra_compile_args=arguments)
    ]
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    plan = lists.plan_cuda_build(torch.version.cuda, capabilities)
    if isinstance(plan, str):
        tell(f"the CUDA extension is left out: {plan}")
    else:
        tell(f"the CUDA extension is compiled for {', '.join(plan.architectures)} with {plan.toolkit.home}")
        cpp_extension.CUDA_HOME = str(plan.toolkit.home)
        flags = {"cxx": plan.cxx_flags(), "nvcc": plan.nvcc_flags()}
        sources = relative(lists.cuda_sources(csrc))
        extension = cpp_extension.CUDAExtension("attfc_cuda._C_cuda", sources, extra_compile_args=flags)
        extension.optional = os.environ.get(lists.FORCE) != "1"
        extensions.append(extension)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildExtension}}


arguments = extension_arguments()
arguments["cmdclass"] = {**arguments.get("cmdclass", {}), "build_py": BuildPyWithSources}
setup(**arguments)
