"""What the tests of the command share: running it, and safetensors files. Python's standard library only."""

import array
import json
import math
import os
import struct
import subprocess
from pathlib import Path

ELAPID = os.environ["ELAPID"]
SOURCE = Path(os.environ["ELAPID_SOURCE_DIR"])
STORYTELLER = SOURCE / "models" / "storyteller"
DATA = SOURCE / "tests" / "data"
CONFORMANCE = DATA / "conformance"
TINY = CONFORMANCE / "mamba2_default"

CODES = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "U8": "B", "BOOL": "B"}


def run(*arguments, stdin=b"", env=None, timeout=300):
    """The finished process of `elapid ARGUMENTS`, its output as bytes."""
    return subprocess.run([ELAPID, *map(str, arguments)], input=stdin, capture_output=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


class Array:
    """A dense array: shape and flat values."""

    def __init__(self, dtype, shape, values):
        self.dtype, self.shape, self.values = dtype, list(shape), values
        assert len(values) == math.prod(shape)

    def row(self, *index):
        """The values of one index into the leading dimensions."""
        size = math.prod(self.shape[len(index):])
        at = 0
        for i, n in zip(index, self.shape):
            at = at * n + i
        return list(self.values[at * size:(at + 1) * size])


def i64(rows):
    return Array("I64", [len(rows), len(rows[0])], [x for row in rows for x in row])


def read_safetensors(path):
    data = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    out = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        values = array.array(CODES[t["dtype"]])
        values.frombytes(data[8 + n + begin:8 + n + end])
        out[name] = Array(t["dtype"], t["shape"], values)
    return out


def write_safetensors(path, arrays):
    header, blobs, at = {}, [], 0
    for name, a in arrays.items():
        blob = array.array(CODES[a.dtype], a.values).tobytes()
        header[name] = {"dtype": a.dtype, "shape": a.shape, "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    write_raw(path, header, b"".join(blobs))


def write_raw(path, header, data, length=None):
    """Any header, right or wrong, over any data."""
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def read_header(path):
    data = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + n]), data[8 + n:]
