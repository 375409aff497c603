"""A real Slurm over simulated hosts: slurmctld on h1, one slurmd per host.

    with Hosts(3) as hosts, Slurm(hosts) as slurm:
        slurm.run(["srun", "-N3", "hostname"])

The daemons are processes of the hosts and end with them. By hand:

    python -m tests.cluster.hosts up 3
    python -m tests.cluster.slurm up
    python -m tests.cluster.slurm run srun -N3 hostname
    python -m tests.cluster.hosts down
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.cluster import hosts as simulated
from tests.cluster.hosts import BY_HAND, READY_SECONDS, Hosts, which

COMMANDS = simulated.COMMANDS | {"slurmctld": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge"}
CPUS_PER_HOST = 4

SLURM_CONF = """\
ClusterName=simulated
SlurmctldHost=h1
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmi2
ReturnToService=2
SchedulerParameters=batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=10
KillWait=10
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return what Slurm on simulated hosts lacks here, or "" if nothing."""
    return simulated.missing(COMMANDS)


class Slurm:
    """Slurm on hosts that are up; ready inside a `with` block."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.folder = hosts.folder / "slurm"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a command finds this Slurm."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the daemons end with the hosts."""

    def up(self) -> None:
        """Start the daemons, and wait until every host can take a job."""
        munge = self.folder / "munge"
        munge.mkdir(parents=True)
        munge.chmod(0o711)
        (self.folder / "state").mkdir()
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        lines = [SLURM_CONF.format(folder=self.folder)]
        lines += [f"NodeName={h} CPUs={CPUS_PER_HOST} RealMemory=2000" for h in self.hosts.names]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        # PMIx steps of one job collide in a temporary folder that the hosts share.
        (self.folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={self.hosts.folder}/tmp\n")
        names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        paths = [f"--{name}={munge}/{name.removesuffix('-file')}" for name in names]
        self._daemon("h1", "munged", *paths, "--force")
        self._daemon("h1", "slurmctld", "-c")
        for host in self.hosts.names:
            self._daemon(host, "slurmd", "-c")
        deadline = time.monotonic() + READY_SECONDS
        while set(self.states().values()) != {"idle"}:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Slurm did not come up: {self.states()}, logs {self.folder}")
            time.sleep(0.1)

    def _daemon(self, host: str, command: str, *arguments: str) -> None:
        log = self.folder / f"{command}-{host}.out"
        # A daemon would hold a pipe open.
        line = ["sh", "-c", f'exec "$0" "$@" > {log} 2>&1', str(which(command)), *arguments]
        done = self.run(line, host=host)
        if done.returncode:
            raise RuntimeError(f"{command} on {host}: {log.read_text().strip()}")

    def states(self) -> dict[str, str]:
        """Return the state of each host: idle, allocated, down, ..."""
        lines = self.run(["sinfo", "-h", "-N", "-o", "%N %T"]).stdout
        return dict(line.split(maxsplit=1) for line in lines.splitlines())

    def run(
        self,
        command: Sequence[str | Path],
        *,
        host: str = "h1",
        seconds: float = 60,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command (srun, sbatch, ...) on a host, as `Hosts.run`."""
        env = {**(os.environ if env is None else env), **self.environment}
        return self.hosts.run(host, command, seconds=seconds, cwd=cwd, env=env)


def main() -> int:
    """Use Slurm by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up")
    commands.add_parser("run").add_argument("line", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"Slurm on simulated hosts: {reason}")
    slurm = Slurm(Hosts.attach(BY_HAND))
    if arguments.command == "up":
        slurm.up()
        return 0
    env = {**os.environ, **slurm.environment}
    return subprocess.call(slurm.hosts.command("h1", arguments.line), env=env)


if __name__ == "__main__":
    sys.exit(main())
