"""Who does not belong to a job can neither end nor change it: its port, its shared memory."""

import os
import socket
import threading
import time

import pytest

from ddpbp.comm import handshake, shared_memory
from ddpbp.comm.handshake import HELLO, RANK, _Door, _introduce, _proof
from ddpbp.comm.peers import SIZE, BadMessage, Beat, Beats, Bye, Peer
from tests.faults import attack, stranger

SECRET = b"s" * 32


def test_a_run_under_attack_ends_with_its_bits(python, tmp_path):
    if reason := attack.missing():
        pytest.skip(reason)
    assert python("-m", "ddpbp", "train", *attack.SETTINGS, f"output={tmp_path}").returncode == 0
    outcome = attack.run(list(stranger.WAYS))
    assert outcome.faults == []
    assert f'"{outcome.theta_sha256}"' in (tmp_path / "result.json").read_text()


# --- connecting ----------------------------------------------------------------------------------


@pytest.fixture
def door(monkeypatch):
    """The address of a rank 0 that waits for one other rank, and its thread."""
    monkeypatch.setattr(handshake, "CONNECT_SECONDS", 20.0)
    with socket.create_server((handshake.LOOPBACK, 0)) as server:
        admitted = {}
        waiting = threading.Thread(target=lambda: admitted.update(_Door(2, SECRET).admit([server])))
        waiting.start()
        address = server.getsockname()
        yield address, admitted
        _introduce(address, SECRET, 1, time.monotonic() + 20).close()
        waiting.join()
    assert list(admitted) == [1]
    admitted[1].close()


def refused(guest: socket.socket) -> bool:
    try:
        return guest.recv(1) == b""
    except ConnectionResetError:
        return True


def hello(challenge: bytes, rank: int, secret: bytes = SECRET) -> bytes:
    number, theirs = RANK.pack(rank), bytes(32)
    return HELLO.pack(number, theirs, _proof(secret, challenge, number, theirs))


@pytest.mark.parametrize("what", ["another secret", "a replay", "rank 0", "no rank", "cut short"])
def test_rank_0_refuses(door, what):
    address, _ = door
    with socket.create_connection(address) as guest:
        guest.settimeout(20)
        challenge = guest.recv(32)
        content = {
            "another secret": hello(challenge, 1, b"t" * 32),
            "a replay": hello(bytes(32), 1),
            "rank 0": hello(challenge, 0),
            "no rank": hello(challenge, 2),
            "cut short": b"[1]\n",
        }[what]
        guest.sendall(content)
        if what == "cut short":
            guest.shutdown(socket.SHUT_WR)
        assert refused(guest)


def test_a_guest_that_is_slow_or_one_of_many_is_dropped(door, monkeypatch):
    monkeypatch.setattr(handshake, "GUESTS", 5)
    address, admitted = door
    guests = [socket.create_connection(address) for _ in range(20)]
    guests[0].settimeout(20)
    assert len(guests[0].recv(32)) == 32
    assert refused(guests[0])  # for the others; the last ones when their time is over
    monkeypatch.setattr(handshake, "HELLO_SECONDS", 0.1)
    with socket.create_connection(address, timeout=20) as slow:
        assert len(slow.recv(32)) == 32
        slow.sendall(b"[")
        assert refused(slow)
    assert admitted == {}
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("answer", [bytes(32), b"a", b""])
def test_a_rank_refuses_an_impostor(answer):
    with socket.create_server((handshake.LOOPBACK, 0)) as server:

        def pretend():
            guest, _ = server.accept()
            guest.sendall(bytes(32))
            guest.recv(HELLO.size)
            guest.sendall(answer)
            guest.recv(1)  # until the rank has given up
            guest.close()

        impostor = threading.Thread(target=pretend)
        impostor.start()
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the answer
            _introduce(server.getsockname(), SECRET, 1, time.monotonic() + 0.5)
        impostor.join()


def test_one_host_uses_loopback_and_several_the_way_between_them():
    own = handshake._addresses()
    assert handshake.LOOPBACK in own
    assert handshake._reached(own, set()) == [handshake.LOOPBACK]
    assert handshake._reached(own, own) == [handshake.LOOPBACK]


# --- messages ------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    theirs.setblocking(False)
    with mine, theirs:
        yield Peer(1, "h", mine), theirs


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b"[" * 100_000,
        b'{"type":"bye","more":' + b"[" * 100_000,
        b'{"type":"beats","ranks":[]}',
        b'{"type":"beats","ranks":[[1,"idle",2,0]]}',
        b'{"type":"beats","ranks":[["1","data",2,0]]}',
        b'{"type":"end","code":"0"}',
        b"\xff",
        b"",
    ],
)
def test_what_no_rank_sends_is_refused(pair, content):
    peer, other = pair
    other.setblocking(True)
    sender = threading.Thread(target=other.sendall, args=(SIZE.pack(len(content)) + content,))
    sender.start()
    with pytest.raises(BadMessage):
        until_refused(peer)
    sender.join()


def until_refused(peer: Peer) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        peer.receive()


def test_a_message_that_is_too_long_is_not_awaited(pair):
    peer, other = pair
    other.send(SIZE.pack(2**31))
    with pytest.raises(BadMessage, match="2,147,483,648 bytes"):
        peer.receive()


def test_a_peer_that_does_not_read_gets_whole_messages_later(pair):
    me, connection = pair
    other = Peer(0, "h", connection)
    beats = Beats([Beat(i, "data", i, 0) for i in range(50)])
    for _ in range(5_000):  # more than the system holds
        me.send(beats)
    assert len(me._unsent) < 5_000
    me.send(Bye())
    messages = []
    while Bye() not in messages:
        messages += other.receive()
        me.send(beats)
    assert all(message in (beats, Bye()) for message in messages)


# --- shared memory -------------------------------------------------------------------------------


def test_only_own_files_of_dead_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_memory, "YOUNG_SECONDS", -1.0)
    dead, random = 2**22 + 1, "0" * 32
    target = tmp_path / "target"
    target.touch()
    (tmp_path / f"ddpbp.{dead}.{random}").touch()
    kept = [tmp_path / f"ddpbp.{pid}.{random}" for pid in (os.getpid(), "²", "-1", "1_0", "9" * 99)]
    kept += [tmp_path / f"ddpbp.{dead}", tmp_path / f"ddpbp.{dead}.{random}.more", target]
    for path in kept:
        path.touch()
    link, folder = (tmp_path / f"ddpbp.{dead}.{'1' * i:0>32}" for i in (1, 2))
    link.symlink_to(target)
    folder.mkdir()
    if os.geteuid() == 0:
        foreign = tmp_path / f"ddpbp.{dead}.{'2' * 32}"
        foreign.touch()
        os.chown(foreign, attack.NOBODY, attack.NOBODY)
        kept.append(foreign)
    shared_memory.remove_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, link, folder}


def test_a_file_of_another_size_or_owner_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    file = os.open(path, os.O_RDWR)
    shared_memory._require_own(file, path, 4096)
    with pytest.raises(PermissionError, match="not the file of this run"):
        shared_memory._require_own(file, path, 8192)
    if os.geteuid() == 0:
        os.chown(path, attack.NOBODY, attack.NOBODY)
        with pytest.raises(PermissionError):
            shared_memory._require_own(file, path, 4096)
    os.close(file)
