"""Hosts from the command line, a file or the batch system; ranks dealt to them; probing them."""

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

from .errors import LaunchError

PROBE = Path(__file__).with_name("probe.py")
SSH_SECONDS = 10
# Never asks for a password. A host that is cut off closes its connection within 10 s, and so ends
# the mpiexec that is blocked on it.
SSH_OPTIONS = [
    *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"),
]


class Host(NamedTuple):
    """A machine and the number of ranks it may run; None stands for the number of its cores."""

    name: str
    slots: int | None = None


class Allocation(NamedTuple):
    """The batch system of this job, and the hosts it has allocated."""

    system: str  # slurm, pbs or lsf
    hosts: list[Host]


_LINE = re.compile(
    r"(?P<name>[\w.-]+)(?::(?P<a>\d+)|\s+slots\s*=\s*(?P<b>\d+))?(\s+max_slots=\d+)?"
)


def _host(text: str, where: str) -> Host:
    match = _LINE.fullmatch(text.strip())
    slots = match and (match["a"] or match["b"])
    if not match or slots == "0":
        raise LaunchError(
            f"{where}: {text.strip()!r}: allowed: HOST, HOST:N or HOST slots=N, N ≥ 1"
        )
    return Host(match["name"], int(slots) if slots else None)


def from_text(text: str) -> list[Host]:
    """Read "h1:4,h2:4"."""
    return [_host(part, f"--hosts {text}") for part in text.split(",")]


def from_file(file: Path, where: str = "") -> list[Host]:
    """Read a hostfile in the form of Open MPI (`host slots=N`) or of MPICH (`host:N`).

    A host may be named in several lines. `where` stands for the file in messages.
    """
    where = where or f"--hostfile {file}"
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LaunchError(f"{where}: {reason}") from None
    hosts = [
        _host(text, f"{where}, line {number}")
        for number, line in enumerate(lines, 1)
        if (text := line.partition("#")[0].strip())
    ]
    if not hosts:
        raise LaunchError(f"{where}: it names no host; write a line HOST:N for each")
    return hosts


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return the hosts of the Slurm, PBS or LSF job that this process runs in."""
    if "SLURM_JOB_ID" in environment and "SLURM_JOB_NODELIST" in environment:
        compact = environment["SLURM_JOB_NODELIST"]  # as in h[1-3]
        names = output_of(["scontrol", "show", "hostnames", compact]).split()
        counts = environment.get("SLURM_TASKS_PER_NODE") or environment["SLURM_JOB_CPUS_PER_NODE"]
        return Allocation("slurm", [Host(*h) for h in zip(names, _repeated(counts), strict=True)])
    for system, variable in (("pbs", "PBS_NODEFILE"), ("lsf", "LSB_DJOB_HOSTFILE")):
        if variable in environment:  # a host is named once for each of its ranks
            file = Path(environment[variable])
            names = [host.name for host in from_file(file, f"${variable} = {file}")]
            return Allocation(system, [Host(*item) for item in Counter(names).items()])
    return None


def _repeated(counts: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]."""
    expanded = []
    for part in counts.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        expanded += [int(count)] * int(times or 1)
    return expanded


def output_of(command: Sequence[str], stdin: str = "") -> str:
    """Return what a command of the system prints.

    Raises
    ------
    LaunchError
        If the command is missing, or fails: with its own message.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on PATH") from None
    if done.returncode:
        raise LaunchError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    here = socket.gethostname()
    return host in ("localhost", "127.0.0.1", here, here.partition(".")[0])


def spread(
    hosts: Sequence[Host], n: int | None, ppn: int | None, cores: Mapping[str, int]
) -> dict[str, int]:
    """Deal ranks to hosts, filling each in turn.

    Parameters
    ----------
    n, ppn : int, optional
        Ranks in all, and ranks of a host at most; by default as many as there are slots.
    cores : mapping
        The cores of the hosts that are known; the slots of a host that names none.

    Returns
    -------
    ranks : dict
        The number of ranks of each host that has any.

    Raises
    ------
    LaunchError
        If the slots are too few, or not known.
    """
    slots: dict[str, int] = {}
    for host in hosts:
        count = host.slots or ppn or cores.get(host.name)
        if not count:
            raise LaunchError(
                f"host {host.name}: its cores are not known (a dry run contacts no host); write "
                f"{host.name}:N, or add --ppn N"
            )
        slots[host.name] = slots.get(host.name, 0) + count
    room = {name: min(count, ppn or count) for name, count in slots.items()}
    listed = ",".join(f"{name}:{count}" for name, count in room.items())
    if ppn and min(slots.values()) < ppn:
        raise LaunchError(f"--ppn {ppn}, but the slots are {listed}; give a host more with HOST:N")
    left = n or sum(room.values())
    if left > sum(room.values()):
        raise LaunchError(
            f"-n {n}, but there are {sum(room.values())} slots ({listed}); start fewer ranks, or "
            "give a host more with HOST:N (more than its cores is allowed)"
        )
    ranks = {}
    for name, count in room.items():
        if left:
            ranks[name] = min(count, left)
            left -= ranks[name]
    return ranks


class Machines:
    """The hosts of a job, and how to reach them; this machine if none is named.

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
        elif allocated := allocation():
            self.system, self.hosts = allocated
        self.ssh = shlex.split(ssh or {"lsf": "blaunch"}.get(self.system, "ssh"))
        if Path(self.ssh[0]).name == "ssh":
            self.ssh += SSH_OPTIONS
        names = [host.name for host in self.hosts] or ["localhost"]
        here = len(os.sched_getaffinity(0))
        self.cores = {name: here for name in names if is_here(name)}  # `probe` adds the others

    def _probe_one(self, name: str, paths: Sequence[str]) -> Any:
        """Return the answer of probe.py on a host, or why there is none."""
        words = [self._python, "-IS", "-", *paths]
        if self.system == "slurm":
            words = ["srun", "--overlap", "--quiet", "-N1", "-n1", "--nodelist", name, *words]
        elif not is_here(name):
            words = [*self.ssh, name, *words]
        try:
            done = subprocess.run(
                words,
                input=PROBE.read_text(),
                capture_output=True,
                text=True,
                check=False,
                timeout=3 * SSH_SECONDS,
            )
            return json.loads(done.stdout)
        except FileNotFoundError:
            return f"{words[0]} is missing here; install it, or name another with --ssh"
        except subprocess.TimeoutExpired:
            return f"no answer within {3 * SSH_SECONDS} s"
        except json.JSONDecodeError:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return f"{lines[-1]} (try: {shlex.join(words[: words.index(self._python)])} true)"

    def probe(self, paths: Sequence[Path]) -> dict[str, str]:
        """Find the cores of every host and sweep it.

        Parameters
        ----------
        paths : sequence of Path
            What has to exist on every host.

        Returns
        -------
        gone : dict
            The hosts that cannot be used, and why.
        """
        names = list(dict.fromkeys(host.name for host in self.hosts)) or ["localhost"]
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda name: self._probe_one(name, [*map(str, paths)]), names))
        gone = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, str):
                gone[name] = answer
            elif answer["missing"]:
                gone[name] = f"{answer['missing'][0]} is missing; all hosts have to share it"
            else:
                self.cores[name] = answer["cores"]
        return gone

    def place(self, n: int | None, ppn: int | None) -> dict[str, int]:
        """Return the number of ranks of each host; without `probe` if all slots are named."""
        if self.hosts:
            return spread(self.hosts, n, ppn, self.cores)
        cores = self.cores["localhost"]
        return {"localhost": n or min(ppn or cores, cores)}
