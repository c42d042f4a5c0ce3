"""Templates and IJB's layout: pooling against a loop, lists as InsightFace writes them, faces cut out by landmarks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attfc_cuda.evaluation import read_ijb, template_embeddings, verify, verify_templates
from attfc_cuda.evaluation.align import TEMPLATE, align_face, similarity_transform


def test_pooling_is_the_mean_of_the_media_means():
    random = np.random.default_rng(0)
    count = 60
    embeddings = torch.from_numpy(random.normal(size=(count, 7)) * random.uniform(1, 9, (count, 1)))
    template, media = random.integers(0, 9, count), random.integers(0, 5, count) * 1000
    template[template == 4] = 5  # a template without an image
    weights = random.uniform(0.1, 1, count).astype(np.float32)
    pooled = template_embeddings(embeddings, template, media, weights)
    assert pooled.shape == (9, 7) and pooled.dtype == torch.float32
    for number in range(9):
        means = []
        for medium in np.unique(media[template == number]):
            chosen = (template == number) & (media == medium)
            means.append((embeddings.numpy()[chosen] * weights[chosen, None]).mean(axis=0))
        expected = np.mean(means, axis=0) if means else np.zeros(7)
        expected = expected / max(np.linalg.norm(expected), 1e-12)
        # A dozen float32 additions of numbers up to 30, relative to a sum whose length is about 5.
        assert np.abs(pooled[number].numpy() - expected).max() < 16 * 30 / 5 * 2**-24


def test_a_video_counts_as_one_medium():
    embeddings = torch.tensor([[1.0, 0.0]] * 99 + [[0.0, 1.0]])
    pooled = template_embeddings(embeddings, np.zeros(100, np.int64), np.array([7] * 99 + [8]))
    assert torch.allclose(pooled, torch.full((1, 2), 0.5**0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0, 0, 0], None), r"template must have one entry per embedding, \[3\], got \[2\]"),
        (([0, 1, 1], [0], None), r"media must have one entry per embedding, \[3\], got \[1\]"),
        (([0, 1, 1], [0, 0, 0], [1.0]), r"weights must have one entry per embedding"),
        (([0, -1, 1], [0, 0, 0], None), r"template must be numbered from 0, got -1"),
    ],
)
def test_pooling_errors(arguments, message):
    arrays = [None if a is None else np.array(a) for a in arguments]
    with pytest.raises(ValueError, match=f"template_embeddings: {message}"):
        template_embeddings(torch.ones(3, 2), *arrays)


def test_similarity_transform_finds_what_was_done():
    random = np.random.default_rng(1)
    for _ in range(20):
        angle, scale, shift = random.uniform(-3, 3), random.uniform(0.1, 5), random.uniform(-50, 50, 2)
        matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = random.uniform(0, 100, (5, 2))
        found = similarity_transform(points, points @ matrix.T + shift)
        assert np.abs(found - np.column_stack([matrix, shift])).max() < 1e-9
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity_transform(mirrored, TEMPLATE)[:, :2]) > 0  # never a reflection
    for points, reason in ((np.ones((5, 2)), "coincide"), (np.full((5, 2), np.nan), "not finite")):
        with pytest.raises(ValueError, match=reason):
            similarity_transform(points, TEMPLATE)


@pytest.mark.parametrize("size", [112, 64])
def test_alignment_brings_landmarks_to_their_places(size):
    angle, scale, shift = 0.4, 1.7, np.array([40.0, 25.0])
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = TEMPLATE @ matrix.T + shift
    across, down = np.meshgrid(np.arange(320), np.arange(320))
    spots = sum(np.exp(-((across - x) ** 2 + (down - y) ** 2) / 40) for x, y in landmarks)
    picture = Image.fromarray(np.repeat((255 * spots.clip(0, 1))[..., None], 3, 2).astype(np.uint8))
    face = align_face(picture, landmarks, size)[0].double().numpy()
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    for x, y in TEMPLATE * size / 112:
        near = face * ((across - x) ** 2 + (down - y) ** 2 < (9 * size / 112) ** 2)
        centre = (near * across).sum() / near.sum(), (near * down).sum() / near.sum()
        assert np.hypot(centre[0] - x, centre[1] - y) < 0.5 * size / 112


def test_aligned_to_itself_a_picture_stays():
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    face = align_face(Image.fromarray(pixels), TEMPLATE, 112).numpy().transpose(1, 2, 0)
    assert np.abs(face[1:-1, 1:-1].astype(int) - pixels[1:-1, 1:-1]).max() <= 1


@pytest.fixture
def ijb(tmp_path):
    """Three people of two templates each (numbered with gaps), a template of two media, one with two frames."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").mkdir()
    random = np.random.default_rng(3)
    people = random.integers(40, 216, (3, 112, 112, 3))
    rows, points = [], []
    for person in range(3):
        for template in (10 + person, 70 + person):
            for medium, frames in ((500 + template, 2), (900 + template, 1)):
                for _ in range(frames):
                    name = f"{len(rows) + 1}.png"
                    noise = random.integers(-40, 40, people[person].shape)
                    Image.fromarray((people[person] + noise).astype(np.uint8)).save(tmp_path / "loose_crop" / name)
                    rows.append(f"{name} {template} {medium}")
                    points.append(" ".join([name, *(f"{x:.4f}" for x in TEMPLATE.reshape(-1)), "0.9"]))
    pairs = [f"{10 + a} {70 + b} {int(a == b)}" for a in range(3) for b in range(3)]
    (tmp_path / "meta" / "ijbc_face_tid_mid.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "meta" / "ijbc_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    (tmp_path / "meta" / "ijbc_name_5pts_score.txt").write_text("\n".join(points) + "\n")
    return tmp_path


def test_ijb_is_read_and_judged(ijb):
    data = read_ijb(ijb, 112)
    assert data.name == "ijbc" and len(data.images) == 18 and data.images[0].shape == (3, 112, 112)
    assert data.template.tolist() == np.repeat([0, 3, 1, 4, 2, 5], 3).tolist()
    assert data.pairs.a.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and data.pairs.b.tolist() == [3, 4, 5] * 3
    assert data.pairs.same.tolist() == [a == b for a in range(3) for b in range(3)]
    assert np.allclose(data.weights, 0.9)
    result, similarity = verify_templates(None, data)
    assert result.auc == 1.0 and result.accuracy is None and result.num_folds == 0 and len(similarity) == 9
    assert result.tar_at_far == {} and "accuracy" not in result.summary() and '"accuracy": null' in result.to_json()

    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 8))
    network.image_size = 112
    assert verify_templates(network, data)[0].num_pairs == 9
    (ijb / "meta" / "ijbc_name_5pts_score.txt").unlink()
    plain = read_ijb(ijb, 112)
    assert plain.weights is None and (plain.images[3].int() - data.images[3].int())[:, 1:-1, 1:-1].abs().max() <= 1


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("face_tid_mid", "x.png 1", r"row 19 of .*face_tid_mid.txt must hold 3 columns, got 2"),
        ("face_tid_mid", "x.png -1 2", r"row 19 of .*face_tid_mid.txt must hold a whole number in column 2, got '-1'"),
        ("face_tid_mid", "x.png 1 9" + "9" * 30, r"row 19 of .* must hold a whole number in column 3"),
        ("template_pair_label", "10 70 2", r"row 10 of .*pair_label.txt must hold 0 or 1 in column 3, got 2"),
        ("template_pair_label", "10 33 1", r"row 10 of .* must pair templates that have images, got template 33"),
        ("name_5pts_score", "1.png " + "1 " * 11, r"row 19 of .*5pts_score.txt must name the images in the order"),
    ],
)  # fmt: skip
def test_a_bad_line_of_ijb_is_named(ijb, file, line, message):
    path = ijb / "meta" / f"ijbc_{file}.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"read_ijb: {message}"):
        read_ijb(ijb)


def test_more_that_is_wrong_with_ijb(ijb):
    points = ijb / "meta" / "ijbc_name_5pts_score.txt"
    text = points.read_text()
    points.write_text(text.replace("0.9", "nan", 1))
    with pytest.raises(ValueError, match=r"row 1 of .*5pts_score.txt must hold finite numbers, got \[38.2946"):
        read_ijb(ijb)
    for score in ("-1", "1e300"):
        points.write_text(text.replace("0.9", score, 1))
        with pytest.raises(ValueError, match=r"row 1 of .*_score.txt must end in a score of at least 0, got (-1|1e)"):
            read_ijb(ijb)
    points.write_text(text.replace("0.9", "high", 1))
    with pytest.raises(ValueError, match="5pts_score.txt must hold numbers behind each image, got could not convert"):
        read_ijb(ijb)
    points.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="must be UTF-8 text, got invalid start byte at byte 0"):
        read_ijb(ijb)
    points.unlink()
    (ijb / "meta" / "ijbc_template_pair_label.txt").unlink()
    with pytest.raises(FileNotFoundError, match="read_ijb: folder must hold its lists, got no file .*pair_label.txt"):
        read_ijb(ijb)
    with pytest.raises(FileNotFoundError, match="read_ijb: folder must hold meta/<name>_face_tid_mid.txt, got"):
        read_ijb(ijb / "meta")


def test_rates_without_folds_are_those_with_folds():
    random = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    similarity = random.normal(size=4000) + same
    folded, plain = verify(similarity, same, np.arange(4000) % 10), verify(similarity, same, None)
    assert plain.tar_at_far == folded.tar_at_far and plain.eer == folded.eer and plain.threshold == folded.threshold
