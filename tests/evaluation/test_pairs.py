"""Pair lists: reading them from disk, and drawing them from a data set."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attfc_cuda.data import build_dataset
from attfc_cuda.evaluation import make_pairs, read_pairs
from attfc_cuda.evaluation.build import from_dataset


@pytest.fixture
def folder(tmp_path):
    for name in ("ann/1.png", "ann/2.png", "bob/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def written(folder, text):
    (folder / "list.txt").write_text(text, encoding="utf-8")
    return folder / "list.txt"


def test_reads_a_list(folder):
    path = written(folder, "# a comment\nann/1.png\tann/2.png\t1\t7\n\nann/1.png\tbob/1.png\t0\t8\n")
    pairs = read_pairs(path, folder)
    assert pairs.paths_a == [folder / "ann/1.png"] * 2
    assert pairs.paths_b == [folder / "ann/2.png", folder / "bob/1.png"]
    assert pairs.same.dtype == bool and pairs.same.tolist() == [True, False]
    assert pairs.fold.dtype == np.int64 and pairs.fold.tolist() == [7, 8]
    images, numbered = pairs.indices()
    assert images == [folder / "ann/1.png", folder / "ann/2.png", folder / "bob/1.png"]  # each once
    assert (numbered.a.tolist(), numbered.b.tolist()) == ([0, 0], [1, 2])


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("ann/1.png ann/2.png 1 1", ValueError, r"hold image_a, image_b, same .*, got 1 columns after lines of 4"),
        ("ann/1.png\tann/2.png\t1", ValueError, r"hold image_a, .* tabs, commas or white space, got 3 columns after "),
        ("ann/1.png\tann/2.png\tyes\t1", ValueError, r"hold 1, 0, -1, true or false in column 3 \(same\), got 'yes'"),
        ("ann/1.png\tann/2.png\t1\tone", ValueError, r"hold an integer in column 4 \(fold\), got 'one'"),
        (
            "ann/1.png\tann/9.png\t1\t1",
            FileNotFoundError,
            r"name existing images, got .*ann/9.png, which does not exist",
        ),
    ],
)
def test_a_bad_line_is_named(folder, line, kind, message):
    path = written(folder, f"ann/1.png\tann/2.png\t1\t1\n{line}\n")
    with pytest.raises(kind, match=rf"^read_pairs: line 2 of {path} must {message}"):
        read_pairs(path, folder)


def test_a_pair_of_an_image_with_itself_is_left_out_with_a_warning(folder):
    path = written(folder, "ann/1.png\tann/1.png\t1\t1\nann/1.png\tann/2.png\t1\t3\nann/2.png\tann/2.png\t1\t1\n")
    with pytest.warns(
        UserWarning, match=f"read_pairs: 2 pairs .* left out, the first is ann/1.png in line 1 of {path}"
    ):
        pairs = read_pairs(path, folder)
    assert pairs.fold.tolist() == [3]
    path = written(folder, "ann/1.png\tann/1.png\t1\t1\n")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="hold at least one pair of two images, got none"):
        read_pairs(path, folder)


def test_an_empty_list_is_named(folder):
    path = written(folder, "\n# nothing\n")
    with pytest.raises(ValueError, match=rf"^read_pairs: {path} must hold at least one pair of two images, got none"):
        read_pairs(path, folder)


def test_files_need_not_exist_when_not_asked_for(folder):
    path = written(folder, "ann/1.png\tann/9.png\t1\t1\n")
    assert read_pairs(path, folder, check_files=False).paths_b == [folder / "ann/9.png"]


def dataset(counts):
    """Labels of identities with these image counts, shuffled: images of one identity need not be neighbours."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return SimpleNamespace(labels=np.random.default_rng(1).permutation(labels))


def check(pairs, labels, num_pairs, folds):
    assert len(pairs.same) == num_pairs
    assert np.array_equal(labels[pairs.a] == labels[pairs.b], pairs.same)
    unordered = {(min(a, b), max(a, b)) for a, b in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}
    assert len(unordered) == num_pairs, "a pair appears twice"
    assert all(a != b for a, b in unordered)
    for number in range(folds):
        inside = pairs.fold == number
        assert num_pairs // folds <= inside.sum() <= -(-num_pairs // folds)
        assert abs(2 * int(pairs.same[inside].sum()) - int(inside.sum())) <= 1


def shared_identities(pairs, labels, folds):
    sets = [
        set(labels[pairs.a[pairs.fold == k]].tolist()) | set(labels[pairs.b[pairs.fold == k]].tolist())
        for k in range(folds)
    ]
    return sum(len(group) for group in sets) - len(set.union(*sets))


def test_folds_are_balanced_and_identity_disjoint():
    data = dataset([6] * 30 + [1] * 40 + [50])
    pairs = make_pairs(data, num_pairs=203, folds=5, seed=3)
    check(pairs, data.labels, 203, 5)
    assert shared_identities(pairs, data.labels, 5) == 0


def test_folds_share_identities_when_there_are_too_few():
    data = dataset([5, 5, 5])
    pairs = make_pairs(data, num_pairs=40, folds=10)
    check(pairs, data.labels, 40, 10)
    assert shared_identities(pairs, data.labels, 10) > 0


def test_every_pair_there_is_can_be_drawn():
    # 3 identities of 4: 18 genuine and 48 impostor pairs; 36 pairs want all 18 genuine ones.
    data = dataset([4, 4, 4])
    check(make_pairs(data, num_pairs=36, folds=2), data.labels, 36, 2)
    # Two identities of 2: 2 genuine and 4 impostor pairs.
    check(make_pairs(dataset([2, 2]), num_pairs=4, folds=2), dataset([2, 2]).labels, 4, 2)


def test_the_seed_decides():
    data = dataset([4] * 20)
    first, again, other = (make_pairs(data, 60, 5, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first.a, other.a)


def test_genuine_pairs_are_spread_over_the_identities():
    data = dataset([100] + [3] * 50)
    pairs = make_pairs(data, num_pairs=200, folds=2)
    big = int((data.labels[pairs.a[pairs.same]] == 0).sum())
    # 100 genuine pairs in two folds of 25 or 26 identities with 3 pairs each at least: two rounds of one pair each.
    assert big <= 2
    impostor_images = np.concatenate([pairs.a[~pairs.same], pairs.b[~pairs.same]])
    assert len(set(impostor_images[data.labels[impostor_images] == 0].tolist())) <= 10


def test_negative_labels_are_left_out():
    data = dataset([4] * 10)
    data.labels[:7] = -1
    pairs = make_pairs(data, num_pairs=20, folds=2)
    assert (data.labels[pairs.a] >= 0).all() and (data.labels[pairs.b] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=25), st.integers(2, 5), st.integers(4, 60), st.integers(0, 2**32)
)
def test_whatever_the_data_set_the_protocol_holds(counts, folds, num_pairs, seed):
    assume(num_pairs >= 2 * folds)
    data = dataset(counts)
    genuine = sum(n * (n - 1) // 2 for n in counts)
    impostor = (sum(counts) ** 2 - sum(n * n for n in counts)) // 2
    if min(genuine, impostor) < num_pairs // 2 + folds:
        assume(min(genuine, impostor) < num_pairs // 2 - folds)  # odd folds move the limit by less than that
        with pytest.raises(ValueError, match="make_pairs: num_pairs must need no more"):
            make_pairs(data, num_pairs, folds, seed)
    else:
        check(make_pairs(data, num_pairs, folds, seed), data.labels, num_pairs, folds)


@pytest.mark.parametrize(
    ("counts", "num_pairs", "folds", "message"),
    [
        ([5, 5], 20, 1, r"folds must be at least 2 .* got 1"),
        ([5, 5], 5, 3, r"num_pairs must be at least 2 per fold, 6, got 5"),
        ([1] * 50, 20, 2, r"num_pairs must need no more genuine pairs than the data set holds, 0, got 10"),
        ([9], 20, 2, r"num_pairs must need no more impostor pairs than the data set holds, 0, got 10"),
    ],
)
def test_errors(counts, num_pairs, folds, message):
    with pytest.raises(ValueError, match=rf"^make_pairs: {message}"):
        make_pairs(dataset(counts), num_pairs, folds)


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="than the data set holds, 0, got 10"):
        make_pairs(SimpleNamespace(labels=np.array([], dtype=np.int64)), 20, 2)


def test_the_shared_lists_are_read(shared_data):
    pairs = read_pairs(shared_data / "lists" / "celeba_dev_pairs.txt", shared_data, check_files=False)
    assert len(pairs.same) == 6000
    assert pairs.same.sum() == 3000
    assert np.array_equal(np.bincount(pairs.fold)[1:], [600] * 10)
    for a, b, same in zip(pairs.paths_a, pairs.paths_b, pairs.same, strict=True):
        assert (a.parent == b.parent) == same


@pytest.mark.parametrize(("identities", "images", "folds", "count"), [(40, 4, 10, 100), (4, 2, 4, 8), (2, 2, 2, 4)])
def test_pairs_and_folds_follow_what_there_is(identities, images, folds, count):
    made = from_dataset("held-out", build_dataset(f"procedural:{identities}x{images}", 16), 100).pairs
    assert len(made.same) == count and made.same.sum() == count // 2 and len(set(made.fold.tolist())) == folds


def test_too_few_pairs_are_one_sentence_with_a_remedy():
    for spec in ("procedural:1x9", "procedural:9x1"):
        with pytest.raises(ValueError, match="data must give at least 2 genuine and 2 impostor .*; two identities"):
            from_dataset("held-out", build_dataset(spec, 16), 100)


@pytest.mark.parametrize("form", ["lfw", "ours"])
def test_a_name_that_no_file_can_have_is_that_of_a_missing_file(tmp_path, form):
    name = "b" * 300  # longer than a file system's limit of 255
    text = f"1\t1\n{name}\t1\t2\nann\t1\tben\t1\n" if form == "lfw" else f"{name}.png\tother.png\t1\t0\n"
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(FileNotFoundError, match="must name existing images, got .*bbb.*, which does not exist"):
        read_pairs(tmp_path / "pairs.txt", tmp_path)
    assert len(read_pairs(tmp_path / "pairs.txt", tmp_path, check_files=False).same) == (2 if form == "lfw" else 1)


@pytest.mark.parametrize(
    "text",
    [
        "ann/1.png ann/2.png 1\nann/1.png bob/1.png -1\n",
        "ann/1.png  ann/2.png True\n\nann/1.png\tbob/1.png False\n".replace("\t", "  "),
        "ann/1.png,ann/2.png,1\r\nann/1.png, bob/1.png, 0\r\n",
        "file_a,file_b,label\nann/1.png,ann/2.png,TRUE\nann/1.png,bob/1.png,false\n",
        "\ufeffann/1.png\tann/2.png\t1\nann/1.png\tbob/1.png\t-1\n",
    ],
    ids=["-1", "True", "commas", "heading", "byte order mark"],
)
def test_lists_in_three_columns_however_they_are_written(folder, text):
    pairs = read_pairs(written(folder, text), folder)
    assert pairs.paths_a == [folder / "ann/1.png"] * 2
    assert pairs.paths_b == [folder / "ann/2.png", folder / "bob/1.png"]
    assert pairs.same.tolist() == [True, False] and pairs.fold.tolist() == [0, 0]


def test_without_folds_both_kinds_are_dealt_into_ten(folder):
    lines = ["ann/1.png,ann/2.png,1\n"] * 12 + ["ann/1.png,bob/1.png,0\n"] * 11
    pairs = read_pairs(written(folder, "".join(lines)), folder)
    assert pairs.fold.tolist() == [*range(10), 0, 1, *range(10), 0]


def test_a_first_line_that_names_images_is_no_heading(folder):
    path = written(folder, "ann/1.png,ann/2.png,yes\n")
    with pytest.raises(ValueError, match="line 1 of .* column 3 .same., got 'yes'"):
        read_pairs(path, folder)


def test_pairs_with_a_missing_image_are_left_out_on_request(folder):
    path = written(folder, "ann/1.png ann/9.png 1\nann/1.png ann/2.png 1\nbob/7.png ann/9.png 0\n")
    with pytest.warns(
        UserWarning, match=r"2 pairs with a missing image are left out, the first is .*ann/9.png in line 1"
    ):
        pairs = read_pairs(path, folder, on_bad_image="skip")
    assert pairs.paths_b == [folder / "ann/2.png"]
    path = written(folder, "ann/1.png ann/9.png 1\n")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="one pair of two images, got 1 pairs whose images do"),
    ):
        read_pairs(path, folder, on_bad_image="skip")
    with pytest.raises(ValueError, match="read_pairs: on_bad_image must be"):
        read_pairs(path, folder, on_bad_image="drop")
