"""From images to unit embeddings and pair similarities."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attfc_cuda.evaluation import (
    PairIndices,
    embed_images,
    pair_similarity,
    raw_pixel_embeddings,
    read_pairs,
    verify,
    verify_backbone,
)

SIZE = 8


class Probe(nn.Module):
    """A linear network that notes the mode and the batch sizes it was called in."""

    image_size = SIZE

    def __init__(self, dim=5):
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, dim)
        self.calls = []

    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled(), len(x)))
        return self.linear(x.flatten(1))


@pytest.fixture
def images():
    return torch.randint(0, 256, (11, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Probe()


def test_flip_averaging_adds_the_views_before_normalising(images, backbone):
    x = (images.float() - 127.5) / 127.5
    both = (backbone(x) + backbone(x.flip(-1))).detach()
    one = backbone(x).detach()
    # A few roundings of float32 on sums of 192 terms of size 1: 1e-5 is above, any other order of operations below.
    torch.testing.assert_close(embed_images(backbone, images), both / both.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    alone = embed_images(backbone, images, flip=False)
    torch.testing.assert_close(alone, one / one.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    assert (alone - both / both.norm(dim=1, keepdim=True)).abs().max() > 1e-2


def test_the_result_is_an_ordinary_float32_tensor_on_the_cpu(images, backbone):
    embeddings = embed_images(backbone.to(torch.float64).float(), images)
    assert embeddings.dtype == torch.float32 and embeddings.device.type == "cpu"
    assert not embeddings.requires_grad and not embeddings.is_inference()


def test_runs_in_evaluation_mode_and_restores_the_mode(images, backbone):
    backbone.train()
    embed_images(backbone, images, batch_size=4, flip=False)
    assert backbone.calls == [(False, False, 4), (False, False, 4), (False, False, 3)]
    assert backbone.training
    backbone.eval()
    embed_images(backbone, images)
    assert not backbone.training


def test_the_mode_is_restored_after_an_error(images, backbone):
    with pytest.raises(TypeError):
        embed_images(backbone.train(), images.float())
    assert backbone.training


def test_the_batch_size_changes_nothing(images, backbone):
    torch.testing.assert_close(
        embed_images(backbone, images, batch_size=1), embed_images(backbone, images, batch_size=64), atol=1e-6, rtol=0
    )


def test_tensors_lists_of_tensors_and_files_agree(images, backbone, tmp_path):
    files = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    truth = embed_images(backbone, images)
    assert torch.equal(embed_images(backbone, list(images)), truth)
    assert torch.equal(embed_images(backbone, files), truth)
    assert torch.equal(embed_images(backbone, [str(file) for file in files]), truth)


def test_files_are_resized_to_the_networks_size(backbone, tmp_path):
    Image.new("L", (31, 17), 200).save(tmp_path / "gray.png")
    assert embed_images(backbone, [tmp_path / "gray.png"]).shape == (1, 5)


def test_a_zero_embedding_stays_zero(images):
    class Zero(Probe):
        def forward(self, x):
            return super().forward(x) * 0

    assert torch.equal(embed_images(Zero(), images), torch.zeros(11, 5))


def test_the_number_of_a_non_finite_embedding_is_named(images):
    class Broken(Probe):
        def forward(self, x):
            return torch.where(x[:, 0, 0, :1] == 1.0, torch.nan, super().forward(x))  # at a white first pixel

    images[:, 0, 0, 0] = torch.arange(11)
    images[9, 0, 0, 0] = 255
    with pytest.raises(ValueError, match="embed_images: backbone must give finite .* got NaN or infinity for image 9"):
        embed_images(Broken(), images, batch_size=4, flip=False)


def test_a_corrupt_file_is_named(backbone, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(Exception, match=r"bad\.jpg"):
        embed_images(backbone, [tmp_path / "bad.jpg"])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"images": []}, ValueError, "images must hold at least one image, got none"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"images": torch.zeros(2, 3, 8, 8)}, TypeError, "images must be uint8 tensors or files, got torch.float32"),
        ({"images": [3]}, TypeError, "images must be uint8 tensors or files, got int"),
        ({"images": torch.zeros(2, 8, 8, dtype=torch.uint8)}, ValueError, r"images must be \[3, H, W\] each, got \[8"),
        ({"images": [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 9, 8, dtype=torch.uint8)]}, ValueError,
         r"images must all have one size, got \[\(3, 8, 8\), \(3, 9, 8\)\]"),
        ({"images": ["x.png"], "backbone": nn.Flatten()}, ValueError, "image_size must be given for image files, got"),
    ],
)  # fmt: skip
def test_errors(backbone, change, kind, message):
    arguments = {"backbone": backbone, "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)} | change
    with pytest.raises(kind, match=f"^embed_images: {message}"):
        embed_images(**arguments)


def test_raw_pixels_are_the_correlation_of_the_pixels(images):
    embeddings = raw_pixel_embeddings(images, batch_size=4)
    truth = np.corrcoef(images.flatten(1).numpy())  # float64
    # float32 dot products of 192 terms that sum to at most 1.
    np.testing.assert_allclose((embeddings @ embeddings.T).numpy(), truth, atol=1e-5)


def test_a_plain_image_has_no_direction():
    plain = torch.full((1, 3, 112, 112), 77, dtype=torch.uint8)
    assert torch.equal(raw_pixel_embeddings(plain), torch.zeros(1, 3 * 112 * 112))


def test_pair_similarity_over_several_chunks():
    embeddings = nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, (2, 600))
    similarity = pair_similarity(embeddings, a, b)
    assert similarity.dtype == np.float32
    np.testing.assert_allclose(similarity, (embeddings @ embeddings.T).numpy()[a, b], atol=1e-6)


def test_verify_backbone_judges_files_and_data_sets_alike(images, backbone, tmp_path):
    rows, pairs = (
        [],
        PairIndices(*np.array([[8, 2], [8, 3], [5, 2], [3, 5]]).T, np.arange(4) % 2 == 0, np.arange(4) // 2),
    )
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    for a, b, same, fold in zip(*pairs, strict=True):
        rows.append(f"{a}.png\t{b}.png\t{int(same)}\t{fold}")
    (tmp_path / "list.txt").write_text("\n".join(rows))
    by_index = verify_backbone(backbone, pairs, images, flip=False)
    assert sum(size for *_, size in backbone.calls) == 4, "every image that a pair names is embedded once, others never"
    by_file = verify_backbone(backbone, read_pairs(tmp_path / "list.txt", tmp_path), flip=False)
    unit = embed_images(backbone, images, flip=False)
    truth = (unit[pairs.a] * unit[pairs.b]).sum(1).numpy()
    for result, similarity in (by_index, by_file):
        np.testing.assert_allclose(similarity, truth, atol=1e-6)
        assert result == verify(similarity, pairs.same, pairs.fold)


def test_verify_backbone_wants_a_data_set_with_indices_only(backbone):
    pairs = PairIndices(*np.array([[0, 1], [0, 2]]).T, np.array([True, False]), np.array([0, 1]))
    with pytest.raises(ValueError, match="verify_backbone: dataset must come with PairIndices.*without a data set"):
        verify_backbone(backbone, pairs)


@pytest.mark.parametrize(("set_name", "low", "high"), [("celeba", 0.54, 0.62), ("orl", 0.68, 0.85)])
def test_the_floor_on_real_faces(set_name, low, high, shared_data, tmp_path):
    """Raw pixels tell people apart a little better than chance, and far worse than a network must."""
    archive = {"celeba": "celeba_112.tar.gz", "orl": "orl.tar.gz"}[set_name]
    pairs = read_pairs(shared_data / "lists" / f"{set_name}_dev_pairs.txt", tmp_path, check_files=False)
    images, numbered = pairs.indices()
    wanted = {str(image.relative_to(tmp_path)) for image in images}
    with tarfile.open(shared_data / archive) as tar:
        tar.extractall(tmp_path, members=[m for m in tar if m.name.removeprefix("./") in wanted], filter="data")
    embeddings = raw_pixel_embeddings(images, image_size=32)
    result = verify(pair_similarity(embeddings, numbered.a, numbered.b), numbered.same, numbered.fold)
    assert low < result.accuracy < high, result.summary()
