"""What the tests share: one BLAS thread, guard rails under mpirun, and ways to start ranks."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import pytest

from ddpbp.base import blas
from ddpbp.comm.join import launched
from launch import mpi
from launch.errors import LaunchError
from launch.probe import YOUNG_SECONDS, sweep

if TYPE_CHECKING:
    from tests.cluster.hosts import Hosts
    from tests.cluster.slurm import Slurm

# Before a test imports NumPy. A machine's own OPENBLAS_CORETYPE is removed, for the runs that tests
# start too: they would otherwise compare one kernel with another.
blas.limit_threads()
blas.use_kernel("native")

HERE = launched()  # (rank, ranks) if this pytest was itself started by mpirun
TIMEOUT_SECONDS = 60
KINDS = {
    "slow": {"mpirun", "hosts", "own_hosts", "slurm", "spoiled"},
    "hosts": {"hosts", "own_hosts"},
    "slurm": {"slurm"},
}


class MpiGuard:
    """Under mpirun, one rank's fault ends the run at once, with that rank's own report.

    Tests stay in step by a barrier after each, on a communicator that they cannot reach. Rank 0
    alone uses the terminal, but for faults.
    """

    def __init__(self, config: pytest.Config, ranks: int) -> None:
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD.Dup()
        if ranks and self._comm.size != ranks:
            raise pytest.UsageError(
                f"started on {ranks} ranks, MPI sees {self._comm.size}: mpirun of another MPI"
            )
        self.name, version = MPI.get_vendor()
        self.version = ".".join(map(str, version))
        writer = config.get_terminal_writer()
        writer._file = _Terminal(writer._file, self._comm.rank)

    def pytest_report_header(self) -> str:
        return f"MPI: {self.name} {self.version}, rank {self._comm.rank} of {self._comm.size}"

    @pytest.hookimpl(wrapper=True)  # outside the timeout, which finds who is stuck in the test
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        if item.get_closest_marker("mpi"):
            self._comm.Barrier()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._end(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._end(report)

    def _end(self, report: pytest.TestReport | pytest.CollectReport) -> NoReturn:
        rank, ranks = self._comm.rank, self._comm.size
        time.sleep(0.5 * rank)  # where all fail, one tells it
        sys.stderr.write(f"\n[rank {rank} of {ranks}] {report.nodeid}\n{report.longreprtext}\n")
        for title, text in report.sections:
            sys.stderr.write(f"{title}\n{text}\n")
        sys.stderr.flush()
        time.sleep(0.2)  # the launcher has to pass it on before it hears of the end
        self._comm.Abort(1)
        raise AssertionError("not reached")


class _Terminal:
    """What pytest prints to: ranks other than 0 are heard only if a test of theirs times out."""

    def __init__(self, file: TextIO, rank: int) -> None:
        self._file, self._rank, self._stacks = file, rank, ""

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():  # that of pytest-timeout
            self._stacks += text
        elif self._rank == 0:
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        self._file.flush()
        if self._stacks:
            sys.stderr.write(f"\n[rank {self._rank}] {self._stacks}")
            sys.stderr.flush()
            time.sleep(0.5)  # then this rank ends, and with it others, who may be speaking


@pytest.hookimpl(trylast=True)  # after the terminal reporter
def pytest_configure(config: pytest.Config) -> None:
    if HERE is None:
        return
    if not config.getoption("--only-mpi"):
        raise pytest.UsageError(
            "pytest starts mpirun by itself; under mpirun write: "
            "python -m mpi4py -m pytest -x --only-mpi tests/mpi"
        )
    config.pluginmanager.register(MpiGuard(config, HERE[1]), "mpi-guard")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:  # what a test needs says what kind of test it is
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, needed in KINDS.items():
            if fixtures & needed:
                item.add_marker(marker)
    marked = [item for item in items if item.get_closest_marker("mpi")]
    for item in marked:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS, method="thread"))
    if HERE is None and marked:  # test_mpirun.py runs them
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def mpiexec() -> list[str]:
    """Return the words that start ranks: $MPIEXEC, else the mpiexec of the library; else fail."""
    words = shlex.split(os.environ.get("MPIEXEC", ""))
    if words and shutil.which(words[0]):
        return [str(shutil.which(words[0])), *words[1:]]
    try:
        if words:
            raise LaunchError(f"MPIEXEC={words[0]} does not exist")
        return [str(mpi.find([sys.executable]).mpiexec)]
    except LaunchError as error:
        pytest.fail(
            f"{error}\nThe tests need an MPI; install one with: pip install 'ddpbp[mpich]'",
            pytrace=False,
        )


# A launcher sets these for its ranks; a run that a test starts must not inherit them.
_FOREIGN = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "SLURM_", "HYDI_", "DDPBP_")


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of this process as a user's shell would have it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    # Open MPI refuses root, and more ranks than cores, unless allowed.
    env |= {name: "1" for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")}
    return env | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"} | extra


class Ended(subprocess.CompletedProcess[str]):
    """A process that has ended, and how long it took."""

    seconds: float


def _run(command: Sequence[str], seconds: float, cwd: Path | None, **env: str) -> Ended:
    """Run a process; past its time it and its children are killed and the test fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**env),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun ends its ranks
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate(timeout=5)
        pytest.fail(f"no end after {seconds} s: {shlex.join(command)}\n{out}\n{err}", False)
    ended = Ended(command, process.returncode, out, err)
    ended.seconds = time.monotonic() - began
    return ended


Start = Callable[..., Ended]


@pytest.fixture(scope="session")
def python() -> Start:
    """Run `python ARGUMENTS...` in a process of its own."""

    def start(*arguments: Any, seconds: float = 60, cwd: Path | None = None, **env: str) -> Ended:
        return _run([sys.executable, *map(str, arguments)], seconds, cwd, **env)

    return start


@pytest.fixture(scope="session")
def mpirun() -> Generator[Start, None, None]:
    """Run `python ARGUMENTS...` on n ranks."""
    words: dict[str, list[str]] = {}  # by $MPIEXEC, which a test may set

    def start(
        n: int, *arguments: Any, seconds: float = 60, cwd: Path | None = None, **env: str
    ) -> Ended:
        key = os.environ.get("MPIEXEC", "")
        words[key] = words.get(key) or mpiexec()
        command = [*words[key], "-n", str(n), sys.executable, *map(str, arguments)]
        return _run(command, seconds, cwd, **env)

    yield start
    time.sleep(YOUNG_SECONDS)
    sweep()


@pytest.fixture(scope="session")
def shell(mpirun: Start) -> Start:
    """Run lines of bash up to the first that fails, with the commands of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

    def start(lines: str, *, seconds: float = 60, cwd: Path | None = None, **env: str) -> Ended:
        bash = ["bash", "-eo", "pipefail", "-c", lines]
        return _run(bash, seconds, cwd, **({"PATH": path} | env))

    return start


@pytest.fixture(scope="session")
def hosts() -> "Generator[Hosts, None, None]":
    """Three simulated hosts, shared: leave them as they were, or start some of your own."""
    from tests.cluster.hosts import Hosts, missing

    if reason := missing():
        pytest.skip(f"no simulated hosts: {reason}")
    with Hosts(3) as up:
        yield up


@pytest.fixture(scope="session")
def slurm(hosts: "Hosts") -> "Generator[Slurm, None, None]":
    """Slurm on the three simulated hosts."""
    from tests.cluster.slurm import Slurm, missing

    if reason := missing():
        pytest.skip(f"no Slurm on simulated hosts: {reason}")
    with Slurm(hosts) as up:
        yield up


@pytest.fixture(scope="session")
def run_folder() -> Callable[[Path], dict[str, Any]]:
    """Read what a run says about its numbers: result.json and metrics.jsonl, less the times."""

    def read(folder: Path) -> dict[str, Any]:
        result = json.loads((folder / "result.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in [result, *records]:
            for name in ("seconds", "examples_per_second", "world_size", "threads", "sha256"):
                record.pop(name, None)
        return {**result, "records": records}

    return read
