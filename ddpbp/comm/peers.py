"""The processes of a world as the heartbeat sees them, and the messages that they exchange."""

import contextlib
import socket
import struct
from typing import Annotated, Any, NamedTuple

import msgspec

from ddpbp.base.phases import PHASES, START

SLOW = 10.0  # times the limit: for a slow phase, and for the first step
FIRST_STEP = 8  # the progress at which the first step is over
MAX_BYTES = 2**17  # of a message
SIZE = struct.Struct("!I")  # before each message

Fault = dict[str, Any]
"""rank, host, step, phase, cause, exit_code."""


class Beat(NamedTuple):
    """What one rank reports about itself: its pulse."""

    step: int
    phase: str
    progress: int
    waits: int


class Beats(msgspec.Struct, tag="beats"):
    """The report of a process: one beat for each rank that is a thread of it."""

    ranks: Annotated[list[Beat], msgspec.Meta(min_length=1)]


class Bye(msgspec.Struct, tag="bye"):
    """The process ends regularly."""


class End(msgspec.Struct, tag="end"):
    """The process that receives this has to end, and to show its stacks first if asked."""

    code: int
    show_stacks: bool


class Stacks(msgspec.Struct, tag="stacks"):
    """The stacks of the process."""

    text: str


Message = Beats | Bye | End | Stacks

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


class BadMessage(ValueError):  # noqa: N818 - what arrived
    """What arrived is no message of a heartbeat."""


class Peer:
    """A process as another one sees it. All times are those of the heartbeat's clock.

    Attributes
    ----------
    rank : int
        Of the process.
    host : str
    connection : socket or None
        None for this process itself, and after the connection broke.
    beats : list of Beat
        The last report; one entry for each rank that is a thread of the process.
    heard_seconds : float
        When the last report came.
    moved_seconds : list of float
        When the progress of each rank last changed.
    left : bool
        Whether the process has announced its regular end.
    """

    def __init__(self, rank: int, host: str, connection: socket.socket | None) -> None:
        self.rank, self.host, self.connection = rank, host, connection
        self.heard_seconds = 0.0
        self.left = False
        self.beats: list[Beat] = []
        self.moved_seconds: list[float] = []
        self._unread = self._unsent = b""

    def send(self, message: Message) -> None:
        """Send without waiting and without errors; a peer that is gone is noticed otherwise."""
        if not self.connection:
            return
        if not (self._unsent and isinstance(message, Beats)):  # a peer that does not read lacks few
            content = _encode(message)
            self._unsent += SIZE.pack(len(content)) + content
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[self.connection.send(self._unsent) :]

    def receive(self) -> list[Message]:
        """Return the messages that have arrived.

        Raises
        ------
        OSError
            If the connection is broken; ConnectionError, if the other side closed it.
        BadMessage
            If something else arrived.
        """
        assert self.connection
        try:
            received = self.connection.recv(2**16)
        except BlockingIOError:
            return []
        if not received:
            raise ConnectionResetError
        self._unread += received
        messages = []
        while len(self._unread) >= SIZE.size:
            (size,) = SIZE.unpack_from(self._unread)
            if size > MAX_BYTES:
                raise BadMessage(f"a message of {size:,} bytes")
            end = SIZE.size + size
            if len(self._unread) < end:
                break
            messages.append(_checked(self._unread[SIZE.size : end]))
            self._unread = self._unread[end:]
        return messages

    def update(self, beats: list[Beat], now: float) -> None:
        """Store a report."""
        self.heard_seconds = now
        if len(beats) != len(self.beats):
            self.beats, self.moved_seconds = beats, [now] * len(beats)
        for i, (before, beat) in enumerate(zip(self.beats, beats, strict=True)):
            if beat.progress != before.progress:
                self.moved_seconds[i] = now
        self.beats = beats

    def silent(self, now: float, limit_seconds: float, extra_seconds: float) -> bool:
        """Return whether the process has not answered for too long."""
        # Code that loads data may hold the interpreter's lock, so that no thread can answer.
        loading = not self.beats or self.beats[0].phase == START.name
        limit_seconds *= SLOW if loading else 1.0
        return now - self.heard_seconds > limit_seconds + extra_seconds

    def slow(self, i: int) -> bool:
        """Return whether its rank i may take longer than usual without progress."""
        beat = self.beats[i]
        return PHASES[beat.phase].slow or beat.progress < FIRST_STEP

    def stalled(self, i: int, now: float, limit_seconds: float) -> bool:
        """Return whether its rank i has made no progress for too long."""
        return now - self.moved_seconds[i] > limit_seconds * (SLOW if self.slow(i) else 1.0)

    def waits(self, i: int) -> bool:
        """Return whether its rank i is waiting for other ranks."""
        return bool(self.beats[i].waits) or PHASES[self.beats[i].phase].waits

    def fault(self, i: int, what: str, code: int) -> Fault:
        """Describe a fault of its rank i."""
        step, phase = self.beats[i][:2] if self.beats else (0, START.name)
        rank = self.rank * max(1, len(self.beats)) + i
        cause = f"rank {rank} on {self.host} {what}; last seen at step {step}, phase {phase}"
        return {
            "rank": rank,
            "host": self.host,
            "step": step,
            "phase": phase,
            "cause": cause,
            "exit_code": code,
        }


def _checked(content: bytes) -> Message:
    try:
        message: Message = _decode(content)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadMessage(str(error)) from None
    if isinstance(message, Beats) and not {beat.phase for beat in message.ranks} <= PHASES.keys():
        raise BadMessage("an unknown phase")
    return message
