"""For tests and benchmarks of the sweep: inputs that bite, the tolerance rule, and gradients compared as vectors.

A test of a backend reads

    case = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="adasin")
    truth = testing.run(eager.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    actual = testing.run(functional.negative_logsumexp, case, backend="cpu", grad_tolerance=0.0)
    testing.assert_no_worse(actual, truth, plain, case=case)

that is: a gradient's error against float64 may be at most twice plain PyTorch's in the same dtype, and logits are
float32 in every dtype. Floors, for what plain PyTorch got right by luck, are derived (`floor_of`), not tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.margins.angles import psi
from attfc_cuda.ops import eager as oracle
from attfc_cuda.ops.row_values import RowValues

# (B, S, D). One negative; less than any vector width, in every axis; tails of 2 and more behind every power-of-two
# tile; a second block of rows; several tiles of classes at the usual D. Left out for time: the real size, REAL_SHAPE.
SHAPES: dict[str, tuple[int, int, int]] = {
    "one": (1, 1, 8),
    "narrow": (3, 5, 7),
    "tail": (5, 131, 64),
    "odd": (67, 259, 100),
    "wide": (34, 1027, 512),
}
REAL_SHAPE = (384, 27648, 512)

KINDS = ("random", "trained")
MODULATIONS = ("none", "filter", "adasin", "mv", "curricular", "quadratic")

# Sixteen float32 roundings: what a dot product of two unit rows of usual length may lose.
FLOAT32_FLOOR = 2.0**-20


@dataclasses.dataclass
class Case:
    """Inputs of one sweep.

    Attributes:
        embeddings: as for `negative_logsumexp`, like those not named here.
        threshold: None without modulation, as are quad, lin and const.
        upstream: [B], the gradient of its lse.
    """

    embeddings: Tensor
    centers: Tensor
    labels: Tensor
    center_labels: Tensor
    target_cosine: Tensor
    target_logit: Tensor
    threshold: Tensor | None
    quad: Tensor | None
    lin: Tensor | None
    const: Tensor | None
    scale: float
    upstream: Tensor

    def double(self) -> Case:
        """The same numbers in float64: what the truth is computed from."""
        return self._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def to(self, device: torch.device | str) -> Case:
        return self._map(lambda tensor: tensor.to(device))

    def row_values(self) -> Tensor:
        """The operand of torch.ops.attfc.* that its numbers make."""
        return RowValues(self.target_logit, self.threshold, self.quad, self.lin, self.const).stack(self.embeddings)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Case:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()
        }
        return Case(**changed)


def unit(rows: Tensor) -> Tensor:
    """Rows divided by their length."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def at_cosine(directions: Tensor, cosine: Tensor | float, generator: torch.Generator) -> Tensor:
    """Random unit rows at the given cosine to unit `directions` [n, D] (D = 1: the sign is all that is left)."""
    cosine = torch.as_tensor(cosine, dtype=directions.dtype).expand(directions.shape[0])[:, None]
    noise = torch.randn(directions.shape, generator=generator, dtype=directions.dtype)
    noise = unit(noise - (noise * directions).sum(dim=1, keepdim=True) * directions)
    return unit(cosine * directions + (1 - cosine**2).clamp(min=0).sqrt() * noise)


def make_case(
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    kind: str = "random",
    modulation: str = "adasin",
    scale: float = 64.0,
    target_cosine: float | None = None,
    empty: float = 0.1,
    ignored: float = 0.1,
) -> Case:
    """Inputs for a sweep, the same for the same arguments on every machine.

    One row at least stays valid, one slot filled, unless a share is 1.

    Args:
        shape: (B, S, D).
        dtype: of embeddings and centres.
        device: of all tensors.
        seed: of the draw.
        kind: "random": embeddings and centres independent, labels colliding by chance. "trained": cosine 0.8 to the own
            centre, which the container holds for most rows (some twice, stale), and up to four hard negatives per row
            at 0.3 to 0.45. Both repeat some labels inside the batch.
        modulation: "none"; "filter" (0, 0, 0); "adasin" (0, Phi, 0); "mv" (0, t, t - 1); "curricular" (1, t, 0);
            "quadratic": random coefficients of either sign. Each row's threshold is psi(theta + 0.5), moved into a gap
            between cosines near it, so that rounding does not change which negatives are hard; the filter's is 0.4, or
            0.1 for "random".
        scale: of the logits.
        target_cosine: the same for all rows, +-1 included; None: 0.8, or random in 0.3 to 0.9.
        empty: share of slots that are empty: label -1 and NaN content.
        ignored: share of rows with label -1.
    """
    known = {"kind": (kind, KINDS), "modulation": (modulation, MODULATIONS)}
    for argument, (value, choices) in known.items():
        if value not in choices:
            raise error("make_case", argument, f"be one of {', '.join(choices)}", repr(value))
    rows, slots, dim = shape
    generator = torch.Generator().manual_seed(seed)
    draw = _trained if kind == "trained" else _random
    embeddings, centers, labels, center_labels, cosine = draw(rows, slots, dim, generator)
    if target_cosine is not None:
        cosine = torch.full_like(cosine, target_cosine)
    # From here on in the numbers that the backends will see.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    embeddings, centers, cosine = embeddings.to(dtype), centers.to(dtype), cosine.to(wide)
    center_labels[_some(slots, empty, generator)] = -1
    centers[center_labels < 0] = math.nan
    labels[_some(rows, ignored, generator)] = -1

    lowered = psi(cosine.double().acos() + 0.5)
    coefficients = _coefficients(modulation, cosine, generator)
    threshold = None
    if modulation != "none":
        wanted = torch.full_like(lowered, 0.1 if kind == "random" else 0.4) if modulation == "filter" else lowered
        exact = oracle.cosines(embeddings.double(), centers.double(), labels, center_labels)
        # Wide enough for the rounding of a cosine near 0.4 in this dtype, or for float32 dot products.
        threshold = _into_gap(exact, wanted, max(1e-5, torch.finfo(dtype).eps / 2)).to(wide)
    upstream = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    upstream = upstream * (1 - 2 * torch.randint(2, (rows,), generator=generator))
    case = Case(
        embeddings=embeddings,
        centers=centers,
        labels=labels,
        center_labels=center_labels,
        target_cosine=cosine,
        target_logit=(scale * lowered).to(wide),
        threshold=threshold,
        quad=coefficients[0],
        lin=coefficients[1],
        const=coefficients[2],
        scale=scale,
        upstream=upstream.to(wide),
    )
    return case.to(device)


def run(function: Callable[..., Any], case: Case, **options: Any) -> dict[str, Tensor]:
    """Run a `negative_logsumexp` on the case.

    Returns:
        Its four fields and grad_embeddings, grad_quad, grad_lin, grad_const.
    """
    wanted = {"embeddings": case.embeddings, "quad": case.quad, "lin": case.lin, "const": case.const}
    inputs = {name: value.detach().requires_grad_() for name, value in wanted.items() if value is not None}
    modulation = {name: inputs.get(name) for name in ("quad", "lin", "const")}
    outputs = function(
        inputs["embeddings"],
        case.centers,
        case.labels,
        case.center_labels,
        target_logit=case.target_logit,
        threshold=case.threshold,
        **modulation,
        scale=case.scale,
        **options,
    )
    result = dict(zip(("lse", "hard_count", "max_cosine", "omitted_mass"), outputs, strict=True))
    gradients = torch.autograd.grad(result["lse"], list(inputs.values()), case.upstream.to(result["lse"].dtype))
    result.update({f"grad_{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)})
    return {name: value.detach() for name, value in result.items()}


def plain_negative_logsumexp(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    *,
    target_logit: Tensor | None = None,
    **rest,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sweep as plain PyTorch code does it: the product in the inputs' own dtype, cosines rounded to it.

    The yardstick of `assert_no_worse`. Same arguments as `eager.negative_logsumexp`.
    """
    del target_logit
    kept = torch.where((center_labels >= 0)[:, None], centers, 0)
    cosine = torch.where((labels >= 0)[:, None], embeddings, 0) @ kept.T
    cosine = cosine if cosine.dtype == torch.float64 else cosine.float()
    return oracle.logsumexp_of_cosines(cosine, labels, center_labels, **rest)


def relative_error(actual: Tensor, truth: Tensor, least: float = 0.0) -> Tensor:
    """|actual - truth| of each element, relative to max(|truth|, the rms of truth, least), as float64.

    For two dimensions the rms is that of the element's row (a gradient component near 0 in a large gradient carries
    the gradient's error, not its own); for one dimension that of the vector. Elements that are not finite in truth are
    0 where actual is the same, inf elsewhere.
    """
    if actual.shape != truth.shape:
        raise AssertionError(f"shape {list(actual.shape)} differs from the truth's {list(truth.shape)}")
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    finite = truth.isfinite()
    known = torch.where(finite, truth, 0)
    count = finite.sum(dim=-1, keepdim=True).clamp(min=1)
    typical = (known.square().sum(dim=-1, keepdim=True) / count).sqrt().clamp(min=least)
    difference = (torch.where(finite, actual, 0) - known).abs()
    # 0 / 0 is an exact zero where the whole vector is zero.
    relative = torch.where(difference == 0, 0, difference / torch.maximum(known.abs(), typical))
    same = (actual == truth) | (actual.isnan() & truth.isnan())
    return torch.where(finite, relative, torch.where(same, 0, math.inf)).nan_to_num(nan=math.inf, posinf=math.inf)


def floor_of(key: str, case: Case) -> tuple[float, float]:
    """The relative error that float32 logits may cost anywhere, for one entry of `run`'s result.

    - max_cosine: FLOAT32_FLOOR of 1, the cosine of a unit row with itself.
    - lse: the same of `scale`, the logit of that cosine.
    - Gradients: a probability exp(z - lse) carries the absolute error of z and lse, each up to scale * 2^-23 by its own
      rounding and that of its cosine: scale * 2^-22 in all.
    - grad_embeddings, in its dtype: two roundings more, of the probabilities before the product with the centres and of
      the result. Relative to at least scale * 2^-40: rows whose whole gradient is smaller come from negatives under
      e^-27 of the row's mass, which float32 may lose.

    Returns:
        (floor, least), as `assert_no_worse` takes them.
    """
    if key.startswith("grad_"):
        rounding = torch.finfo(case.embeddings.dtype).eps if key == "grad_embeddings" else 0.0
        return max(case.scale * 2.0**-22, rounding), case.scale * 2.0**-40
    return FLOAT32_FLOOR, case.scale if key == "lse" else 1.0


def assert_no_worse(
    actual: Tensor | Mapping[str, Tensor],
    truth: Tensor | Mapping[str, Tensor],
    plain: Tensor | Mapping[str, Tensor] | None = None,
    factor: float = 2.0,
    floor: float = FLOAT32_FLOOR,
    *,
    least: float = 0.0,
    case: Case | None = None,
    name: str = "result",
) -> None:
    """Fail unless actual's relative errors against truth are at most max(factor * plain's, floor).

    Largest and root-mean-square error (`relative_error`) are held against plain's own, so neither one bad element nor a
    general loss of digits passes. Integers must be equal. Mappings are compared key by key over truth's keys.

    Args:
        actual: what is judged.
        truth: the same from float64.
        plain: the same by plain PyTorch; None: the floor alone counts.
        factor: how many times plain's error is let pass.
        floor: the relative error that is let pass anyway.
        least: errors are relative to at least this.
        case: what mappings came from. Then floor and least are those of `floor_of`, values (not gradients) are held to
            the floor alone (a logit is float32 in every dtype), and rows whose lse lies more than 80 below their
            target_logit may have lost it, as `negative_logsumexp` allows.
        name: of the result, for the message.

    Raises:
        AssertionError: naming the first element over the limit and the worst one, with coordinates.
    """
    if isinstance(truth, Mapping):
        assert isinstance(actual, Mapping) and not isinstance(plain, Tensor)
        if case is not None:
            actual = _without_lost_rows(actual, truth, case)
        for key in truth:
            beside = None if plain is None else plain[key]
            if case is not None:
                floor, least = floor_of(key, case)
                beside = beside if key.startswith("grad_") else None
            assert_no_worse(actual[key], truth[key], beside, factor, floor, least=least, name=key)
        return
    assert isinstance(actual, Tensor) and not isinstance(plain, Mapping)
    errors = relative_error(actual, truth, least)
    if errors.numel() == 0:
        return
    integers = not truth.is_floating_point()
    ours, theirs = _norms(errors), None if plain is None or integers else _norms(relative_error(plain, truth, least))
    for kind in ("max", "rms"):
        limit = 0.0 if integers else max(floor, 0.0 if theirs is None else factor * theirs[kind])
        if ours[kind] > limit:
            compared = "" if theirs is None else f" (plain PyTorch: {theirs[kind]:.3g}, factor {factor:g})"
            first = _describe(actual, truth, int((errors.flatten() > limit).int().argmax()))
            worst = _describe(actual, truth, int(errors.argmax()))
            raise AssertionError(
                f"{name}: {kind} relative error {ours[kind]:.3g} exceeds {limit:.3g}{compared}; "
                f"first over it {first}; worst {worst}"
            )


def gradient_difference(actual: Tensor, truth: Tensor) -> dict[str, float]:
    """How far a gradient is off as one vector.

    Returns:
        relative_l2, cosine (of the two), bias (signed, along truth).
    """
    actual, truth = actual.detach().double().cpu().flatten(), truth.detach().double().cpu().flatten()
    length = truth.norm()
    if length == 0:
        return {"relative_l2": float(actual.norm() > 0), "cosine": 1.0, "bias": 0.0}
    cosine = actual @ truth / (actual.norm() * length).clamp(min=1e-300)
    bias = (actual - truth) @ truth / length**2
    return {"relative_l2": float((actual - truth).norm() / length), "cosine": float(cosine), "bias": float(bias)}


def assert_gradient_close(actual: Tensor, truth: Tensor, relative_l2: float, name: str = "gradient") -> None:
    """Fail unless |actual - truth| <= relative_l2 * |truth| as vectors: for sweeps with a grad_tolerance."""
    if actual.shape != truth.shape:
        raise AssertionError(f"{name}: shape {list(actual.shape)} differs from the truth's {list(truth.shape)}")
    found = gradient_difference(actual, truth)
    if not found["relative_l2"] <= relative_l2:
        raise AssertionError(f"{name}: relative L2 error above {relative_l2:.3g}: {found}")


def _random(rows: int, slots: int, dim: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    embeddings = unit(torch.randn(rows, dim, generator=generator, dtype=torch.float64))
    centers = unit(torch.randn(slots, dim, generator=generator, dtype=torch.float64))
    classes = max(2, slots // 2)
    labels = torch.randint(classes, (rows,), generator=generator)
    # A lone slot belongs to another class, or the smallest shapes would have nothing to sum.
    center_labels = torch.randint(classes, (slots,), generator=generator) if slots > 1 else labels[:1] + 1
    cosine = 0.3 + 0.6 * torch.rand(rows, generator=generator, dtype=torch.float64)
    return embeddings, centers, _repeat_labels(labels), center_labels.clone(), cosine


def _trained(rows: int, slots: int, dim: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    labels = _repeat_labels(torch.arange(rows))
    own = unit(torch.randn(rows, dim, generator=generator, dtype=torch.float64))[labels]
    embeddings = at_cosine(own, 0.8, generator)
    centers = unit(torch.randn(slots, dim, generator=generator, dtype=torch.float64))
    center_labels = rows + torch.randint(max(2, slots), (slots,), generator=generator)
    order = torch.randperm(slots, generator=generator)
    # A quarter of the slots at most holds the batch's own classes, the first again as a stale copy.
    kept = order[: min(rows + rows // 4, slots // 4)]
    source = torch.arange(len(kept)) % rows
    centers[kept] = at_cosine(own[source], torch.where(torch.arange(len(kept)) < rows, 1.0, 0.95), generator)
    center_labels[kept] = labels[source]
    hard = order[len(kept) : len(kept) + min(4 * rows, slots // 2)]
    near = 0.3 + 0.15 * torch.rand(len(hard), generator=generator, dtype=torch.float64)
    centers[hard] = at_cosine(embeddings[torch.arange(len(hard)) % rows], near, generator)
    return embeddings, centers, labels, center_labels, torch.full((rows,), 0.8, dtype=torch.float64)


def _repeat_labels(labels: Tensor) -> Tensor:
    """Every eighth row takes the label of the row before it."""
    labels = labels.clone()
    labels[7::8] = labels[6:-1:8] if len(labels) > 7 else labels[7::8]
    return labels


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Indices of a random share of `count`, rounded down but for a share of 1."""
    return torch.randperm(count, generator=generator)[: int(count * share)]


def _coefficients(modulation: str, cosine: Tensor, generator: torch.Generator) -> tuple[Tensor | None, ...]:
    if modulation == "none":
        return None, None, None
    zero = torch.zeros_like(cosine)
    if modulation == "quadratic":
        return tuple(torch.rand(cosine.shape, generator=generator).to(cosine) * 2 - 1 for _ in range(3))
    phi = 0.5 + 1.5 * ((1 - cosine) / 2).sqrt()
    return {
        "filter": (zero, zero, zero),
        "adasin": (zero, phi, zero),
        "mv": (zero, zero + 1.12, zero + 0.12),
        "curricular": (zero + 1, zero + 0.5, zero),
    }[modulation]


def _into_gap(cosine: Tensor, wanted: Tensor, width: float, reach: int = 16) -> Tensor:
    """For each row the middle of the gap between cosines nearest to `wanted` that is at least `width` wide.

    Looks at `reach` gaps on either side and takes the widest where none is wide enough.
    """
    ranked = F.pad(cosine, (2, 0), value=-4.0)
    ranked[:, 0] = 4.0
    ranked = ranked.sort(dim=1).values
    place = torch.searchsorted(ranked, wanted[:, None].contiguous())
    lower = (place + torch.arange(-reach, reach)).clamp(0, ranked.shape[1] - 2)
    left, right = ranked.gather(1, lower), ranked.gather(1, lower + 1)
    # The outer gaps, where all or none are hard, lie 3 or more away: they win only where the row has nothing else.
    middle = (left + right) / 2
    order = torch.where(right - left >= width, (middle - wanted[:, None]).abs(), 10 - (right - left))
    return middle.gather(1, order.argmin(dim=1, keepdim=True))[:, 0]


def _without_lost_rows(actual: Mapping[str, Tensor], truth: Mapping[str, Tensor], case: Case) -> dict[str, Tensor]:
    """`actual` with truth's numbers in the rows that lie, in both, too far below their target_logit to matter."""
    bound = case.target_logit.double().cpu() - 80
    lost = (truth["lse"].double().cpu() < bound) & (actual["lse"].double().cpu() < bound + 1)
    result = dict(actual)
    for key in truth:
        if key == "lse" or key.startswith("grad_"):
            values, known = actual[key].double().cpu(), truth[key].double().cpu()
            forgiven = lost if values.dim() == 1 else lost[:, None]
            # A NaN is never forgiven.
            result[key] = torch.where(forgiven & ~values.isnan(), known, values)
    return result


def _norms(errors: Tensor) -> dict[str, float]:
    return {"max": float(errors.max()), "rms": float(errors.square().mean().sqrt())}


def _describe(actual: Tensor, truth: Tensor, flat: int) -> str:
    place = [int(index) for index in torch.unravel_index(torch.tensor(flat), truth.shape)]
    got, expected = float(actual.flatten()[flat]), float(truth.flatten()[flat])
    return f"at {place}: got {got:.9g}, expected {expected:.9g}"
