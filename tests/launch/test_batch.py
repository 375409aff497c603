"""Job scripts: the examples, and a template of one's own."""

import subprocess

import pytest

from tests.launch.conftest import LAUNCH

EXAMPLES = LAUNCH.with_name("examples")
COMMON = ["--nodes", "2", "--ppn", "4", "--time", "2:00:00", "--dry-run"]
VENV = ["--setup", "source .venv/bin/activate"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.sbatch", ["--slurm", *VENV]),
        ("train.pbs", ["--pbs", *VENV]),
        ("train.lsf", ["--lsf", *VENV]),
        ("mpijob.yaml", ["--kubernetes", "--image", "ddpbp", "--volume", "runs:/runs"]),
    ],
)
def test_the_examples_are_what_the_launcher_writes(launcher, name, words):
    """To write them anew: python launch/launch.py with these words."""
    written = launcher(*words, *COMMON, "train", "configs/digits.toml", cwd=LAUNCH.parents[1])
    assert written.returncode == 0, written.stderr
    assert written.stdout == (EXAMPLES / name).read_text()
    if not name.endswith("yaml"):
        subprocess.run(["bash", "-n", EXAMPLES / name], check=True)


def test_a_script_of_ones_own(launcher, tmp_path):
    (tmp_path / "mine.sh").write_text("#!/bin/sh\n#X {{queue}}\n#X {{directives}}\n{{launch}}\n")
    (tmp_path / "launch.toml").write_text('directive = ["a", "b"]\npython = "py"\n')
    written = launcher(
        "--lsf", "--template", "mine.sh", "--dry-run", "-n", 2, "eval", "m", cwd=tmp_path
    )
    assert written.stdout == "#!/bin/sh\n#X a\n#X b\npy -m ddpbp launch -n 2 eval m\n"
