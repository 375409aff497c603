"""Where the ranks go: hosts from the command line, a file or the allocation this runs in."""

import json
import os
import re
import shlex
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

NODE = Path(__file__).with_name("node.py")
SSH_SECONDS = 10
# It never asks; a host that is cut off ends its connection, and so the mpiexec that waits for it.
SSH_OPTIONS = [
    *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"),
]


class LaunchError(Exception):
    """Wrong use, or a host that cannot be used: one message, exit code 2."""


class Host(NamedTuple):
    """A machine and how many ranks it may have; None leaves that to its cores."""

    name: str
    slots: int | None = None


class Allocation(NamedTuple):
    """What a batch system has given to this job."""

    system: str  # slurm, pbs or lsf
    hosts: list[Host]


_LINE = re.compile(
    r"(?P<name>[\w.-]+)(?::(?P<a>\d+)|\s+slots\s*=\s*(?P<b>\d+))?(\s+max_slots=\d+)?"
)


def _host(text: str, where: str) -> Host:
    found = _LINE.fullmatch(text.strip())
    slots = found and (found["a"] or found["b"])
    if not found or slots == "0":
        raise LaunchError(
            f"{where}: {text.strip()!r}: allowed: HOST, HOST:N or HOST slots=N, N ≥ 1"
        )
    return Host(found["name"], int(slots) if slots else None)


def from_text(text: str) -> list[Host]:
    """Read "h1:4,h2:4"."""
    return [_host(part, f"--hosts {text}") for part in text.split(",")]


def from_file(file: Path, of: str = "") -> list[Host]:
    """Read a hostfile; `host slots=N` (Open MPI) and `host:N` (MPICH) are both understood.

    A host may be named in several lines.
    """
    of = of or f"--hostfile {file}"
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LaunchError(f"{of}: {reason}") from None
    hosts = [
        _host(text, f"{of}, line {number}")
        for number, line in enumerate(lines, 1)
        if (text := line.partition("#")[0].strip())
    ]
    if not hosts:
        raise LaunchError(f"{of}: it names no host")
    return hosts


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return the hosts of the Slurm, PBS or LSF job that this process runs in."""
    if "SLURM_JOB_ID" in environment and "SLURM_JOB_NODELIST" in environment:
        names = ask(["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]).split()
        counts = environment.get("SLURM_TASKS_PER_NODE") or environment["SLURM_JOB_CPUS_PER_NODE"]
        return Allocation("slurm", [Host(*h) for h in zip(names, _repeated(counts), strict=True)])
    for system, variable in (("pbs", "PBS_NODEFILE"), ("lsf", "LSB_DJOB_HOSTFILE")):
        if variable in environment:  # the host's name once for each rank
            file = Path(environment[variable])
            names = [host.name for host in from_file(file, of=f"${variable} = {file}")]
            return Allocation(system, [Host(*item) for item in Counter(names).items()])
    return None


def _repeated(counts: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]."""
    expanded = []
    for part in counts.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        expanded += [int(count)] * int(times or 1)
    return expanded


def ask(command: Sequence[str], told: str = "") -> str:
    """Return what a command of the system prints.

    Raises
    ------
    LaunchError
        With its own words, if it fails or is not there.
    """
    try:
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on PATH") from None
    if done.returncode:
        raise LaunchError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def is_here(host: str) -> bool:
    """Tell whether a host is this machine."""
    here = socket.gethostname()
    return host in ("localhost", "127.0.0.1", here, here.partition(".")[0])


def spread(
    hosts: Sequence[Host], n: int | None, ppn: int | None, cores: Mapping[str, int]
) -> dict[str, int]:
    """Deal ranks to hosts, filling each in turn: the ranks of each, without the idle ones.

    Parameters
    ----------
    n, ppn : int, optional
        Ranks in all, and ranks of a host at most; as many as there are slots by default.
    cores : mapping
        What a host without slots may use.
    """
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + (host.slots or ppn or cores[host.name])
    room = {name: min(count, ppn or count) for name, count in slots.items()}
    given = ",".join(f"{name}:{count}" for name, count in room.items())
    if ppn and min(slots.values()) < ppn:
        raise LaunchError(f"--ppn {ppn}, but the slots are {given}; give a host more with HOST:N")
    left = n or sum(room.values())
    if left > sum(room.values()):
        raise LaunchError(
            f"-n {n}, but there are {sum(room.values())} slots ({given}); start fewer ranks, or "
            "give a host more with HOST:N (more than its cores is allowed)"
        )
    ranks = {}
    for name, count in room.items():
        if left:
            ranks[name] = min(count, left)
            left -= ranks[name]
    return ranks


class Machines:
    """The hosts of a job, and how one talks to them; none given is this machine alone.

    Parameters
    ----------
    text : str, optional
        "h1:4,h2:4".
    file : Path, optional
        A hostfile. Without either, the allocation this process runs in, if there is one.
    ssh : str, optional
        The remote shell and its options.
    python : str
        The path of Python on all hosts.
    """

    def __init__(self, text: str | None, file: Path | None, ssh: str | None, python: str) -> None:
        self.system, self.hosts, self._python = "", list[Host](), python
        if text:
            self.hosts = from_text(text)
        elif file:
            self.hosts = from_file(file)
        elif found := allocation():
            self.system, self.hosts = found
        self.ssh = shlex.split(ssh or {"lsf": "blaunch"}.get(self.system, "ssh"))
        if Path(self.ssh[0]).name == "ssh":
            self.ssh += SSH_OPTIONS
        self.cores: dict[str, int] = {}

    def _ask(self, name: str, paths: Sequence[str]) -> Any:
        words = [self._python, "-IS", "-", *paths]
        if self.system == "slurm":
            words = ["srun", "--overlap", "--quiet", "-N1", "-n1", "--nodelist", name, *words]
        elif not is_here(name):
            words = [*self.ssh, name, *words]
        try:
            done = subprocess.run(
                words,
                input=NODE.read_text(),
                capture_output=True,
                text=True,
                check=False,
                timeout=3 * SSH_SECONDS,
            )
            return json.loads(done.stdout)
        except FileNotFoundError:
            return f"{words[0]} is not there; install it, or name another with --ssh"
        except subprocess.TimeoutExpired:
            return f"no answer within {3 * SSH_SECONDS} s"
        except json.JSONDecodeError:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return f"{lines[-1]} (try: {shlex.join(words[: words.index(self._python)])} true)"

    def probe(self, paths: Sequence[Path]) -> dict[str, str]:
        """Look at every host, and sweep it; return those that cannot be used, and why.

        Parameters
        ----------
        paths : sequence of Path
            What has to be there.
        """
        names = list(dict.fromkeys(host.name for host in self.hosts)) or ["localhost"]
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda name: self._ask(name, [*map(str, paths)]), names))
        gone = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, str):
                gone[name] = answer
            elif answer["missing"]:
                gone[name] = f"{answer['missing'][0]} is not there; all hosts have to share it"
            else:
                self.cores[name] = answer["cores"]
        return gone

    def place(self, n: int | None, ppn: int | None) -> dict[str, int]:
        """Return the ranks of each host, after `probe`."""
        if self.hosts:
            return spread(self.hosts, n, ppn, self.cores)
        cores = self.cores["localhost"]
        return {"localhost": n or min(ppn or cores, cores)}
