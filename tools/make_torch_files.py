#!/usr/bin/env python3
"""Writes tests/data/torch: files as torch.save writes them, and what is in them (expected.json).

    make_torch_files.py SUITE

Needs no torch: Python's own pickler writes stand-ins of torch's classes under torch's names. Three files are really
torch's, from SUITE/state_spaces; what they hold is found by Python's own unpickler and zipfile.
"""

import collections
import io
import json
import pathlib
import pickle
import shutil
import struct
import sys
import types
import zipfile

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/torch"
REAL = {"torch_zip.bin": "ss_mamba2", "torch_zip_f16.bin": "ss_mamba1_fp16", "torch_legacy.bin": "ss_mamba1_legacy_format"}
DTYPES = {"Double": ("f64", 8), "Float": ("f32", 4), "Half": ("f16", 2), "BFloat16": ("bf16", 2), "Long": ("i64", 8),
          "Int": ("i32", 4), "Byte": ("u8", 1), "Char": ("i8", 1), "Bool": ("bool", 1)}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


# ---- Stand-ins of torch's names, found by the pickler in modules of these names.

def module(name):
    return sys.modules.setdefault(name, types.ModuleType(name))


def named(name):
    """Puts a class or function where pickles look for `name`."""
    folder, _, last = name.rpartition(".")

    def place(thing):
        thing.__module__, thing.__name__, thing.__qualname__ = folder, last, last
        setattr(module(folder), last, thing)
        return thing

    return place


class Storage:
    def __init__(self, key, data, part=None):
        self.key, self.data, self.part = str(key), data, part


for kind in DTYPES:
    named(f"torch.{kind}Storage")(type(kind, (Storage,), {}))
named("torch.storage.UntypedStorage")(type("UntypedStorage", (Storage,), {}))


class DType:
    """Pickled by name, as torch's dtypes are."""

    def __init__(self, name):
        self.name, self.__module__ = name, "torch"
        setattr(module("torch"), name, self)

    def __reduce__(self):
        return self.name


DTYPE_NAMES = {"float64": "Double", "float32": "Float", "int64": "Long"}
for name in DTYPE_NAMES:
    DType(name)


@named("torch._utils._rebuild_tensor")
def rebuild_tensor(*arguments):
    return Tensor("torch._utils._rebuild_tensor", *arguments)


@named("torch._utils._rebuild_tensor_v2")
def rebuild_tensor_v2(*arguments):
    return Tensor("torch._utils._rebuild_tensor_v2", *arguments)


@named("torch._utils._rebuild_tensor_v3")
def rebuild_tensor_v3(*arguments):
    return Tensor("torch._utils._rebuild_tensor_v3", *arguments)


@named("torch._utils._rebuild_parameter")
def rebuild_parameter(*arguments):
    return Tensor("torch._utils._rebuild_parameter", *arguments)


class Tensor:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        folder, _, last = self.function.rpartition(".")
        return getattr(module(folder), last), self.arguments


def tensor(storage, shape, stride=None, offset=0):
    if stride is None:
        stride, step = [], 1
        for dim in reversed(shape):
            stride.insert(0, step)
            step *= max(dim, 1)
    return Tensor("torch._utils._rebuild_tensor_v2", storage, offset, tuple(shape), tuple(stride), False,
                  collections.OrderedDict())


def storage(kind, key, count, seed):
    size = DTYPES[kind][1]
    data = bytes((seed * 31 + 7 * i + i // 251) % (2 if kind == "Bool" else 251) for i in range(count * size))
    return getattr(module("torch"), kind + "Storage")(key, data)


class Pickler(pickle.Pickler):
    def __init__(self, file, protocol, is_legacy):
        super().__init__(file, protocol)
        self.is_legacy, self.storages = is_legacy, {}

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        self.storages[thing.key] = thing
        kind = type(thing).__name__.removesuffix("Storage")
        count = len(thing.data) // DTYPES.get(kind, ("", 1))[1]
        return ("storage", type(thing), thing.key, "cpu", count) + ((thing.part,) if self.is_legacy else ())


# ---- The two formats.

def write_zip(thing, protocol=2, root="archive", pad=64):
    text = io.BytesIO()
    pickler = Pickler(text, protocol, False)
    pickler.dump(thing)
    members = [("data.pkl", text.getvalue()), ("byteorder", b"little"), ("version", b"3\n")]
    members[1:1] = [("data/" + key, s.data) for key, s in pickler.storages.items()]
    return stored_zip([(f"{root}/{name}", data) for name, data in members], pad)


def stored_zip(members, pad=64):
    """As torch lays it out: data at multiples of `pad`, sizes after the data, zip64 records always."""
    out, directory = b"", b""
    for name, data in members:
        name, begin = name.encode(), len(out)
        fill = -(begin + 30 + len(name) + 4) % pad if pad else 0
        extra = struct.pack("<HH", 0x4246, fill) + b"Z" * fill
        out += struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra + data
        crc = zipfile.crc32(data)
        out += struct.pack("<IIII", 0x08074B50, crc, len(data), len(data))
        directory += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 0, 0, 0x808, 0, 0, 0, crc, len(data), len(data), len(name),
                                 0, 0, 0, 0, 0, begin) + name
    begin, end, count = len(out), len(out) + len(directory), len(members)
    out += directory + struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 0x31E, 45, 0, 0, count, count, len(directory), begin)
    out += struct.pack("<IIQI", 0x07064B50, 0, end, 1)
    return out + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), begin, 0)


def write_legacy(thing, protocol=2):
    out, text = io.BytesIO(), io.BytesIO()
    pickler = Pickler(text, protocol, True)
    pickler.dump(thing)
    for head in (MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}):
        pickle.dump(head, out, protocol)
    out.write(text.getvalue())
    pickle.dump(sorted(pickler.storages), out, protocol)
    for _, s in sorted(pickler.storages.items()):
        out.write(struct.pack("<q", len(s.data) // DTYPES[type(s).__name__.removesuffix("Storage")][1]) + s.data)
    return out.getvalue()


# ---- What is written.

def state_dict():
    """Every dtype; tied, strided, scalar and empty tensors; a parameter; module versions, as state_dict() leaves them."""
    tensors = collections.OrderedDict()
    for i, (kind, (dtype, _)) in enumerate(DTYPES.items()):
        tensors[f"all.{dtype}"] = tensor(storage(kind, i, 6, i), (2, 3))
    shared = storage("Float", 20, 24, 20)
    tensors["embedding.weight"] = tensor(shared, (6, 4))
    tensors["head.weight"] = tensor(shared, (6, 4))
    tensors["tail"] = tensor(shared, (3,), offset=21)
    tensors["transposed"] = tensor(shared, (4, 6), (1, 4))
    tensors["every.other"] = tensor(shared, (2, 3, 2), (12, 4, 2), 1)
    tensors["expanded"] = tensor(shared, (3, 2), (0, 1), 5)
    tensors["permuted.4d"] = tensor(shared, (2, 3, 2, 2), (1, 8, 2, 4))
    tensors["column"] = tensor(shared, (6, 1), (4, 9))
    tensors["row"] = tensor(shared, (1, 4), (77, 1), 4)
    tensors["scalar"] = tensor(shared, (), offset=23)
    tensors["empty"] = tensor(storage("Float", 21, 0, 0), (0,))
    tensors["empty.inside"] = tensor(shared, (3, 0, 2))
    tensors["parameter"] = Tensor("torch._utils._rebuild_parameter", tensor(storage("BFloat16", 22, 4, 22), (4,)), True,
                                  collections.OrderedDict())
    tensors["oldest"] = Tensor("torch._utils._rebuild_tensor", shared, 4, (2, 2), (2, 1))
    tensors["steps"] = 12
    tensors["\u540d\u524d"] = tensor(storage("Half", 23, 3, 23), (3,))
    tensors._metadata = collections.OrderedDict({"": {"version": 1}, "norm": {"version": 2}})
    return tensors


def untyped():
    data = getattr(module("torch.storage"), "UntypedStorage")("0", bytes(range(16)))
    return {"newest": Tensor("torch._utils._rebuild_tensor_v3", data, 1, (3,), (1,), False, collections.OrderedDict(),
                             getattr(module("torch"), "float32"))}


def trained():
    inner = collections.OrderedDict(w=tensor(storage("Float", 0, 4, 1), (2, 2)))
    moment = tensor(storage("Float", 1, 4, 2), (2, 2))
    return {"epoch": 3, "loss": [0.5, 0.25], "name": "run", "big": 1 << 80, "nothing": None, "flag": True, "bytes": "x",
            "optimizer": {"state": {0: {"exp_avg": moment}}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]},
            "model": inner}


def parts():
    whole = storage("Float", 5, 8, 5)
    part = type(whole)("5", whole.data, ("6", 2, 4))
    return {"part": tensor(part, (2, 2))}


class Call:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        folder, _, last = self.name.rpartition(".")
        return getattr(__import__(folder), last), self.arguments


# ---- What is expected: found here a second way, by Python's unpickler over stand-ins that only remember.

class Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.kinds = {}

    def find_class(self, folder, name):
        if (folder, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if folder in ("torch", "torch._utils", "torch.storage") and hasattr(module(folder), name):
            return getattr(module(folder), name)
        raise pickle.UnpicklingError(f"{folder}.{name}")

    def persistent_load(self, identity):
        self.kinds[identity[2]] = identity[1].__name__.removesuffix("Storage")
        return identity


def elements(shape, stride, offset):
    if not shape:
        yield offset
        return
    for i in range(shape[0]):
        yield from elements(shape[1:], stride[1:], offset + i * stride[0])


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value:016x}"


def describe(thing, data_of):
    while thing.function.endswith("_parameter"):
        thing = thing.arguments[0]
    identity, offset, shape, stride = thing.arguments[:4]
    kind = identity[1].__name__.removesuffix("Storage")
    if kind == "Untyped":
        kind = DTYPE_NAMES[thing.arguments[6].name]
    dtype, size = DTYPES[kind]
    data = data_of[identity[2]]
    if len(identity) == 6 and identity[5]:
        data = data[identity[5][1] * size:][:identity[5][2] * size]
    values = b"".join(data[i * size:(i + 1) * size] for i in elements(shape, stride, offset))
    return {"dtype": dtype, "shape": list(shape), "fnv1a": fnv(values)}


def decode(path):
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        thing = Unpickler(io.BytesIO(archive.read(name))).load()
        prefix = name.removesuffix("data.pkl") + "data/"
        data_of = {n.removeprefix(prefix): archive.read(n) for n in archive.namelist() if n.startswith(prefix)}
    else:
        file = io.BytesIO(path.read_bytes())
        assert pickle.load(file) == MAGIC and pickle.load(file) == VERSION and pickle.load(file)["little_endian"]
        reader = Unpickler(file)
        thing = reader.load()
        data_of = {}
        for key in pickle.load(file):
            (count,) = struct.unpack("<q", file.read(8))
            data_of[key] = file.read(count * DTYPES[reader.kinds[key]][1])
        assert not file.read()
    thing = thing.get("model", thing)
    return {name: describe(value, data_of) for name, value in thing.items() if isinstance(value, Tensor)}


def main():
    suite = pathlib.Path(sys.argv[1]) / "state_spaces"
    OUT.mkdir(parents=True, exist_ok=True)
    for name, case in REAL.items():
        shutil.copyfile(suite / case / "pytorch_model.bin", OUT / name)
    for protocol in (2, 3, 4, 5):
        (OUT / f"zip_protocol{protocol}.bin").write_bytes(write_zip(state_dict(), protocol))
    for protocol in (2, 4):
        (OUT / f"legacy_protocol{protocol}.bin").write_bytes(write_legacy(state_dict(), protocol))
    (OUT / "zip_trained.bin").write_bytes(write_zip(trained(), root="some name"))
    (OUT / "legacy_parts.bin").write_bytes(write_legacy(parts()))
    (OUT / "zip_untyped.bin").write_bytes(write_zip(untyped()))
    expected = {path.name: decode(path) for path in sorted(OUT.glob("*.bin")) if not path.name.startswith("bad_")}
    for name, call in {"bad_os_system.bin": Call("os.system", "true"), "bad_eval.bin": Call("builtins.eval", "1")}.items():
        (OUT / name).write_bytes(write_zip({"w": call}))
    (OUT / "bad_legacy_os_system.bin").write_bytes(write_legacy({"w": Call("os.system", "true")}))
    files = (f" {json.dumps(name)}: {{\n" + ",\n".join(f"  {json.dumps(t)}: {json.dumps(d)}" for t, d in sorted(tensors.items())) + "}"
             for name, tensors in expected.items())
    (OUT / "expected.json").write_text("{\n" + ",\n".join(files) + "\n}\n")


if __name__ == "__main__":
    main()
