"""The embedding networks: published sizes and names, shapes, gradients, independence of the batch, and errors."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attfc_cuda import backbones
from attfc_cuda.backbones import build

CHEAP = [
    ("small", {}),
    ("small", {"norm": "group"}),
    ("small", {"embedding": "flatten"}),
    ("small", {"norm": "group", "embedding": "flatten"}),
    ("mobilefacenet", {}),
    ("iresnet18", {}),
]


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def made_without_memory(name, **options):
    with torch.device("meta"):
        return build(name, **options)


@pytest.mark.parametrize(
    ("name", "count"),
    # InsightFace's own networks hold exactly these (24.0, 34.1, 43.6, 65.2 M).
    [("iresnet18", 24_025_600), ("iresnet34", 34_139_328), ("iresnet50", 43_590_848), ("iresnet100", 65_156_160)],
)
def test_iresnet_has_the_published_size(name, count):
    assert size_of(made_without_memory(name)) == count


@pytest.mark.parametrize(("dim", "millions"), [(128, 1.00), (256, 1.07), (512, 1.20)])
def test_mobilefacenet_has_the_published_size(dim, millions):
    assert size_of(made_without_memory("mobilefacenet", embedding_dim=dim)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("size", [64, 112])
def test_small_has_half_a_million_parameters(norm, size):
    count = size_of(made_without_memory("small", embedding_dim=128, image_size=size, norm=norm))
    assert 0.45e6 < count < 0.6e6


def published_iresnet_keys(blocks):
    """Names in an InsightFace checkpoint, written out from their network's structure."""

    def norm(prefix):
        return [f"{prefix}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    keys = ["conv1.weight", *norm("bn1"), "prelu.weight"]
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            keys += [*norm(f"{at}.bn1"), f"{at}.conv1.weight", *norm(f"{at}.bn2"), f"{at}.prelu.weight"]
            keys += [f"{at}.conv2.weight", *norm(f"{at}.bn3")]
            if block == 0:
                keys += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return [*keys, *norm("bn2"), "fc.weight", "fc.bias", *norm("features")]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("iresnet18", (2, 2, 2, 2)),
        ("iresnet34", (3, 4, 6, 3)),
        ("iresnet50", (3, 4, 14, 3)),
        ("iresnet100", (3, 13, 30, 3)),
        ("iresnet200", (6, 26, 60, 6)),
    ],
)
def test_iresnet_reads_insightface_checkpoints(name, blocks):
    state = made_without_memory(name).state_dict()
    assert list(state) == published_iresnet_keys(blocks)
    assert state["fc.weight"].shape == (512, 25088)
    assert state["layer4.0.conv2.weight"].shape == (512, 512, 3, 3)  # the stride, 2, is in the second convolution
    assert state["layer4.0.conv1.weight"].shape == (512, 256, 3, 3)
    assert state["layer4.0.bn1.weight"].shape == (256,)  # before the convolution that widens
    assert state["layer1.0.prelu.weight"].shape == (64,)


def test_iresnet_downsamples_in_the_second_convolution_of_a_stage():
    network = made_without_memory("iresnet18")
    assert [network.get_submodule(f"layer{k}.0.conv1").stride for k in (1, 2, 3, 4)] == [(1, 1)] * 4
    assert [network.get_submodule(f"layer{k}.0.conv2").stride for k in (1, 2, 3, 4)] == [(2, 2)] * 4


def test_iresnet_keeps_the_last_scale_at_one():
    network = build("iresnet18", embedding_dim=32, image_size=16)
    assert torch.equal(network.features.weight, torch.ones(32)) and not network.features.weight.requires_grad
    assert network.features.bias.requires_grad


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "small"])
@pytest.mark.parametrize("size", [16, 50, 64, 97, 112, 113, 128, 224])
def test_any_image_size(name, size):
    network = made_without_memory(name, embedding_dim=96, image_size=size)
    assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 96)
    assert (network.image_size, network.embedding_dim) == (size, 96)


@pytest.mark.parametrize(("name", "options"), CHEAP)
def test_every_trained_parameter_gets_a_gradient(name, options):
    torch.manual_seed(0)
    network = build(name, embedding_dim=24, image_size=32, **options)
    images = torch.randn(6, 3, 32, 32, requires_grad=True)
    weights = torch.randn(6, 24)  # a plain sum would vanish behind the last normalisation
    (network(images) * weights).sum().backward()
    assert images.grad.abs().max() > 0
    for label, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), label
            assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize(("name", "options"), CHEAP)
def test_evaluation_looks_at_each_image_alone(name, options):
    torch.manual_seed(0)
    network = build(name, embedding_dim=24, image_size=32, **options).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    # The same sums in another order: float32 roundings, relative to the largest value (statistics of an untrained
    # network do not scale its maps down).
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * together.abs().max().item())


@pytest.mark.parametrize("embedding", ["depthwise", "flatten"])
def test_group_norm_looks_at_each_image_alone_in_training_too(embedding):
    torch.manual_seed(0)
    network = build("small", embedding_dim=24, image_size=32, norm="group", embedding=embedding).train()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
        batch = build("small", embedding_dim=24, image_size=32, norm="batch", embedding=embedding).train()
        other_company = torch.cat([images[:1], 3 * torch.randn(4, 3, 32, 32)])
        influence = (batch(images)[0] - batch(other_company)[0]).abs().max()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert influence > 0.1, "the comparison would pass for batch statistics as well"
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert not list(network.buffers())


def test_the_memory_format_of_the_images_does_not_matter():
    torch.manual_seed(0)
    network = build("small", embedding_dim=24, image_size=32).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), network(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize(("name", "options"), CHEAP)
def test_the_embedding_stays_float32_under_autocast(name, options):
    torch.manual_seed(0)
    network = build(name, embedding_dim=24, image_size=32, **options)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(4, 3, 32, 32))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_a_whole_network_in_bfloat16():
    network = build("small", embedding_dim=24, image_size=32).to(torch.bfloat16)
    assert network(torch.randn(4, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.proof)])
def test_small_learns_to_tell_identities_apart(norm):
    """Eight textures seen at shifted places under noise; judged on shifts and noise not trained on."""
    torch.manual_seed(0)
    network = build("small", embedding_dim=32, image_size=32, norm=norm)
    textures = F.interpolate(torch.randn(8, 3, 9, 9), size=(40, 40), mode="bilinear")

    def batch(offsets):
        labels = torch.arange(8).repeat(len(offsets))
        crops = [textures[:, :, y : y + 32, x : x + 32] for y, x in offsets]
        return torch.cat(crops) + 0.3 * torch.randn(len(labels), 3, 32, 32), labels

    centers = nn.Parameter(torch.randn(8, 32))
    optimizer = torch.optim.SGD([*network.parameters(), centers], lr=0.01, momentum=0.9)

    def logits(images):
        return 16.0 * F.normalize(network(images)) @ F.normalize(centers).T

    for step in range(40):
        images, labels = batch([(step % 8, (3 * step) % 8), ((5 * step) % 8, step % 8)])
        loss = F.cross_entropy(logits(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        images, labels = batch([(1, 6), (6, 2), (4, 7), (3, 4)])
        accuracy = (logits(images).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.9, accuracy  # chance: 0.125


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {}, r"build: name must be one of iresnet18, .*, small, or timm:MODEL, got 'resnet50'"),
        ("small", {"norm": "layer"}, r"SmallResNet: norm must be 'batch' or 'group', got 'layer'"),
        ("small", {"embedding": "mean"}, r"SmallResNet: embedding must be 'depthwise' or 'flatten', got 'mean'"),
        ("small", {"image_size": 15}, r"SmallResNet: image_size must be at least 16 pixels, got 15"),
        ("iresnet50", {"image_size": 8}, r"IResNet: image_size must be at least 16 pixels, got 8"),
        ("mobilefacenet", {"embedding_dim": 0}, r"MobileFaceNet: embedding_dim must be at least 1, got 0"),
    ],
)
def test_construction_errors(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, **options)


def test_an_unknown_depth_is_named():
    with pytest.raises(ValueError, match=r"IResNet: depth must be one of 18, 34, 50, 100, 200, got 101"):
        backbones.IResNet(101)


@pytest.mark.parametrize("name", ["small", "mobilefacenet", "iresnet18"])
def test_wrong_images_are_named(name):
    network = made_without_memory(name, image_size=32)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 32, 32\], got \[2, 3, 32, 31\]; resize"):
        network(torch.empty(2, 3, 32, 31, device="meta"))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 32, 32\], got \[3, 32, 32\]"):
        network(torch.empty(3, 32, 32, device="meta"))
    with pytest.raises(TypeError, match=r"images must be floating point, got torch.uint8; use normalize_images"):
        network(torch.empty(2, 3, 32, 32, device="meta", dtype=torch.uint8))


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)  # as if it were not installed
    with pytest.raises(
        ImportError, match=r"TimmBackbone: model must be .* got timm:resnet10t without .*pip install timm"
    ):
        build("timm:resnet10t")


needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@needs_timm
@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_models(model):
    network = build(f"timm:{model}", embedding_dim=48, image_size=64)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 48)
    assert (network.image_size, network.embedding_dim) == (64, 48)


@needs_timm
def test_an_unknown_timm_model_is_named():
    with pytest.raises(ValueError, match="TimmBackbone: model must be a model timm knows, got 'nonsense'"):
        build("timm:nonsense")
