"""Old names still work, with a warning: modules at their old places are the same objects, keywords mean the same."""

import importlib
import subprocess
import sys

import pytest

from attfc_cuda._deprecated import MOVED, renamed_keyword


@pytest.mark.parametrize("old", [name for name in MOVED if not name.startswith("kernels")])
def test_an_old_place_gives_the_module_of_the_new_one(old):
    place = importlib.import_module(f"attfc_cuda.{MOVED[old]}")
    sys.modules.pop(f"attfc_cuda.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"attfc_cuda.{MOVED[old]}"):
        assert importlib.import_module(f"attfc_cuda.{old}") is place
    assert place.__spec__.name == place.__name__ == f"attfc_cuda.{MOVED[old]}"


def test_importing_the_package_needs_no_old_place():
    subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:attfc_cuda", "-c", "import attfc_cuda"], check=True
    )


def test_a_renamed_keyword():
    @renamed_keyword("old", "new")
    def f(x, *, new=0):
        return x, new

    assert f(1, new=2) == (1, 2)
    with pytest.warns(DeprecationWarning, match=r"f\(old=...\) is now new="):
        assert f(1, old=3) == (1, 3)
    with pytest.raises(TypeError, match="new must be given once, got old as well"):
        f(1, old=3, new=4)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("evaluation.report", "judge", "evaluation.report.evaluate_sets"),
        ("evaluation.report", "judge_suite", "evaluation.report.evaluate_suite"),
        ("evaluation.report", "Judgement", "evaluation.report.SetResult"),
        ("evaluation.report", "load_backbone", "train.backbone.load_backbone"),
        ("train.validation", "from_list", "evaluation.build.from_list"),
        ("train.validation", "lists_in", "evaluation.build.from_lists"),
        ("train.diagnostics", "SaturationWatch", "train.diagnostics.SaturationCheck"),
        ("train.process_group", "Silence", "train.log.NoLog"),
        ("demo", "PASSES", "demo.EPOCHS"),
        ("data.sources.recordio_writer", "pack", "data.packing.pack"),
    ],
)
def test_an_old_name_of_a_function_or_class(module, old, new):
    place, _, name = new.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"attfc_cuda.{module}.{old} is now attfc_cuda."):
        found = getattr(importlib.import_module(f"attfc_cuda.{module}"), old)
    assert found is getattr(importlib.import_module(f"attfc_cuda.{place}"), name)


def test_names_that_never_were_are_attribute_errors():
    for module in ("evaluation.report", "train", "demo"):
        with pytest.raises(AttributeError, match="has no attribute 'never'"):
            _ = importlib.import_module(f"attfc_cuda.{module}").never
