"""The loop: a resumed run is the run that was never stopped, and nothing that goes wrong takes the work along."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attfc_cuda.data import Batch
from attfc_cuda.train import AttFCObjective, NonFiniteLoss, Objective, TrainConfig, checkpoint, train
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import OBJECTIVES

Tiny = Callable[..., TrainConfig]


def losses(config: TrainConfig) -> list[tuple[int, float, float, float]]:
    records = [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "step"]
    return [(r["step"], r["loss"], r["grad_norm"], r["positive_cosine"]) for r in records]


def last_state(config: TrainConfig) -> dict:
    state = checkpoint.load_newest(config.run.run / "checkpoints")
    for varying in ("seconds", "config"):  # the folder's name is in the config
        del state[varying]
    return state


def differences(a: object, b: object, where: str = "") -> list[str]:
    """The places where two checkpoints differ in any bit."""
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
        return [] if same else [where]
    if isinstance(a, dict):
        return [d for k in a.keys() | b.keys() for d in differences(a.get(k), b.get(k), f"{where}.{k}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [d for k, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}[{k}]")]
    return [] if a == b else [where]


def acting_at(
    call: int, action: Callable[[], None], noisy: bool = False, base: type[Objective] = AttFCObjective
) -> type[Objective]:
    """An objective that does something in the middle of the given forward pass, counted from 1.

    noisy: the loss also depends on every global random generator, as dropout would make it.
    """
    calls = [0]

    class Acting(base):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == call:
                action()
            noise = float(torch.rand(())) + np.random.standard_normal() + random.gauss(0, 1) if noisy else 0.0
            return super().forward(backbone, batch) * (1 + 0.1 * noise)

    Acting.__name__ = base.__name__
    return Acting


def poisoned_at(call: int) -> type[AttFCObjective]:
    """An objective that gets a NaN image in the given forward pass."""
    calls = [0]

    class Poisoned(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == call:
                batch.probe[0, 0, 0, 0] = torch.nan
                batch.gallery[-1] = torch.nan
            return super().forward(backbone, batch)

    return Poisoned


VARIANTS = {
    "probes that share a gallery": {"probes_per_identity": 3},
    "steps that share a gallery": {"gallery_steps": 3, "data": "procedural:16x4", "negatives_per_batch": 0},
    "sgd": {},
    "adamw, refresh, polynomial": {"optimizer": "adamw", "policy": "refresh", "schedule": "polynomial"},
    "bf16, eval encoder, copied buffers": {"precision": "bf16", "encoder_mode": "eval", "encoder_buffers": "copy"},
    "fp16 with loss scaling": {"precision": "fp16"},
    "another margin with state": {"margin": "adaface", "enqueue": "after"},
    "full FC": {"head": "fc", "margin": "curricularface"},
    "full FC, optimizer outside": {"head": "fc", "fuse_optimizer": False, "precision": "bf16"},
    "in parts": {"accumulate": 3, "head": "fc", "margin": "adasin"},
    "Partial FC with adamw": {"head": "partial_fc", "margin": "adasin", "sample_rate": 0.7, "optimizer": "adamw"},
}


# A head of each kind and each optimizer at once; the other settings in `make proof`.
AT_ONCE = ("adamw, refresh, polynomial", "full FC", "Partial FC with adamw")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=name, marks=[] if name in AT_ONCE else [pytest.mark.proof])
        for name, variant in VARIANTS.items()
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tiny_config: Tiny, variant: dict) -> None:
    base = OBJECTIVES[variant.get("head", "attfc")]
    whole = tiny_config("whole", **variant)
    train(whole, acting_at(0, lambda: None, noisy=True, base=base))
    # Step 5 of 8 of the first pass, then step 5 of the second.
    first = tiny_config("parts", checkpoint_every=0, **variant)
    outcome = train(first, acting_at(5, lambda: os.kill(os.getpid(), signal.SIGTERM), noisy=True, base=base))
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    second = tiny_config("parts", checkpoint_every=0, resume=True, **variant)
    outcome = train(second, acting_at(8, lambda: os.kill(os.getpid(), signal.SIGINT), noisy=True, base=base))
    assert (outcome.step, outcome.signal) == (13, signal.SIGINT)
    third = tiny_config("parts", checkpoint_every=0, resume=True, **variant)
    assert train(third, acting_at(0, lambda: None, noisy=True, base=base)).signal is None
    assert losses(third) == losses(whole)
    assert len(losses(third)) == 20
    assert differences(last_state(third), last_state(whole)) == []


def test_the_comparison_sees_one_bit(tiny_config: Tiny) -> None:
    config = tiny_config(steps=1)
    train(config)
    a, b = last_state(config), last_state(config)
    weight = next(t for t in b["backbone"].values() if t.is_floating_point())
    weight[(0,) * weight.ndim] = torch.nextafter(weight[(0,) * weight.ndim], torch.tensor(9.0))
    assert len(differences(a, b)) == 1


def test_a_crash_resumes_from_the_last_periodic_checkpoint(tiny_config: Tiny) -> None:
    whole = tiny_config("whole")
    train(whole)

    def crash() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny_config("crashed", checkpoint_every=5), acting_at(18, crash))
    folder = whole.run.run.parent / "crashed" / "checkpoints"
    assert [p.name for p in checkpoint.find(folder)] == [f"step_{k:08d}.pt" for k in (15, 10, 5)]
    checkpoint.find(folder)[0].write_bytes(b"half")  # and the newest did not survive
    resumed = tiny_config("crashed", checkpoint_every=5, resume=True)
    train(resumed)
    assert losses(resumed) == losses(whole)
    assert differences(last_state(resumed), last_state(whole)) == []


def test_interruption_tells_how_to_go_on(tiny_config: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    config = tiny_config(progress=True)
    train(config, acting_at(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    last = " ".join(capsys.readouterr().out.split()[-20:])
    path = config.run.run / "checkpoints" / "step_00000003.pt"
    assert f"stopped by SIGINT after step 3 of 20, checkpoint {path}; go on with: attfc train --run" in last
    assert last.endswith("--resume")
    assert signal.getsignal(signal.SIGINT) is before


def test_two_runs_are_equal_and_another_seed_is_not(tiny_config: Tiny) -> None:
    a, b, c = tiny_config("a", steps=5), tiny_config("b", steps=5), tiny_config("c", steps=5, seed=1)
    for config in (a, b, c):
        train(config)
    assert losses(a) == losses(b)
    assert all(x[1] != y[1] for x, y in zip(losses(a), losses(c), strict=True))


def test_non_finite_loss_stops_with_the_state_before_it(tiny_config: Tiny) -> None:
    good = tiny_config("good", steps=20)
    train(good, acting_at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    bad = tiny_config("bad")
    with pytest.raises(NonFiniteLoss, match=r"loss and gradient must be finite, got loss nan, .* at step 5 ") as caught:
        train(bad, poisoned_at(5))
    path = bad.run.run / "checkpoints" / "step_00000004.pt"
    assert f"the state before that step is in {path}" in str(caught.value)
    before, saved = last_state(good), last_state(bad)
    # Of what matters only the loader has moved: BatchNorm spreads a NaN to every row, so no centre was written either.
    # (The container's clock counts the rows that were offered.)
    moved = {d for d in differences(before, saved) if not d.endswith("].lr")} - {".objective.head.container.clock"}
    assert {d.split(".")[1] for d in moved} == {"loader", "objective_type"}
    assert all(t.isfinite().all() for t in saved["objective"].values())
    assert [r["text"] for r in read_log(bad.run.run / "log.jsonl") if r["kind"] == "note"][0].startswith(
        "stopped: loss nan"
    )


def test_non_finite_loss_can_be_skipped(tiny_config: Tiny) -> None:
    config = tiny_config(non_finite="skip")
    train(config, poisoned_at(5))
    steps = losses(config)
    assert [loss is None for _, loss, _, _ in steps] == [k == 4 for k in range(20)]
    state = last_state(config)
    for part in ("backbone", "objective"):
        assert all(t.isfinite().all() for t in state[part].values()), part
    notes = [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert [n["step"] for n in notes] == [5] and notes[0]["text"].startswith("batch left out: loss nan")


def test_non_finite_gradient_of_a_finite_loss_is_caught(tiny_config: Tiny) -> None:
    class Steep(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            zero = (backbone(batch.probe) * 0).sum()
            return super().forward(backbone, batch) + zero.sqrt()  # slope of sqrt at 0: infinite

    with pytest.raises(NonFiniteLoss, match=r"got loss [\d.]+, gradient norm (nan|inf), at step 1 "):
        train(tiny_config(), Steep)


def test_gradient_clipping_bounds_the_step(tiny_config: Tiny) -> None:
    free, clipped = tiny_config("free", steps=1, clip_norm=None), tiny_config("clipped", steps=1, clip_norm=1e-6)
    start = {}

    class Watching(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            start["weights"] = torch.cat([p.detach().flatten().clone() for p in backbone.parameters()])
            start["backbone"] = backbone
            return super().forward(backbone, batch)

    moved = []
    for config in (free, clipped):
        train(config, Watching)
        after = torch.cat([p.detach().flatten() for p in start["backbone"].parameters()])
        moved.append(float((after - start["weights"]).norm()))
    assert losses(free)[0][2] > 1e-3  # the norm that is logged is the one before clipping
    assert losses(clipped)[0][2] == losses(free)[0][2]
    lr = 0.1 * 8 / 128
    weight_decay = 5e-4 * float(start["weights"].norm())
    assert moved[1] <= lr * (1e-6 + weight_decay) * 1.01 < moved[0]


def test_rates_follow_the_schedule_and_reach_the_log(tiny_config: Tiny) -> None:
    config = tiny_config(warmup=0.25, lr=0.2, encoder_momentum=0.95, encoder_warmup=0.5)
    train(config)
    steps = [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "step"]
    assert [r["lr"] for r in steps[:5]] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert steps[-1]["lr"] == pytest.approx(0)
    assert steps[0]["momentum"] == pytest.approx(0.9) and steps[10]["momentum"] == pytest.approx(0.95)
    assert steps[7]["epochs"] == 1.0
    assert all(r["images_per_s"] > 0 and r["eta_s"] >= 0 for r in steps)


def test_length_comes_from_epochs_unless_steps_are_given(tiny_config: Tiny) -> None:
    config = tiny_config(steps=None, epochs=0.5)
    assert train(config).step == 4


def test_verification_runs_on_other_identities_and_is_logged(tiny_config: Tiny) -> None:
    config = tiny_config(verify_every=10)
    outcome = train(config)
    records = [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "verify"]
    assert [r["step"] for r in records] == [10, 20]
    assert records[-1]["accuracy"] == outcome.results["held-out"].accuracy
    assert 0.4 <= records[-1]["accuracy"] <= 1 and records[-1]["num_pairs"] == 20


def test_a_set_that_cannot_be_judged_is_noted(tiny_config: Tiny) -> None:
    class Collapsing(AttFCObjective):
        def after_step(self, backbone: nn.Module, momentum: float) -> None:
            with torch.no_grad():
                for parameter in backbone.parameters():
                    parameter.zero_()

    config = tiny_config(steps=2)
    assert train(config, Collapsing).results == {}
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert len(notes) == 1 and re.match(r"verification on held-out left out: verify: similarity must", notes[0])


def test_a_used_run_folder_is_not_overwritten_by_accident(tiny_config: Tiny) -> None:
    config = tiny_config(steps=2)
    train(config)
    with pytest.raises(
        ValueError, match=r"train: run must be a folder without checkpoints, got .*; add --resume to go"
    ):
        train(config)
    again = tiny_config(steps=1, overwrite=True)
    train(again)
    assert [p.name for p in checkpoint.find(again.run.run / "checkpoints")] == ["step_00000001.pt"]
    assert len(losses(again)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "resume: batch_size must equal the checkpoint's 8, got 4"),
        ({"probes_per_identity": 2}, "resume: probes_per_identity must equal the checkpoint's 1, got 2; give the same"),
        ({"seed": 3}, "resume: seed must equal the checkpoint's 0, got 3"),
        ({"embedding_dim": 8}, "resume: embedding_dim must equal the checkpoint's 16, got 8"),
        ({"optimizer": "adamw"}, "resume: optimizer must equal the checkpoint's 'sgd', got 'adamw'"),
        ({"margin": "arcface"}, "resume: margin must equal the checkpoint's 'adasin', got 'arcface'"),
        ({"class_code": 0.5}, "resume: class_code must equal the checkpoint's 1.0, got 0.5"),
    ],
)
def test_resuming_with_other_settings_is_refused(tiny_config: Tiny, change: dict, message: str) -> None:
    config = tiny_config(steps=1)
    train(config)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tiny_config(steps=1, resume=True, **change))
    assert TrainConfig.load(config.run.run / "config.json").to_dict() == config.to_dict()


def test_resuming_may_change_what_the_state_does_not_depend_on(tiny_config: Tiny) -> None:
    train(tiny_config(steps=2))
    longer = tiny_config(steps=4, resume=True, lr=0.01, log_every=2)
    assert train(longer).step == 4


@pytest.mark.parametrize(
    "variant", ["steps that share a gallery", "adamw, refresh, polynomial", "full FC", "Partial FC with adamw"]
)
def test_nothing_of_the_checkpoint_stays_in_its_file(tiny_config: Tiny, variant: str) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    config = tiny_config(steps=1, **VARIANTS[variant])
    train(config)
    kept = checkpoint.load_newest(config.run.run / "checkpoints", mapped=True)
    assert "step_00000001.pt" in maps.read_text()
    del kept
    seen: list[str] = []
    base = OBJECTIVES[VARIANTS[variant].get("head", "attfc")]
    look = acting_at(1, lambda: seen.append(maps.read_text()), base=base)
    train(tiny_config(steps=2, resume=True, **VARIANTS[variant]), look)
    assert len(seen) == 1 and "step_00000001.pt" not in seen[0]


def test_resuming_another_objective_or_nothing_is_refused(tiny_config: Tiny, tmp_path: Path) -> None:
    class Other(AttFCObjective):
        pass

    train(tiny_config(steps=1))
    with pytest.raises(
        ValueError, match="resume: the run must be trained as the checkpoint was, by AttFCObjective, got Other"
    ):
        train(tiny_config(steps=1, resume=True), Other)
    with pytest.raises(ValueError, match=r"must hold a step_\*.pt file, got none; start without --resume"):
        train(tiny_config("fresh", resume=True))


def test_second_ctrl_c_does_not_wait(tiny_config: Tiny) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), acting_at(2, twice))
