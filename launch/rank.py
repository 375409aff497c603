"""Run around one rank of a job: bind it to its cores, label its lines, report its exit code.

    mpiexec -n 3 python rank.py --hosts h1:2,h2:1 -- python -m ddpbp train

Every line of the rank is printed whole, as `@RANK out ...` or `@RANK err ...`, between
`@RANK start HOST PID` and `@RANK end CODE`. From these the launcher learns which rank printed what
and which ended first, and how, under any MPI. Lines that the rank writes to the file descriptor
LAUNCH_PULSE_FD become `@RANK pulse ...`, see watch.py; it never waits for a reader there. This file
runs alone on each host, so it imports the standard library alone.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
PULSE = re.compile(
    rb"here|met (?P<limit>[0-9]{1,9}(?:\.[0-9]{1,9})?(?:e[+-][0-9]{2,3})?)|bye|"
    rb"beat (?P<step>[0-9]{1,18}) (?P<phase>[ -~]{1,60}) (?P<progress>[0-9]{1,18}) (?P<slow>[01])"
)
_WRITING = threading.Lock()
PULSE_SECONDS = 5.0  # of the beats, which come each second, one in this time is passed on


def my_rank() -> int:
    """Return the rank of this process, from the environment that its MPI has set."""
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"):
        if re.fullmatch(r"[0-9]{1,7}", value := os.environ.get(name, "")):
            return int(value)
    return 0


def place(rank: int, hosts: str) -> tuple[int, int]:
    """Return (local rank, ranks of its host); `hosts` is as in "h1:2,h2:1", filled in turn."""
    for host in hosts.split(","):
        count = int(host.rpartition(":")[2])
        if rank < count:
            return rank, count
        rank -= count
    return 0, 1


def bind(local_rank: int, local_size: int) -> None:
    """Bind this process to its share of adjacent cores; do nothing if there are too few."""
    cores = sorted(os.sched_getaffinity(0), key=_position)
    first, end = (len(cores) * r // local_size for r in (local_rank, local_rank + 1))
    if local_size <= len(cores):
        os.sched_setaffinity(0, cores[first:end])


def _position(cpu: int) -> tuple[int, int, int]:
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        package, core = (
            int((topology / name).read_text()) for name in ("physical_package_id", "core_id")
        )
    except (OSError, ValueError):
        return 0, cpu, cpu
    return package, core, cpu


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send a signal to this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def write(label: str, line: bytes) -> None:
    """Write one whole line to the launcher."""
    with _WRITING:
        os.write(1, label.encode() + line.rstrip(b"\n") + b"\n")


def pass_on(pulse: IO[bytes], label: str) -> None:
    """Write the pulse of the rank to the launcher, its beats not more often than is of use."""
    interval, next_seconds, slow = PULSE_SECONDS, 0.0, b"0"
    for line in iter(partial(pulse.readline, 256), b""):
        match = PULSE.fullmatch(line.rstrip(b"\n"))
        if match and match["phase"]:
            now = time.monotonic()
            if now < next_seconds and match["slow"] == slow:
                continue
            next_seconds, slow = now + interval, match["slow"]
        elif match and match["limit"]:
            interval = min(PULSE_SECONDS, float(match["limit"]) / 4)
        if match:
            write(label, line)


def main() -> int:
    """Run the command after `--` as one rank; return its exit code, 128 + n for signal n."""
    split = sys.argv.index("--")
    options, command = sys.argv[1:split], sys.argv[split + 1 :]
    rank = my_rank()
    die_with_parent()  # the ranks of Open MPI would outlive a killed mpirun
    if "--bind" in options:
        bind(*place(rank, options[options.index("--hosts") + 1]))
    listen, tell = os.pipe()
    os.set_inheritable(tell, True)
    os.set_blocking(tell, False)
    try:
        child = subprocess.Popen(
            command,
            env={**os.environ, "LAUNCH_PULSE_FD": str(tell)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            close_fds=False,  # the MPI library reaches its launcher through an inherited one
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        write(f"@{rank} err ", f"{command[0]}: {error.strerror}".encode())
        return 127
    os.close(tell)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    write(f"@{rank} start ", f"{socket.gethostname()} {child.pid}".encode())

    def relay(stream: IO[bytes], label: str) -> None:
        for line in stream:
            write(label, line)

    assert child.stdout
    assert child.stderr
    relays = [
        threading.Thread(target=relay, args=(child.stdout, f"@{rank} out "), daemon=True),
        threading.Thread(target=relay, args=(child.stderr, f"@{rank} err "), daemon=True),
        threading.Thread(
            target=pass_on, args=(os.fdopen(listen, "rb"), f"@{rank} pulse "), daemon=True
        ),
    ]
    for thread in relays:
        thread.start()
    code = child.wait()
    for thread in relays:
        thread.join(2)  # a child that outlives the rank may hold the pipes open
    code = 128 - code if code < 0 else code
    write(f"@{rank} end ", str(code).encode())
    if code:
        time.sleep(0.2)  # mpiexec must forward the last lines before it sees the exit
    return code


if __name__ == "__main__":
    sys.exit(main())
