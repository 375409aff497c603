"""The run folder: one job at a time, nothing lost before what replaces it is whole."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import ddpbp
from ddpbp.cli.main import run
from ddpbp.errors import ConfigError
from ddpbp.store import lock
from ddpbp.store.checkpoint import find_checkpoint, make_newest, read_state, steps_in
from ddpbp.store.lock import Lock
from ddpbp.store.run_folder import set_aside
from tests.conftest import environment
from tests.test_resume import SMALL, stop_at


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def interrupted(tmp_path: Path, capsys: Any) -> Path:
    """Leave checkpoints of steps 3 and 6."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        assert run([*SMALL, f"output={tmp_path / 'run'}", "checkpoint.every_steps=3"]) == 75
    capsys.readouterr()
    return tmp_path / "run"


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- one job at a time ---------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", [[], ["--simulate-ranks", "3"], ["threads=3"]])
def test_a_second_job_is_refused_and_the_first_undisturbed(interrupted, monkeypatch, capsys, way):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with Lock(interrupted) as first:
        first.take()
        before = tree(interrupted)
        for words in (["--resume", "auto"], ["--overwrite"], []):
            assert run([*SMALL, f"output={interrupted}", *words, *way]) == 2
            err = capsys.readouterr().err
            assert f"output {interrupted} is in use by pid {os.getpid()} on " in err
            assert "(job 4711) since 20" in err
            assert err.count("\n") == 1
        assert tree(interrupted) == before
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto", *way]) == 0
    assert not (interrupted / "lock").exists()


def test_two_jobs_of_several_ranks(mpirun, tmp_path):
    command = ["-m", "ddpbp", *SMALL, f"output={tmp_path / 'run'}"]
    words = [sys.executable, *command, "epochs=100000", "max_seconds=60"]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment())
    try:
        deadline = time.monotonic() + 50
        while not (tmp_path / "run/config.toml").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        ended = mpirun(3, *command, "--resume", "auto")
        assert ended.returncode == 2
        assert ended.stderr.count("is in use by pid") == 1
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 75
    assert not (tmp_path / "run/fault.json").exists()


@pytest.mark.usefixtures("impatient")
def test_a_dead_owner_does_not_keep_the_lock(python, tmp_path):
    code = (
        "import os, sys; from ddpbp.store.lock import Lock; Lock(sys.argv[1]).take(); os._exit(9)"
    )
    assert python("-c", code, tmp_path / "run").returncode == 9
    assert (tmp_path / "run/lock").exists()
    with Lock(tmp_path / "run") as taken:
        assert taken.take() == []


def test_the_end_of_the_job_before_is_awaited(python, tmp_path):
    code = "import sys, time; from ddpbp.store.lock import Lock; Lock(sys.argv[1]).take()\n"
    code += "print(flush=True); time.sleep(1)"
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as before:
        assert before.stdout
        before.stdout.readline()
        with Lock(tmp_path) as taken:
            taken.take()


@pytest.mark.usefixtures("impatient")
def test_without_locks_the_text_decides(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("ddpbp.store.lock.fcntl.flock", no_locks)
    text = {"host": socket.gethostname(), "pid": 1, "since": "then"}
    (tmp_path / "lock").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match="is in use by pid 1 on"):
        Lock(tmp_path).take()
    for other in ({"pid": 2**22 + 1}, {"host": "elsewhere"}):
        (tmp_path / "lock").write_text(json.dumps(text | other))
        with Lock(tmp_path) as taken:
            [note] = taken.take()
        assert "has no locks (Function not implemented); pid " in note
        assert "is taken to have ended" in note


@pytest.mark.parametrize("words", [["threads=99"], ["data.source=gone.csv"], ["--resume", "gone"]])
def test_a_refused_start_leaves_no_folder(tmp_path, capsys, words):
    assert run([*SMALL, f"output={tmp_path / 'runs/one'}", *words]) == 2
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()


# --- which checkpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize("pointer", ["step-00000000", "step-²", "9" * 5000, "\udcff"])
def test_the_pointer_is_never_a_reason_to_pass_one_over(interrupted, pointer):
    (interrupted / "checkpoints/latest").write_text(pointer, errors="surrogateescape")
    (interrupted / "checkpoints/step-²").mkdir()
    found, notes = find_checkpoint("auto", interrupted)
    assert found
    assert found.path.name == "step-00000006"
    assert notes == []


class _End(ddpbp.Callback):
    def begin(self, run: Any) -> None:
        raise ddpbp.DdpbpError("killed")


def test_a_run_that_was_taken_back_continues_from_there(interrupted, capsys):
    """Even if it ends before it saves again: its metrics end there already."""
    earlier = interrupted / "checkpoints/step-00000003"
    config = ddpbp.resolve(None, [*SMALL[1:], f"output={interrupted}"])
    with pytest.raises(ddpbp.DdpbpError, match="killed"):
        ddpbp.train(config, resume=earlier, callbacks=[_End])
    assert [*steps_in(interrupted / "checkpoints")] == [6, 3]
    found, notes = find_checkpoint("auto", interrupted)
    assert found
    assert (found.path, found.state.serial, notes) == (earlier, 3, [])
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 0
    assert "damaged" not in capsys.readouterr().out


def test_a_state_that_was_never_saved_needs_no_serial(interrupted):
    """Ranks that outlive others continue from such a state."""
    before = tree(interrupted)
    make_newest(interrupted / "checkpoints/step-00000005")
    assert tree(interrupted) == before


def test_a_kill_while_a_checkpoint_takes_the_place_of_another_loses_none(interrupted, capsys):
    newest = interrupted / "checkpoints/step-00000006"
    newest.rename(newest.with_name(f".{newest.name}.old.tmp"))
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 0
    assert "step 6," in capsys.readouterr().out


def test_a_resume_at_the_last_step_of_an_epoch_tells_no_speed(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        assert run([*SMALL, f"output={tmp_path}"]) == 75
    assert run([*SMALL, f"output={tmp_path}", "--resume", "auto"]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if "epoch " in line][1:3]
    assert "examples/s" not in first
    assert "examples/s" in second


# --- nothing is lost -----------------------------------------------------------------------------


def test_a_run_that_is_replaced_stays_until_the_new_one_has_saved_something(interrupted):
    before = tree(interrupted)
    config = ddpbp.resolve(None, [*SMALL[1:], f"output={interrupted}"])
    for _ in range(2):
        with pytest.raises(ddpbp.DdpbpError, match="killed"):
            ddpbp.train(config, overwrite=True, callbacks=[_End])
        assert tree(interrupted / ".replaced") == before
    ddpbp.train(config, overwrite=True)
    assert not (interrupted / ".replaced").exists()
    assert [*steps_in(interrupted / "checkpoints")] == [12]


class _Remove(ddpbp.Callback):
    def step(self, run: Any, loss: float) -> None:
        if run.trainer.step == 6 and run.world.rank == 0:
            run.writer.wait()
            shutil.rmtree(run.folder)


def test_an_old_run_that_was_moved_in_part_is_kept_whole(interrupted):
    names = sorted(path.name for path in interrupted.iterdir())
    (interrupted / ".replaced").mkdir()  # then the process was killed
    (interrupted / "config.toml").rename(interrupted / ".replaced" / "config.toml")
    set_aside(interrupted)
    assert sorted(path.name for path in (interrupted / ".replaced").iterdir()) == names


def test_a_folder_that_is_removed_is_made_again_with_all_of_the_run(tmp_path, run_folder, capsys):
    folders = [tmp_path / "whole", tmp_path / "removed"]
    for folder, callbacks in zip(folders, [[], [_Remove]], strict=True):
        words = [*SMALL[1:], f"output={folder}", "checkpoint.every_steps=4"]
        ddpbp.train(ddpbp.resolve(None, words), callbacks=callbacks)
    assert "removed: it was removed, with its checkpoints; it is written again from" in (
        capsys.readouterr().out
    )
    assert run_folder(folders[0]) == run_folder(folders[1])
    assert {path.name for path in folders[0].iterdir()} == {p.name for p in folders[1].iterdir()}
    assert read_state(folders[1] / "checkpoints/step-00000012").metrics


@pytest.mark.usefixtures("impatient")
def test_a_removed_folder_that_another_job_took_is_left_to_it(tmp_path, capsys):
    other, theirs = Lock(tmp_path / "run"), ["config.toml", "metrics.jsonl"]

    class Taken(_Remove):
        def step(self, run: Any, loss: float) -> None:
            super().step(run, loss)
            if run.trainer.step == 6:
                other.take()
                for name in theirs:
                    (tmp_path / "run" / name).write_text("of the other job")

    config = ddpbp.resolve(None, [*SMALL[1:], f"output={tmp_path / 'run'}"])
    with other, pytest.raises(ConfigError, match="is in use by"):
        ddpbp.train(config, callbacks=[Taken])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == theirs
    assert {(tmp_path / "run" / name).read_text() for name in theirs} == {"of the other job"}
    capsys.readouterr()


def test_a_moved_folder_is_not_mistaken_for_that_of_a_job_which_ended_since(tmp_path, capsys):
    folder, theirs = tmp_path / "run", ["config.toml", "metrics.jsonl", "result.json"]

    class Moved(ddpbp.Callback):
        def step(self, run: Any, loss: float) -> None:
            if run.trainer.step == 6:
                run.writer.wait()
                folder.rename(tmp_path / "moved")
                folder.mkdir()
                for name in theirs:
                    (folder / name).write_text("of the other job")

    config = ddpbp.resolve(None, [*SMALL[1:], f"output={folder}", "checkpoint.every_steps=2"])
    with pytest.raises(ConfigError, match="holds another run"):
        ddpbp.train(config, callbacks=[Moved])
    assert sorted(path.name for path in folder.iterdir()) == theirs
    assert {(folder / name).read_text() for name in theirs} == {"of the other job"}
    assert (tmp_path / "moved/checkpoints/step-00000004").exists()
    capsys.readouterr()
