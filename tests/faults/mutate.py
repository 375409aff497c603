"""Mutations of bytes, texts, JSON trees and binary headers; all draw from one `random.Random`."""

import copy
import gzip
import hashlib
import io
import json
import re
import zipfile
from random import Random
from typing import Any

import numpy as np

WORDS = [
    *(
        "",
        "-1",
        "0",
        "1e999",
        "nan",
        "-inf",
        "1_000",
        "0x1f",
        "²",
        "٣",
        "1,5",
        "1" * 5_000,
        "9" * 40,
    ),
    *("true", '""', '"', "'", "\0", "\r", "\n", "\r\n", ";", "\t", ",", "#", "=", ".", "-", "~"),
    *(
        "\x1b[2J\x1b]0;x\x07",
        "\u202eabc",
        "\ufeff",
        "é",
        "[" * 900,
        "{" * 900,
        "[" * 3_000,
        "(" * 500,
    ),
    *(
        "x" * 100_000,
        "$(touch bang)",
        "%s%n",
        "None",
        "1979-05-27T07:32:00Z",
        "[1]",
        "{a=1}",
        "../",
    ),
    *(str(2**31), str(2**63), str(2**64), str(10**18), "1e-400", "-0.0", "1e308", "0b101", "1e5"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 2**31, 2**63, 10**30, 1e308, -0.0),
    *(
        "",
        "²",
        "\x1b[2J",
        "x" * 10_000,
        "\0",
        "relu",
        "native",
        [],
        {},
        [[]],
        [{}],
        {"a": 1},
        [1] * 99,
    ),
    *(
        [0],
        [-1],
        [True],
        [10**12, 10**12],
        ["a", "a"],
        [10**9, 3],
        [float("nan")] * 4,
        {"config": {}},
    ),
]


def mutated(content: bytes, random: Random, other: bytes = b"") -> bytes:
    """Return `content` after one to three mutations of its bytes; one splices `other`."""
    other, data = other or content, bytearray(content)
    for _ in range(random.choice([1, 1, 2, 3])):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice([1, 2, 4, 8, 64, 1_000]))
        kind = random.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at:end] = random.randbytes(end - at)
        elif kind == 2:
            data[at:end] = bytes([random.choice([0, 1, 127, 128, 255])]) * (end - at)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:at] = data[at:end] * random.choice([1, 2, 100])
        elif kind == 6:
            data[at:] = other[random.randrange(len(other) + 1) :]
        else:
            data[at:at] = random.choice(WORDS).encode()
    return bytes(data)


def mutated_text(text: str, random: Random) -> str:
    """Return a text with one of its words or numbers replaced by a hostile one."""
    places = list(re.finditer(r"[\w.+-]+|\"[^\"]*\"|[,;=\n]", text))
    if not places:
        return random.choice(WORDS)
    place = random.choice(places)
    return text[: place.start()] + random.choice(WORDS) + text[place.end() :]


def mutated_tree(tree: Any, random: Random) -> Any:
    """Return a copy of a JSON tree with one node replaced, removed or doubled."""
    tree = copy.deepcopy(tree)
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            nodes.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    if not nodes:
        return random.choice(VALUES)
    node, key = random.choice(nodes)
    kind = random.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif kind == 2 and isinstance(node[key], int | float):
        node[key] = random.choice([-node[key], node[key] * 10**9, node[key] + 1, str(node[key])])
    else:
        node[key] = random.choice(VALUES)
    return tree


def npy(array: Any) -> bytes:
    """Return an array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with(
    header: str, data: bytes, version: tuple[int, int] = (1, 0), length: int = -1
) -> bytes:
    """Return a .npy file with any header, and any length of it announced."""
    text = header.encode("utf-8", "surrogateescape")
    size = len(text) if length < 0 else length
    width = 2 if version == (1, 0) else 4
    announced = (size % (1 << 8 * width)).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes(version) + announced + text + data


DTYPES = [
    *(
        "'<f8'",
        "'<f4'",
        "'|u1'",
        "'|b1'",
        "'<i8'",
        "'|V0'",
        "'|V8'",
        "'|O'",
        "'<U3'",
        "'|S0'",
        "'<c16'",
    ),
    *(
        "'<M8[s]'",
        "'<f16'",
        "'>f8'",
        "[('a', '<f8')]",
        "[('a', '|O')]",
        "('<f8', (3,))",
        "'f8,f8'",
        "1",
    ),
    *("[('a', [('b', '<f8', (2, 2))])]", "'<f3'", "''", "None", "'<f8'*99999", "{'names': []}"),
]
SHAPES = [
    *(
        "(30, 4)",
        "(4, 30)",
        "(120,)",
        "()",
        "(0, 4)",
        "(30, 0)",
        "(10**12, 2)",
        "(1000000000000, 2)",
    ),
    *(
        "(-30, -4)",
        "(30, -4)",
        "(9223372036854775808, 1)",
        f"({10**40}, 0)",
        "(True, 120)",
        "[30, 4]",
    ),
    *(
        "(30, 2, 2)",
        "(30.0, 4)",
        "None",
        "(" + "1, " * 100 + ")",
        f"({2**32}, {2**32})",
        "((30, 4),)",
    ),
]


def mutated_npy(content: bytes, random: Random) -> bytes:
    """Return a .npy file whose header is another one."""
    data = content[128:]
    if not random.randrange(8):
        return npy_with(
            random.choice(["-" * 5_000 + "1", "(" * 900, "[" * 9_000, "'" * 70_000]), data
        )
    header = (
        f"{{'descr': {random.choice([DTYPES[0], *DTYPES])}, 'fortran_order': "
        f"{random.choice(['False', 'True', '1'])}, "
        f"'shape': {random.choice([SHAPES[0], *SHAPES])}, }}"
    )
    version = random.choice([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
    length = random.choice([-1, -1, -1, 0, 60_000, 2**32 - 1])
    return npy_with(header + " " * 9 + "\n", data, version, length)


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def mutated_npz(members: dict[str, bytes], random: Random) -> bytes:
    """Return a .npz file with a mutated member, another compression, or a lie in its folder."""
    name = random.choice([*members])
    kind = random.randrange(6)
    members = dict(members)
    if kind < 2:
        members[name] = mutated_npy(members[name], random)
    elif kind == 2:
        members[name] = mutated(members[name], random)
    elif kind == 3:
        members["a" + random.choice(WORDS)[:60_000] + ".npy"] = members.pop(name)
    methods = [zipfile.ZIP_STORED, *[zipfile.ZIP_DEFLATED] * 4, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    data = bytearray(npz(members, random.choice(methods)))
    if kind > 3:  # a field of the central directory: flags, method, checksum, sizes
        at = data.rindex(b"PK\1\2") + random.choice([8, 10, 16, 20, 24, 28, 42])
        data[at] ^= random.choice([1, 8, 255])
    return bytes(data)


def idx(shape: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    """Return an IDX file with any header."""
    sizes = b"".join((size % 2**32).to_bytes(4, "big") for size in shape)
    return bytes([0, 0, kind, len(shape)]) + sizes + data


def mutated_idx(content: bytes, random: Random) -> bytes:
    """Return an IDX file whose header is another one."""
    shape = random.choice(
        [(30, 2, 2), (2**32 - 1,) * 3, (0, 2), (30,), (120,), (1,) * 8, (60, 2), ()]
    )
    return idx(shape, content[16:], random.choice([8, 8, 9, 11, 13, 14, 0, 255]))


def packed(content: bytes, random: Random) -> bytes:
    """Compress, then sometimes mutate what came of it."""
    data = gzip.compress(content)
    return mutated(data, random, content) if not random.randrange(3) else data


def split_model(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the header of a model file, its description, and the bytes of its tensors."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["ddpbp"]), content[8 + size :]


def join_model(header: dict[str, Any], description: Any, data: bytes, length: int = -1) -> bytes:
    """Return a model file with this description and the hash that belongs to it."""
    text = json.dumps(description)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    head = json.dumps({**header, "__metadata__": {"ddpbp": text, "sha256": sha256}}).encode()
    head += b" " * (-len(head) % 8)
    return (len(head) if length < 0 else length).to_bytes(8, "little") + head + data


def mutated_model(content: bytes, random: Random) -> bytes:
    """Return a model whose description or tensors are other ones, with a valid hash."""
    header, description, data = split_model(content)
    kind = random.randrange(8)
    if kind < 5:
        return join_model(header, mutated_tree(description, random), data)
    if kind == 5:
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        tensors = mutated_tree(tensors, random)
        return join_model(tensors if isinstance(tensors, dict) else {}, description, data)
    if kind == 6:
        length = random.choice([0, 2**63, 2**64 - 1, 10**8, 7, len(content), len(content) - 8])
        return join_model(header, description, data, length)
    return join_model(header, description, mutated(data, random))
