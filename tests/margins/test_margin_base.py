"""What every margin shares: the two gradients, the state's rules, errors, and a margin of one's own."""

import inspect
import math
import re

import pytest
import torch

from attfc_cuda import margins, testing
from attfc_cuda.functional import margin_softmax_loss
from attfc_cuda.margins import Margin, Modulation, angle
from attfc_cuda.ops import eager

STATEFUL = {"adasin": ["t"], "curricularface": ["t"], "adaface": ["norm_mean", "norm_std"]}
HARD = torch.tensor([0, 1, 3, 0, 2, 1, 0])


def rows(dtype=torch.float64):
    cosine = torch.tensor([0.9, 0.5, -0.3, -0.95, 0.05, 0.999, 0.7], dtype=dtype)
    norm = torch.tensor([15.0, 30.0, 60.0, 22.0, 109.0, 8.0, 200.0], dtype=dtype)
    return cosine, norm


# Both gradients, every margin


@pytest.mark.parametrize("hard_count", [None, HARD], ids=["none", "some"])
@pytest.mark.parametrize("name", margins.NAMES)
def test_target_gradcheck(name, hard_count):
    options = {"detach_difficulty": False} if name == "adasin" else {}
    margin = margins.build(name, **options).eval()
    cosine, norm = rows()
    inputs = [cosine.requires_grad_(), norm.requires_grad_(name == "magface")]
    assert torch.autograd.gradcheck(lambda *values: margin.target(*values, hard_count), inputs)
    assert torch.autograd.gradgradcheck(lambda *values: margin.target(*values, hard_count), inputs)


@pytest.mark.parametrize("name", margins.NAMES)
def test_straight_through_has_the_value_and_a_slope_of_one(name):
    cosine, norm = rows(torch.float32)
    cosine.requires_grad_(), norm.requires_grad_()
    exact = margins.build(name).target(cosine, norm, HARD)
    through = margins.build(name, gradient="straight_through").target(cosine, norm, HARD)
    assert torch.equal(exact, through)
    grads = torch.autograd.grad(through.sum(), (cosine, norm), allow_unused=True)
    assert torch.equal(grads[0], torch.ones(7)) and grads[1] is None


@pytest.mark.parametrize("hard", [0, 1])
@pytest.mark.parametrize("name", margins.NAMES)
def test_target_rises_with_the_cosine(name, hard):
    margin = margins.build(name).eval()
    if "t" in STATEFUL.get(name, []):
        margin.t.fill_(0.6)
    cosine = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for size in (5.0, 20.0, 70.0, 300.0):
        norm = torch.full_like(cosine, size)
        target = margin.target(cosine, norm, torch.full((4001,), hard))
        rise = target.diff()
        # AdaFace is flat where its margin would turn the angle negative.
        assert (rise >= 0).all() if name == "adaface" else (rise > 0).all()
        assert target[-1] <= 1 and target[0] >= -4


@pytest.mark.parametrize("name", margins.NAMES)
def test_modulation_has_one_value_per_row_and_no_gradient_to_the_threshold(name):
    cosine, norm = rows()
    modulation = margins.build(name).modulation(cosine.requires_grad_(), norm)
    assert (modulation is not None) == (name in ("adasin", "mvsoftmax", "curricularface"))
    if modulation is not None:
        assert all(value.shape == (7,) and value.dtype == torch.float64 for value in modulation)
        assert not modulation.threshold.requires_grad


# Running state


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_float32_buffers_that_travel(name):
    margin = margins.build(name, momentum=0.5)
    cosine, norm = rows(torch.float32)
    margin.update(cosine, norm, torch.ones(7, dtype=torch.bool))
    state = margin.state_dict()
    assert sorted(state) == sorted(STATEFUL[name])
    assert all(value.shape == () and value.dtype == torch.float32 for value in state.values())
    fresh = margins.build(name, momentum=0.5)
    assert all(not torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    fresh.load_state_dict(state)
    assert torch.equal(fresh.target(cosine, norm, HARD), margin.target(cosine, norm, HARD))


@pytest.mark.parametrize("name", STATEFUL)
def test_rows_that_do_not_count_do_not_move_the_state(name):
    cosine, norm = rows(torch.float32)
    valid = torch.tensor([True, False, True, True, False, True, True])
    clean = margins.build(name, momentum=0.5)
    clean.update(cosine[valid][:-2], norm[valid][:-2], torch.ones(3, dtype=torch.bool))
    dirty = margins.build(name, momentum=0.5)
    cosine[~valid], norm[1] = math.nan, math.inf
    # Valid labels, but the embedding is not finite: shown by one or the other.
    cosine[5] = math.nan
    if name == "adaface":
        norm[6] = math.inf
    else:
        cosine[6] = -math.inf
    dirty.update(cosine, norm, valid)
    for key, value in clean.state_dict().items():
        assert torch.allclose(dirty.state_dict()[key], value, rtol=1e-6), key


@pytest.mark.parametrize("name", STATEFUL)
def test_nothing_valid_or_eval_mode_moves_nothing(name):
    cosine, norm = rows(torch.float32)
    margin = margins.build(name)
    before = {key: value.clone() for key, value in margin.state_dict().items()}
    margin.update(cosine, norm, torch.zeros(7, dtype=torch.bool))
    margin.update(cosine[:0], norm[:0], torch.zeros(0, dtype=torch.bool))
    margin.update(torch.full((7,), math.nan), norm, torch.ones(7, dtype=torch.bool))
    margin.eval()
    margin.update(cosine, norm, torch.ones(7, dtype=torch.bool))
    for key, value in before.items():
        assert torch.equal(margin.state_dict()[key], value), key


def test_state_records_no_graph():
    cosine, norm = rows(torch.float32)
    margin = margins.AdaSin()
    margin.update(cosine.requires_grad_(), norm, torch.ones(7, dtype=torch.bool))
    assert margin.t != 0 and not margin.t.requires_grad


# Construction


def test_build_knows_every_name():
    classes = {type(margins.build(name)) for name in margins.NAMES}
    assert len(classes) == len(margins.NAMES) == 10 and all(issubclass(kind, Margin) for kind in classes)
    assert margins.build("arcface", m=0.3, scale=32.0).scale == 32.0
    assert "m2=0.3" in repr(margins.build("arcface", m=0.3)) and "t=1.12" in repr(margins.MVSoftmax())
    message = r"^margins.build: name must be one of adasin, arcface.*, got 'ArcFace'; did you mean arcface\?$"
    with pytest.raises(ValueError, match=message):
        margins.build("ArcFace")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arcface", dict(scale=0.0), "ArcFace: scale must be a finite number above 0, got 0.0"),
        ("arcface", dict(scale=math.nan), "ArcFace: scale must be a finite number above 0, got nan"),
        ("cosface", dict(gradient="none"), 'CosFace: gradient must be "exact" or "straight_through", got \'none\''),
        ("arcface", dict(interclass_filter=2.0), r"ArcFace: interclass_filter must be a cosine in \[-1, 1\], got 2.0"),
        ("adasin", dict(trim=1.0), r"AdaSin: trim must lie in \[0, 1\), got 1.0"),
        ("arcface", dict(trim=-0.1), r"ArcFace: trim must lie in \[0, 1\), got -0.1"),
        ("adasin", dict(interclass_filter=0.4), "AdaSin: interclass_filter must be None, got 0.4; AdaSin re-weights"),
        ("mvsoftmax", dict(interclass_filter=0.4), "MVSoftmax: interclass_filter must be None"),
        ("curricularface", dict(interclass_filter=0.4), "CurricularFace: interclass_filter must be None"),
        ("arcface", dict(m=-0.1), "ArcFace: m2 must be a finite number of at least 0, got -0.1"),
        ("sphereface", dict(m=0.0), "SphereFace: m1 must be a finite number above 0, got 0.0"),
        ("cosface", dict(m=math.inf), "CosFace: m must be a finite number of at least 0, got inf"),
        ("combined", dict(m3=-1.0), "CombinedMargin: m3 must be a finite number of at least 0, got -1.0"),
        ("adasin", dict(h=-1.0), "AdaSin: h must be a finite number of at least 0, got -1.0"),
        ("adasin", dict(momentum=1.5), r"AdaSin: momentum must lie in \[0, 1\], got 1.5"),
        ("adasin", dict(difficulty="sine"), 'AdaSin: difficulty must be "half_angle" or "angle", got \'sine\''),
        ("mvsoftmax", dict(t=0.5), "MVSoftmax: t must be a finite number of at least 1, got 0.5"),
        ("curricularface", dict(momentum=-0.1), r"CurricularFace: momentum must lie in \[0, 1\], got -0.1"),
        ("adaface", dict(h=math.nan), "AdaFace: h must be a finite number of at least 0, got nan"),
        ("magface", dict(l_a=110.0), r"MagFace: l_a, u_a must satisfy 0 < l_a < u_a, got \(110.0, 110.0\)"),
        ("magface", dict(l_m=0.9), r"MagFace: l_m, u_m must satisfy 0 <= l_m <= u_m, got \(0.9, 0.8\)"),
        ("magface", dict(lambda_g=-1.0), "MagFace: lambda_g must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match="^" + message):
        margins.build(name, **options)


@pytest.mark.parametrize("value", ["0.3", None, [0.3]], ids=str)
@pytest.mark.parametrize("name", margins.NAMES)
def test_what_is_no_number_is_named(name, value):
    parameters = inspect.signature(type(margins.build(name))).parameters.values()
    numbers = {"scale", "trim"} | {p.name for p in parameters if p.annotation == "float"}
    for argument in numbers:
        with pytest.raises(ValueError, match=rf"^\w+: [\w, ]+ must [^;]*, got .*{re.escape(repr(value))}"):
            margins.build(name, **{argument: value})


@pytest.mark.parametrize(
    ("trim", "left_out"), [(0.0, []), (0.24, []), (0.25, [5]), (0.5, [1, 5]), (0.75, [1, 2, 5]), (0.99, [1, 2, 5])]
)
def test_trim_leaves_out_the_lowest_cosines_of_the_rows_that_count(trim, left_out):
    cosine = torch.tensor([0.9, 0.1, 0.1, -2.0, 0.7, -0.3])
    valid = torch.tensor([True, True, True, False, False, True])
    margin = margins.CosFace(trim=trim)
    expected = valid.clone()
    expected[left_out] = False
    assert torch.equal(margin.counted(cosine, valid), expected)
    assert torch.equal(margin.eval().counted(cosine, valid), valid)
    assert margin.train().counted(cosine[:0], valid[:0]).tolist() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_trim_counts_alike_whatever_the_default_dtype(dtype):
    cosine, valid = torch.linspace(-1, 1, 1000, dtype=torch.float32), torch.ones(1000, dtype=torch.bool)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        counted = margins.CosFace(trim=0.3).counted(cosine, valid)
    finally:
        torch.set_default_dtype(default)
    assert counted.tolist() == [False] * 300 + [True] * 700


def test_trim_does_not_hide_what_is_not_finite():
    cosine, valid = torch.tensor([math.nan, 0.1, 0.2, 0.3]), torch.ones(4, dtype=torch.bool)
    assert margins.AdaSin(trim=0.5).counted(cosine, valid).tolist() == [True, False, False, True]


def test_interclass_filter_is_a_modulation():
    cosine, _ = rows()
    modulation = margins.CosFace(interclass_filter=0.4).modulation(cosine)
    assert torch.equal(modulation.threshold, torch.full_like(cosine, 0.4))
    assert not any(value.any() for value in modulation[1:])


# A margin of one's own, as the README shows it


class LinearFace(Margin):
    """T falls linearly with the angle; negatives above T weigh 1.2 times their cosine."""

    def __init__(self, m=0.3, **base):
        super().__init__(**base)
        self.m = m

    def target_cosine(self, cosine, norm, hard_count):
        return 1 - 2 * (angle(cosine) + self.m) / math.pi

    def modulation(self, cosine, norm=None):
        zero = torch.zeros_like(cosine)
        threshold = self.target_cosine(cosine, norm, None).detach()
        return Modulation(threshold, quad=zero, lin=zero + 1.2, const=zero)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_a_margin_of_ones_own(gradient):
    case = testing.make_case((9, 40, 16), torch.float64, kind="trained")
    cosine = torch.full((9,), 0.7, dtype=torch.float64, requires_grad=True)
    margin = LinearFace(scale=48.0, gradient=gradient)
    arguments = (case.embeddings, case.centers, case.labels, case.center_labels)
    output = margin_softmax_loss(*arguments, margin, target_cosine=cosine, backend="eager")
    target = 1 - 2 * (torch.tensor(0.7, dtype=torch.float64).acos() + 0.3) / math.pi
    bent = target.expand(9)
    rows = eager.margin_softmax_cross_entropy(
        *arguments, bent, threshold=bent, lin=torch.full_like(bent, 1.2), scale=48.0
    )
    assert output.negatives.hard_count.any() and torch.allclose(output.rows, rows, rtol=1e-12)
    (slope,) = torch.autograd.grad(output.target_logit.sum(), cosine)
    valid = case.labels >= 0
    expected = 48.0 * (1.0 if gradient == "straight_through" else 2 / math.pi / math.sqrt(1 - 0.7**2))
    assert torch.allclose(slope[valid], torch.full_like(slope[valid], expected)) and not slope[~valid].any()
    with pytest.raises(ValueError, match="^LinearFace: interclass_filter must be None"):
        LinearFace(interclass_filter=0.4)


def test_a_margin_without_a_formula_says_so():
    with pytest.raises(NotImplementedError, match=r"^Margin must define target_cosine\(cosine, norm, hard_count\)$"):
        Margin().target(torch.zeros(1))


def test_a_margin_that_defines_the_old_name_still_works():
    with pytest.warns(DeprecationWarning, match=r"^Old\.bend is now target_cosine"):

        class Old(margins.CosFace):
            def bend(self, cosine, norm, hard_count):
                return super().bend(cosine, norm, hard_count) - 0.25

    cosine, _ = rows()
    with pytest.warns(DeprecationWarning, match=r"^CosFace\.bend is now target_cosine"):
        assert torch.equal(Old(m=0.5).target(cosine), cosine - 0.75)
    with pytest.warns(DeprecationWarning, match=r"^CombinedMargin\.bend is now target_cosine"):
        assert torch.equal(margins.ArcFace().bend(cosine, None, None), margins.ArcFace().target(cosine))

    class New(Old):
        def target_cosine(self, cosine, norm, hard_count):
            return cosine

    with pytest.warns(DeprecationWarning):
        assert torch.equal(New().bend(cosine, None, None), cosine)
    assert torch.equal(New().target(cosine), cosine)


# The running state keeps its dtype


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to"])
@pytest.mark.parametrize("name", STATEFUL)
def test_running_state_stays_float32_under_any_cast(name, cast):
    """In bfloat16 a mean of 0.7 with momentum 0.99 stops at 0.508: a step of 0.002 is half of its last place."""
    margin, same = margins.build(name), margins.build(name)
    holder = torch.nn.ModuleDict({"margin": margin})
    for state in STATEFUL[name]:
        getattr(margin, state).fill_(1 / 3)
        getattr(same, state).fill_(1 / 3)
    holder.to(dtype=torch.bfloat16) if cast == "to" else getattr(holder, cast)()
    cosine, norm = torch.full((4,), 0.7), torch.tensor([20.0, 30.0, 25.0, 35.0])
    for _ in range(600):
        for each in (margin, same):
            each.update(cosine, norm, torch.ones(4, dtype=torch.bool))
    for state in STATEFUL[name]:
        assert getattr(margin, state).dtype == torch.float32
        assert torch.equal(getattr(margin, state), getattr(same, state))
        if state == "t":
            assert abs(margin.t - 0.7) < 2e-3  # 0.99^600 * 0.7
    # What a checkpoint that was cast brings along does not change the dtype either.
    saved = {key: value.bfloat16() for key, value in margin.state_dict().items()}
    for assign in (False, True):
        margin.load_state_dict(saved, assign=assign)
        assert all(getattr(margin, state).dtype == torch.float32 for state in STATEFUL[name])


def test_running_state_moves_to_another_device():
    margin = margins.build("adaface").to("meta", torch.bfloat16)
    assert margin.norm_mean.device.type == "meta" and margin.norm_mean.dtype == torch.float32
    margin = margin.to_empty(device="cpu")
    assert margin.norm_mean.device.type == "cpu" and margin.norm_mean.dtype == torch.float32
