"""Attack a run from outside: it must end with its bits, in its time, and nobody notices.

    python -m tests.faults.attack --runs 3

A stranger without rights, on the same machine and on another simulated host, does what
`stranger.py` lists to the port of the heartbeat and to the shared memory: as soon as rank 0
listens, while the ranks connect (one of them comes late), and until the run has ended. Each way is
repeated, in turn with an undisturbed run; the table has the medians of the seconds and of the
difference. Needs root, which can become a stranger; and for the other host the packages of
tests/cluster/install.sh.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from launch import mpi
from tests.cluster import hosts as cluster
from tests.cluster.hosts import Hosts
from tests.faults import stranger

NOBODY = 65534
LATE_SECONDS = 1.5
SLOWER_SECONDS = 1.0  # the time that an attack may cost
RUN_SECONDS = 120
SETTINGS = ["epochs=10", "threads=1", "stall_seconds=30"]
# The ranks, but that the last one comes late and that the stranger knows what it could find out.
DRIVER = """
import json, os, sys, time
from pathlib import Path
from ddpbp.cli.main import run
from ddpbp.comm import handshake
folder, late = Path(sys.argv[1]), float(sys.argv[2])
door, introduce, pack = handshake._Door.admit, handshake._introduce, handshake.HELLO.pack
def reveal(name, content):
    (folder / f"{name}.tmp").write_bytes(content)
    (folder / f"{name}.tmp").replace(folder / name)
def admit(self, servers):
    reveal("ports", json.dumps([server.getsockname() for server in servers]).encode())
    return door(self, servers)
def come(address, secret, rank, end):
    global late
    time.sleep(late * (rank == 2))
    end, late = end + late, 0.0
    return introduce(address, secret, rank, end)
class Hello:
    size, unpack = handshake.HELLO.size, handshake.HELLO.unpack
    def pack(number, *rest):
        if number[-1] == 1:
            reveal("hello", pack(number, *rest))
        return pack(number, *rest)
handshake._Door.admit, handshake._introduce, handshake.HELLO = admit, come, Hello
sys.exit(run(sys.argv[3:]))
"""


class Outcome(NamedTuple):
    """How a run ended."""

    seconds: float
    theta_sha256: str
    faults: list[str]


def missing() -> str:
    """Return why there can be no stranger here, or ""."""
    return "" if os.geteuid() == 0 else "needs root, which can become another user"


def as_stranger(words: Sequence[str]) -> list[str]:
    """Return the command line that runs `words` as a user without rights."""
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return ["setpriv", *user, "--pdeathsig=KILL", *words]


@contextmanager
def attacked(way: str, folder: Path, hosts: Hosts | None) -> Iterator[None]:
    """Let a stranger attack while the block runs."""
    python = str(Path(sys.executable).resolve())
    words = as_stranger([python, "-IS", stranger.__file__, way, str(folder)])
    line = hosts.command("h2", words) if hosts else words
    process = subprocess.Popen(line, stderr=subprocess.PIPE, start_new_session=True)
    try:
        yield
        assert process.poll() is None, f"the stranger ended: {process.communicate()[1]!r}"
    finally:
        process.kill()
        process.communicate()


def run(ways: Sequence[str], hosts: Hosts | None = None) -> Outcome:
    """Run a small training on 3 ranks, attacked in some ways at once, or not at all."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        planted = [] if hosts else stack.enter_context(_planted(folder))
        (folder / "driver.py").write_text(DRIVER)
        driver = [sys.executable, str(folder / "driver.py"), str(folder), str(LATE_SECONDS)]
        train = [*driver, "train", *SETTINGS, f"output={folder / 'run'}"]
        if hosts:
            line = hosts.command("h1", [*hosts.mpiexec((2, 1)), *train])
        else:
            line = [str(mpi.find([sys.executable]).mpiexec), "-n", "3", *train]
        for way in ways:
            stack.enter_context(attacked(way, folder, hosts))
        began = time.monotonic()
        ended = _ended(line)
        seconds = time.monotonic() - began
        faults = [f"exit code {ended.returncode}"] if ended.returncode else []
        faults += [f"note: {line}" for line in ended.stdout.splitlines() if "note:" in line]
        faults += [f"error: {line}" for line in ended.stderr.splitlines()]
        faults += [f"{path} was changed" for path in planted if not path.is_symlink()]
        if (folder / "target").exists():
            faults.append("a symbolic link was followed")
        result = folder / "run/result.json"
        sha256 = json.loads(result.read_text())["theta_sha256"] if result.exists() else ""
    return Outcome(seconds, str(sha256), faults)


def _ended(line: Sequence[str]) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return subprocess.CompletedProcess(line, process.returncode, out, err)


@contextmanager
def _planted(folder: Path) -> Iterator[list[Path]]:
    """Plant symbolic links in /dev/shm under names like those of a run, a stranger's."""
    names = [f"ddpbp.{pid}.{0:032x}" for pid in (1, os.getpid(), 2**22 + 1, "²", "1e3", "-1")]
    paths = [stranger.SHARED / name for name in names]
    for path in paths:
        subprocess.run(as_stranger(["ln", "-s", str(folder / "target"), str(path)]), check=True)
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def compare(way: str, hosts: Hosts | None, runs: int) -> tuple[float, float, list[str]]:
    """Run in turn undisturbed and attacked.

    Returns
    -------
    seconds, slower : float
        The median of an attacked run, and of the difference from the undisturbed one before it.
    faults : list of str
    """
    pairs = [(run([], hosts), run([way], hosts)) for _ in range(runs)]
    seconds = statistics.median(attacked.seconds for _, attacked in pairs)
    slower = statistics.median(attacked.seconds - before.seconds for before, attacked in pairs)
    faults = [fault for pair in pairs for outcome in pair for fault in outcome.faults]
    if len({outcome.theta_sha256 for pair in pairs for outcome in pair}) > 1:
        faults.append("other bits")
    if slower > SLOWER_SECONDS:
        faults.append("slower")
    return seconds, slower, faults


def main() -> None:
    """Attack in every way, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(f"attacks: {reason}")
    wrong = 0
    with ExitStack() as stack:
        places: dict[str, Hosts | None] = {"same machine": None}
        if reason := cluster.missing():
            sys.stdout.write(f"no other host: {reason}\n")
        else:
            places["another host"] = stack.enter_context(Hosts(2))
        for place, hosts in places.items():
            sys.stdout.write(f"{place}: attacked, and slower than undisturbed\n")
            for way in stranger.WAYS:
                seconds, slower, faults = compare(way, hosts, options.runs)
                told = "; ".join(faults) or "good"
                sys.stdout.write(f"  {way:<24} {seconds:5.2f} s {slower:+5.2f} s  {told}\n")
                sys.stdout.flush()
                wrong += len(faults)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
