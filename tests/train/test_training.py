"""From config to parts: devices, data, the container's size, and what the start-up report says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda import margins
from attfc_cuda.backbones import build
from attfc_cuda.data import AttentionLoader, FaceDataset
from attfc_cuda.heads import AttFC
from attfc_cuda.ops import precision
from attfc_cuda.presets import ADDITIVE_MARGINS, DEFAULT
from attfc_cuda.train import AttFCObjective, TrainConfig
from attfc_cuda.train import training as setup
from attfc_cuda.train.checks import check_settings
from attfc_cuda.train.objective import OBJECTIVES, build_margin
from attfc_cuda.train.training import Training, pick_device

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Six identities with four images and five with one."""
    random = np.random.default_rng(0)
    for k in range(11):
        for i in range(4 if k < 6 else 1):
            folder = tmp_path / "faces" / f"id{k:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "faces"


def test_report_names_what_will_run(tiny_config: Tiny, faces: Path) -> None:
    config = tiny_config(data=str(faces), steps=None, epochs=10.0, encoder_momentum=0.95)
    report = Training(config, AttFCObjective).report()
    assert "11 identities, 29 images" in report
    assert "24 probe images of 6 identities with at least 2 images; 3 batches of 8 an epoch" in report
    assert "never probes, negatives only: 5 images of 5 identities" in report
    # 4 x (8 probes + 2 negatives)
    assert "AttFC with AdaSin, container of 40 centres (refresh, float32), backend" in report
    assert "momentum 0.95, from 0.9 over 3 steps" in report
    assert "30 steps = 10.0 epochs of 3 steps" in report
    assert "M parameters, embeddings of 16 numbers, fp32 on cpu" in report
    assert "verification  none" in report


def test_single_images_reach_the_container_as_negatives(tiny_config: Tiny, faces: Path) -> None:
    training = Training(tiny_config(data=str(faces)), AttFCObjective)
    batches = training.batches()
    for _ in range(3):
        batch = next(batches)
        assert set(batch.labels.tolist()) <= set(range(6))
        training.objective(training.backbone, batch)
    assert set(range(6, 11)) <= set(training.objective.head.container.labels.tolist())


def test_gallery_and_negatives_share_a_forward_unless_split(tiny_config: Tiny, faces: Path) -> None:
    sizes = {}
    for split in (False, True):
        training = Training(tiny_config(data=str(faces), split_gallery=split, negatives_per_batch=2), AttFCObjective)
        seen: list[int] = []
        training.objective.encoder.module.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(len(args[0]))
        )
        training.objective(training.backbone, next(training.batches()))
        sizes[split] = seen
    assert sizes == {False: [18], True: [16, 2]}


def test_split_gallery_computes_the_same_without_batch_statistics(tiny_config: Tiny, faces: Path) -> None:
    losses = []
    for split in (False, True):
        settings = {"data": str(faces), "split_gallery": split, "backbone_options": "norm=group"}
        training = Training(tiny_config(**settings), AttFCObjective)
        losses.append(training.objective(training.backbone, next(training.batches())).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_encoder_follows_with_the_scheduled_momentum(tiny_config: Tiny) -> None:
    training = Training(tiny_config(), AttFCObjective)
    slow, fast = (next(m.parameters()) for m in (training.objective.encoder.module, training.backbone))
    with torch.no_grad():
        fast += 1
    before = slow.clone()
    training.objective.after_step(training.backbone, 0.75)
    assert torch.allclose(slow, before + 0.25, atol=1e-6)
    assert training.objective.encoder.training and training.backbone.training


def test_capacity_is_a_share_of_the_identities_but_four_batches_at_least(tiny_config: Tiny) -> None:
    few = Training(tiny_config(), AttFCObjective)
    assert few.objective.head.container.capacity == 32
    many = Training(tiny_config(data="procedural:400x2", capacity_share=0.25, cache="off"), AttFCObjective)
    assert many.objective.head.container.capacity == 100


def test_capacity_below_a_batch_is_refused(tiny_config: Tiny, faces: Path) -> None:
    message = (
        r"train: capacity must hold a whole batch, 10 centres \(8 probes and 2 negatives\), got 9; raise --capacity"
    )
    with pytest.raises(ValueError, match=message):
        Training(tiny_config(data=str(faces), capacity=9), AttFCObjective)
    Training(tiny_config(data=str(faces), capacity=10), AttFCObjective)


def test_centres_carry_class_codes_and_remember_as_told(tiny_config: Tiny) -> None:
    def head(**settings: object) -> AttFC:
        return Training(tiny_config(**settings), AttFCObjective).objective.head

    default, other = head(), head(class_code=0.0, center_memory=0.5)
    assert (default.class_code, default.center_memory) == (1.0, 0.0)
    assert (other.class_code, other.center_memory) == (0.0, 0.5)


def test_margins_start_gentler_here_than_in_print(tiny_config: Tiny) -> None:
    def same(config: TrainConfig, margin: margins.Margin) -> bool:
        cosine = torch.linspace(-0.9, 0.9, 5)
        built = build_margin(config)
        return built.scale == margin.scale and torch.equal(built.target(cosine), margin.target(cosine))

    scale = TrainConfig().head.scale
    for name in ADDITIVE_MARGINS:
        assert same(tiny_config(margin=name), margins.build(name, m=DEFAULT.m, scale=scale))
        assert not same(tiny_config(margin=name), margins.build(name, scale=scale))
    options = {"margin": "arcface", "margin_options": "m=0.4,scale=48"}
    assert same(tiny_config(**options), margins.ArcFace(m=0.4, scale=48))
    assert same(tiny_config(margin="sphereface"), margins.SphereFace(scale=scale))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": "arcfase"}, "margins.build: name must be one of adasin, arcface, .*, got 'arcfase'"),
        ({"margin_options": "q=3"}, "train: margin_options must hold arguments of adasin, got 'q=3' .*q"),
        ({"head": "fc", "margin_options": "h=1"}, "train: margin_options must hold arguments of arcface, got 'h=1'"),
        ({"head": "FC"}, "train: head must be one of attfc, fc, partial_fc, got 'FC'"),
        ({"margin_options": "scale"}, "train: margin_options must be name=value pairs"),
        ({"backbone": "vgg"}, "build: name must be one of iresnet18, .*, got 'vgg'"),
        (
            {"backbone_options": "depth=3"},
            "train: backbone_options must hold arguments of small, got 'depth=3' .*depth",
        ),
        ({"backend": "cudaa"}, "backend"),
        ({"batch_size": 65}, "AttentionLoader: batch_size must fit into an epoch of 64 probe images, got 65"),
        ({"data": "procedural:3"}, "build_dataset: spec must be .*, got 'procedural:3'"),
        ({"data": "/nowhere/faces"}, "FolderFaces: roots must be readable folders, got /nowhere/faces"),
        ({"verify_pairs": "/nowhere/pairs.txt"}, "verify: pairs must name existing pair lists, got /nowhere/pairs.txt"),
        ({"verify_data": "procedural:1x4"}, "verify: data must give at least 2 genuine and 2 impostor pairs, got 6 "),
        ({"device": "gpu"}, "train: device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_settings_that_cannot_be_met_are_named(tiny_config: Tiny, settings: dict, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        Training(tiny_config(**settings), AttFCObjective).report()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": "arcfase"}, "name must be one of adasin"),
        ({"margin_options": "m=oops"}, "m"),
        ({"backbone": "vgg"}, "name must be one of iresnet18"),
        ({"backbone_options": "depth=3"}, "must hold arguments of small"),
        ({"policy": "fifo", "center_memory": 0.5}, "AttFC: center_memory must be 0"),
        ({"capacity": 7}, "train: capacity must hold a whole batch, 8 centres"),
        ({"batch_size": 1}, "batch_size must be at least 2: BatchNorm needs two probes, got 1; raise --batch-size"),
        ({"accumulate": 5}, "accumulate must leave two probes at least to each part of the 8 of a batch, got 5; raise"),
        ({"probes_per_identity": 8, "gallery_size": 1}, "probes_per_identity must be below the 8 probes of a batch"),
        ({"identities": "/nowhere/list.txt"}, "train: identities must name readable text files"),
        ({"verify_pairs": "/nowhere/pairs.txt"}, "verify: pairs must name existing pair lists"),
        ({"verify_root": Path("/nowhere")}, "train: verify_root must be a folder"),
        ({"verify_data": "/nowhere/faces"}, "FolderFaces: roots must be readable folders"),
        ({"data": "procedural:16x4,/nowhere/faces"}, "build_dataset: spec must be"),
    ],
)
def test_names_options_and_paths_are_checked_before_data_are_read(
    tiny_config: Tiny, settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "load_dataset", lambda config: pytest.fail("data were read"))
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        Training(tiny_config(**settings), AttFCObjective)


def test_two_probes_in_each_of_the_processes() -> None:
    config = TrainConfig()
    config.dataset.batch_size = 5
    with pytest.raises(ValueError, match="at least 6: BatchNorm needs two probes in each of 3 processes, got 5"):
        check_settings(config, torch.device("cpu"), processes=3)
    config.model.backbone_options = "norm=group"
    check_settings(config, torch.device("cpu"), processes=3)


@pytest.mark.parametrize(
    ("negatives", "processes", "refused"), [(1, 1, True), (2, 1, False), (3, 2, True), (0, 1, False)]
)
def test_one_negative_by_itself_is_refused(negatives: int, processes: int, refused: bool) -> None:
    labels = np.r_[np.repeat(np.arange(9), 5), np.arange(9, 29)]
    faces = FaceDataset(labels, [f"{k}" for k in range(29)], 16)
    loader = AttentionLoader(faces, 8, negatives_per_batch=negatives, gallery_steps=2, world_size=processes)
    config = TrainConfig()
    networks = [build("small", embedding_dim=config.model.embedding_dim, image_size=16, norm=norm)
                for norm in ("batch", "group")]  # fmt: skip
    for network in networks[refused:]:
        AttFCObjective(network, loader, config)
    if refused:
        with pytest.raises(ValueError, match="negatives_per_batch must give each process none or at least 2 in a step"):
            AttFCObjective(networks[0], loader, config)


def test_the_gallery_of_some_steps_goes_through_the_encoder_once(tiny_config: Tiny) -> None:
    training = Training(tiny_config(gallery_steps=4, batch_size=4), AttFCObjective)
    images: list[int] = []
    training.objective.encoder.register_forward_pre_hook(lambda module, inputs: images.append(len(inputs[0])))
    for batch, _ in zip(training.batches(), range(4), strict=False):
        training.objective(training.network, batch).backward()
        assert len(training.objective.kept_gallery) == images[0]
    assert len(images) == 1 and images[0] < 4 * 4 * 2


def test_one_identity_is_no_data(tiny_config: Tiny) -> None:
    with pytest.raises(ValueError, match="train: data must hold at least 2 identities, got 1 in procedural:1x40"):
        Training(tiny_config(data="procedural:1x40", verify_data="procedural:9x4"), AttFCObjective)


def test_a_folder_may_be_called_procedural_faces(tiny_config: Tiny, faces: Path, monkeypatch) -> None:
    faces.rename(faces.parent / "procedural_faces")
    monkeypatch.chdir(faces.parent)
    assert Training(tiny_config(data="procedural_faces"), AttFCObjective).sets == []


def test_a_cpu_without_16_bit_arithmetic_is_said(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, warned in ((set(), True), ({"fp16"}, False)):
        monkeypatch.setattr(precision, "_cpu_arithmetic", lambda flags=flags: flags)
        report = Training(tiny_config(precision="fp16"), AttFCObjective).report()
        assert ("no arithmetic for fp16" in report) == warned


def test_a_gpu_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(
        ValueError, match=rf"train: device must be present, got cuda:{count} with {count} GPUs; use --device cpu"
    ):
        pick_device(f"cuda:{count}")
    assert pick_device("cpu") == torch.device("cpu")


def test_images_are_cached_when_they_fit(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kept in memory" in setup.load_dataset(tiny_config()).report()
    assert "kept in memory" not in setup.load_dataset(tiny_config(cache="off")).report()
    monkeypatch.setattr(setup, "CACHE_LIMIT_BYTES", 1000)
    assert "kept in memory" not in setup.load_dataset(tiny_config()).report()
    assert "kept in memory" in setup.load_dataset(tiny_config(cache="on")).report()


def test_held_out_drawn_faces_are_other_identities(tiny_config: Tiny) -> None:
    training = Training(tiny_config(), AttFCObjective)
    (held_out,) = training.sets
    trained = {training.dataset[i].numpy().tobytes() for i in range(len(training.dataset))}
    assert held_out.name == "held-out" and len(held_out.pairs.same) == 20
    assert not trained & {image.numpy().tobytes() for image in held_out.images}


def test_pair_lists_are_read_below_their_root(tiny_config: Tiny, faces: Path) -> None:
    lines = [f"id{a:02d}/0.png\tid{b:02d}/1.png\t{int(a == b)}\t{a % 2}" for a in range(4) for b in range(4)]
    pair_list = faces.parent / "pairs.txt"
    pair_list.write_text("\n".join(lines))
    settings = {"data": str(faces), "verify_pairs": str(pair_list), "verify_root": faces}
    (read,) = Training(tiny_config(**settings), AttFCObjective).sets
    assert (read.name, read.images.shape, len(read.pairs.same)) == ("pairs", (8, 3, 16, 16), 16)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"head": "fc"}, True),
        ({"head": "fc", "fuse_optimizer": False}, False),
        ({"head": "partial_fc", "clip_norm": None}, False),
        ({"head": "attfc"}, False),
    ],
)
def test_centres_that_clip_norm_does_not_reach_are_named_at_the_start(
    tiny_config: Tiny, settings: dict, said: bool
) -> None:
    config = tiny_config(**settings)
    report = Training(config, OBJECTIVES[config.head.head]).report()
    words = "clip_norm     5 over the backbone's gradient alone: class centres move in the backward pass, unclipped"
    assert (words in report) is said and ("--no-fuse-optimizer" in report) is said
