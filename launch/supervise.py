"""Run the ranks: pass on what they say and what they are told, and find out how they ended."""

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

from rank import die_with_parent

TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE = 75
SECOND_SECONDS = 2.0  # schedulers tell every process: one request may arrive several times
GRACE_SECONDS = 5.0  # from the first rank that failed to the end of all
HELD_SECONDS = 10.0
COLOURS = ("36", "33", "32", "35", "34", "31")

_LABELLED = re.compile(r"@(\d+) (out|err|start|end) ?(.*)")
_ECHO = re.compile(r"Abort\(\d+\) on node")  # MPICH repeats what the rank has said
_FAULT = re.compile(r"Traceback \(most recent call last\):|ddpbp: rank \d+ on \S+ failed")


@dataclass
class Ended:
    """How a job ended.

    Attributes
    ----------
    code : int
        The exit code of all: that of the rank which failed first; 128 + n for signal n.
    codes : dict
        The code of each rank that told, in the order in which they ended.
    hosts : dict
        The host of each rank that started.
    held : dict
        The tracebacks, by rank, in the order in which they began.
    said : list
        What the MPI's own launcher said.
    asked : int
        The signal by which the launcher was asked to stop, or 0.
    forced : bool
        Whether it was asked again, and ended all at once.
    """

    code: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    hosts: dict[int, str] = field(default_factory=dict)
    held: dict[int, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    asked: int = 0
    forced: bool = False

    @property
    def agreed(self) -> bool:
        """Whether all ranks ended by themselves, with one code."""
        return len(self.codes) == len(self.hosts) and len(set(self.codes.values())) == 1

    @property
    def first_failed(self) -> int | None:
        """The rank at which it began: the first that failed or broke off with a traceback."""
        failed = [rank for rank, code in self.codes.items() if code]
        return next(iter([*self.held, *failed]), None)


class Output:
    """What the ranks say: shown as asked, and written to a file for each rank.

    Parameters
    ----------
    whose : str
        "all" lines as they are, "labelled" with rank and host, or those of the "first" rank only.
    folder : Path, optional
        Where the ranks' log files go.
    colour : bool
        Whether labels are coloured.
    """

    def __init__(self, whose: str, folder: Path | None, *, colour: bool) -> None:
        self._whose, self._folder, self._colour = whose, folder, colour
        self._files: dict[int, TextIO] = {}

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
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the job goes on
            stream.write(text + "\n")
            stream.flush()

    def log(self, rank: int, text: str) -> None:
        """Write one line to the rank's own file."""
        if self._folder is None:
            return
        if rank not in self._files:
            self._files[rank] = (self._folder / f"rank-{rank:04d}.log").open("a")
        self._files[rank].write(text + "\n")
        self._files[rank].flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class Job:
    """One start of the ranks, until all of them have ended.

    A first signal is passed on as SIGUSR1, which every mpiexec hands to its ranks and which asks
    them for a checkpoint; a second one, from 2 s after, ends them. (Open MPI would kill them 0.25 s
    after a SIGTERM.)

    Parameters
    ----------
    command : sequence of str
        Starts the ranks, each in the care of rank.py.
    environment : mapping
        What is added to this process's own.
    n : int
        The number of ranks.
    output : Output
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], n: int, output: Output
    ) -> None:
        self.n, self.ended = n, Ended()
        self._output = output
        self._asked_seconds = self._held_seconds = self._failed_seconds = math.inf
        self._holding = True
        self._lock = threading.Lock()
        before = {number: signal.signal(number, self._told) for number in TOLD}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the launcher to pass on
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
        try:
            self._wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            output.close()
        self.ended.code = self._code(self._process.returncode)

    def _told(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.ended.asked:
            self.ended.asked, self._asked_seconds = number, now
        elif now - self._asked_seconds > SECOND_SECONDS:
            self.ended.forced = True
            self._process.terminate()
            self._failed_seconds = min(self._failed_seconds, now)

    def _wait(self) -> None:
        readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self._process.stdout, self._process.stderr)
        ]
        for thread in readers:
            thread.start()
        passed_on = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
                break
            if self.ended.asked and not passed_on and len(self.ended.hosts) == self.n:
                self._process.send_signal(signal.SIGUSR1)  # earlier it could be lost
                passed_on = True
            now = time.monotonic()
            if now - self._failed_seconds > GRACE_SECONDS:  # it waits for a host that is gone
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            if now - self._held_seconds > HELD_SECONDS and self._holding:  # it was not the end
                self._release()
        for thread in readers:
            thread.join(2)  # a rank that outlives its launcher holds the pipe

    def _read(self, pipe: IO[bytes]) -> None:
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            found = _LABELLED.fullmatch(line)
            with self._lock:
                if found:
                    self._hear(int(found[1]), found[2], found[3])
                elif line:
                    self.ended.said.append(line)

    def _hear(self, rank: int, kind: str, text: str) -> None:
        if kind == "start":
            self.ended.hosts[rank] = text.partition(" ")[0]
        elif kind == "end":
            self.ended.codes[rank] = int(text)
            if int(text) not in (0, REQUEUE):
                self._failed_seconds = min(self._failed_seconds, time.monotonic())
        else:
            self._output.log(rank, text)
            if kind == "err" and _ECHO.match(text):
                return
            if kind == "err" and self._holding and (rank in self.ended.held or _FAULT.match(text)):
                self._held_seconds = min(self._held_seconds, time.monotonic())
                self.ended.held.setdefault(rank, []).append(text)
            else:
                self._output.show(rank, self.ended.hosts.get(rank, "?"), text, kind)

    def _release(self) -> None:
        with self._lock:
            self._holding = False
            for rank, lines in self.ended.held.items():
                for line in lines:
                    self._output.show(rank, self.ended.hosts.get(rank, "?"), line, "err")
            self.ended.held.clear()

    def _code(self, returned: int) -> int:
        """Return one code for all, whatever this MPI makes of several."""
        told = [code for code in self.ended.codes.values() if code]
        deaf = self.ended.asked and told and told[0] == 128 + signal.SIGUSR1
        if deaf or self.ended.forced:
            return 128 + self.ended.asked
        if told:
            return told[0]
        if returned:
            # MPICH's mpiexec says n for a rank killed by signal n, Open MPI's 128 + n.
            killed = -returned if returned < 0 else returned if 4 < returned < 32 else 0
            return 128 + killed if killed else returned
        # Open MPI ends a job that lost a host with 0.
        return 0 if len(self.ended.codes) == self.n else 1
