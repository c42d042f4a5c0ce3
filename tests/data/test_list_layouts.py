"""Lists as other people's tools write them, and what is said of those that nobody writes."""

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from attfc_cuda.data import ListFaces, build_dataset

# Path, number and name of the identity, shade of the image.
FACES = [("anna/1.png", 5, "anna", 10), ("Ben Cole/a b.png", 2, "Ben Cole", 20), ("anna/2.png", 5, "anna", 30)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for path, _, _, shade in FACES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), shade).save(tmp_path / path)
    return tmp_path


def lines(form: str, **more: object) -> str:
    return "".join(
        form.format(path=path, label=label, name=name, n=n, **more) + "\n"
        for n, (path, label, name, _) in enumerate(FACES)
    )


NUMBERED = {
    "path label": "{path} {label}",
    "label path": "{label}\t{path}",
    "insightface": "1\t{path}\t{label}",
    "insightface with landmarks": "0\t{path}\t{label}\t12\t30.5\t99\t7",
    "im2rec": "{n}\t{label}.000000\t{path}",
    "im2rec with several labels": "{n}\t{label}\t0.5\t1e-3\t{path}",
    "magface": "{path} 0 {label} 0",
}


@pytest.mark.parametrize("form", NUMBERED.values(), ids=NUMBERED.keys())
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
def test_numbered_lists(form: str, mark: str, images: Path) -> None:
    if form.startswith("{label}\t"):  # a path with spaces behind a label is no list of this form
        (images / "Ben Cole").rename(images / "Ben")
        (images / "Ben" / "a b.png").rename(images / "Ben" / "ab.png")
    text = lines(form)
    if form.startswith("{label}\t"):
        text = text.replace("Ben Cole/a b", "Ben/ab")
    (images / "l.lst").write_text(mark + "# faces\n" + text, encoding="utf-8")
    check(images / "l.lst", [1, 0, 1], ["2", "5"])


def check(path: Path, labels: list[int], identities: list[str]) -> None:
    faces = build_dataset(str(path), 16, on_bad_image="raise")
    assert isinstance(faces, ListFaces)
    assert faces.labels.tolist() == labels and list(faces.identities) == identities
    assert [int(faces[k][0, 0, 0]) for k in range(len(faces))] == [shade for *_, shade in FACES]


@pytest.mark.parametrize("form", ["{path}\t{name}", "{path}\t\t{name}"])
def test_names_behind_a_path(form: str, images: Path) -> None:
    (images / "l.txt").write_text(lines(form))
    check(images / "l.txt", [1, 0, 1], ["Ben Cole", "anna"])


CSV = {
    "path and name": (["image", "identity"], ("path", "name"), True),
    "three columns": (["Split", "File", "Label"], ("split", "path", "label"), False),
    "label first": (["id", "filename", "sex"], ("label", "path", "split"), False),
}
PLAIN_CSV = {"names": (None, ("path", "name"), True), "numbers": (None, ("label", "path"), False)}


@pytest.mark.parametrize(
    ("delimiter", "case"),
    [*((d, case) for d in ",;\t" for case in CSV.values()), *((d, case) for d in ",;" for case in PLAIN_CSV.values())],
)
def test_csv(delimiter: str, case: tuple, images: Path) -> None:
    heading, columns, named = case
    with open(images / "faces.csv", "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
        if heading is not None:
            writer.writerow(heading)
        for path, label, name, _ in FACES:
            row = {"path": path, "label": label, "name": name, "split": "train"}
            writer.writerow([row[column] for column in columns])
    check(images / "faces.csv", [1, 0, 1], ["Ben Cole", "anna"] if named else ["2", "5"])


def test_a_line_of_another_layout_is_counted_and_the_layout_is_told(images: Path) -> None:
    (images / "l.txt").write_text(lines("{path} 0 {label} 0") + "anna/1.png 7\n")
    faces = ListFaces(images / "l.txt", 16)
    assert len(faces) == 3 and "lines read as: path 0 label 0 (MagFace)" in faces.report()
    assert "skipped: 1 lines that are not a path and a label" in faces.report()


@pytest.mark.parametrize("others", [3, 4, 11, 12, 99, 2000])
def test_a_list_most_of_which_does_not_fit_is_refused(others: int, images: Path) -> None:
    """A tenth of the lines may be of another form, and three in any list."""
    fitting = {3: 1, 4: 30, 11: 99, 12: 99, 99: 1, 2000: 3000}[others]
    (images / "l.txt").write_text("anna/1.png 7\n" * fitting + "some words of another list\n" * others)
    if others > 3 and others * 10 > fitting + others:
        got = rf"{others} of {fitting + others} that are not as path label, e.g. b'some words.*at byte \d+ of .*l.txt"
        with pytest.raises(ValueError, match=rf"have lines of one layout: at most a tenth .*, got {got}; layouts that"):
            ListFaces(images / "l.txt", 16)
    else:
        faces = ListFaces(images / "l.txt", 16)
        assert len(faces) == fitting and f"skipped: {others} lines that are not" in faces.report()


@pytest.mark.parametrize("text", ["anna/1.png 3 4\n", "hello world\n", "a,b,c\n1,2,3\n", "{}\n"])
def test_an_unknown_layout_is_refused_with_what_was_looked_for(text: str, images: Path) -> None:
    (images / "l.txt").write_text(text)
    words = r"ListFaces: path must have lines of one of these layouts: path label .*InsightFace.*im2rec.*MagFace.*CSV.*"
    with pytest.raises(ValueError, match=words + re.escape(f"got {text.split(chr(10))[0].encode()!r} at byte 0 of")):
        ListFaces(images / "l.txt", 16)


@pytest.mark.parametrize(
    "form",
    ["{n},{path},{label}\nid,filename,person", "{path},{n},{label}\nimage,label,identity"],
    ids=["the number of a row", "another label"],
)
def test_of_two_columns_that_could_be_labels_the_surer_one_counts(form: str, images: Path) -> None:
    row, _, heading = form.partition("\n")
    (images / "l.csv").write_text(f"{heading}\n{lines(row)}")
    check(images / "l.csv", [1, 0, 1], ["2", "5"])


def test_further_numbers_behind_a_label_are_not_magfaces(images: Path) -> None:
    (images / "l.txt").write_text(lines("{path} {label} 1 30"))
    with pytest.raises(ValueError, match="layout"):
        build_dataset(str(images / "l.txt"), 16)
