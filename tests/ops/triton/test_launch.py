"""How the Triton launchers divide a sweep: the rule of csrc/cuda/sweep.cu, on the same numbers as its test."""

import pytest

from attfc_cuda.ops.triton import launch


@pytest.mark.parametrize(
    ("row_blocks", "tiles", "slots", "expected"),
    [
        (6, 31250, 132, 22),  # B 384: every multiprocessor has one program
        (128, 31250, 132, 1),  # B 8192: one split takes 31256 tiles' time, the best, 33 splits, 30496
        (256, 62500, 108, 5),  # B 16384 on 108 multiprocessors
        (68, 31250, 132, 17),  # B 4352: a single split would leave half of the device idle
        (1, 1, 132, 1),
        (1, 0, 132, 1),
    ],
)
def test_the_fewest_splits_within_3_percent_of_the_best(row_blocks, tiles, slots, expected):
    assert launch.choose_splits(row_blocks, tiles, slots) == expected


def test_no_other_choice_is_both_smaller_and_as_fast():
    def time(splits, row_blocks, tiles, slots):
        return -(-row_blocks * splits // slots) * (-(-tiles // splits) + launch._SPLIT_OVERHEAD)

    for row_blocks, tiles, slots in ((3, 100, 8), (7, 999, 132), (40, 5000, 108), (300, 70, 132)):
        chosen = launch.choose_splits(row_blocks, tiles, slots)
        least = min(time(splits, row_blocks, tiles, slots) for splits in range(1, tiles + 1))
        assert time(chosen, row_blocks, tiles, slots) <= 1.03 * least
        assert all(time(fewer, row_blocks, tiles, slots) > 1.03 * least for fewer in range(1, chosen))
