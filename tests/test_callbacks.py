"""Callbacks and sinks from outside the package: called alike on all ranks, resumed, never fatal."""

import json
from typing import Any

import pytest

import ddpbp
from ddpbp.errors import DdpbpError
from ddpbp.run.callbacks import Running, Scores
from ddpbp.run.sinks import Record

SMALL = ["epochs=3", "batch_size=64", "checkpoint.keep_best=1"]


class Sums(ddpbp.Callback):
    """Remembers the sum of all losses of steps, and how many epochs ended."""

    def __init__(self) -> None:
        self.total, self.epochs = 0.0, 0
        MADE.append(self)

    def step(self, run: Running, loss: float) -> None:
        self.total += loss

    def epoch(self, run: Running, scores: Scores) -> None:
        assert "validation_loss" in scores
        self.epochs += 1

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "epochs": self.epochs}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.epochs = state.get("total", 0.0), state.get("epochs", 0)


MADE: list[Sums] = []


def total(folder: Any, *settings: str, world: Any = None, **options: Any) -> tuple[float, int]:
    MADE.clear()
    config = ddpbp.resolve(None, [*SMALL, f"output={folder}", *settings])
    ddpbp.train(config, world, callbacks=[Sums], **options)
    assert len({(made.total, made.epochs) for made in MADE}) == 1
    return MADE[0].total, MADE[0].epochs


def test_a_callback_sees_the_same_numbers_on_every_rank(tmp_path):
    alone = total(tmp_path / "alone")
    assert alone[1] == 3
    assert total(tmp_path / "threads", "threads=3") == alone
    assert len(MADE) == 3


def test_what_a_callback_remembers_survives_a_resume(tmp_path):
    whole = total(tmp_path / "whole")
    assert total(tmp_path / "parts", "epochs=2")[1] == 2
    assert total(tmp_path / "parts", resume="auto") == whole


class Places(ddpbp.Callback):
    """Remembers the step in a dictionary that it goes on changing."""

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {"step": 0, "much": ["x" * 100] * 5000}

    def step(self, run: Running, loss: float) -> None:
        self.memory["step"] += 1

    def state(self) -> dict[str, Any]:
        return self.memory


def test_what_is_saved_is_of_the_step_of_the_checkpoint(tmp_path):
    settings = ["epochs=1", f"output={tmp_path}", "checkpoint.every_steps=2"]
    config = ddpbp.resolve(None, [*settings, "checkpoint.keep_last=99"])
    ddpbp.train(config, callbacks=[Places])
    files = [*tmp_path.glob("checkpoints/step-*/state.json")]
    assert len(files) > 5
    for state in (json.loads(file.read_text()) for file in files):
        assert state["callbacks"]["Places"]["step"] == state["step"]


def test_two_callbacks_of_one_class_remember_each_its_own(tmp_path):
    class Numbered(ddpbp.Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def state(self) -> dict[str, Any]:
            return {"number": self.number}

        def restore(self, state: dict[str, Any]) -> None:
            assert state == self.state()
            restored.append(self.number)

    restored: list[int] = []
    for epochs in (1, 2):
        config = ddpbp.resolve(None, [f"epochs={epochs}", f"output={tmp_path}"])
        ddpbp.train(config, callbacks=[lambda: Numbered(1), lambda: Numbered(2)], resume="auto")
    assert restored == [1, 2]


@pytest.mark.parametrize("state", [[1], {1: 2}, {"a": {1}}, {"a": float("inf")}, {"a": object()}])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_state_that_would_not_come_back_is_refused_on_every_rank(tmp_path, state: Any, threads):
    class Wrong(ddpbp.Callback):
        def state(self) -> Any:
            refused.append(self)
            return state

    refused: list[Wrong] = []
    config = ddpbp.resolve(None, ["epochs=1", f"output={tmp_path}", f"threads={threads}"])
    with pytest.raises(DdpbpError, match=r"callback Wrong: state\(\) must return plain values"):
        ddpbp.train(config, callbacks=[Wrong])
    assert len(refused) == threads


class Lines:
    """Keeps the records in memory."""

    live = True

    def __init__(self) -> None:
        self.records: list[Record] = []
        SINKS.append(self)

    def log(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.records.append({"kind": "closed"})


SINKS: list[Lines] = []


class Broken(Lines):
    """Fails at the first record."""

    def log(self, record: Record) -> None:
        raise ValueError("no room")


def test_a_sink_gets_every_record_and_one_that_fails_stops_nothing(tmp_path, capsys):
    SINKS.clear()
    config = ddpbp.resolve(None, [*SMALL, f"output={tmp_path}", "log_every_steps=10"])
    result = ddpbp.train(config, sinks=[Broken, Lines]).result
    _, lines = SINKS
    kinds = [record["kind"] for record in lines.records]
    assert kinds.count("progress") == result["steps"]
    assert kinds.count("epoch") == 3
    assert kinds[-1] == "closed"
    out = capsys.readouterr().out
    assert out.count("Broken") == 1
    assert "no room" in out
    lasting = [r for r in lines.records if r["kind"] in ("epoch", "step")]
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lasting


def test_saving_from_a_callback_makes_a_checkpoint(tmp_path):
    class SaveAtFive(ddpbp.Callback):
        def step(self, run: Running, loss: float) -> None:
            if run.trainer.step == 5:
                run.save()

    config = ddpbp.resolve(None, ["epochs=1", f"output={tmp_path}", "checkpoint.keep_last=5"])
    ddpbp.train(config, callbacks=[SaveAtFive])
    assert (tmp_path / "checkpoints" / "step-00000005" / "state.json").exists()


def test_an_exception_in_a_callback_is_the_caller_s(tmp_path):
    class Failing(ddpbp.Callback):
        def begin(self, run: Running) -> None:
            raise KeyError("mine")

    config = ddpbp.resolve(None, [*SMALL, f"output={tmp_path}"])
    with pytest.raises(KeyError, match="mine"):
        ddpbp.train(config, callbacks=[Failing])
    assert json.loads((tmp_path / "fault.json").read_text())["exit_code"] == 1
