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
from .values import HOST, NODE_LIST, TASKS, check, one_line, read, shown, words

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


_SLOTS = r"(?P<name>[^:\s]+)(?::(?P<a>[0-9]{1,7})|\s+slots\s*=\s*(?P<b>[0-9]{1,7}))?"
_LINE = re.compile(_SLOTS + r"(\s+max_slots=[0-9]{1,7})?")


def _host(text: str, where: str) -> Host:
    match = _LINE.fullmatch(text.strip())
    slots = match and (match["a"] or match["b"])
    if not match or (slots and not int(slots)):
        raise LaunchError(
            f"{where}: {shown(text.strip())}: allowed: HOST, HOST:N or HOST slots=N, N ≥ 1"
        )
    return Host(check(f"{where}, host", match["name"], HOST), int(slots) if slots else None)


def from_text(text: str) -> list[Host]:
    """Read "h1:4,h2:4"."""
    return [_host(part, f"--hosts {shown(text)}") for part in text.split(",")]


def from_file(file: Path, where: str = "") -> list[Host]:
    """Read a hostfile in the form of Open MPI (`host slots=N`) or of MPICH (`host:N`).

    A host may be named in several lines. `where` stands for the file in messages.
    """
    where = where or f"--hostfile {shown(file)}"
    lines = read(file, where).splitlines()
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
        compact = check("$SLURM_JOB_NODELIST", environment["SLURM_JOB_NODELIST"], NODE_LIST)
        names = output_of(["scontrol", "show", "hostnames", compact]).split()
        counts = _slurm_tasks(environment, len(names))
        hosts = [f"{name}:{count}" for name, count in zip(names, counts, strict=True)]
        return Allocation("slurm", [_host(host, "$SLURM_JOB_NODELIST") for host in hosts])
    for system, variable in (("pbs", "PBS_NODEFILE"), ("lsf", "LSB_DJOB_HOSTFILE")):
        if variable in environment:  # a host is named once for each of its ranks
            file = Path(environment[variable])
            names = [host.name for host in from_file(file, f"${variable} = {shown(file)}")]
            return Allocation(system, [Host(*item) for item in Counter(names).items()])
    return None


def _slurm_tasks(environment: Mapping[str, str], hosts: int) -> list[int]:
    """Expand the tasks of each host as Slurm writes them, "2(x3),1", to [2, 2, 2, 1]."""
    names = ("SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE")
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        raise LaunchError(f"none of ${' and $'.join(names)} is set in this Slurm job")
    check(f"${name}", environment[name], TASKS)
    parts = [part.rstrip(")").partition("(x") for part in environment[name].split(",")]
    if sum(int(times or 1) for _, _, times in parts) != hosts:
        raise LaunchError(f"${name} {shown(environment[name])}: Slurm names {hosts} hosts")
    return [int(count) for count, _, times in parts for _ in range(int(times or 1))]


def output_of(command: Sequence[str], stdin: str = "") -> str:
    """Return what a command of the system prints.

    Raises
    ------
    LaunchError
        If the command is missing, or fails: with its own message.
    """
    try:
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on PATH") from None
    except OSError as error:
        raise LaunchError(f"{command[0]}: {error.strerror}") from None
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode:
        raise LaunchError(f"{shlex.join(command)}: {err.strip() or out.strip()}")
    return out


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
        self.job = os.urandom(8).hex()  # by this name its processes are found
        if text:
            self.hosts = from_text(text)
        elif file:
            self.hosts = from_file(file)
        elif allocated := allocation():
            self.system, self.hosts = allocated
        self.ssh = words("--ssh", ssh) or ["blaunch" if self.system == "lsf" else "ssh"]
        self._before_host: list[str] = []
        if Path(self.ssh[0]).name == "ssh":
            self.ssh += SSH_OPTIONS
            self._before_host = ["--"]
        names = [host.name for host in self.hosts] or ["localhost"]
        here = len(os.sched_getaffinity(0))
        self.cores = {name: here for name in names if is_here(name)}  # `probe` adds the others

    def _probe_one(self, name: str, words: Sequence[str]) -> dict[str, Any] | str:
        """Return the answer of probe.py on a host, or why there is none."""
        python = [self._python, "-IS", "-", *words]
        there: list[str] = []
        if self.system == "slurm":
            there = ["srun", "--overlap", "--quiet", "-N1", "-n1", "--nodelist", name]
        elif not is_here(name):
            there = [*self.ssh, *self._before_host, name]
            python = [shlex.quote(word) for word in python]  # a shell reads them there
        try:
            done = subprocess.run(
                [*there, *python],
                input=PROBE.read_bytes(),
                capture_output=True,
                check=False,
                timeout=3 * SSH_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {3 * SSH_SECONDS} s"
        except OSError as error:
            if there and isinstance(error, FileNotFoundError):
                return f"{shown(there[0])} is missing here; install it, or name another with --ssh"
            return f"{shown((there or python)[0])}: {error.strerror}"
        if answer := _answer(done.stdout):
            return answer
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = one_line(lines[-1] if lines else f"exit code {done.returncode}")
        return f"{reason} (try: {one_line(shlex.join([*there, 'true']))})"

    def probe(self, paths: Sequence[Path]) -> dict[str, str]:
        """Find the cores of every host; end there what is left of this job, and sweep it.

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
        words = [self.job, *map(str, paths)]
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda name: self._probe_one(name, words), names))
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


def _answer(printed: bytes) -> dict[str, Any] | None:
    """Read what probe.py prints; None if it is anything else."""
    try:
        answer = json.loads(printed)
        return {"cores": int(answer["cores"]), "missing": [str(path) for path in answer["missing"]]}
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
