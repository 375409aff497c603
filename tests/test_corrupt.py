"""A damaged byte of a run folder is harmless or named; the long hunt is tests/faults/corrupt.py."""

from tests.faults.corrupt import FOLDERS, hunt


def test_no_damage_is_silent_and_no_checkpoint_is_lost(tmp_path):
    verdicts, wrong = hunt(tmp_path, [*FOLDERS], count=3, seed=1, whole=50, processes=0)
    assert wrong == []
    total = {kind: sum(verdicts[key] for key in verdicts if key[1] == kind) for _, kind in verdicts}
    assert total["harmless"] > 50
    assert total["named"] > 100
