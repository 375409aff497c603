"""What is printed when a job failed: the rank at which it began, or that none is known."""

import signal

from launch import train_command
from launch.explain import explain
from launch.supervise import REQUEUE, Ended

TRAIN = ["train"]


def explained(capsys, monkeypatch, ended: Ended, fault: dict[str, object]) -> tuple[int, str]:
    monkeypatch.setattr(train_command, "fault", lambda python, arguments: fault)
    code = explain(ended, ["python"], TRAIN)
    return code, capsys.readouterr().err


def test_ranks_that_agree_have_printed_it_themselves(capsys, monkeypatch):
    ended = Ended(code=2, codes={0: 2, 1: 2}, hosts={0: "h1", 1: "h2"})
    assert explained(capsys, monkeypatch, ended, {}) == (2, "")


def test_the_first_rank_that_failed_is_named_with_its_step(capsys, monkeypatch):
    ended = Ended(code=137, codes={1: 137, 0: 143}, hosts={0: "h1", 1: "h2"})
    code, text = explained(capsys, monkeypatch, ended, {"step": 7})
    assert code == 137
    assert text == (
        "launch: rank 1 on h2, after step 7: killed by signal 9 (SIGKILL); exit code 137\n"
    )


def test_the_run_folder_knows_what_killed_ranks_could_not_report(capsys, monkeypatch):
    fault = {"exit_code": 4, "rank": 1, "step": 7, "phase": "reduce", "cause": "out of step"}
    ended = Ended(code=1, hosts={0: "h1", 1: "h2"})
    code, text = explained(capsys, monkeypatch, ended, fault)
    assert code == 4
    assert text == "launch: rank 1 on h2, step 7, reduce: out of step; exit code 4\n"


def test_ranks_of_which_nothing_is_known_are_listed(capsys, monkeypatch):
    ended = Ended(
        code=1, codes={0: 0}, hosts={0: "h1", 1: "h2"}, launcher_lines=["mpiexec: lost h2"]
    )
    code, text = explained(capsys, monkeypatch, ended, {})
    assert code == 1
    assert text == (
        "launch: mpiexec: lost h2\nlaunch: no exit code arrived from rank 1 on h2; exit code 1\n"
    )


def test_a_stop_before_the_training_began_is_requeued(capsys, monkeypatch):
    ended = Ended(code=128 + signal.SIGTERM, asked=signal.SIGTERM)
    code, text = explained(capsys, monkeypatch, ended, {})
    assert code == REQUEUE
    assert "ended by SIGTERM\n" in text
