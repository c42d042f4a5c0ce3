"""Every contender equals float64, and the check notices one that does not."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import oracle  # noqa: E402
import ours  # noqa: E402
import peers  # noqa: E402
import problem as problems  # noqa: E402
from contenders import CONTENDERS, Contender  # noqa: E402
from problem import CONTAINER, HEAD, TRAINED_CENTERS, Problem, make_inputs  # noqa: E402

from attfc_cuda import DynamicClassContainer  # noqa: E402
from attfc_cuda.ops import backend as _backend  # noqa: E402

pytestmark = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)
# Few identities: some rows of a batch share a class, and a tenth of the identities is barely a batch.
SMALL = Problem(identities=300, batch=24, dim=48, dtype="float32", device="cpu", margin="arcface")
# Through torch.compile, which takes seconds for each; AdaSin's is checked by tests/test_gpu_programs.py.
COMPILED = ("full fc, torch.compile", "cut-cross-entropy", "torch.compile AdaSin")
CHECKED = [
    pytest.param(task, name, margin, dtype, marks=[pytest.mark.proof] if name in COMPILED else [])
    for task, contenders in CONTENDERS.items()
    for name, contender in contenders.items()
    if contender.truth is not None and not contender.only_gpu
    for margin in (contender.margins or ("arcface", "adasin", "magface"))
    for dtype in ("float32", "bfloat16")
    if name not in COMPILED or (dtype == "float32" and task == HEAD)
]


def problem_of(task: str, margin: str = "arcface", dtype: str = "float32") -> Problem:
    return dataclasses.replace(SMALL, task=task, margin=margin, dtype=dtype)


@pytest.mark.parametrize(("task", "name", "margin", "dtype"), CHECKED)
def test_two_steps_of_a_contender_equal_float64(task: str, name: str, margin: str, dtype: str) -> None:
    contender, problem = CONTENDERS[task][name], problem_of(task, margin, dtype)
    if contender.unavailable(problem):
        pytest.skip(contender.unavailable(problem))
    errors = oracle.check(contender, problem)
    assert set(errors) == {"loss", "embedding_grad"} | ({"centers"} if task != CONTAINER else set())
    # No step is that of float64 itself, and centres that had not moved would be off by 1.
    assert all(0 < error < 0.02 for name, error in errors.items() if name != "loss")


def with_margin(contender: Contender, **changes: object) -> Contender:
    """The contender of ours with another margin than the one it is checked against."""
    return dataclasses.replace(contender, build=lambda p: contender.build(dataclasses.replace(p, **changes)))


HEADS = ("full fc, fused", "full fc, eager", "partial fc 10 %, fused", "partial fc 10 %, eager")
HEADS += ("attfc 30 %", "attfc 30 %, eager")
GRADIENTS = ("attfc AdaSin, cold", "attfc AdaSin, warm, trainer's defaults", "eager ArcFace, as InsightFace")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("task", "name"),
    [(HEAD, name) for name in HEADS] + [(task, n) for task in (CONTAINER, TRAINED_CENTERS) for n in GRADIENTS],
)
def test_a_margin_that_is_wrong_by_a_tenth_is_refused(
    task: str, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = CONTENDERS[task][name]
    problem = problem_of(task, contender.margins[0] if contender.margins else "arcface", dtype)
    if contender.ours:
        right = contender.applied(problem).m_rad or problems.M_RAD
        contender = with_margin(contender, m_rad=0.9 * right)
    else:
        monkeypatch.setattr(peers, "M_RAD", 0.9 * problems.M_RAD)
    with pytest.raises(AssertionError, match=f"{name} .*{dtype}. must agree with float64 within"):
        oracle.check(contender, problem)


@pytest.mark.parametrize("name", HEADS[:4])
def test_a_wrong_momentum_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ours, peers, problems):
        monkeypatch.setattr(module, "MOMENTUM", 0.89)
    with pytest.raises(AssertionError, match="centers [0-9.e-]*"):
        oracle.check(CONTENDERS[HEAD][name], SMALL)


def test_a_container_that_forgets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamicClassContainer, "enqueue", lambda self, centers, labels: None)
    with pytest.raises(AssertionError, match="must agree"):
        oracle.check(CONTENDERS[HEAD]["attfc 30 %"], SMALL)


def test_what_a_gradient_may_leave_out_is_allowed_and_no_more() -> None:
    contender = CONTENDERS[CONTAINER]["attfc AdaSin, warm"]
    problem = dataclasses.replace(problem_of(CONTAINER, "adasin"), identities=3000, dim=256)
    assert oracle.check(contender, problem)["embedding_grad"] < 1e-2
    with pytest.raises(AssertionError, match="must agree with float64 within 0.004, got .*embedding_grad"):
        oracle.check(with_margin(contender, grad_tolerance=0.2), problem)


@pytest.mark.parametrize("name", ["full fc, fused", "partial fc 10 %, fused", "attfc 30 %", "full fc, eager"])
def test_right_over_more_classes_than_float16_can_count(name: str) -> None:
    assert oracle.over_many_classes(CONTENDERS[HEAD][name], SMALL) == "right"


def test_a_softmax_that_is_held_in_float16_is_told() -> None:
    def build(problem: Problem) -> problems.Step:
        step = CONTENDERS[HEAD]["full fc, eager"].build(problem)

        def run(inputs: problems.Inputs) -> torch.Tensor:
            step.run(inputs)
            # The probabilities of many classes, each under 1, summed in float16.
            return torch.ones(problem.identities).cumsum(0)[-1].half().float()

        return dataclasses.replace(step, run=run)

    contender = dataclasses.replace(CONTENDERS[HEAD]["full fc, eager"], build=build)
    assert oracle.over_many_classes(contender, SMALL).startswith("loss inf, embedding_grad 0.0")
    assert oracle.over_many_classes(CONTENDERS[HEAD]["bare product"], SMALL) == "-"


@pytest.mark.parametrize("kind", ["random", "trained"])
@pytest.mark.parametrize("task", [CONTAINER, TRAINED_CENTERS])
def test_inputs_are_unit_rows_with_an_own_centre_each(task: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_CHUNK", 7)
    problem = dataclasses.replace(problem_of(task), identities=300, batch=20, dim=64, inputs=kind)
    inputs = make_inputs(problem)
    torch.testing.assert_close(inputs.embeddings.detach().norm(dim=1), torch.ones(20))
    assert inputs.centers.requires_grad == (task == TRAINED_CENTERS)
    length = inputs.centers.detach().norm(dim=1)
    assert inputs.centers.unique(dim=0).shape == (300, 64) and inputs.labels.unique().shape == (20,)
    assert (length.min() < 0.6 and length.max() > 1.6) if task == TRAINED_CENTERS else (length - 1).abs().max() < 1e-5
    cosine = inputs.embeddings.detach() @ (inputs.centers.detach() / length[:, None]).T
    own = cosine[torch.arange(20), inputs.labels]
    if kind == "trained":
        torch.testing.assert_close(own, torch.full((20,), 0.8))
        assert ((cosine > 0.299) & (cosine < 0.451)).sum() >= 80
    else:
        assert own.abs().max() < 0.6
    few = make_inputs(dataclasses.replace(problem, identities=16, inputs="random"))
    assert few.labels.shape == (20,) and few.labels.max() < 16
