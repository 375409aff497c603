"""Connect the heartbeats of a job to rank 0 by TCP, and nobody else.

All ranks know a secret, which MPI brought to them. Each side proves that it knows it by a code over
random bytes of the other, so the secret itself never travels here: neither who listens, nor who
takes the place of rank 0, learns anything of use. Until a connection is proven, rank 0 reads one
hello of fixed length from it and interprets nothing.
"""

import contextlib
import fcntl
import hmac
import os
import resource
import selectors
import socket
import struct
import time
from typing import NamedTuple

from ddpbp.comm.world import World

CONNECT_SECONDS = 10.0  # for all of it
HELLO_SECONDS = 2.0  # a connection that has not proven itself by then is dropped, ...
GUESTS = 128  # ... and so is the oldest, where there are more than these and the ranks
NAMED = 8  # ranks in a note
BACKLOG = 1024  # connections that the system holds until they are accepted

LOOPBACK = "127.0.0.1"
CHALLENGE_BYTES = 32
RANK = struct.Struct("!I")
HELLO = struct.Struct(f"!4s{CHALLENGE_BYTES}s32s")  # the rank, its challenge, its proof
SIOCGIFADDR = 0x8915

Connections = dict[int, socket.socket]
Address = tuple[str, int]


class _Invitation(NamedTuple):
    """What rank 0 sends to all ranks."""

    addresses: list[Address]
    secret: bytes
    callers: int  # only ranks below this may connect
    host: str


def connect(world: World) -> tuple[Connections, dict[int, str], list[str]]:
    """Connect every process to rank 0; all processes call this.

    Returns
    -------
    connections : dict of int to socket
        By rank: on rank 0 those to all others, elsewhere that to rank 0; without those that failed.
    hosts : dict of int to str
        The host of each of these ranks.
    notes : list of str
        To be printed once, by rank 0.
    """
    own = _addresses()
    every = (world.gather_object(own) if world.host_count > 1 else None) or []
    connections: Connections = {}
    if world.rank == 0:
        callers = _allow_files(world.world_size)
        with contextlib.ExitStack() as stack:
            servers = []
            for address in _reached(own, {address for other in every for address in other}):
                with contextlib.suppress(OSError):  # the note below reports it
                    server = socket.create_server((address, 0), backlog=BACKLOG)
                    servers.append(stack.enter_context(server))
            addresses, secret = [server.getsockname() for server in servers], os.urandom(32)
            invitation = world.broadcast(_Invitation(addresses, secret, callers, world.host))
            connections = _Door(callers, secret).admit(servers)
    else:
        invitation = world.broadcast(None)
        if world.rank < invitation.callers and (connection := _call(invitation, world.rank)):
            connections[0] = connection
    ranks = world.gather_object((world.host, bool(connections)))
    if ranks is None:
        return connections, {0: invitation.host}, []
    hosts = {rank: host for rank, (host, _) in enumerate(ranks)}
    missing = [rank for rank, (_, connected) in enumerate(ranks) if rank and not connected]
    for rank in missing:  # rank 0 may have admitted one that had just given up
        if half := connections.pop(rank, None):
            half.close()
    return connections, hosts, _notes(missing, hosts, invitation.callers)


def _notes(missing: list[int], hosts: dict[int, str], callers: int) -> list[str]:
    """Return what to print of the ranks that are not connected."""
    notes = []
    if failed := [f"rank {rank} on {hosts[rank]}" for rank in missing if rank < callers]:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        named = ", ".join(failed[:NAMED]) + more
        notes.append(f"{named} cannot reach rank 0 by TCP: a stall there goes unnoticed")
    if callers < len(hosts):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        notes.append(
            f"a stall of ranks {callers} to {len(hosts) - 1} goes unnoticed: rank 0 may open only "
            f"{limit:,} files; raise the hard limit on its host (ulimit -Hn)"
        )
    return notes


def _allow_files(count: int) -> int:
    """Raise the limit of open files where `count` connections would come near it.

    Returns
    -------
    int
        How many of `count` ranks can be connected; fewer only if the hard limit is too low.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < 2 * count + 2 * GUESTS:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return count
    open_ = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return min(count, max(1, limit - open_ - GUESTS))


def _proof(secret: bytes, *about: bytes) -> bytes:
    return hmac.digest(secret, b"".join(about), "sha256")


# --- rank 0 --------------------------------------------------------------------------------------


class _Guest(NamedTuple):
    """A connection that has not proven itself."""

    challenge: bytes
    end_seconds: float
    hello: bytearray


class _Door:
    """Admits the ranks 1 to `callers` - 1, all at once: none has to wait for a slow guest."""

    def __init__(self, callers: int, secret: bytes) -> None:
        self._callers, self._secret = callers, secret
        self._guests: dict[socket.socket, _Guest] = {}  # the oldest first
        self._ranks: Connections = {}

    def admit(self, servers: list[socket.socket]) -> Connections:
        """Return the connections of all other ranks, or of those that came in time."""
        end = time.monotonic() + CONNECT_SECONDS + 1.0
        with selectors.DefaultSelector() as self._selector:
            for server in servers:
                server.setblocking(False)
                self._selector.register(server, selectors.EVENT_READ, self._welcome)
            while servers and len(self._ranks) < self._callers - 1:
                if (now := time.monotonic()) > end:
                    break
                for guest in [g for g, state in self._guests.items() if state.end_seconds < now]:
                    self._drop(guest)
                for key, _ in self._selector.select(0.1):
                    # One that was dropped since may still be listed.
                    if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                        key.data(key.fileobj)
            for guest in list(self._guests):
                self._drop(guest)
        return self._ranks

    def _welcome(self, server: socket.socket) -> None:
        try:
            guest, _ = server.accept()
        except OSError:  # it is gone already, or there are too many open files
            guest = None
        if self._guests and (guest is None or len(self._guests) >= GUESTS + self._callers):
            self._drop(next(iter(self._guests)))
        if guest is None:
            return
        guest.setblocking(False)
        challenge = os.urandom(CHALLENGE_BYTES)
        self._guests[guest] = _Guest(challenge, time.monotonic() + HELLO_SECONDS, bytearray())
        self._selector.register(guest, selectors.EVENT_READ, self._hear)
        with contextlib.suppress(OSError):
            guest.send(challenge)

    def _hear(self, guest: socket.socket) -> None:
        challenge, _, hello = self._guests[guest]
        try:
            received = guest.recv(HELLO.size - len(hello))
        except OSError:
            received = b""
        hello += received
        if received and len(hello) < HELLO.size:
            return
        admitted = self._rank(challenge, bytes(hello)) if received else None
        if admitted is None:
            self._drop(guest)
            return
        rank, answer = admitted
        self._selector.unregister(guest)
        del self._guests[guest]
        if earlier := self._ranks.pop(rank, None):  # the rank gave up on it and called again
            earlier.close()
        self._ranks[rank] = guest
        with contextlib.suppress(OSError):
            guest.send(answer)

    def _rank(self, challenge: bytes, hello: bytes) -> tuple[int, bytes] | None:
        """Return the rank that sent a hello and the answer to it; None if no rank did."""
        number, theirs, proof = HELLO.unpack(hello)
        if not hmac.compare_digest(proof, _proof(self._secret, challenge, number, theirs)):
            return None
        (rank,) = RANK.unpack(number)
        return (rank, _proof(self._secret, theirs)) if 0 < rank < self._callers else None

    def _drop(self, guest: socket.socket) -> None:
        self._selector.unregister(guest)
        del self._guests[guest]
        guest.close()


# --- the other ranks -----------------------------------------------------------------------------


def _call(invitation: _Invitation, rank: int) -> socket.socket | None:
    """Return a connection to rank 0, or None if there is none in time."""
    addresses = invitation.addresses
    end = time.monotonic() + CONNECT_SECONDS
    while addresses:
        for address in addresses:
            now = time.monotonic()
            if now > end:
                return None
            try:
                until = min(end, now + CONNECT_SECONDS / (2 * len(addresses)))
                return _introduce(address, invitation.secret, rank, until)
            except OSError:  # not reachable, dropped in a crowd, or not rank 0
                time.sleep(0.05)
    return None


def _introduce(address: Address, secret: bytes, rank: int, end: float) -> socket.socket:
    """Connect to an address and exchange proofs.

    Raises
    ------
    OSError
        If there is nobody, or not rank 0 of this job.
    """
    connection = socket.create_connection(address, timeout=max(0.01, end - time.monotonic()))
    try:
        number, mine = RANK.pack(rank), os.urandom(CHALLENGE_BYTES)
        challenge = _receive(connection, CHALLENGE_BYTES, end)
        proof = _proof(secret, challenge, number, mine)
        connection.sendall(HELLO.pack(number, mine, proof))
        if not hmac.compare_digest(_receive(connection, 32, end), _proof(secret, mine)):
            raise ConnectionRefusedError
    except BaseException:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket, count: int, end: float) -> bytes:
    """Receive exactly `count` bytes before `end`."""
    received = b""
    while len(received) < count:
        connection.settimeout(max(0.01, end - time.monotonic()))
        if time.monotonic() > end:
            raise TimeoutError
        if not (more := connection.recv(count - len(received))):
            raise ConnectionResetError
        received += more
    return received


# --- addresses -----------------------------------------------------------------------------------


def _addresses() -> set[str]:
    """Return the IPv4 addresses of this host."""
    addresses = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(any_, SIOCGIFADDR, request)
                addresses.add(socket.inet_ntoa(answer[20:24]))
    return addresses


def _reached(own: set[str], every: set[str]) -> list[str]:
    """Return the addresses of this host at which it and the others reach it.

    Parameters
    ----------
    own, every : set of str
        The addresses of this host, and of all; none if this host is alone.
    """
    reached = set()
    for address in every - own:
        route = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with route, contextlib.suppress(OSError):
            route.connect((address, 9))  # sends nothing: the system chooses the way
            reached.add(route.getsockname()[0])
    return sorted(reached) or [LOOPBACK]
