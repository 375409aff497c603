"""The launcher: where ranks go, who is told what, how a job ends, what is submitted."""

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hosts as where
import mpi
import mpijob
import node
import options
import pytest
import rank
import training
import yaml
from hosts import Host, LaunchError

import launch

LAUNCH = Path(launch.__file__)
SETTINGS = ["epochs=2", "data.validation=0"]


@pytest.fixture
def launcher(python):
    """Run the launcher as a process of its own."""
    return lambda *words, **more: python(LAUNCH, *words, **more)


@pytest.fixture(scope="module")
def alone(python, tmp_path_factory) -> str:
    """The hash of the weights that one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    assert python("-m", "ddpbp", "train", *SETTINGS, f"output={folder}").returncode == 0
    return hash_of(folder)


def hash_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["theta_sha256"])


# --- where the ranks go --------------------------------------------------------------------------


def test_both_spellings_of_a_hostfile(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("h1 slots=2  # Open MPI\n\nh2:3\nh3\nn-4.x slots = 1 max_slots=2\n")
    assert where.from_file(file) == [Host("h1", 2), Host("h2", 3), Host("h3"), Host("n-4.x", 1)]


def test_a_hosts_slots_add_up_and_hosts_are_filled_in_turn():
    hosts = where.from_text("h1:1,h2,h1:2,h3:2")
    cores = {"h2": 4}
    assert where.spread(hosts, None, None, cores) == {"h1": 3, "h2": 4, "h3": 2}
    assert where.spread(hosts, 5, None, cores) == {"h1": 3, "h2": 2}
    assert where.spread(hosts, None, 2, cores) == {"h1": 2, "h2": 2, "h3": 2}


def test_an_allocation_is_found(tmp_path, monkeypatch):
    file = tmp_path / "nodes"
    file.write_text("h1\nh1\nh2\n")
    expected = [Host("h1", 2), Host("h2", 1)]
    assert where.allocation({}) is None
    assert where.allocation({"PBS_NODEFILE": str(file)}) == ("pbs", expected)
    assert where.allocation({"LSB_DJOB_HOSTFILE": str(file)}) == ("lsf", expected)
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'h1\\nh2\\nh3\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "h[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert where.allocation(slurm) == ("slurm", [Host("h1", 2), Host("h2", 2), Host("h3", 1)])


def test_each_rank_has_its_own_share_of_the_cores(monkeypatch):
    bound = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(set(cores)))
    for number in range(3):
        rank.bind(*rank.place(number, "h1:1,h2:2"))
    rank.bind(0, 6)  # more ranks than cores wander
    assert bound[0] == {0, 1, 2, 3, 4}
    assert len(bound) == 3
    assert bound[1] | bound[2] == bound[0]
    assert not bound[1] & bound[2]


# --- whose mpiexec -------------------------------------------------------------------------------


def fake_mpiexec(folder: Path, says: str) -> None:
    folder.mkdir()
    (folder / "mpiexec").write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "mpiexec").chmod(0o755)


def test_the_mpiexec_is_the_librarys_not_the_first_on_path(tmp_path, monkeypatch):
    found = mpi.find([sys.executable])
    other = "mpirun (Open MPI) 4.1.4" if found.family == "mpich" else "HYDRA build details: 4.2"
    fake_mpiexec(tmp_path / "bin", other)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert mpi.find([sys.executable]) == found
    # A Python of elsewhere that loads that library has no other mpiexec than the foreign one.
    alien = tmp_path / "python"
    library = f"{mpi.NAMES[found.family]}, but installed without a launcher"
    alien.write_text(f"#!/bin/sh\necho '{json.dumps([library, str(tmp_path / 'lib' / 'x.so')])}'\n")
    alien.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(alien))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LaunchError, match=r"no mpiexec of it was found: .*bin/mpiexec is of"):
        mpi.find([str(alien)])


def test_no_library_says_how_to_get_one(tmp_path, monkeypatch):
    (tmp_path / "mpi4py").mkdir()
    stub = "raise RuntimeError('cannot load MPI library')"
    (tmp_path / "mpi4py/__init__.py").write_text(stub)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"cannot load MPI library.*-m pip install mpich"):
        mpi.find([sys.executable])


# --- wrong use -----------------------------------------------------------------------------------

MALFORMED = "h1 slots=2\n\nh2 slot=3\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "0", "train"], "-n 0: allowed: 1 or more"),
        (["-n", "two", "train"], "argument -n: invalid int value: 'two'"),
        (["--nonsense", "train"], "unrecognized arguments: --nonsense"),
        (["--hostfile", "nowhere", "train"], "--hostfile nowhere: No such file"),
        (["--hostfile", "bad", "train"], "--hostfile bad, line 3: 'h2 slot=3': allowed: HOST"),
        (["--hosts", "h1:0", "train"], "--hosts h1:0: 'h1:0': allowed: HOST"),
        (["--hosts", "h1", "--hostfile", "bad", "train"], "exclude each other"),
        (["--hosts", "localhost:2", "-n", "3", "train"], "-n 3, but there are 2 slots"),
        (["--hosts", "localhost:2", "--ppn", "3", "train"], "--ppn 3, but the slots are"),
        (["--hosts", "no.such.host.invalid:1", "train"], "host no.such.host.invalid: ssh: Could"),
        (["--hosts", "far", "--ssh", "nossh", "train"], "host far: nossh is not there"),
        (["--python", "/no/python", "train"], "/no/python: No such file"),
        (["--slurm", "--time", "2h", "train"], "--time 2h: allowed: [D-]H:MM:SS"),
        (["--slurm", "--time", "0:01:00", "eval", "m"], "not longer than --grace 120"),
        (["--slurm", "eval", "m"], "sbatch is not on PATH"),
        (["--slurm", "--hosts", "h1", "eval", "m"], "do not go with a batch job"),
        (["--slurm", "train", "--overwrite"], "--no-requeue"),
        (["--slurm", "--ppn", "9", "train"], "9 ranks, but a batch has only 8 leaves"),
        (["--slurm", "--template", "bad.sh", "eval", "m"], "bad.sh, line 2: {{cpus}}: allowed:"),
        (["--kubernetes", "eval", "m"], "--image"),
        (["--kubernetes", "--image", "i", "--memory", "4 GB", "eval", "m"], "--memory 4 GB"),
    ],
)
def test_wrong_use_is_one_message_and_code_2(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text(MALFORMED)
    (tmp_path / "bad.sh").write_text("#!/bin/sh\n#SBATCH --cpus={{cpus}}\n")
    if "sbatch" in expected:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("launch: ")
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bad", "bad.sh"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppn = 'four'", "launch.toml: ppn = 'four': allowed: a number"),
        ("colour = true", "launch.toml: colour is no option; allowed: n, hosts"),
        ("show = 'some'", "launch.toml: show = 'some': allowed: all, labelled, first"),
        ("n = ", "launch.toml cannot be read"),
    ],
)
def test_launch_toml_is_checked(tmp_path, monkeypatch, capsys, text, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text(text)
    assert launch.main(["train"]) == 2
    assert expected in capsys.readouterr().err


def test_launch_toml_gives_what_the_command_line_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text('ppn = 4\nsetup = ["a", "b"]\ntime = "0:30:00"\n')
    given = options.parse(["--ppn", "2", "train"], None)
    assert (given.ppn, given.setup, given.time) == (2, ["a", "b"], 1800)


# --- a job and its end ---------------------------------------------------------------------------


def test_ranks_here_train_the_same_bits(launcher, alone, tmp_path):
    logs = tmp_path / "logs"
    output = f"output={tmp_path / 'run'}"
    ended = launcher(
        "-n",
        3,
        "--show",
        "labelled",
        "--log-dir",
        logs,
        "--color",
        "always",
        "train",
        *SETTINGS,
        output,
    )
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path / "run") == alone
    host = os.uname().nodename
    lines = ended.stdout.splitlines()
    assert all(line.startswith(f"\x1b[36m[0 {host}]\x1b[0m ") for line in lines)
    labels = "".join(line.partition(" ")[2].partition(" ")[2] + "\n" for line in lines)
    assert (logs / "rank-0000.log").read_text() == labels
    assert f"theta sha256 {alone}" in labels


def test_dry_run_prints_a_command_that_works(launcher, alone, tmp_path):
    shown = launcher("-n", 2, "--dry-run", "train", *SETTINGS, f"output={tmp_path / 'run'}")
    assert shown.returncode == 0, shown.stderr
    assert not (tmp_path / "run").exists()
    line = f"env {shown.stdout}"
    subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=60)
    assert hash_of(tmp_path / "run") == alone


def test_ddpbp_launch_is_the_launcher(python, alone, tmp_path):
    words = ("-n", 2, "--simulate", "train", *SETTINGS, f"output={tmp_path / 'run'}")
    ended = python("-m", "ddpbp", "launch", *words)
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path / "run") == alone
    assert "--max-restarts" in python("-m", "ddpbp", "launch", "--help").stdout


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
ENDLESS = ["epochs=100000", "checkpoint.every_minutes=0"]


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """Let rank 1 of what is started do something at step 30."""

    def spoil(fault: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=fault))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return spoil


@pytest.mark.parametrize(
    ("fault", "code", "cause"),
    [
        ("os.kill(os.getpid(), 9)", 137, "killed by signal 9 (SIGKILL); exit code 137"),
        ("os._exit(5)", 5, "exit code 5"),
        ("raise ValueError('only here')", 1, "ValueError: only here; exit code 1"),
    ],
)
def test_the_rank_that_failed_is_named_last(launcher, spoiled, tmp_path, fault, code, cause):
    spoiled(fault)
    ended = launcher("-n", 3, "train", *ENDLESS, f"output={tmp_path / 'run'}")
    assert ended.returncode == code
    assert ended.seconds < 20
    *_, heading, rest = ended.stderr.rpartition("launch: rank 1 on ")
    first, *lines = (heading + rest).splitlines()
    assert " step " in first
    assert first.endswith(cause)
    if fault.startswith("raise"):
        assert lines[1].startswith("Traceback")
        assert "ValueError: only here" in lines[-3:]
    else:
        assert lines == []
    assert ended.stderr.count("Traceback") == fault.startswith("raise")


def test_a_restart_ends_with_the_bits_of_the_run_that_never_failed(
    launcher, spoiled, alone, tmp_path
):
    once = tmp_path / "once"
    spoiled(f"os.path.exists('{once}') or open('{once}', 'w') and os.kill(os.getpid(), 9)")
    words = ["-n", 2, "--max-restarts", 2, "train", *SETTINGS, "checkpoint.every_steps=10"]
    ended = launcher(*words, f"output={tmp_path / 'run'}", "--overwrite")
    assert ended.returncode == 0, ended.stderr
    assert "restart 1 of 2" in ended.stderr
    assert "restart 2" not in ended.stderr
    assert "step 30" in ended.stdout.partition("going on from ")[2].partition("\n")[0]
    assert hash_of(tmp_path / "run") == alone


def test_a_restart_of_a_run_from_a_named_checkpoint_goes_on_from_its_own(tmp_path):
    line = ["train", "--resume", "other/run", f"output={tmp_path}"]
    assert training.restarted([sys.executable], line) == line
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").touch()
    assert training.restarted([sys.executable], line) == ["train", "--resume", "auto", line[-1]]


def test_a_signal_saves_and_ends_with_75(tmp_path):
    output = f"output={tmp_path / 'run'}"
    line = [sys.executable, str(LAUNCH), "-n", "2", "train", *ENDLESS, output]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout
        while "epoch" not in job.stdout.readline():
            assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=30)
    assert job.returncode == 75
    assert "--resume auto" in err.splitlines()[-1]
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_second_signal_ends_at_once(spoiled, tmp_path):
    spoiled("time.sleep(60)")
    line = [sys.executable, str(LAUNCH), "-n", "2", "train", *ENDLESS, f"output={tmp_path / 'run'}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout
        while "epoch" not in job.stdout.readline():
            assert job.poll() is None
        job.send_signal(signal.SIGINT)
        time.sleep(2.2)
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=20)
    assert job.returncode == 130
    assert err.splitlines()[-1] == "launch: ended by SIGINT for the second time"


def test_what_mpi_left_is_swept_but_not_what_is_used(tmp_path):
    left, used, young = (tmp_path / f"mpich_shm_{name}" for name in ("left", "used", "young"))
    for file in (left, used):
        file.write_bytes(b"x" * 4096)
    time.sleep(node.YOUNG_SECONDS + 0.1)
    young.write_bytes(b"x" * 4096)
    with used.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        assert node.sweep(tmp_path) == [left.name]
    assert used.exists()
    assert young.exists()


# --- batch jobs ----------------------------------------------------------------------------------

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
    """To write them anew: launch/launch.py with these words."""
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


# What the API server takes of an MPIJob, written down from its documentation. A type, the allowed
# words, a list of [item], a dictionary of fields ("?" marks those that may be absent).
QUANTITY = (int, str)
POD = {
    "spec": {
        "terminationGracePeriodSeconds": int,
        "containers": [
            {
                "name": str,
                "image": str,
                "command": [str],
                "workingDir": str,
                "resources": {
                    "requests": {"cpu": QUANTITY, "memory": QUANTITY},
                    "limits": {"cpu": QUANTITY, "memory": QUANTITY},
                },
                "securityContext": {"runAsUser": int},
                "volumeMounts": [{"name": str, "mountPath": str}],
                "readinessProbe?": {"tcpSocket": {"port": int}, "initialDelaySeconds": int},
            }
        ],
        "volumes": [
            {
                "name": str,
                "emptyDir?": {"medium": {"Memory", ""}, "sizeLimit": QUANTITY},
                "persistentVolumeClaim?": {"claimName": str},
            }
        ],
    }
}
REPLICAS = {"replicas": int, "restartPolicy?": {"Never", "OnFailure"}, "template": POD}
MPIJOB = {
    "apiVersion": {"kubeflow.org/v2beta1"},
    "kind": {"MPIJob"},
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
        "sshAuthMountPath": str,
        "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
        "runPolicy": {
            "cleanPodPolicy": {"None", "Running", "All"},
            "backoffLimit": int,
            "activeDeadlineSeconds": int,
        },
        "mpiReplicaSpecs": {"Launcher": REPLICAS, "Worker": REPLICAS},
    },
}


def faults(value: Any, schema: Any, path: str = "$") -> list[str]:
    """List where a value is not what the schema says."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{path} = {value!r}"]
    if isinstance(schema, type | tuple):
        return [] if isinstance(value, schema) and value != "" else [f"{path} = {value!r}"]
    if isinstance(schema, list):
        return [f for i, v in enumerate(value) for f in faults(v, schema[0], f"{path}[{i}]")]
    known = {key.rstrip("?"): key for key in schema}
    found = [f"{path}.{key}: unknown" for key in value if key not in known]
    found += [f"{path}.{key}: missing" for key in schema if key[-1] != "?" and key not in value]
    for key in value.keys() & known.keys():
        found += faults(value[key], schema[known[key]], f"{path}.{key}")
    return found


def test_the_mpijob_keeps_to_the_schema():
    job = yaml.safe_load((EXAMPLES / "mpijob.yaml").read_text())
    assert faults(job, MPIJOB) == []
    replicas = job["spec"]["mpiReplicaSpecs"]
    assert replicas["Worker"]["replicas"] == 2
    for role in replicas.values():
        pod = role["template"]["spec"]
        mounted = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounted == {"shm": "/dev/shm", "runs": "/runs"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    del job["spec"]["slotsPerWorker"]
    job["spec"]["mpiImplementation"] = "LAM"
    assert faults(job, MPIJOB) == [
        "$.spec.slotsPerWorker: missing",
        "$.spec.mpiImplementation = 'LAM'",
    ]


def test_the_dockerfile_is_clean():
    linter = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run(
        [linter, LAUNCH.parents[1] / "Dockerfile"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_yaml_says_what_was_meant():
    value = {"a": "no", "b": ["1", 1, "x: y", "", "-n", {"c": [True], "d": "e/f:g"}], "e": "1e3"}
    assert yaml.safe_load(mpijob.to_yaml(value)) == value


# --- hosts and a cluster -------------------------------------------------------------------------


def test_uneven_hosts_train_the_same_bits(hosts, alone, tmp_path):
    words = ["--hosts", "h2:2,h3:1", "train", *SETTINGS, f"output={tmp_path}"]
    before = hosts.sent_bytes("h3")
    ended = hosts.run("h1", [sys.executable, LAUNCH, *words])
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path) == alone
    assert hosts.sent_bytes("h3") - before > 46 * 4_810 * 4 / 2


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.77.0.99:1", "host 10.77.0.99: "), ("h2:1", "host h2: ")],
)
def test_a_host_that_refuses_is_named(hosts, tmp_path, host, expected):
    words = ["--hosts", f"h1:1,{host}", "train", f"output={tmp_path}"]
    ssh = "ssh -o ConnectTimeout=1 -p 2" if host == "h2:1" else "ssh -o ConnectTimeout=1"
    ended = hosts.run("h1", [sys.executable, LAUNCH, "--ssh", ssh, *words])
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_batch_job_uses_its_allocation(slurm, alone, tmp_path):
    words = ["--slurm", "--nodes=2", "--ppn=2", "-n3", "--time=0:05:00", "--directive=--wait"]
    train = ["train", *SETTINGS, f"output={tmp_path / 'run'}"]
    done = slurm.run([sys.executable, LAUNCH, *words, "--no-requeue", *train], cwd=tmp_path)
    log = next(tmp_path.glob("ddpbp-*.log")).read_text()
    assert done.returncode == 0, done.stderr + log
    assert "3 ranks on h1:2,h2:1" in log
    assert hash_of(tmp_path / "run") == alone


def test_what_is_left_of_the_hosts_goes_on(python, tmp_path):
    from tests.cluster.hosts import Hosts, missing

    if reason := missing():
        pytest.skip(f"no simulated hosts: {reason}")
    quick = "ssh -o ConnectTimeout=1 -o ServerAliveInterval=1"
    ssh = ["--ssh", quick, "--max-restarts", "1", "--elastic"]
    settings = ["epochs=60", "stall_seconds=2", "checkpoint.every_steps=50"]
    train = ["train", *settings, f"output={tmp_path / 'run'}"]
    assert python("-m", "ddpbp", "train", *settings, f"output={tmp_path / 'alone'}").returncode == 0
    with Hosts(2) as own, ThreadPoolExecutor() as pool:
        words = [sys.executable, str(LAUNCH), *ssh, "--hosts", "h1:1,h2:2", *train]
        job = pool.submit(own.run, "h1", words)
        own.shape("5mbit")
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        own.kill("h2")
        ended = job.result()
    assert ended.returncode == 0, ended.stderr
    assert "host h2 is gone" in ended.stderr
    assert "1 rank on h1:1 " in ended.stderr
    assert hash_of(tmp_path / "run") == hash_of(tmp_path / "alone")
