"""Run the ranks once: show their lines, forward signals to them, return how they ended."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from .errors import LaunchError, print_message
from .probe import kill_job
from .rank import die_with_parent
from .values import shown
from .watch import Watch

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE = 75
STALLED = 4
SECOND_SECONDS = 2.0  # a scheduler signals every process: one request may arrive several times
GRACE_SECONDS = 5.0  # from the first failure, or the end of the last rank, until all are killed
HELD_SECONDS = 10.0  # how long a traceback is held back if the job does not end
COLOURS = ("36", "33", "32", "35", "34", "31")

_LABELLED = re.compile(r"@([0-9]{1,7}) (out|err|start|end(?= [0-9]{1,3}$)|pulse) ?(.*)")
_ECHO = re.compile(r"Abort\(\d+\) on node")  # MPICH repeats what the rank has printed
_FAULT = re.compile(r"Traceback \(most recent call last\):|ddpbp: rank \d+ on \S+ failed")


@dataclass
class Ended:
    """How a job ended.

    Attributes
    ----------
    code : int
        The exit code of the job: that of the rank which failed first; 128 + n for signal n.
    codes : dict
        The exit code of each rank that reported one, in the order in which they ended.
    hosts : dict
        The host of each rank that started.
    held : dict
        The tracebacks by rank, in the order in which they began.
    launcher_lines : list
        The lines of mpiexec or srun itself.
    asked : int
        The signal that asked the launcher to stop, or 0.
    forced : bool
        Whether it was asked a second time, and so ended the ranks at once.
    stalled : str
        Why the launcher ended the ranks by itself: they did not meet, or none moved.
    """

    code: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    hosts: dict[int, str] = field(default_factory=dict)
    held: dict[int, list[str]] = field(default_factory=dict)
    launcher_lines: list[str] = field(default_factory=list)
    asked: int = 0
    forced: bool = False
    stalled: str = ""

    @property
    def agreed(self) -> bool:
        """Whether all ranks reported an exit code, the same one."""
        return len(self.codes) == len(self.hosts) and len(set(self.codes.values())) == 1

    @property
    def first_failed(self) -> int | None:
        """The rank whose failure came first: with a traceback, else with an exit code."""
        failed = [rank for rank, code in self.codes.items() if code]
        return next(iter([*self.held, *failed]), None)


class Output:
    """Shows the lines of the ranks, and writes them to a file for each rank.

    Parameters
    ----------
    whose : str
        Shows "all" lines as they are, "labelled" with rank and host, or those of the "first" rank.
    folder : Path, optional
        The folder of the log files.
    colour : bool
        Whether labels are coloured.
    """

    def __init__(self, whose: str, folder: Path | None, *, colour: bool) -> None:
        self._whose, self._folder, self._colour = whose, folder, colour
        self._files: dict[int, TextIO] = {}
        self.lost = False  # whether lines for standard output were, not for want of a reader

    def show(self, rank: int, host: str, text: str, kind: str) -> None:
        """Show one line of a rank's "out" or "err"."""
        if self._whose == "first" and rank:
            return
        if self._whose == "labelled":
            label = f"[{rank} {host}]"
            if self._colour:
                label = f"\x1b[{COLOURS[rank % len(COLOURS)]}m{label}\x1b[0m"
            text = f"{label} {text}"
        stream = sys.stdout if kind == "out" else sys.stderr
        try:
            stream.write(text + "\n")
            stream.flush()
        except OSError as error:  # the job continues, and the rest goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                self.lost = self.lost or kind == "out"
                name = "output" if kind == "out" else "error"
                print_message(
                    f"standard {name} cannot be written ({error.strerror}); the job continues"
                )

    def log(self, rank: int, text: str) -> None:
        """Write one line to the rank's own file."""
        if self._folder is None:
            return
        if rank not in self._files:
            self._files[rank] = (self._folder / f"rank-{rank:04d}.log").open("a", encoding="utf-8")
        self._files[rank].write(text + "\n")
        self._files[rank].flush()

    def close(self) -> None:
        """Close the files; lines that follow open them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class Job:
    """One start of the ranks; `run` returns when all of them have ended.

    A first signal is forwarded as SIGUSR1, which every mpiexec delivers to its ranks and which asks
    them for a checkpoint. A second one, at least 2 s later, ends them. (A SIGTERM is not forwarded
    as such: Open MPI would kill the ranks 0.25 s after it.)

    Parameters
    ----------
    command : sequence of str
        Starts the ranks, each inside rank.py.
    environment : mapping
        Added to the environment of this process.
    n : int
        The number of ranks.
    output : Output
        Closed at the end.
    name : str
        By which all its processes are found, see `probe.kill_job`.
    meet_seconds : float
        See `Watch`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        n: int,
        output: Output,
        *,
        name: str = "",
        meet_seconds: float = 0,
    ) -> None:
        self._command, self._environment = command, {**environment, "LAUNCH_JOB": name}
        self._name, self._watch = name, Watch(n, meet_seconds, time.monotonic())
        self._n, self._output, self._ended = n, output, Ended()
        self._process: subprocess.Popen[bytes] | None = None
        # When the first signal came, when a traceback was first held, when the job began to end.
        self._asked_seconds = self._held_seconds = self._over_seconds = math.inf
        self._holding = True
        self._lock = threading.Lock()

    def run(self) -> Ended:
        """Start the ranks, wait for their end, and return how they ended."""
        before = {number: signal.signal(number, self._signalled) for number in FORWARDED}
        try:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C must reach the ranks through the launcher only
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
            returned = self._wait(self._process)
        except OSError as error:  # it cannot be started
            raise LaunchError(f"{shown(self._command[0])}: {error.strerror}") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._output.close()
        self._ended.code = self._code(returned)
        if not self._ended.code:
            self._release()
        return self._ended

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._ended.asked:
            self._ended.asked, self._asked_seconds = number, now
        elif now - self._asked_seconds > SECOND_SECONDS:
            self._ended.forced = True
            if self._process:
                self._process.terminate()
            self._over_seconds = min(self._over_seconds, now)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Read the lines of the ranks until mpiexec ends; return its exit code."""
        readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (process.stdout, process.stderr)
        ]
        for thread in readers:
            thread.start()
        forwarded = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                break
            started = len(self._ended.hosts) == self._n  # before that, a signal could be lost
            if self._ended.asked and not forwarded and started:
                process.send_signal(signal.SIGUSR1)
                forwarded = True
            now = time.monotonic()
            self._judge(now)
            blocked = now - self._over_seconds > GRACE_SECONDS  # mpiexec, on a lost host
            if blocked or self._ended.stalled:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                kill_job(self._name)
            if now - self._held_seconds > HELD_SECONDS and self._holding:  # the job continues
                self._release()
        for thread in readers:
            thread.join(2)  # a rank that outlives mpiexec holds the pipe open
        return process.returncode

    def _judge(self, now: float) -> None:
        """Find out whether the job is stalled; while a line cannot be shown, nothing is known."""
        if self._lock.acquire(timeout=1):
            self._ended.stalled = self._ended.stalled or self._watch.judge(now, self._ended.hosts)
            self._lock.release()
        else:
            self._watch.count_anew(time.monotonic())

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for raw in pipe:
                line = raw.decode(errors="replace").rstrip("\n")
                labelled = _LABELLED.fullmatch(line)
                with self._lock:
                    if labelled:
                        self._take(int(labelled[1]), labelled[2], labelled[3])
                    elif line:
                        self._ended.launcher_lines.append(line)

    def _take(self, rank: int, kind: str, text: str) -> None:
        """Record or show one line that rank.py has labelled."""
        if kind == "start":
            self._ended.hosts[rank] = text.partition(" ")[0]
        elif kind == "end":
            self._ended.codes[rank] = int(text)
            self._watch.ended(rank)
            if int(text) not in (0, REQUEUE) or len(self._ended.codes) == self._n:
                self._over_seconds = min(self._over_seconds, time.monotonic())
        elif kind == "pulse":
            self._watch.heard(rank, text, time.monotonic())
        else:
            self._output.log(rank, text)
            if kind == "err" and _ECHO.match(text):
                return
            if kind == "err" and self._holding and (rank in self._ended.held or _FAULT.match(text)):
                self._held_seconds = min(self._held_seconds, time.monotonic())
                self._ended.held.setdefault(rank, []).append(text)
            else:
                self._output.show(rank, self._ended.hosts.get(rank, "?"), text, kind)

    def _release(self) -> None:
        """Show the tracebacks that were held back, and hold none from now on."""
        with self._lock:
            self._holding = False
            for rank, lines in self._ended.held.items():
                for line in lines:
                    self._output.show(rank, self._ended.hosts.get(rank, "?"), line, "err")
            self._ended.held.clear()

    def _code(self, returned: int) -> int:
        """Return one exit code for all ranks, whatever mpiexec makes of several."""
        if self._ended.stalled:
            return STALLED
        failed = [code for code in self._ended.codes.values() if code]
        unhandled = self._ended.asked and failed and failed[0] == 128 + signal.SIGUSR1
        if unhandled or self._ended.forced:
            return 128 + self._ended.asked
        if failed:
            return failed[0]
        if returned and len(self._ended.codes) < self._n:
            # For a rank killed by signal n, mpiexec of MPICH returns n, that of Open MPI 128 + n.
            killed = -returned if returned < 0 else returned if 4 < returned < 32 else 0
            code = 128 + killed if killed else returned
            return code if code <= 4 or code == REQUEUE or 128 < code < 192 else 1
        # Open MPI returns 0 for a job that lost a host.
        return 0 if len(self._ended.codes) == self._n else 1
