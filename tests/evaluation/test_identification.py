"""1:N identification against a loop over every probe and every threshold, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attfc_cuda.evaluation import IdentificationResult, evaluate_identification, identification, search
from attfc_cuda.evaluation.ijb_identification import evaluate_ijb_identification, read_ijb_identification


def case(seed, probes=40, gallery=9, dim=4):
    """Small whole numbers: every product is exact, and many are equal."""
    draw = np.random.default_rng(seed)
    names = draw.permutation(100)[: gallery + 3]
    return (
        draw.integers(-2, 3, (probes, dim)).astype(np.float32), draw.choice(names, probes),
        draw.integers(-2, 3, (gallery, dim)).astype(np.float32), names[:gallery],
    )  # fmt: skip


def oracle(probes, truth, gallery, known, ranks, rates):
    scores = probes.astype(np.float64) @ gallery.T.astype(np.float64)
    rank_of, own, strangers = [], [], []
    for row, name in zip(scores, truth, strict=True):
        if name in known:
            place = list(known).index(name)
            rank_of.append(1 + sum(row[j] >= row[place] for j in range(len(known)) if j != place))
            own.append(row[place])
        else:
            strangers.append(row.max())
    rank = {k: np.mean([r <= k for r in rank_of]) for k in ranks if k <= len(known)}
    tpir = {}
    for rate in rates:
        if len(strangers) * rate >= 1:
            every = [*own, *strangers, np.inf]
            allowed = [t for t in every if np.mean([s >= t for s in strangers]) <= rate]
            tpir[rate] = max(np.mean([s >= t for s in own]) for t in allowed)
    return rank, tpir, np.array(own), np.array(strangers)


@pytest.mark.parametrize("tile", [1, 20, 2**24])
def test_rates_are_those_of_a_loop_over_all_thresholds(monkeypatch, tile):
    monkeypatch.setattr(identification, "_SCORES_AT_ONCE", tile)
    rates = (0.5, 0.3, 0.1, 1e-3)
    for seed in range(25):
        probes, truth, gallery, known = case(seed)
        got = evaluate_identification(
            torch.from_numpy(probes), truth, torch.from_numpy(gallery), known, (1, 2, 5, 50), rates
        )
        rank, tpir, own, strangers = oracle(probes, truth, gallery, known, (1, 2, 5, 50), rates)
        assert got.rank == pytest.approx(rank, abs=1e-12) and set(got.rank) == {1, 2, 5}
        assert got.tpir_at_fpir == pytest.approx(tpir, abs=1e-12)
        assert (got.num_mated, got.num_non_mated, got.num_gallery) == (len(own), len(strangers), 9)
        for rate, threshold in got.threshold_at_fpir.items():  # as a user would apply it, in float32
            assert np.mean(strangers.astype(np.float32) >= np.float32(threshold)) <= rate
            assert np.mean(own.astype(np.float32) >= np.float32(threshold)) == got.tpir_at_fpir[rate]


def test_a_collapsed_network_identifies_nobody():
    same = torch.ones(6, 3)
    result = evaluate_identification(same, list("abcdxy"), same[:4], list("abcd"), (1, 4), (0.5,))
    assert result.rank == {1: 0.0, 4: 1.0} and result.tpir_at_fpir == {0.5: 0.0}


def test_one_kind_of_probes_is_told_in_words():
    everybody = torch.eye(3)
    closed = evaluate_identification(everybody, [0, 1, 2], everybody, [0, 1, 2], (1,))
    assert closed.rank == {1: 1.0} and closed.tpir_at_fpir == {} and "support none" in closed.summary()
    strangers = evaluate_identification(everybody, [7, 8, 9], everybody, [0, 1, 2], (1,), (0.5,))
    assert strangers.rank == {} and strangers.tpir_at_fpir == {} and "no mated probes" in strangers.summary()
    assert closed.to_dict()["rank"] == {"1": 1.0}


@pytest.mark.parametrize("tile", [1, 30, 2**24])
def test_search_is_a_sorted_product(monkeypatch, tile):
    monkeypatch.setattr(identification, "_SCORES_AT_ONCE", tile)
    draw = np.random.default_rng(3)
    probes, gallery = draw.normal(size=(17, 8)), draw.normal(size=(11, 8))
    scores, rows = search(torch.from_numpy(probes), torch.from_numpy(gallery), 4)
    every = probes @ gallery.T
    assert np.array_equal(rows.numpy(), np.argsort(-every, axis=1)[:, :4])
    # A float64 sum of 8 products, in two orders.
    assert np.abs(scores.numpy() - -np.sort(-every, axis=1)[:, :4]).max() < 16 * 8 * np.abs(every).max() * 2**-53
    assert search(torch.zeros(0, 8), torch.ones(2, 8), 2)[1].shape == (0, 2)


def test_faiss_finds_what_torch_finds():
    pytest.importorskip("faiss", reason="faiss is not installed")
    draw = torch.Generator().manual_seed(0)
    probes, gallery = (torch.nn.functional.normalize(torch.randn(n, 32, generator=draw)) for n in (50, 300))
    ours, theirs = search(probes, gallery, 5), search(probes, gallery, 5, "faiss")
    assert torch.equal(ours[1], theirs[1]) and theirs[1].dtype == torch.int64
    assert (ours[0] - theirs[0]).abs().max() < 2 * 32 * 2**-24  # two sums of 32 products of unit rows


def test_faiss_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"search: faiss must be installed, got none .*attfc_cuda\[search\]"):
        search(torch.ones(1, 2), torch.ones(1, 2), 1, "faiss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_identities": [5, 5]}, "gallery_identities must name each identity once, got .*5.*; take one"),
        ({"probe_identities": [1]}, r"probe_identities must have one entry per row, \[2\], got \[1\]"),
        (
            {"probes": torch.tensor([[1.0, 2], [float("nan"), 0]])},
            "probes must be finite, got NaN or infinity in row 1",
        ),
        ({"gallery": torch.ones(2, 3)}, "probes must have the gallery's 3 columns, got 2"),
        ({"probes": torch.full((2, 2), 3e38), "gallery": torch.full((2, 2), 3e38)}, "probes must have finite scores"),
        ({"ranks": (0,)}, "ranks must be at least 1, got 0"),
        ({"fpir": (1.0,)}, "fpir must lie between 0 and 1, both excluded, got 1.0"),
        ({"gallery": torch.ones(0, 2), "gallery_identities": []}, "gallery must hold at least one row"),
        ({"probes": torch.ones(0, 2), "probe_identities": []}, "probes must hold at least one row"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "probes": torch.ones(2, 2), "probe_identities": [1, 2], "gallery": torch.ones(2, 2),
        "gallery_identities": [1, 2],
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"evaluate_identification: {message}"):
        evaluate_identification(**(arguments | change))


@pytest.mark.parametrize(("k", "engine", "message"), [(0, "torch", "k must lie in 1 to 2"), (1, "x", "engine must be")])
def test_search_errors(k, engine, message):
    with pytest.raises(ValueError, match=f"search: {message}"):
        search(torch.ones(1, 2), torch.ones(2, 2), k, engine)


def write_ijb(folder, name="ijbc", suffixes=("G1", "G2")):
    """Eight templates 10, 20, ..: four people in one gallery, two in the other, two probes of unknown order."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    templates = [10 * (t + 1) for t in range(10)]
    media = [f"{i}.jpg {t} {i}" for i, t in enumerate(templates) for _ in range(2)]
    (meta / f"{name}_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    head = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    lists = {
        f"1N_gallery_{suffixes[0]}": [(30, 101), (30, 101), (10, 100)], f"1N_gallery_{suffixes[1]}": [(20, 200)],
        "1N_probe_mixed": [(90, 100), (40, 101), (50, 200), (60, 200), (70, 200), (80, 100)],
    }  # fmt: skip
    for ending, rows in lists.items():
        text = "".join(f"{t},{s},img/{t}.jpg\n" for t, s in rows)
        (meta / f"{name}_{ending}.csv").write_text(head + text)


@pytest.mark.parametrize(("name", "suffixes"), [("ijbc", ("G1", "G2")), ("ijbb", ("S1", "S2"))])
def test_ijb_lists_are_two_galleries_with_the_probes_of_both(tmp_path, name, suffixes):
    write_ijb(tmp_path, name, suffixes)
    protocol = read_ijb_identification(tmp_path)
    assert [key.removeprefix("1N_gallery_") for key in protocol.galleries] == list(suffixes)
    pooled = torch.nn.functional.normalize(torch.randn(10, 6, generator=torch.Generator().manual_seed(1)))
    results, mean = evaluate_ijb_identification(pooled, protocol)
    row = {10 * (t + 1): pooled[t].numpy() for t in range(10)}
    probes = [(90, 100), (40, 101), (50, 200), (60, 200), (70, 200), (80, 100)]
    for suffix, gallery in zip(suffixes, ([(30, 101), (10, 100)], [(20, 200)]), strict=True):
        rank, tpir, own, strangers = oracle(
            np.stack([row[t] for t, _ in probes]), [s for _, s in probes],
            np.stack([row[t] for t, _ in gallery]), [s for _, s in gallery], (1, 5), (0.1,),
        )  # fmt: skip
        got = results[f"1N_gallery_{suffix}"]
        assert (got.num_mated, got.num_non_mated) == (len(own), len(strangers)) == (3, 3)
        assert got.rank == pytest.approx(rank) and got.tpir_at_fpir == tpir == {}
    assert mean.rank[1] == pytest.approx(np.mean([result.rank[1] for result in results.values()]))
    assert isinstance(mean, IdentificationResult) and mean.num_mated == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("90,7,x\n90,8,x\n", r"row 3 of .*probe_mixed.csv must give a template one subject, got 8 for template 90"),
        ("90\n", "row 2 of .*probe_mixed.csv must begin with two whole numbers, got 90"),
        ("999,7,x\n", "must name templates that have images, got template 999"),
        ("", "must hold at least one row"),
    ],
)
def test_ijb_errors_name_file_and_row(tmp_path, row, message):
    write_ijb(tmp_path)
    (tmp_path / "meta" / "ijbc_1N_probe_mixed.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + row)
    with pytest.raises(ValueError, match=f"read_ijb_identification: .*{message}"):
        read_ijb_identification(tmp_path)
    (tmp_path / "meta" / "ijbc_1N_probe_mixed.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*ijbc_1N_probe_mixed.csv"):
        read_ijb_identification(tmp_path)
