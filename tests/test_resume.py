"""An interruption leaves no trace in the numbers, wherever and on however many ranks it resumes."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ddpbp.cli.main import run
from ddpbp.run import save_requests
from ddpbp.store.model_file import encode_model

# 107 rows to train on: 4 steps an epoch, 12 in all, and a short last batch.
SMALL = [
    *("train", "data.source=synthetic", "data.examples=119", "data.features=5", "data.targets=2"),
    *("loss.name=squared_error", "batch_size=32", "epochs=3", "log_every_steps=1", "threads=1"),
    *("model.hidden=[9]", "model.dropout=0.3", "optimizer.name=adam", "schedule.name=cosine"),
    "checkpoint.every_minutes=0",
]
LAST = "step-00000012"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, run_folder) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run([*SMALL, f"output={folder}"]) == 0
    found: dict[str, Any] = run_folder(folder)
    assert found["steps"] == len([r for r in found["records"] if r["kind"] == "step"]) == 12
    return found


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let SIGTERM come during these steps, and no other."""
    count = 0

    def pending(self: save_requests.SaveRequests, rank: int) -> int:
        nonlocal count
        count += rank == 0
        return save_requests.SIGNAL + signal.SIGTERM if count in steps and rank == 0 else 0

    monkeypatch.setattr(save_requests.SaveRequests, "pending", pending)


WAYS: dict[str, list[str]] = {
    "1": [],
    "2 simulated": ["--simulate-ranks", "2"],
    "5 simulated": ["--simulate-ranks", "5"],
    "3 threads": ["threads=3"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [1, 3, 4, 6, 11, 12])
def test_stopped_and_resumed_gives_the_numbers_of_the_undisturbed_run(
    undisturbed, run_folder, tmp_path, monkeypatch, capsys, step, way
):
    command = [*SMALL, f"output={tmp_path}"]
    stop_at(monkeypatch, step)
    assert run([*command, *WAYS[[*WAYS][step % 4]]]) == 75
    err = capsys.readouterr().err
    assert err == (
        f"ddpbp: stopped by SIGTERM at step {step}; to continue from there, start the same command "
        "with --resume auto\n"
    )
    assert (tmp_path / f"checkpoints/step-{step:08d}/state.json").exists()
    assert not (tmp_path / "result.json").exists()
    assert run([*command, "--resume", "auto", *WAYS[way]]) == 0
    assert f"step {step}, epoch" in capsys.readouterr().out
    assert run_folder(tmp_path) == undisturbed


def test_stopped_at_every_step_gives_the_same_numbers(undisturbed, run_folder, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *range(1, 13))
        for _ in range(12):
            assert run([*SMALL, f"output={tmp_path}", "--resume", "auto"]) == 75
    assert run([*SMALL, f"output={tmp_path}", "--resume", "auto"]) == 0
    assert run_folder(tmp_path) == undisturbed


def test_a_checkpoint_does_not_depend_on_the_ranks(tmp_path):
    found = set()
    for way in WAYS.values():
        command = [*SMALL, f"output={tmp_path}", "checkpoint.keep_last=9", "--overwrite", *way]
        assert run([*command, "checkpoint.every_steps=5"]) == 0
        folder = tmp_path / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == [
            "latest",
            *(f"step-{s:08d}" for s in (5, 10, 12)),
        ]
        content = [file.read_bytes() for file in sorted(folder.glob("*/model.safetensors"))]
        states = [json.loads(file.read_text()) for file in sorted(folder.glob("*/state.json"))]
        for state in states:
            state["config"].pop("threads")
            state.pop("sha256")
            state.pop("metrics")  # they tell times
            state.pop("model_sha256")
        found.add(json.dumps(states))
        if way != ["threads=3"]:
            found.add(str([hash(c) for c in content]))
    assert len(found) == 2


def test_a_checkpoint_can_be_evaluated(tmp_path, capsys):
    assert run(["train", "epochs=1", f"output={tmp_path}"]) == 0
    for place in ("", "checkpoints/step-00000021"):
        capsys.readouterr()
        assert run(["eval", str(tmp_path / place), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        result = json.loads((tmp_path / "result.json").read_text())
        assert scores["loss"] == result["test_loss"]


# --- which checkpoint ----------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path: Path, capsys: Any) -> Path:
    """Leave checkpoints of steps 3 and 6."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        assert run([*SMALL, f"output={tmp_path}", "checkpoint.every_steps=3"]) == 75
    capsys.readouterr()
    return tmp_path


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit of the weights": lambda p: flip(p / "model.safetensors", -50),
    "bit of the header": lambda p: flip(p / "model.safetensors", 20),
    "short": lambda p: (p / "model.safetensors").write_bytes(b"\0" * 8),
    "bit of the state": lambda p: flip(
        p / "state.json", (p / "state.json").read_text().index("0.0")
    ),
    "no JSON": lambda p: (p / "state.json").write_text("{"),
    "no state": lambda p: (p / "state.json").rename(p / "other"),
    "no weights": lambda p: (p / "model.safetensors").rename(p / "other"),
    "empty": lambda p: [file.rename(p.parent / file.name) for file in p.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
    interrupted, undisturbed, run_folder, capsys, damage
):
    newest = interrupted / "checkpoints/step-00000006"
    DAMAGE[damage](newest)
    assert run([*SMALL, f"output={interrupted}", "--resume", str(newest)]) == 2
    assert str(newest) in capsys.readouterr().err
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 0
    out = capsys.readouterr().out
    assert f"note: {newest}" in out
    assert "continuing from" in out
    assert "step 3," in out
    assert run_folder(interrupted) == undisturbed


def test_if_all_are_damaged_nothing_is_started(interrupted, capsys):
    for folder in (interrupted / "checkpoints").glob("step-*"):
        flip(folder / "state.json", 30)
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 2
    assert "none of 2 checkpoints is whole" in capsys.readouterr().err


def test_a_checkpoint_of_a_later_format_is_not_passed_over(interrupted, capsys):
    file = interrupted / "checkpoints/step-00000006/state.json"
    content = {**json.loads(file.read_text()), "format": 99, "sha256": ""}
    content["sha256"] = hashlib.sha256(msgspec.json.encode(content)).hexdigest()
    file.write_text(json.dumps(content))
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"ddpbp: {file} is of format 99")
    assert "--overwrite" not in message


@pytest.mark.parametrize("latest", [None, "", "step-00000006", "step-00000009"])
def test_the_pointer_may_be_missing_or_stale(interrupted, capsys, latest):
    pointer = interrupted / "checkpoints/latest"
    assert pointer.read_text() == "step-00000006\n"
    pointer.unlink()
    if latest is not None:
        pointer.write_text(latest)
    assert run([*SMALL, f"output={interrupted}", "--resume", "auto"]) == 0
    assert "step 6," in capsys.readouterr().out


def test_an_earlier_checkpoint_takes_the_run_back(interrupted, undisturbed, run_folder, capsys):
    """What was newer is replaced, in checkpoints and metrics; another folder is left as it is."""
    earlier = interrupted / "checkpoints/step-00000003"
    elsewhere = interrupted.with_name("elsewhere")
    for folder in (elsewhere, interrupted):
        command = [*SMALL, f"output={folder}", "--resume", str(earlier)]
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 2)
            assert run(command) == 75
        assert (folder / "checkpoints/latest").read_text() == "step-00000005\n"
        assert (interrupted / "checkpoints/step-00000006").exists() == (folder == elsewhere)
        assert run([*SMALL, f"output={folder}", "--resume", "auto"]) == 0
        assert run_folder(folder) == undisturbed


def test_auto_starts_from_the_beginning_without_a_checkpoint(
    undisturbed, run_folder, tmp_path, capsys
):
    command = [*SMALL, f"output={tmp_path}"]
    assert run([*command, "--resume", "auto"]) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert run_folder(tmp_path) == undisturbed
    # Also over a run that was killed before its first checkpoint, and that of a writer killed.
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints/.step-00000003.tmp").mkdir(parents=True)
    (tmp_path / ".model.safetensors.7.tmp").touch()
    assert run(command) == 2
    assert "--resume auto to continue it, or --overwrite" in capsys.readouterr().err
    assert run([*command, "--resume", "auto"]) == 0
    assert run_folder(tmp_path) == undisturbed
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert run([*command, "--resume", str(tmp_path / "gone")]) == 2
    assert "no checkpoint there" in capsys.readouterr().err


def test_a_complete_run_is_reported_and_resumes_with_more_epochs(tmp_path, run_folder, capsys):
    constant = [*SMALL, "schedule.name=constant"]
    assert run([*constant, f"output={tmp_path / 'long'}", "epochs=4"]) == 0
    command = [*constant, f"output={tmp_path / 'short'}"]
    assert run(command) == 0
    before = (tmp_path / "short/result.json").read_bytes()
    capsys.readouterr()
    assert run([*command, "--resume", "auto", "--simulate-ranks", "2"]) == 0
    assert "is complete; to continue it, raise epochs" in capsys.readouterr().out
    assert (tmp_path / "short/result.json").read_bytes() == before
    (tmp_path / "short/result.json").write_bytes(before.replace(b"theta", b"thetb"))
    assert run([*command, "--resume", "auto"]) == 2
    assert "result.json is damaged" in capsys.readouterr().err
    assert run([*command, "--resume", "auto", "epochs=2"]) == 2
    assert "raise epochs" in capsys.readouterr().err
    assert run([*command, "--resume", "auto", "epochs=4"]) == 0
    assert run_folder(tmp_path / "short") == run_folder(tmp_path / "long")


# --- what may change -----------------------------------------------------------------------------


def test_settings_that_change_the_numbers_are_refused_by_name(interrupted, capsys):
    command = [*SMALL, f"output={interrupted}", "--resume", "auto"]
    before = (interrupted / "metrics.jsonl").read_bytes()
    assert run([*command, "optimizer.learning_rate=0.05", "seed=3", "epochs=4"]) == 2
    err = capsys.readouterr().err
    for text in ("optimizer.learning_rate: 0.3 → 0.05", "seed: 0 → 3", "epochs: 3 → 4", "--force"):
        assert text in err
    assert err.count("\n") == 1
    assert (interrupted / "metrics.jsonl").read_bytes() == before
    harmless = ["log_every_steps=0", "check_every_steps=3", "max_seconds=99", "stall_seconds=9"]
    assert run([*command, *harmless, "checkpoint.every_steps=4"]) == 0
    capsys.readouterr()


def test_forced_settings_are_taken(interrupted, capsys):
    command = [*SMALL, f"output={interrupted}", "--resume", "auto", "--force"]
    assert run([*command, "optimizer.learning_rate=0.05"]) == 0
    assert "; resuming because of --force" in capsys.readouterr().out
    assert run([*command, "model.hidden=[8]"]) == 2
    err = capsys.readouterr().err
    assert "theta float32 (74)" in err
    assert "need theta float32 (66)" in err


@pytest.mark.parametrize("what", ["canary", "data"])
def test_other_bits_are_refused(interrupted, monkeypatch, capsys, what):
    command = [*SMALL, f"output={interrupted}", "--resume", "auto"]
    if what == "canary":
        monkeypatch.setattr("ddpbp.engine.trainer.canary", lambda *_: "0" * 64)
    else:
        monkeypatch.setattr("ddpbp.data.fill.digest", lambda arrays: "0" * 64)
    assert run(command) == 2
    err = capsys.readouterr().err
    assert f"the {what} ha" in err
    assert what == "data" or "000000000000, not " in err
    assert run([*command, "--force"]) == 0
    assert f"the {what} ha" in capsys.readouterr().out


# --- how many are kept, and what if they cannot be written ---------------------------------------


def test_the_last_and_the_best_are_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    score = {"loss": 0.0}
    monkeypatch.setattr(
        "ddpbp.engine.evaluator.Evaluator.score", lambda *_: {**score, "loss": next(losses)}
    )
    keep = ["checkpoint.every_steps=3", "checkpoint.keep_best=2", "checkpoint.keep_last=1"]
    assert run([*SMALL, *keep, "epochs=6", f"output={tmp_path}"]) == 0
    found = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert found == {f"step-{4 * epoch:08d}" for epoch in (2, 3, 6)}
    assert (tmp_path / "checkpoints/best").read_text() == f"step-{4 * 2:08d}\n"
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 2


def test_training_goes_on_if_a_checkpoint_fails(tmp_path, undisturbed, run_folder, capsys):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    command = [*SMALL, f"output={tmp_path}", "checkpoint.every_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        failing = iter([False, True, True])
        patch.setattr(
            "ddpbp.store.checkpoint.encode_model",
            lambda *arguments: full() if next(failing) else encode_model(*arguments),
        )
        assert run(command) == 1  # a stop that cannot save is a failure, not 75
    out, err = capsys.readouterr()
    assert "step-00000004 cannot be written: No space left on device; the training continues" in out
    assert "stopped by SIGTERM at step 5, but checkpoint" in err
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"latest", "step-00000002"}
    assert run([*command, "--resume", "auto"]) == 0
    assert run_folder(tmp_path) == undisturbed


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from ddpbp.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(run(sys.argv[2:]))
"""


def test_a_full_disk(python, tmp_path):
    """Files of more than 6,000 bytes cannot be written: a model can, a checkpoint cannot."""
    (tmp_path / "driver.py").write_text(LIMITED)
    out = tmp_path / "run"
    command = [*SMALL, "model.hidden=[90]", f"output={out}", "checkpoint.every_steps=3"]
    ended = python(tmp_path / "driver.py", 8000, *command)
    assert ended.returncode == 0, ended.stderr
    assert "step-00000003 cannot be written" in ended.stdout
    assert "File too large" in ended.stdout
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {path.name for path in before} == {
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
    assert not [*(out / "checkpoints").iterdir()]
    ended = python(tmp_path / "driver.py", 3000, *command, "--overwrite", "log_every_steps=0")
    assert ended.returncode == 1
    assert "model.safetensors cannot be written: File too large" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (out / "result.json").exists()
    assert json.loads((out / "fault.json").read_text())["exit_code"] == 1
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


# --- signals and clocks --------------------------------------------------------------------------

# Rank 1 (or the only one) gets a signal while it is in step 5.
SIGNALLED = """
import os, signal, sys, time
from ddpbp.cli.main import run
from ddpbp.comm.join import launched
from ddpbp.engine.trainer import Trainer
number, times, *arguments = sys.argv[1:]
step = Trainer.train_step
def signalled(self, batch):
    if self.step == 5 and (launched() is None or self.world.rank == 1):
        for _ in range(int(times)):
            os.kill(os.getpid(), int(number))
        time.sleep(0.1)  # all steps that are left may take less than a switch of threads
    return step(self, batch)
Trainer.train_step = signalled
sys.exit(run(arguments))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_a_signal_to_one_rank_stops_all(mpirun, undisturbed, run_folder, tmp_path, name):
    (tmp_path / "driver.py").write_text(SIGNALLED)
    out = tmp_path / "run"
    command = [*SMALL, f"output={out}"]
    ended = mpirun(3, tmp_path / "driver.py", int(signal.Signals[name]), 3, *command)
    assert ended.returncode == 75, ended.stderr
    assert f"ddpbp: stopped by {name} at step " in ended.stderr
    assert ended.stderr.count("ddpbp: ") == 1
    assert ended.seconds < 10
    ended = mpirun(2, "-m", "ddpbp", *command, "--resume", "auto")
    assert ended.returncode == 0, ended.stderr
    assert run_folder(out) == undisturbed


EARLY = """
import os, signal, subprocess, sys, time
from ddpbp.cli.main import run
from ddpbp.run import training
number, *arguments = sys.argv[1:]
load = training.open_dataset
def late(config, world, say):
    waiting = world.all_gather_object(os.getpid())[-1]
    if world.rank == 0:  # the other rank waits for it in C
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -{number} {waiting}"])
        time.sleep(30)
    return load(config, world, say)
training.open_dataset = late
sys.exit(run(arguments))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_before_the_training_one_signal_ends_a_rank_at_once(mpirun, tmp_path, name):
    (tmp_path / "driver.py").write_text(EARLY)
    number = int(signal.Signals[name])
    ended = mpirun(2, tmp_path / "driver.py", number, *SMALL, f"output={tmp_path / 'run'}")
    assert ended.returncode in {number, number | signal.SIGKILL, 128 + number}, ended.stderr
    assert ended.seconds < 20
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"lock", "fault.json"}


ABSENT = """
import os, subprocess, sys, time
from ddpbp.__main__ import main
from ddpbp.comm.join import launched
if launched()[0] == 0:  # the other rank waits for it in MPI_Init
    time.sleep(30)
subprocess.Popen(["sh", "-c", f"sleep 1; kill -INT {os.getpid()}"])
main()
"""


def test_ctrl_c_ends_a_rank_that_waits_for_the_start_of_mpi(mpirun, tmp_path):
    (tmp_path / "driver.py").write_text(ABSENT)
    ended = mpirun(2, tmp_path / "driver.py", *SMALL, f"output={tmp_path / 'run'}")
    assert ended.returncode in {2, 2 | signal.SIGKILL, 130}, ended.stderr
    assert ended.seconds < 20


def test_in_one_process_ctrl_c_twice_ends_at_once(python, tmp_path):
    (tmp_path / "driver.py").write_text(SIGNALLED)
    command = [*SMALL, f"output={tmp_path / 'run'}"]
    for times, code in ((1, 75), (2, 130)):
        ended = python(tmp_path / "driver.py", int(signal.SIGINT), times, *command, "--overwrite")
        # Two signals at once may be one: then the run has stopped as asked.
        assert ended.returncode in {75, code}, ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_second_signal_ends_at_once_even_while_waiting_in_c(python, tmp_path):
    code = """
import os, signal, threading, time
from ddpbp.run import save_requests
save_requests.PATIENCE_SECONDS = 0.2
with save_requests.SaveRequests(max_seconds=0, every_minutes=0, alone=False) as asked:
    asked.begin()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    time.sleep(0.3)
    assert asked.pending(3) == save_requests.SIGNAL + signal.SIGUSR1
    kill = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    kill.start()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""
    ended = python("-c", code, seconds=20)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stderr == "ddpbp: second signal, SIGTERM: exiting at once without saving\n"


def test_after_max_seconds_all_ranks_stop(mpirun, tmp_path):
    command = [*SMALL, "epochs=100000", f"output={tmp_path}", "max_seconds=1"]
    ended = mpirun(2, "-m", "ddpbp", *command, seconds=30)
    assert ended.returncode == 75, ended.stderr
    assert "stopped by max_seconds = 1 at step" in ended.stderr
    assert len([*(tmp_path / "checkpoints").glob("step-*")]) == 1


def test_minutes_are_counted_from_the_last_checkpoint(monkeypatch):
    now = 100.0
    monkeypatch.setattr("ddpbp.run.save_requests.time.monotonic", lambda: now)
    clock = save_requests.SaveRequests(max_seconds=200, every_minutes=1, alone=False)
    asked = []
    for now in (159.0, 161.0, 161.1, 301.0):
        asked.append((clock.pending(0), clock.pending(1)))
        if asked[-1][0] == save_requests.SAVE and now > 161.0:
            clock.saved()
    assert [first for first, _ in asked] == [
        0,
        save_requests.SAVE,
        save_requests.SAVE,
        save_requests.TIME,
    ]
    assert {second for _, second in asked} == {0}


KILLED = """
import os, signal, sys
from ddpbp.cli.main import run
from ddpbp.engine.trainer import Trainer
step = Trainer.train_step
def killed(self, batch):
    if self.step == 7 and self.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
Trainer.train_step = killed
sys.exit(run(sys.argv[1:]))
"""


def test_a_killed_rank_ends_the_job_and_the_run_resumes_elsewhere(
    mpirun, undisturbed, run_folder, tmp_path
):
    (tmp_path / "driver.py").write_text(KILLED)
    out = tmp_path / "run"
    command = [*SMALL, f"output={out}", "checkpoint.every_steps=3"]
    ended = mpirun(4, tmp_path / "driver.py", *command)
    assert ended.returncode != 0
    assert ended.seconds < 15
    assert not (out / "result.json").exists()
    assert run([*command, "--resume", "auto"]) == 0
    assert run_folder(out) == undisturbed
