"""What the tests of the launcher share: ways to start it, the hash to compare with, a fault."""

import json
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch" / "launch.py"
SETTINGS = ["epochs=2", "data.validation=0"]
ENDLESS = ["epochs=100000", "checkpoint.every_minutes=0"]


def hash_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["theta_sha256"])


@pytest.fixture
def launcher(python):
    """Run the launcher as a process of its own."""
    return lambda *words, **more: python(LAUNCH, *words, **more)


@pytest.fixture(scope="session")
def alone(python, tmp_path_factory) -> str:
    """The hash of the weights that one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    assert python("-m", "ddpbp", "train", *SETTINGS, f"output={folder}").returncode == 0
    return hash_of(folder)


FAULT = """
import os, sys, threading, time
def spoil():
    while not hasattr(sys.modules.get("ddpbp.engine.trainer"), "Trainer"):
        time.sleep(0.01)
    trainer = sys.modules["ddpbp.engine.trainer"].Trainer
    step = trainer.train_step
    def train_step(self, batch):
        if self.step == 30:
            {fault}
        return step(self, batch)
    trainer.train_step = train_step
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    threading.Thread(target=spoil, daemon=True).start()
"""


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """Let rank 1 of what is started do something at step 30."""

    def spoil(fault: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=fault))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return spoil
