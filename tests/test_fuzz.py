"""A few damaged inputs of each kind: each ends with one message; see tests/faults/fuzz.py."""

import pytest

from tests.faults import fuzz


@pytest.mark.timeout(300)
def test_damaged_input_ends_soon_with_one_message_and_leaves_nothing_half_written(tmp_path):
    ended, wrong = fuzz.check(4 * len(fuzz.FAMILIES), 1, tmp_path)
    assert not wrong
    assert sum(ended.values()) == 4 * len(fuzz.FAMILIES)


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ((70, 0.1, 0, "ddpbp: a\n"), "code 70"),
        ((-11, 0.1, 0, "ddpbp: a\n"), "code -11"),
        ((2, 11.0, 0, "ddpbp: a\n"), "no end"),
        ((2, 0.1, 2_000, "ddpbp: a\n"), "MB"),
        ((2, 0.1, 0, "Traceback\nddpbp: a\n"), "traceback"),
        ((2, 0.1, 0, "ddpbp: a\nddpbp: b\n"), "2 messages"),
        ((2, 0.1, 0, ""), "0 messages"),
        ((0, 0.1, 0, "ddpbp: a\n"), "1 messages"),
        ((2, 0.1, 0, "ddpbp: \x1b[2J\n"), "not printable"),
        ((2, 0.1, 0, f"ddpbp: {'a' * 3_000}\n"), "a message of"),
    ],
)
def test_the_suite_finds_each_fault(tmp_path, result, fault):
    found = [*fuzz.faults(fuzz.Result(*result), tmp_path, 1_000)]
    assert any(fault in text for text in found), found
    assert not [*fuzz.faults(fuzz.Result(2, 0.1, 0, "note: b\nddpbp: a\n"), tmp_path, 1_000)]
