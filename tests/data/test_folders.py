"""Folders of identities: what is found, what is left out and counted, what is an error, each by its message."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import AttentionLoader, FolderFaces, UnreadableImage, read_image


def _save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """anna: 2 images, bob: 1, carl: 3; every image is one gray value, distinct."""
    value = 10
    for name, count in (("carl", 3), ("anna", 2), ("bob", 1)):
        for k in range(count):
            _save(tmp_path / "faces" / name / f"{k}.png", value)
            value += 10
    return tmp_path / "faces"


def _values(dataset):
    return [int(dataset[i].float().mean()) for i in range(len(dataset))]


def test_identities_and_images_in_sorted_order(tree):
    faces = FolderFaces(tree, 16)
    assert faces.identities == ["anna", "bob", "carl"] and faces.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert _values(faces) == [40, 50, 60, 10, 20, 30]
    assert faces.path(1) == tree / "anna" / "1.png" and faces.path(5) == tree / "carl" / "2.png"
    assert faces[0].shape == (3, 16, 16) and faces[0].dtype == torch.uint8
    assert "3 identities, 6 images (1 to 3 each, median 2)" in faces.report()
    assert "identities with a single image: 1" in faces.report() and "skipped" not in faces.report()
    assert FolderFaces(str(tree), 16).identities == faces.identities


def test_several_roots_are_concatenated(tree, tmp_path):
    _save(tmp_path / "more" / "anna" / "x.png", 90)
    faces = FolderFaces([tree, tmp_path / "more"], 16)
    assert faces.identities == ["anna", "bob", "carl", "anna"] and faces.labels.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert _values(faces)[-1] == 90 and faces.path(6) == tmp_path / "more" / "anna" / "x.png"


def test_identity_list_restricts_its_root_and_absent_names_are_counted(tree, tmp_path):
    _save(tmp_path / "more" / "dora" / "x.png", 90)
    ids = tmp_path / "ids.txt"
    ids.write_text("carl\n\n anna \nzoe\nyves\n../more/dora\ncarl\n")
    faces = FolderFaces([tree, tmp_path / "more"], 16, [ids, None])
    assert faces.identities == ["anna", "carl", "dora"] and _values(faces) == [40, 50, 10, 20, 30, 90]
    assert f"skipped: 3 identities that ids.txt names and {tree} lacks, e.g. ../more/dora" in faces.report()
    assert FolderFaces(tree, 16, ids).identities == ["anna", "carl"]


def test_names_beyond_ascii(tmp_path):
    _save(tmp_path / "Zoë 李" / "å b.png", 70)
    _save(tmp_path / "Zoë 李" / "ß.png", 80)
    faces = FolderFaces(tmp_path, 16)
    assert faces.identities == ["Zoë 李"] and _values(faces) == [80, 70]


def test_names_that_are_no_utf8_are_read_and_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    _save(folder / "0.png", 70)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    faces = FolderFaces(tmp_path, 16, check=True)
    assert _values(faces) == [70] and "caf\\udce9/\\udcff.png" in faces.report().encode("utf-8").decode()


def test_what_is_no_image_is_counted_in_both_modes(tree):
    (tree / "anna" / "Thumbs.db").write_bytes(b"x")
    (tree / "anna" / "deeper.png").mkdir()
    (tree / "readme.txt").write_text("x")
    for on_bad_image in ("skip", "raise"):
        faces = FolderFaces(tree, 16, on_bad_image=on_bad_image)
        assert len(faces) == 6
        report = faces.report()
        assert f"skipped: 1 files that are no images by their extension, e.g. {tree / 'anna' / 'Thumbs.db'}" in report
        assert "skipped: 1 folders inside of identity folders, whose images are not read" in report
        assert f"skipped: 1 files beside the identity folders, e.g. {tree / 'readme.txt'}" in report


def test_hidden_and_tool_folders_are_no_identities(tree):
    for name in (
        ".ipynb_checkpoints/0.png",
        "@eaDir/0.png",
        "__MACOSX/anna/0.png",
        "anna/@eaDir/0.png",
        "anna/._0.png",
    ):
        _save(tree / name, 99)
    for on_bad_image in ("skip", "raise"):
        faces = FolderFaces(tree, 16, on_bad_image=on_bad_image)
        assert faces.identities == ["anna", "bob", "carl"] and _values(faces) == [40, 50, 60, 10, 20, 30]
        assert "skipped: 5 hidden files and folders of tools, e.g. " in faces.report()


def test_links_to_themselves_and_nested_folders_are_counted(tree):
    (tree / "loop").symlink_to("loop")
    (tree / "anna" / "9.png").symlink_to("9.png")
    _save(tree / "anna" / "1999" / "0.png", 99)
    faces = FolderFaces(tree, 16, on_bad_image="raise")
    assert _values(faces) == [40, 50, 60, 10, 20, 30]
    report = faces.report()
    assert f"skipped: 1 files beside the identity folders, e.g. {tree / 'loop'}" in report
    assert f"skipped: 1 images that are no regular files, e.g. {tree / 'anna' / '9.png'}" in report
    assert f"identity folders, whose images are not read, e.g. {tree / 'anna' / '1999'}" in report


def test_file_names_cannot_steer_a_terminal(tree, capsys):
    name = "x\x1b[2J\r\nall is well\u202e.png"
    (tree / "anna" / name).write_bytes(b"no image")
    faces = FolderFaces(tree, 16, check=True)
    shown = "x\\x1b[2J\\r\\nall is well\\u202e.png"
    assert shown in faces.report() and name not in faces.report()
    with pytest.raises(UnreadableImage) as caught:
        FolderFaces(tree, 16)[2]
    assert shown in str(caught.value) and "\x1b" not in str(caught.value)


def test_empty_identity_folder(tree):
    (tree / "aaron").mkdir()
    faces = FolderFaces(tree, 16)
    assert faces.identities == ["anna", "bob", "carl"] and faces.labels[0] == 0
    assert f"skipped: 1 identity folders without an image, e.g. {tree / 'aaron'}" in faces.report()
    with pytest.raises(ValueError, match=rf"FolderFaces: every identity folder must hold at least one image, got "
                       rf"{tree / 'aaron'}; on_bad_image=\"skip\" leaves it out"):  # fmt: skip
        FolderFaces(tree, 16, on_bad_image="raise")


def _forbid(monkeypatch, folder):
    """Permissions do not bind the superuser, so the refusal is played."""
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_unreadable_identity_folder(tree, monkeypatch):
    _forbid(monkeypatch, tree / "bob")
    faces = FolderFaces(tree, 16)
    assert faces.identities == ["anna", "carl"]
    assert f"skipped: 1 unreadable identity folders, e.g. {tree / 'bob'} (Permission denied)" in faces.report()
    with pytest.raises(ValueError, match=rf"every identity folder must be readable, got {tree / 'bob'} \(Permission"):
        FolderFaces(tree, 16, on_bad_image="raise")


def test_unreadable_root(tree, monkeypatch):
    for root, reason in ((tree / "none", "No such file"), (tree / "anna" / "0.png", "Not a directory")):
        with pytest.raises(ValueError, match=rf"FolderFaces: roots must be readable folders, got {root} \({reason}"):
            FolderFaces([tree, root], 16)
    _forbid(monkeypatch, tree)
    with pytest.raises(ValueError, match=rf"roots must be readable folders, got {tree} \(Permission denied\)"):
        FolderFaces(tree, 16)


def test_no_images_at_all(tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "flat.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"roots must hold at least one image as <root>/<identity>/<image>, got .*"
                       r"skipped: 1 files beside the identity folders.*1 identity folders without an image.*"
                       r"; images end in \.jpg \.jpeg"):  # fmt: skip
        FolderFaces(tmp_path, 16)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_bad_image": "warn"}, 'on_bad_image must be "skip" or "raise", got \'warn\''),
        ({"image_size": 0}, "image_size must lie in 8 to 4096, got 0"),
        ({"identities": [None, None]}, "identities must have one entry for each root, got 2 for 1 roots; give None"),
        ({"identities": "no/such/list.txt"}, "identities must be readable text files, got no/such/list.txt"),
        ({"roots": []}, "roots must name at least one folder, got none"),
    ],
)
def test_bad_arguments(tree, kwargs, message):
    with pytest.raises(ValueError, match=f"^FolderFaces: {message}"):
        FolderFaces(**{"roots": tree, "image_size": 16, **kwargs})


@pytest.fixture
def damaged(tree):
    """bob's only image and one of carl's three are cut off in the middle."""
    for path in (tree / "bob" / "0.png", tree / "carl" / "1.png"):
        path.write_bytes(path.read_bytes()[:45])
    return tree


def test_corrupt_image_is_named_when_it_is_read(damaged):
    for on_bad_image in ("skip", "raise"):
        faces = FolderFaces(damaged, 16, on_bad_image=on_bad_image)
        assert len(faces) == 6 and faces.on_bad_image == on_bad_image
        with pytest.raises(UnreadableImage, match=str(damaged / "bob" / "0.png")):
            faces[2]
        assert int(faces[3].float().mean()) == 10


@pytest.mark.parametrize("kwargs", [{"check": True}, {"cache": True}])
def test_check_leaves_corrupt_images_out_with_their_identity(damaged, kwargs):
    faces = FolderFaces(damaged, 16, **kwargs)
    assert faces.identities == ["anna", "carl"] and faces.labels.tolist() == [0, 0, 1, 1]
    assert _values(faces) == [40, 50, 10, 30] and faces.path(3) == damaged / "carl" / "2.png"
    report = faces.report()
    assert "skipped: 2 images that cannot be decoded, e.g. decode_image: data must be a readable image" in report
    assert f"skipped: 1 identities without a readable image, e.g. {damaged / 'bob'}" in report
    with pytest.raises(UnreadableImage, match=str(damaged / "bob" / "0.png")):
        FolderFaces(damaged, 16, on_bad_image="raise", **kwargs)


def test_check_that_finds_nothing_readable(tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="must hold at least one image .*skipped: 1 images that cannot be decoded"):
        FolderFaces(tmp_path, 16, check=True)


def test_cache_needs_the_files_no_more(tree):
    faces, plain = FolderFaces(tree, 16, cache=True), FolderFaces(tree, 16)
    expected = [plain[i] for i in range(6)]
    for path in list(tree.rglob("*.png")):
        path.unlink()
    assert all(torch.equal(faces[i], expected[i]) for i in range(6))
    faces[0].zero_()  # what a caller does to its image must not reach the next caller
    assert torch.equal(faces[0], expected[0])
    assert "kept in memory" in faces.report()


def test_survives_pickling(tree):
    # Worker processes that are not forked receive the data set that way.
    for cache in (False, True):
        copy = pickle.loads(pickle.dumps(FolderFaces(tree, 16, cache=cache)))
        assert _values(copy) == [40, 50, 60, 10, 20, 30] and copy.path(2) == tree / "bob" / "0.png"


def test_real_faces(shared_data, tmp_path):
    with tarfile.open(shared_data / "orl.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    lists = shared_data / "lists"
    train = FolderFaces(tmp_path / "orl", 112, lists / "orl_train_ids.txt", on_bad_image="raise", check=True)
    dev = FolderFaces(tmp_path / "orl", 112, lists / "orl_dev_ids.txt")
    assert (len(train.identities), len(train), len(dev.identities), len(dev)) == (30, 300, 10, 100)
    assert not set(train.identities) & set(dev.identities)
    # 92 x 112 gray: the 92 x 92 in the middle, enlarged. A second opinion on decoder and cut, from the raw bytes.
    path = train.path(17)
    raw = np.frombuffer(path.read_bytes()[-92 * 112 :], np.uint8).reshape(112, 92)
    assert torch.equal(train[17], read_image(path, 112)) and (train[17][0] == train[17][2]).all()
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(raw[10:102].copy()).float()[None, None], (112, 112), mode="bilinear", antialias=True
    )
    # Rounding to bytes, once per axis. The outer rows differ: Pillow sees the pixels beyond the cut there.
    assert (enlarged[0, 0] - train[17][0])[1:-1].abs().max() <= 1.01
    loader = AttentionLoader(train, 32, 2, drop_last=False)
    seen = sum(len(batch.labels) for batch in loader)
    assert seen == 300 and loader.num_classes == 30 and loader.ignored_rows == 0
