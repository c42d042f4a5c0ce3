"""The sweep's public function (checks, dispatch, autocast) and class centres; the loss has its own file."""

import math

import pytest
import torch
import torch.nn.functional as F

from attfc_cuda import functional, testing
from attfc_cuda.functional import generate_class_centers, negative_logsumexp
from attfc_cuda.ops import autograd as _ops
from attfc_cuda.ops import backend as _backend
from attfc_cuda.ops import eager

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("modulation", testing.MODULATIONS)
def test_sweep_is_the_oracle(dtype, modulation):
    case = testing.make_case(testing.SHAPES["tail"], dtype, kind="trained", modulation=modulation)
    expected = testing.run(eager.negative_logsumexp, case)
    found = testing.run(negative_logsumexp, case, backend="eager")
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
    truth = testing.run(eager.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    testing.assert_no_worse(found, truth, plain, case=case)


def test_sweep_returns_named_fields_of_the_promised_dtypes():
    case = testing.make_case((3, 5, 7), torch.bfloat16, modulation="none")
    swept = negative_logsumexp(case.embeddings, case.centers, case.labels, case.center_labels, backend="eager")
    assert isinstance(swept, functional.NegativeLogSumExp)
    dtypes = [value.dtype for value in swept]
    assert dtypes == [torch.float32, torch.int64, torch.float32, torch.float32]
    assert all(value.shape == (3,) for value in swept)


def test_coefficients_left_out_are_zero():
    case = testing.make_case((5, 20, 8), torch.float64, modulation="filter")
    arguments = (case.embeddings, case.centers, case.labels, case.center_labels)
    given = negative_logsumexp(
        *arguments, threshold=case.threshold, quad=case.quad, lin=case.lin, const=case.const, backend="eager"
    )
    short = negative_logsumexp(*arguments, threshold=case.threshold, backend="eager")
    assert given.hard_count.any() and torch.equal(given.lse, short.lse)


def test_the_old_keyword_of_target_logit_still_works():
    case = testing.make_case((3, 7, 8), modulation="none")
    swept = testing.run(negative_logsumexp, case)
    arguments = (case.embeddings, case.centers, case.labels, case.center_labels)
    with pytest.warns(DeprecationWarning, match=r"negative_logsumexp\(reference=...\) is now target_logit="):
        found = negative_logsumexp(*arguments, reference=case.target_logit, scale=case.scale)
    assert torch.equal(found.lse, swept["lse"])
    with pytest.raises(ValueError, match=r"target_logit must be \[3\]"), pytest.warns(DeprecationWarning):
        negative_logsumexp(*arguments, reference=torch.zeros(2))


def test_threshold_and_target_logit_get_no_gradient():
    case = testing.make_case((5, 20, 8), torch.float64, modulation="adasin")
    case.threshold.requires_grad_(), case.target_logit.requires_grad_()
    lse = negative_logsumexp(
        case.embeddings.requires_grad_(),
        case.centers,
        case.labels,
        case.center_labels,
        target_logit=case.target_logit,
        threshold=case.threshold,
        lin=case.lin,
        backend="eager",
    ).lse
    grads = torch.autograd.grad(
        lse, (case.embeddings, case.threshold, case.target_logit), case.upstream, allow_unused=True
    )
    assert grads[0].any() and grads[1] is None and grads[2] is None


def test_named_backend_gets_every_argument_in_order(monkeypatch):
    case = testing.make_case((3, 5, 7), torch.bfloat16, modulation="quadratic", scale=32.0)
    seen = []
    monkeypatch.setattr(_backend, "resolve", lambda *asked: seen.append(asked) or "cpu")
    answer = tuple(torch.zeros(3) for _ in range(4))
    monkeypatch.setattr(_ops, "negative_logsumexp", lambda *arguments: seen.append(arguments) or answer)
    options = dict(
        target_logit=case.target_logit, threshold=case.threshold, quad=case.quad, lin=case.lin, const=case.const
    )
    center_scale = torch.arange(5.0)
    for value in (center_scale, *options.values()):
        value.requires_grad_()
    for tolerance in (None, 0.0):
        negative_logsumexp(
            case.embeddings,
            case.centers,
            case.labels,
            case.center_labels,
            center_scale=center_scale,
            **options,
            scale=32,
            grad_tolerance=tolerance,
            backend="auto",
        )
    assert seen[0][:4] == ("auto", torch.device("cpu"), torch.bfloat16, 7)
    row_values = torch.stack(list(options.values()))
    tensors = (case.embeddings, case.centers, case.labels, case.center_labels, center_scale, row_values)
    assert all(torch.equal(given, sent) for given, sent in zip(tensors, seen[1][:6], strict=True))
    assert not seen[1][4].requires_grad
    seen[1][5].sum().backward()
    wanted = {"target_logit": False, "threshold": False, "quad": True, "lin": True, "const": True}
    assert {name: value.grad is not None for name, value in options.items()} == wanted
    assert seen[1][6:] == (32.0, 2.0**-12, "cpu") and isinstance(seen[1][6], float)
    assert seen[3][7] == 0.0


@pytest.mark.parametrize(("dtype", "tolerance"), list(zip(DTYPES, [0.0, 2.0**-12, 2.0**-12, 0.0], strict=True)))
def test_default_tolerance_follows_the_dtype(monkeypatch, dtype, tolerance):
    case = testing.make_case((2, 3, 4), dtype, modulation="none")
    sent = []
    monkeypatch.setattr(_backend, "resolve", lambda *_: "cpu")
    monkeypatch.setattr(_ops, "negative_logsumexp", lambda *arguments: sent.append(arguments) or (None,) * 4)
    negative_logsumexp(case.embeddings, case.centers, case.labels, case.center_labels)
    assert sent[0][7] == tolerance


def test_autocast_sweeps_in_its_dtype():
    case = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="adasin")
    rounded = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="adasin")
    rounded.embeddings, rounded.centers = rounded.embeddings.bfloat16(), rounded.centers.bfloat16()
    options = dict(threshold=case.threshold, lin=case.lin, backend="eager")
    expected = negative_logsumexp(rounded.embeddings, rounded.centers, case.labels, case.center_labels, **options)
    embeddings = case.embeddings.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Mixed dtypes are what a head meets there: a 16-bit layer's output beside a float32 container.
        mixed = negative_logsumexp(embeddings.bfloat16(), case.centers, case.labels, case.center_labels, **options)
        swept = negative_logsumexp(embeddings, case.centers, case.labels, case.center_labels, **options)
    assert torch.equal(swept.lse, expected.lse) and torch.equal(mixed.lse, expected.lse)
    (gradient,) = torch.autograd.grad(swept.lse, embeddings, case.upstream)
    assert gradient.dtype == torch.float32 and gradient.any()


def make_arguments():
    case = testing.make_case((3, 5, 7), torch.float32, modulation="none", empty=0.0)
    rows = torch.zeros(3)
    tensors = dict(
        embeddings=case.embeddings, centers=case.centers, labels=case.labels, center_labels=case.center_labels
    )
    return {**tensors, "target_logit": rows, "threshold": rows, "quad": rows, "lin": rows, "const": rows}


BAD_SWEEPS = {
    "embeddings dtype": (
        TypeError,
        r"embeddings must be float32.*got torch.int64",
        dict(embeddings=torch.ones(3, 7).long()),
    ),
    "embeddings shape": (
        ValueError,
        r"embeddings must be \[B, D\] with D >= 1, got \[3\]",
        dict(embeddings=torch.ones(3)),
    ),
    "no columns": (
        ValueError,
        r"embeddings must be \[B, D\] with D >= 1, got \[3, 0\]",
        dict(embeddings=torch.ones(3, 0)),
    ),
    "centers shape": (ValueError, r"centers must be \[S, D\].*got \[5, 7, 1\]", dict(centers=torch.ones(5, 7, 1))),
    "centers columns": (ValueError, r"centers must have D = 7 columns.*got \[5, 8\]", dict(centers=torch.ones(5, 8))),
    "centers dtype": (
        TypeError,
        r"centers must have the dtype of embeddings, got torch.bfloat16 beside",
        dict(centers=torch.ones(5, 7).bfloat16()),
    ),
    "centers device": (ValueError, r"centers must be on cpu, got meta", dict(centers=torch.ones(5, 7, device="meta"))),
    "labels dtype": (
        TypeError,
        r"labels must be int64, got torch.int32; call .long\(\)",
        dict(labels=torch.zeros(3).int()),
    ),
    "labels shape": (
        ValueError,
        r"labels must be \[3\], one value for each row, got \[3, 1\]",
        dict(labels=torch.zeros(3, 1).long()),
    ),
    "center_labels dtype": (
        TypeError,
        r"center_labels must be int64, got torch.float32",
        dict(center_labels=torch.zeros(5)),
    ),
    "center_labels shape": (
        ValueError,
        r"center_labels must be \[5\].*got \[4\]",
        dict(center_labels=torch.zeros(4).long()),
    ),
    "target_logit shape": (ValueError, r"target_logit must be \[3\].*got \[\]", dict(target_logit=torch.tensor(1.0))),
    "threshold dtype": (
        TypeError,
        r"threshold must be torch.float32 beside torch.float32 embeddings, got torch.float64",
        dict(threshold=torch.zeros(3).double()),
    ),
    "quad shape": (ValueError, r"quad must be \[3\].*got \[1\]", dict(quad=torch.zeros(1))),
    "lin device": (
        ValueError,
        r"lin must be on cpu, got meta; move it with .to\('cpu'\)",
        dict(lin=torch.zeros(3, device="meta")),
    ),
    "coefficient alone": (ValueError, r"quad must be None without a threshold", dict(threshold=None)),
    "scale": (ValueError, r"scale must be a finite number above 0, got 0.0", dict(scale=0.0)),
    "infinite scale": (ValueError, r"scale must be a finite number above 0, got inf", dict(scale=math.inf)),
    "grad_tolerance": (ValueError, r"grad_tolerance must lie in \[0, 1\), got 1.0", dict(grad_tolerance=1.0)),
    "NaN grad_tolerance": (ValueError, r"grad_tolerance must lie in \[0, 1\), got nan", dict(grad_tolerance=math.nan)),
    "center_scale shape": (
        ValueError,
        r"center_scale must be \[5\]",
        {"center_scale": torch.zeros(3)},
    ),
    "center_scale dtype": (
        TypeError,
        "center_scale must be torch.float32 beside torch.float32 centers, got torch.float64",
        {"center_scale": torch.zeros(5, dtype=torch.float64)},
    ),
}


@pytest.mark.parametrize("name", BAD_SWEEPS)
def test_bad_sweep_is_named(name):
    kind, message, change = BAD_SWEEPS[name]
    arguments = {**make_arguments(), **change}
    with pytest.raises(kind, match=r"^negative_logsumexp:.*" + message):
        negative_logsumexp(**arguments, backend="eager")


def test_centers_may_require_a_gradient_where_none_is_recorded():
    arguments = make_arguments()
    arguments["centers"] = arguments["centers"].requires_grad_()
    with torch.no_grad():
        assert negative_logsumexp(**arguments, backend="eager").lse.isfinite().all()


# generate_class_centers


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_class_centers_are_attention_over_the_gallery(temperature):
    generator = torch.Generator().manual_seed(0)
    probe = 3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    gallery = 5 * torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    found = generate_class_centers(probe, gallery, temperature)
    for row in range(4):
        cosines = [float(F.cosine_similarity(probe[row], image, dim=0)) for image in gallery[row]]
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        center = sum(weight / sum(weights) * image for weight, image in zip(weights, gallery[row], strict=True))
        assert torch.allclose(found[row], center / center.norm(), rtol=1e-12)


def test_one_gallery_image_is_its_own_center():
    gallery = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(generate_class_centers(torch.ones(3, 5), gallery), F.normalize(gallery[:, 0], dim=1))


def test_zero_gallery_images_are_safe():
    gallery = torch.zeros(2, 3, 5)
    gallery[0, 1, 2] = 4.0
    found = generate_class_centers(torch.zeros(2, 5), gallery)
    assert torch.allclose(found[0], torch.eye(5)[2]) and not found[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_class_centers_are_wide_and_without_gradient(dtype):
    probe = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    gallery = torch.randn(3, 2, 8, dtype=dtype, requires_grad=True)
    found = generate_class_centers(probe, gallery)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and not found.requires_grad
    assert torch.allclose(found.norm(dim=1), torch.ones(3, dtype=found.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generate_class_centers(probe, gallery), found)


def test_bad_galleries_are_named():
    probe = torch.ones(3, 8)
    for arguments, kind, message in [
        ((torch.ones(3), torch.ones(3, 2, 8)), ValueError, r"probe must be \[B, D\], got \[3\]"),
        ((probe, torch.ones(3, 8)), ValueError, r"gallery must be \[B, r, D\] with B = 3, r >= 1, D = 8, got \[3, 8\]"),
        ((probe, torch.ones(3, 0, 8)), ValueError, r"gallery must be .*, got \[3, 0, 8\]"),
        ((probe, torch.ones(4, 2, 8)), ValueError, r"gallery must be .*, got \[4, 2, 8\]"),
        ((probe, torch.ones(3, 2, 8).int()), TypeError, r"gallery must be float32.*got torch.int32"),
        ((probe, torch.ones(3, 2, 8), 0.0), ValueError, r"temperature must be a finite number above 0, got 0.0"),
    ]:
        with pytest.raises(kind, match="^generate_class_centers: " + message):
            generate_class_centers(*arguments)
