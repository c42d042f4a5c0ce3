"""The plan as a whole: backbone, table, chart, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attfc_cuda import AttFC, backbones, cli
from attfc_cuda.cli.plan import Command as PlanCommand
from attfc_cuda.data import AttentionLoader, build_dataset
from attfc_cuda.ops import precision
from attfc_cuda.plan import HEADS, Head, head_needs, make_plan, network_needs, rates, report
from attfc_cuda.plan.heads import centers_met, container_slots, sampled_classes
from attfc_cuda.plan.report import parse_bytes
from attfc_cuda.train import TrainConfig, parts


@pytest.mark.parametrize("name", ["small", "mobilefacenet", "iresnet18"])
def test_backbone_on_fake_tensors_is_the_real_one(name: str) -> None:
    needs = network_needs(name, 32, 32, 4)
    network = backbones.build(name, embedding_dim=32, image_size=32).train()
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = network(torch.randn(4, 3, 32, 32))
    real = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    assert output.shape == (4, 32) and needs.saved_bytes == pytest.approx(real, rel=0.02)
    assert needs.parameters == sum(p.numel() for p in network.parameters())
    # Twice the batch: twice the activations, the same arithmetic for an image.
    twice = network_needs(name, 32, 32, 8)
    assert twice.saved_bytes == pytest.approx(2 * needs.saved_bytes, rel=0.05)
    assert twice.forward_flop == pytest.approx(needs.forward_flop, rel=0.01)


@pytest.mark.parametrize("name", ["small", "iresnet18"])
def test_a_backbone_is_looked_at_without_a_trace(name: str) -> None:
    """The caller's random numbers are the ones they would have been."""
    before = torch.get_rng_state()
    network_needs(name, 32, 32, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_iresnet50_has_its_published_size() -> None:
    """43.6 M parameters, 6.3 G multiply-adds an image of 112 x 112."""
    needs = network_needs("iresnet50", 512, 112, 2)
    assert needs.parameters == pytest.approx(43.6e6, rel=0.01) and needs.forward_flop == pytest.approx(12.6e9, rel=0.02)


def test_a_batch_in_parts_keeps_the_activations_of_one() -> None:
    whole, parts = (
        make_plan(1000, 32, 10, "small", 32, 2**40, heads=(HEADS[0],), accumulate=count).rows[0] for count in (1, 4)
    )
    # Of 10 images four parts have 3, 3, 2 and 2; 8 go forward a second time, beside 3 passes of each.
    assert parts.memory["backbone: activations"] == pytest.approx(0.3 * whole.memory["backbone: activations"], rel=0.05)
    images = 3 * 10 + (2 * 10 if HEADS[0].kind == "attfc" else 0)
    assert parts.network_flop == pytest.approx(whole.network_flop * (images + 8) / images, rel=0.001)
    unchanged = whole.memory.keys() - {"backbone: activations", "gallery: images and activations"}
    assert {key: parts.memory[key] for key in unchanged} == {key: whole.memory[key] for key in unchanged}


def test_ten_million_identities_fit_only_with_a_container() -> None:
    plan = make_plan(10_000_000, 512, 384, "iresnet50", 112, parse_bytes("80GiB"), "bf16")
    fits = {row.head.label: row.total <= plan.limit_bytes for row in plan.rows}
    assert fits["AttFC 10 %"] and not fits["full FC, plain PyTorch"]
    totals = [head_needs(head, 10_000_000, 512, 384, "bf16", "cuda").total for head in HEADS]
    assert totals == [row.head_bytes for row in plan.rows]


@pytest.mark.parametrize(("together", "steps"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_shared_gallery_images_are_embedded_once(together: int, steps: int) -> None:
    """As many as the loader gives; memory is that of the step that brings them."""
    sizes = (1000, 16, 8, "small", 16, 2**30, "fp32", "cpu")
    shared = make_plan(*sizes, probes_per_identity=together, gallery_steps=steps)
    alone = make_plan(*sizes)
    attfc, full_fc = shared.rows[0], shared.rows[-1]
    assert attfc.head.kind == "attfc" and attfc.embedded_images == 8 + 16 / (together * steps)
    assert attfc.network_flop == shared.network.forward_flop * (3 * 8 + 16 / (together * steps))
    item = "gallery: images and activations"
    assert attfc.memory[item] * together == alone.rows[0].memory[item]
    assert (attfc.memory.get("gallery: embeddings for the steps to come") or 0) == (steps > 1) * 16 // together * 16 * 4
    assert full_fc.embedded_images == 8 and full_fc.network_flop == alone.rows[-1].network_flop
    options = {"probes_per_identity": together, "gallery_steps": steps, "augment": "none"}
    loader = AttentionLoader(build_dataset("procedural:64x16", 16), 8, 2, **options)
    images = [batch.gallery.flatten(0, -4).shape[0] for batch in loader]
    # An identity may come twice among the probes that share.
    assert 0.85 * 16 / (together * steps) <= sum(images) / len(images) <= 16 / (together * steps)
    assert max(images) * together <= 16


def test_the_command_takes_the_settings_that_share(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    sizes = {"identities": 1000, "dim": 16, "batch": 8, "backbone": "small", "image-size": 16, "memory": "4GiB"}
    sizes |= {"probes-per-identity": 2, "gallery-steps": 4, "json": tmp_path / "plan.json"}
    assert cli.main(["plan", *(f"--{name}={value}" for name, value in sizes.items())]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["rows"][0]["embedded_images"] == 8 + 2 and plan["gallery_steps"] == 4
    assert "AttFC's gallery shared by 2 x 4 probes" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["plan", "--probes-per-identity", "16", "--gallery-steps", "5"]) == 2
    assert "plan: gallery_steps must make at most 64 with 16 probes of an identity" in capsys.readouterr().err


def test_a_checkpoint_in_the_background_counts_where_it_is_in_the_same_memory() -> None:
    item, mib = "checkpoint while training goes on", 2**20
    on_cpu = make_plan(1_000_000, 512, 32, "small", 32, parse_bytes("80GiB"), "fp32", "cpu")
    rows = {row.head.label: row for row in on_cpu.rows}
    network = on_cpu.network.parameters
    attfc = rows["AttFC 50 %"].memory
    copied = 3 * 4 * network + attfc["container labels"]  # weights, momentum and the slow copy; labels and stamps
    kept_and_block = (256 + 16) * mib
    assert copied + kept_and_block <= attfc[item] <= copied + kept_and_block + 12 * on_cpu.network.buffers
    assert rows["full FC, fused"].memory[item] == 0  # 4 GiB to copy: written while training waits
    few = make_plan(1000, 512, 32, "small", 32, parse_bytes("80GiB"), "fp32", "cpu")
    small = {row.head.label: row.memory for row in few.rows}
    assert small["AttFC 50 %"][item] < 12 * network + 12 * few.network.buffers + 17 * mib + 500 * 512 * 4
    assert small["full FC, fused"][item] >= 8 * network + 2 * 1000 * 512 * 4 + 16 * mib
    on_gpu = make_plan(1_000_000, 512, 32, "small", 32, parse_bytes("80GiB"), "fp32", "cuda")
    assert all(item not in row.memory for row in on_gpu.rows)


def test_trained_heads_keep_weights_and_momentum_whatever_is_sampled() -> None:
    for rate in (0.1, 0.5, 1.0):
        kept = head_needs(Head("", "partial_fc", rate), 1_000_000, 512, 384).kept
        assert kept["class centres"] == kept["momentum"] == 1_000_000 * 512 * 4


def test_command_prints_draws_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chart, saved = tmp_path / "plan.svg", tmp_path / "plan.json"
    arguments = [
        "plan",
        "--identities",
        "2e5",
        "--batch",
        "32",
        "--backbone",
        "small",
        "--image-size",
        "64",
        "--memory",
        "4GiB",
        "--items",
    ]
    assert cli.main([*arguments, "--chart", str(chart), "--json", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "200,000 identities x 512" in printed and "precision fp32" in printed and "MiB  momentum encoder" in printed
    for head in HEADS:
        assert head.label in printed
    assert chart.read_text().count("<svg") == 1
    plan = json.loads(saved.read_text())
    assert plan["limit_bytes"] == 4 * 2**30 and len(plan["rows"]) == len(HEADS)
    assert all(row["total"] == sum(row["memory"].values()) for row in plan["rows"])
    assert plan["rows"][0]["head_seconds"] is None


def test_precision_is_the_trainers_unless_it_is_given() -> None:
    trained = TrainConfig().optim.precision
    assert PlanCommand().precision == trained
    assert make_plan(1000, 16, 8, "small", 32, 2**30).precision == trained


def test_sizes_of_a_step() -> None:
    assert container_slots(0.3, 1000, 8) == 300 and container_slots(0.1, 100, 384) == 4 * 384
    # By default four batches, whatever the number of identities; negatives are of a batch, too.
    assert [container_slots(None, n, 8, 2) for n in (10, 10**6)] == [40, 40]
    assert sampled_classes(0.3001, 1000, 8) == 301 and sampled_classes(0.1, 1000, 384) == 384
    assert sampled_classes(0.1, 100, 384) == 100
    assert centers_met(Head("", "fc", 0.5), 100, 384) == centers_met(Head("", "explicit_fc"), 100, 8) == 100


@pytest.mark.parametrize("head", [Head("", "attfc", 0.1), Head("", "partial_fc", 0.1), Head("", "fc")])
def test_a_heads_time_lies_on_the_line_of_two_sizes(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 ms a call and 2 us a centre are found again, whatever sizes are measured."""
    monkeypatch.setattr(rates, "head_step", lambda head, size, dim, batch, *rest: centers_met(head, size, batch))
    monkeypatch.setattr(rates, "_median", lambda centers, device: 3e-3 + 2e-6 * centers)
    for batch in (8, 384, 1_000_000):
        for identities in (10, 5_000_000, 50_000_000):
            expected = 3e-3 + 2e-6 * centers_met(head, identities, batch)
            assert rates.head_seconds(head, identities, 16, batch, "fp32") == pytest.approx(expected)


def test_a_disturbed_measurement_does_not_turn_the_line_over() -> None:
    assert rates.on_line(10**6, (5000, 0.2), (20_000, 0.1)) == 0.1


def test_a_measured_container_is_full_of_classes_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(rates, "AttFC", lambda *args, **options: made.append(AttFC(*args, **options)) or made[0])
    rates.head_step(Head("", "attfc", 0.5), 10_000, 16, 8, "cpu", torch.float32)()
    container = made[0].container
    assert len(container.labels.unique()) == container.capacity == 5000
    stored, held = container.lookup(container.labels)
    assert held.all() and torch.allclose(stored.norm(dim=1), torch.ones(5000))


def test_fewer_identities_than_a_batch_can_be_measured() -> None:
    plan = make_plan(20, 16, 32, "small", 16, 2**30, device="cpu", measure=True)
    assert all(row.head_seconds > 0 for row in plan.rows)


def test_a_measured_head_gets_the_gallery_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images of each identity, shared by as many probes as `AttentionLoader` gives them."""
    calls = []

    class Recorded(AttFC):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, gallery: torch.Tensor, **options: torch.Tensor):
            calls.append((labels, gallery, options["gallery_rows"]))
            return super().forward(x, labels, gallery, **options)

    monkeypatch.setattr(rates, "AttFC", Recorded)
    heads = (Head("a", "attfc", 0.5),)
    options = {"gallery_size": 3, "probes_per_identity": 4, "gallery_steps": 2, "heads": heads, "measure": True}
    make_plan(10**6, 16, 10, "small", 16, 2**40, device="cpu", **options)
    labels, gallery, rows = calls[-1]
    assert len(labels) == 10 and len(gallery) == 3 * 3  # two identities of four probes, one of two
    assert rows.tolist() == [[3 * (b // 4), 3 * (b // 4) + 1, 3 * (b // 4) + 2] for b in range(10)]
    assert torch.equal(labels, labels[torch.arange(10) // 4 * 4])


def test_a_plan_says_which_precision_slows_the_network_down(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_arithmetic", set)
    said = "warning: this CPU has no arithmetic for bf16:"
    for bits, device, measure, told in (
        ("bf16", "cpu", False, True),
        ("bf16", "cuda", False, False),  # of another machine
        ("bf16", "cuda", True, True),  # whose step is timed on this CPU
        ("fp32", "cpu", True, False),
    ):
        plan = make_plan(20, 16, 8, "small", 16, 2**30, bits, device, heads=HEADS[:1], measure=measure)
        report.print_table(plan)
        assert (said in capsys.readouterr().out) == told == (len(json.loads(plan.to_json())["notes"]) == 1)


def test_a_batch_in_parts_is_that_of_training() -> None:
    """Parts of probes and of gallery images are those that the networks are given."""
    for rows, count in ((10, 4), (10, 5), (9, 2), (3, 4), (1, 3), (2, 1)):
        given: list[int] = []
        network = torch.nn.Identity()
        network.register_forward_hook(lambda module, inputs, output, given=given: given.append(len(output)))
        parts.through(network, torch.zeros(rows, 1), count)
        assert parts.sizes(rows, count) == (max(given), given[-1])


def test_measured_times_are_there_and_positive(capsys: pytest.CaptureFixture) -> None:
    heads = (
        Head("a", "attfc", 0.5),
        Head("p", "partial_fc", 0.5),
        Head("f", "fc", fused=False),
        Head("e", "explicit_fc"),
    )
    plan = make_plan(500, 16, 8, "small", 16, 2**30, "fp32", "cpu", heads=heads, measure=True)
    assert all(row.head_seconds > 0 and row.network_seconds > 0 for row in plan.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "much"], "plan: memory must be a size such as 24GiB or 80GB, got 'much'"),
        (["--identities", "0"], "plan: identities must be at least 1, got 0"),
        (["--batch", "0"], "plan: batch must be at least 1, got 0"),
        (["--backbone", "vgg"], "vgg"),
        (["--identities", "nan"], "plan: identities must be a finite number, got nan"),
        (["--identities", "inf"], "plan: identities must be a finite number, got inf"),
        (["--gallery-size", "0"], "plan: gallery_size must be at least 1, got 0"),
        (["--gallery-size", "-3"], "plan: gallery_size must be at least 1, got -3"),
        (
            ["--batch", "8", "--accumulate", "5"],
            "plan: accumulate must leave two probes at least to each part",
        ),
        (["--chart", "x.txt"], "plan: chart must end in .png, .svg or .pdf, got x.txt"),
        (["--chart", "none/x.png"], "plan: chart must lie in a folder that exists, got none/x.png"),
        (["--json", "none/x.json"], "plan: json must lie in a folder that exists, got none/x.json"),
    ],
)
def test_bad_input_is_named_before_the_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "vgg" not in arguments:
        monkeypatch.setattr(report, "network_needs", lambda *_: pytest.fail("the work has begun"))
    assert cli.main(["plan", "--image-size", "32", "--backbone", "small", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sizes_in_words() -> None:
    assert parse_bytes("24GiB") == 24 * 2**30 and parse_bytes("80 GB") == 80e9 and parse_bytes("512") == 512
    assert parse_bytes("1E2GiB") == parse_bytes("1e2 gib") == parse_bytes("100.GiB") == 100 * 2**30
    for bad in ("", "-1GiB", "0", "GiB", "1.2.3GiB", ".", "1e400", "0.1", "3PiB"):
        with pytest.raises(ValueError, match="plan: memory must be a size"):
            parse_bytes(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "lsh"}, "plan: kind must be one of attfc"), ({"share": 0.0}, r"plan: share must lie in \(0, 1\]")],
)
def test_bad_heads_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Head("x", **{"kind": "fc", **change})
