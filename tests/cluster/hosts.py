"""Simulated hosts on one machine: for tests and benchmarks of runs over several hosts.

    with Hosts(3) as hosts:
        hosts.run("h1", ["ssh", "h2", "hostname"])

h1, h2, ... each have their own network, name, processes, /dev/shm, TMPDIR and sshd; one bridge
joins them, and they share the file system. All of it is anonymous namespaces: several `Hosts` do
not interfere, the network of the machine is untouched, and nothing is left when the processes end.
By hand, from the folder above `tests`:

    python -m tests.cluster.hosts up 3
    python -m tests.cluster.hosts run h1 ssh h2 hostname
    python -m tests.cluster.hosts down
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from launch import mpi

NETWORK = "10.77.0"
COMMANDS = {"ip": "iproute2", "tc": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client"}
READY_SECONDS = 20
BY_HAND = Path(tempfile.gettempdir()) / "ddpbp-hosts"
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 100
SetEnv TMPDIR={folder}/tmp
"""
SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
  ConnectTimeout 5
  ServerAliveInterval 2
  ServerAliveCountMax 2
"""
# The first process of a host. Plain `ssh h2` works on it, as on a cluster that is set up.
INIT = """\
set -e
hostname {host}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs {folder}/tmp
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mkdir /run/sshd
exec {sshd} -D -e -f {folder}/sshd_config
"""

TRIAL = """\
mount -t tmpfs none /mnt
ip link add port type veth peer eth0
ip link add bridge type bridge
tc qdisc replace dev eth0 root tbf rate 1gbit burst 256kb latency 100ms
"""


def missing(commands: Mapping[str, str] = COMMANDS) -> str:
    """Return what simulated hosts lack here, or "" if nothing.

    `commands` maps each command that is needed to its Debian package.
    """
    lacking = {package for name, package in commands.items() if not which(name)}
    wants = ["root"] * (os.geteuid() != 0) + sorted(lacking)
    if wants:
        return f"needs {' and '.join(wants)}; as root run tests/cluster/install.sh"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-ec", TRIAL],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": SYSTEM_PATH},
    )
    return f"needs network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def which(name: str) -> str | None:
    """Find a command, also in the folders of root."""
    return shutil.which(name, path=SYSTEM_PATH)


class Hosts:
    """Simulated hosts "h1", "h2", ...; up inside a `with` block.

    Parameters
    ----------
    count : int
    folder : Path, optional
        For keys, settings and logs; a temporary one by default.
    lasting : bool
        The hosts outlive this process.
    """

    def __init__(self, count: int, folder: Path | None = None, *, lasting: bool = False) -> None:
        self.names = [f"h{i}" for i in range(1, count + 1)]
        self.addresses = {h: f"{NETWORK}.{i}" for i, h in enumerate(self.names, 1)}
        self.folder = folder or Path(f"{BY_HAND}-{os.urandom(4).hex()}")
        self._lasting = lasting
        self._pids: dict[str, int] = {}  # of a process in each host's namespaces, and the switch's
        self._children: list[subprocess.Popen[bytes]] = []

    @classmethod
    def attach(cls, folder: Path) -> "Hosts":
        """Return the hosts that were left running in `folder`."""
        file = folder / "pids.json"
        if not file.exists():
            sys.exit(f"no hosts in {folder}; start some with: python -m tests.cluster.hosts up 3")
        pids = json.loads(file.read_text())
        hosts = cls(len(pids) - 1, folder, lasting=True)
        hosts._pids = {name: pid for name, pid in pids.items() if _is_ours(pid)}
        return hosts

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # --- up and down ------------------------------------------------------------------------------

    def up(self) -> None:
        """Start the switch and the hosts, and wait until ssh reaches every one."""
        folder = self.folder
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        for key in ("key", "host_key"):
            (folder / key).unlink(missing_ok=True)
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
        (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
        lines = ["127.0.0.1 localhost", *(f"{a} {h}" for h, a in self.addresses.items())]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        self._start("switch", ["unshare", "--net", "sleep", "infinity"])
        self._on_switch("ip", "link", "add", "bridge", "type", "bridge")
        self._on_switch("ip", "link", "set", "bridge", "up")
        spaces = ["--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc"]
        for host in self.names:
            init = INIT.format(host=host, folder=folder, sshd=which("sshd"))
            self._start(host, ["unshare", *spaces, "--fork", "--kill-child", "sh", "-c", init])
            pid = str(self._pids[host])
            self._on_switch("ip", "link", "add", host, "type", "veth", "peer", "eth0", "netns", pid)
            self._on_switch("ip", "link", "set", host, "master", "bridge", "up")
            address = f"{self.addresses[host]}/24"
            self._in_network(host, "ip", "address", "add", address, "dev", "eth0")
            for link in ("eth0", "lo"):
                self._in_network(host, "ip", "link", "set", link, "up")
        for host in self.names:
            self._wait_for_ssh(host)
        if self._lasting:
            (folder / "pids.json").write_text(json.dumps(self._pids))

    def _start(self, name: str, command: Sequence[str]) -> None:
        # If pytest is killed, so are the hosts.
        line = [*command] if self._lasting else ["setpriv", "--pdeathsig", "KILL", *command]
        before = Path("/proc/self/ns/net").readlink()
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        self._pids[name] = child.pid
        deadline = time.monotonic() + READY_SECONDS
        while Path(f"/proc/{child.pid}/ns/net").readlink() == before:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {self._log(name)}")
            time.sleep(0.005)

    def _wait_for_ssh(self, host: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while (tried := self.run(self.names[0], ["ssh", host, "true"])).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no ssh to {host}: {tried.stderr}{self._log(host)}")
            time.sleep(0.05)

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace").strip()

    def down(self) -> None:
        """Kill all processes of all hosts, which frees all that they held."""
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self._children:
            child.wait()
        self._pids.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- on a host --------------------------------------------------------------------------------

    def command(
        self, host: str, command: Sequence[str | Path], cwd: Path | None = None
    ) -> list[str]:
        """Return the command line that runs `command` on a host; it inherits the environment."""
        pid = self._pids[host]
        # The process of the host is outside its pid namespace, whose first process is its child.
        spaces = ["-t", str(pid), "-n", "-u", "-i", "-m", f"--pid=/proc/{pid}/ns/pid_for_children"]
        place = ["env", "-C", str(cwd or Path.cwd()), f"TMPDIR={self.folder / 'tmp'}"]
        return ["nsenter", *spaces, *place, *map(str, command)]

    def run(
        self,
        host: str,
        command: Sequence[str | Path],
        *,
        seconds: float = 60,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host; return its exit code and what it printed.

        Raises
        ------
        subprocess.TimeoutExpired
            After `seconds`; the command has been killed.
        """
        line = self.command(host, command, cwd)
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return subprocess.CompletedProcess(line, process.returncode, out, err)

    def mpiexec(self, ranks: Sequence[int]) -> list[str]:
        """Return the words that start these numbers of ranks on h1, h2, ..., under any MPI."""
        placed = dict(zip(self.names, ranks, strict=False))
        library = mpi.find([sys.executable])
        line, environment = mpi.command(library, placed, ["ssh"], [], system="")
        return ["env", *(f"{key}={value}" for key, value in environment.items()), *line]

    # --- the network ------------------------------------------------------------------------------

    def sent_bytes(self, host: str) -> int:
        """Return how many bytes have left a host through its network interface."""
        (link,) = json.loads(self._in_network(host, "ip", "-j", "-s", "link", "show", "eth0"))
        return int(link["stats64"]["tx"]["bytes"])

    def shape(self, rate: str) -> None:
        """Limit every link, in both directions, to a rate as in "1gbit" (there is no delay)."""
        limit = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms")
        for host in self.names:
            self._in_network(host, "tc", "qdisc", "replace", "dev", "eth0", *limit)
            self._on_switch("tc", "qdisc", "replace", "dev", host, *limit)

    def unshape(self) -> None:
        """Remove the limits."""
        for host in self.names:
            self._in_network(host, "tc", "qdisc", "del", "dev", "eth0", "root")
            self._on_switch("tc", "qdisc", "del", "dev", host, "root")

    def cut(self, host: str) -> None:
        """Cut a host off: no packet reaches or leaves it, and no connection is closed."""
        self._on_switch("ip", "link", "set", host, "down")

    def heal(self, host: str) -> None:
        """Connect a host again after `cut`."""
        self._on_switch("ip", "link", "set", host, "up")

    def kill(self, host: str) -> None:
        """Crash a host: kill all its processes at once, and close no connection."""
        self.cut(host)
        os.kill(self._pids[host], signal.SIGKILL)

    def _in_network(self, name: str, command: str, *arguments: str) -> str:
        where = ("nsenter", "-t", str(self._pids[name]), "-n")
        return _call(*where, str(which(command)), *arguments)

    def _on_switch(self, command: str, *arguments: str) -> str:
        return self._in_network("switch", command, *arguments)


def _is_ours(pid: int) -> bool:
    """Return whether a process is still one that was started here."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() in ("unshare", "sleep")
    return False


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Use the hosts by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands: Any = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up").add_argument("count", type=int, nargs="?", default=3)
    run = commands.add_parser("run")
    run.add_argument("host")
    run.add_argument("line", nargs=argparse.REMAINDER)
    commands.add_parser("shape").add_argument("rate")
    for name in ("cut", "heal", "kill", "sent_bytes"):
        commands.add_parser(name).add_argument("host")
    for name in ("unshape", "down"):
        commands.add_parser(name)
    arguments = vars(parser.parse_args())
    command = arguments.pop("command")
    if command == "up":
        if reason := missing():
            sys.exit(f"simulated hosts: {reason}")
        if (BY_HAND / "pids.json").exists():
            sys.exit(
                f"hosts are up in {BY_HAND}; end them with: python -m tests.cluster.hosts down"
            )
        hosts = Hosts(arguments["count"], BY_HAND, lasting=True)
        try:
            hosts.up()
        except BaseException:
            hosts.down()
            raise
        print(f"{' '.join(hosts.names)} in {BY_HAND}")
        return 0
    hosts = Hosts.attach(BY_HAND)
    if command == "run":
        return subprocess.call(hosts.command(arguments["host"], arguments["line"]))
    found = getattr(hosts, command)(**arguments)
    if found is not None:
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
