"""The processes of a world as the heartbeat sees them, connected to rank 0 by TCP."""

import contextlib
import fcntl
import json
import os
import socket
import struct
import time
from typing import Any, NamedTuple

from ddpbp.base.phases import PHASES, START
from ddpbp.comm.world import World

CONNECT_SECONDS = 5.0
SLOW = 10.0  # times the limit: for a slow phase, and for the first step
FIRST_STEP = 8  # the progress at which the first step is over

Fault = dict[str, Any]
"""rank, host, step, phase, cause, exit_code."""


class Beat(NamedTuple):
    """What one rank reports about itself: its pulse."""

    step: int
    phase: str
    progress: int
    waits: int


class Peer:
    """A process as another one sees it.

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
        When the last report came, by `time.monotonic`.
    moved_seconds : list of float
        When the progress of each rank last changed.
    left : bool
        Whether the process has announced its regular end.
    """

    def __init__(self, rank: int, host: str, connection: socket.socket | None) -> None:
        self.rank, self.host, self.connection = rank, host, connection
        self.heard_seconds = time.monotonic()
        self.left = False
        self.beats: list[Beat] = []
        self.moved_seconds: list[float] = []
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send without waiting and without errors; a peer that is gone is noticed otherwise."""
        if self.connection:
            with contextlib.suppress(OSError):
                self.connection.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived.

        Raises
        ------
        ConnectionError
            If the other side is gone.
        """
        assert self.connection
        try:
            received = self.connection.recv(2**16)
        except BlockingIOError:
            return []
        if not received:
            raise ConnectionResetError
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def update(self, beats: list[Beat], now: float) -> None:
        """Store a report."""
        self.heard_seconds = now
        if len(beats) != len(self.beats):
            self.beats, self.moved_seconds = beats, [now] * len(beats)
        for i, (before, beat) in enumerate(zip(self.beats, beats, strict=True)):
            if beat.progress != before.progress:
                self.moved_seconds[i] = now
        self.beats = beats

    def excuse(self, now: float) -> None:
        """Count silence and standstill from now on."""
        self.heard_seconds, self.moved_seconds = now, [now] * len(self.beats)

    def silent(self, now: float, limit_seconds: float, extra_seconds: float) -> bool:
        """Return whether the process has not answered for too long."""
        # Code that loads data may hold the interpreter's lock, so that no thread can answer.
        loading = not self.beats or self.beats[0].phase == START.name
        limit_seconds *= SLOW if loading else 1.0
        return now - self.heard_seconds > limit_seconds + extra_seconds

    def stalled(self, i: int, now: float, limit_seconds: float) -> bool:
        """Return whether its rank i has made no progress for too long."""
        beat = self.beats[i]
        slow = PHASES[beat.phase].slow or beat.progress < FIRST_STEP
        return now - self.moved_seconds[i] > limit_seconds * (SLOW if slow else 1.0)

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


def connect(world: World) -> tuple[list[Peer], list[str]]:
    """Connect every process to rank 0; all processes call this.

    Returns
    -------
    peers : list of Peer
        On rank 0 all other processes, elsewhere rank 0; without those that cannot be connected.
    notes : list of str
        To be printed once.
    """
    peers: list[Peer] = []
    if world.rank == 0:
        with socket.create_server(("", 0), backlog=world.world_size) as server:
            token = os.urandom(16).hex()
            world.broadcast(([*_addresses(), world.host], server.getsockname()[1], token))
            end = time.monotonic() + CONNECT_SECONDS + 1.0
            while len(peers) < world.world_size - 1 and time.monotonic() < end:
                server.settimeout(max(0.01, end - time.monotonic()))
                with contextlib.suppress(OSError, ValueError, KeyError):
                    peers.append(_accept(world, server, token))
    else:
        addresses, port, token = world.broadcast(None)
        for address in addresses:
            with contextlib.suppress(OSError, ValueError):
                peers.append(_call(world, (address, port), token, CONNECT_SECONDS / len(addresses)))
                break
    connected = world.all_gather_object((world.host, world.rank == 0 or bool(peers)))
    missing = [f"rank {rank} on {host}" for rank, (host, is_) in enumerate(connected) if not is_]
    if not missing:
        return peers, []
    return peers, [f"{', '.join(missing)} cannot reach rank 0 by TCP: a stall there goes unnoticed"]


def _accept(world: World, server: socket.socket, token: str) -> Peer:
    """Accept one connection.

    Raises
    ------
    ValueError
        If it is not from a process of this job.
    """
    connection, _ = server.accept()
    connection.settimeout(1.0)
    hello = json.loads(_read_line(connection))
    if hello["token"] != token:
        connection.close()
        raise ValueError
    connection.sendall(json.dumps({"token": token, "host": world.host}).encode() + b"\n")
    return Peer(hello["rank"], hello["host"], connection)


def _call(world: World, address: tuple[str, int], token: str, seconds: float) -> Peer:
    """Connect to rank 0.

    Raises
    ------
    ValueError
        If the rank 0 of another job answers.
    """
    connection = socket.create_connection(address, timeout=seconds)
    hello = {"token": token, "rank": world.rank, "host": world.host}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    answer = json.loads(_read_line(connection))
    if answer["token"] != token:
        connection.close()
        raise ValueError
    return Peer(0, answer["host"], connection)


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            raise ConnectionResetError
        line += byte
    return line


def _addresses() -> list[str]:
    """Return the IPv4 addresses of this host, the loopback address last."""
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(any_, 0x8915, request)  # SIOCGIFADDR
                addresses.append(socket.inet_ntoa(answer[20:24]))
    return sorted(addresses, key=lambda address: address.startswith("127."))
