"""Bad files and full disks for the `twinkle` program: each must end in one clean line, in time, and leave nothing.

The letters and numbers before the checks are a catalogue of inputs that broke other loaders: S safetensors, P paths
and shard indices, J JSON, C configs and tokenizers, T tensors, A programs and their state.
"""

import base64
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import warnings
import zipfile

import torch
from harness import (
    SECONDS,
    SEED,
    TWINKLE,
    WORK,
    check,
    compare,
    goldens,
    new_folder,
    ok,
    refuse,
    save_random_model,
    save_tokenizer,
    survive,
    write_config,
)
from safetensors.torch import load_file

# ---- bad files ----------------------------------------------------------------------------------------------------


class BadFolders:
    """Copies of one good folder, each with one thing wrong."""

    def __init__(self):
        self.good = new_folder("bad-good")
        self.model = save_random_model(self.good, n_layer=1)
        self.tensors = {"input_ids": torch.tensor([[1, 2, 3, 4, 5]])}
        self.expected = goldens.reference_outputs(self.model, self.tensors, gradients=False)["logits"]
        self.inputs = WORK / "bad-in.safetensors"
        goldens.write_tensors(self.inputs, self.tensors)
        self.folder = WORK / "bad"
        self.out = WORK / "bad-out.safetensors"
        data = (self.good / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        self.header, self.data, self.file = json.loads(data[8 : 8 + length]), data[8 + length :], data

    def fresh(self):
        if self.folder.is_symlink() or self.folder.is_file():
            self.folder.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.good, self.folder)
        self.out.unlink(missing_ok=True)

    def expect(self, outcome):
        args = ("forward", self.folder, "--in", self.inputs, "--out", self.out)
        if outcome == "refuse":
            refuse(*args, before=limit_memory)
            assert not self.out.exists(), "an output was written"
        elif outcome == "survive":
            survive(*args, before=limit_memory)
        else:
            ok(*args, before=limit_memory)
            compare(load_file(self.out), {"logits": self.expected})

    def weights(self, name, data, outcome="refuse"):
        """A weights file of these bytes."""
        with check(f"weights: {name}"):
            self.fresh()
            (self.folder / "model.safetensors").write_bytes(data)
            self.expect(outcome)

    def with_header(self, name, change, outcome="refuse", data=None):
        """A weights file whose header was changed: change(header) gives the new one, or its text."""
        header = change(json.loads(json.dumps(self.header)))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.weights(name, struct.pack("<Q", len(text)) + text + (self.data if data is None else data), outcome)

    def config(self, name, change, outcome="refuse"):
        """A config.json of this text, or changed by these keys."""
        with check(f"config: {name}"):
            self.fresh()
            path = self.folder / "config.json"
            if isinstance(change, bytes):
                path.write_bytes(change)
            else:
                path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
            self.expect(outcome)


def limit_memory():
    """A wild allocation must fail in the process and not take the machine along (a sanitizer's shadow needs more)."""
    if "ASAN_OPTIONS" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


def bad_weights():
    """users.md 2b, S, and what cli.md names beside."""
    bad = BadFolders()
    name = "transformer.wte.weight"
    shape = bad.header[name]["shape"]
    begin, end = bad.header[name]["data_offsets"]

    for label, data in {
        "S1 empty": b"",
        "S2 one byte": b"\x01",
        "S2 seven bytes": b"\x10" + bytes(6),
        "S3 length 0": bytes(8),
        "S3 length 0 with data": bytes(64),
        "S4 length past the end": struct.pack("<Q", len(bad.file)) + bad.file[8:],
        "S5 length 2^63": struct.pack("<Q", 1 << 63) + bad.file[8:],
        "S5 length 2^64-1": b"\xff" * 8 + bad.file[8:],
        "S5 8 + length wraps": struct.pack("<Q", (1 << 64) - 8) + bad.file[8:],
        "S36 a zip": b"PK\x03\x04" + bad.file[4:],
        "S36 a pickle": b"\x80\x02}q\x00." + bytes(40),
    }.items():
        bad.weights(label, data)
    with check("weights: S6 a header of 200 MB in a sparse file"):
        bad.fresh()
        with (bad.folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", 200_000_000) + b"{")
            file.truncate(300_000_000)
        bad.expect("refuse")
    for label, text in {
        "S7 header begins with a space and [": b' ["a"]',
        "S8 header is { alone": b"{",
        "S9 a byte 0xff": b'{"\xff":1}',
        "S9 an overlong slash": b'{"\xc0\xaf":1}',
        "S11 text after the end": json.dumps(bad.header).encode() + b" x",
        "header is null": b"null",
        "header is a number": b"12",
        "header {}": b"{}",
        "deep nesting": b'{"a":' * 200_000,
    }.items():
        bad.with_header(label, lambda header, text=text: text)
    bad.with_header(
        "S9 a lone surrogate in an unknown name",
        lambda h: json.dumps(h).encode()[:-1] + b',"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "survive",
    )
    bad.with_header("padding after the header", lambda h: json.dumps(h).encode() + b"    ", "work")

    def entry(**changes):
        return lambda header: {**header, name: {**header[name], **changes}}

    rows = shape[0] * shape[1]
    for label, changes in {
        "S12 shape whose product wraps": {"shape": [2, 18446744073709551614]},
        "S13 bytes wrap": {"shape": [2, 9223372036854775807]},
        "S14 zero hides an overflow": {"shape": [4294967296, 4294967296, 0]},
        "S15 negative dimension": {"shape": [-shape[0], -shape[1]]},
        "S15 1.5": {"shape": [1.5, rows]},
        "S15 a string": {"shape": ["61", shape[1]]},
        "S15 true": {"shape": [True, rows]},
        "S15 null": {"shape": None},
        "S15 nested": {"shape": [shape]},
        "S17 end before begin": {"data_offsets": [end, begin]},
        "S18 end past the data": {"data_offsets": [begin + 4, len(bad.data) + 4]},
        "S19 negative offset": {"data_offsets": [-4, end]},
        "S19 float offset": {"data_offsets": [begin + 0.5, end + 0.5]},
        "S19 offset 2^64": {"data_offsets": [begin, 2**64 + end]},
        "S19 one offset": {"data_offsets": [begin]},
        "S20 too few bytes": {"data_offsets": [begin, end - 4]},
        "S20 other shape": {"shape": [shape[0] + 1, shape[1]]},
        "transposed": {"shape": shape[::-1]},
        "S28 unknown dtype": {"dtype": "F31"},
        "S28 dtype with an escape": {"dtype": "\x1b[31mF32\n"},
        "S28 dtype a number": {"dtype": 32},
        "integer weights": {"dtype": "I32"},
        "S16 a thousand dimensions": {"shape": [*shape, *[1] * 998]},
        "S29 null offsets": {"data_offsets": None},
    }.items():
        bad.with_header(label, entry(**changes))
    for key in ("dtype", "shape", "data_offsets"):
        bad.with_header(f"S29 no {key}", lambda h, key=key: {**h, name: {k: v for k, v in h[name].items() if k != key}})
    other = next(n for n in bad.header if n not in (name, "__metadata__") and bad.header[n]["shape"] == [14])
    twin = next(n for n in bad.header if n not in (name, other, "__metadata__") and bad.header[n]["shape"] == [14])
    bad.with_header("S21 overlap", lambda h: {**h, other: {**h[other], "data_offsets": h[twin]["data_offsets"]}})
    bad.with_header(
        "S21 an unknown tensor overlaps", lambda h: {**h, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    )
    moved = {
        n: {**e, "data_offsets": [o + 8 if o >= end else o for o in e["data_offsets"]]} if n != "__metadata__" else e
        for n, e in bad.header.items()
    }
    moved[name] = bad.header[name]
    bad.with_header("S22 a hole", lambda h: moved, data=bad.data[:end] + bytes(8) + bad.data[end:])
    bad.with_header("S23 a tail of 4 bytes", lambda h: h, "survive", data=bad.data + bytes(4))
    bad.with_header(
        "S24 100000 names on one range",
        lambda h: {**h, **{f"x{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(100_000)}},
    )
    text = json.dumps(bad.header).encode()
    bad.with_header(
        "S26 a name twice", lambda h: text[:-1] + b"," + json.dumps({other: bad.header[other]}).encode()[1:]
    )
    bad.with_header(
        "S27 a key twice in one entry", lambda h: text.replace(b'"dtype"', b'"dtype":"F32","dtype"', 1), "survive"
    )
    bad.with_header("S30 an unknown key in an entry", entry(more=[1, {"a": None}]), "survive")
    bad.with_header("S31 metadata that is no text", lambda h: {**h, "__metadata__": {"format": 3}}, "survive")
    bad.with_header(
        "S32 names: empty, long, with NUL",
        lambda h: {
            **h,
            **{
                n: {"dtype": "F32", "shape": [0], "data_offsets": [len(bad.data)] * 2}
                for n in ("", "n" * 1_000_000, "a\0b")
            },
        },
        "survive",
    )
    for pad in (1, 2, 3, 5, 7):
        header = json.dumps(bad.header).encode()
        odd = header + b" " * ((pad - len(header)) % 8)
        bad.with_header(f"S33 data begins at byte {(8 + len(odd)) % 8} of 8", lambda h, odd=odd: odd, "work")
    positions = sorted(random.Random(SEED).sample(range(1, len(bad.file)), 20)) + [len(bad.file) - 1]
    for cut in positions:
        bad.weights(f"S34 cut after {cut} of {len(bad.file)} bytes", bad.file[:cut])
    for label, value in {"A100 NaN": math.nan, "A100 infinite": math.inf, "A100 minus infinite": -math.inf}.items():
        data = bytearray(bad.data)
        data[begin + 40 : begin + 44] = struct.pack("<f", value)
        bad.with_header(f"{label} weight", lambda h: h, data=bytes(data))
    bad.with_header(
        "T86 a tensor is missing", lambda h: {**{n: e for n, e in h.items() if n != other}, "unknown": h[other]}
    )
    with check("weights: no weights at all"):
        bad.fresh()
        (bad.folder / "model.safetensors").unlink()
        bad.expect("refuse")
    with check("weights: P38 a folder in the file's place"):
        bad.fresh()
        (bad.folder / "model.safetensors").unlink()
        (bad.folder / "model.safetensors").mkdir()
        bad.expect("refuse")
    with check("weights: P38 a FIFO in the file's place"):
        bad.fresh()
        (bad.folder / "model.safetensors").unlink()
        os.mkfifo(bad.folder / "model.safetensors")
        bad.expect("refuse")
    with check("weights: P38 /dev/zero in the file's place"):
        bad.fresh()
        (bad.folder / "model.safetensors").unlink()
        (bad.folder / "model.safetensors").symlink_to("/dev/zero")
        bad.expect("refuse")
    with check("weights: the same checks stand before --in"):
        bad.fresh()
        for data in (b"", b"\xff" * 40, bad.inputs.read_bytes()[:-5]):
            broken = WORK / "broken-in.safetensors"
            broken.write_bytes(data)
            refuse("forward", bad.good, "--in", broken, "--out", bad.out)


def bad_index():
    """users.md 2b, P."""
    bad = BadFolders()
    names = [name for name in bad.header if name != "__metadata__"]
    shard = "model-00001-of-00001.safetensors"

    def index(label, weight_map, outcome="refuse", prepare=None):
        with check(f"index: {label}"):
            bad.fresh()
            (bad.folder / "model.safetensors").rename(bad.folder / shard)
            if prepare:
                prepare(bad.folder)
            text = (
                weight_map
                if isinstance(weight_map, bytes)
                else json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
            )
            (bad.folder / "model.safetensors.index.json").write_bytes(text)
            bad.expect(outcome)

    every = dict.fromkeys(names, shard)
    shutil.copy(bad.good / "model.safetensors", WORK / "outside.safetensors")
    index("as it should be", every, "work")
    for path in (
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        str(WORK / "outside.safetensors"),
        "/etc/passwd",
        "C:\\outside.safetensors",
        "..\\outside.safetensors",
        "\\\\host\\x",
        "NUL",
        "",
        ".",
        "..",
        "x\0y",
        "is-not-there.safetensors",
        "no\nsuch\x1b[31m",
    ):
        index(f"P37 shard {path!r}", dict.fromkeys(names, path))
    index("P37 one shard outside", {**every, names[0]: "../outside.safetensors"})
    index("P39 a tensor that the shard lacks", {**every, "transformer.nonsense": shard}, "survive")
    index("P39 a tensor that is in no shard", {n: shard for n in names[1:]}, "survive")
    index("P40 the index as its own shard", dict.fromkeys(names, "model.safetensors.index.json"))
    index("P41 50000 shards", {**every, **{f"x{i}": f"s{i}.safetensors" for i in range(50_000)}})
    index("shard that is no text", dict.fromkeys(names, 7))
    index("weight_map that is a list", b'{"weight_map": []}')
    index("no weight_map", b"{}")
    index("broken JSON", b'{"weight_map": {"a": ')
    index("deep nesting", b'{"weight_map":' * 300_000)
    index(
        "P38 a FIFO as the shard",
        every,
        "refuse",
        lambda folder: ((folder / shard).unlink(), os.mkfifo(folder / shard)),
    )
    bad.config("P42 _name_or_path elsewhere", {"_name_or_path": "../../elsewhere"}, "work")
    with check("index: model.safetensors is preferred to an index"):
        bad.fresh()
        (bad.folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(names, "is-not-there")})
        )
        bad.expect("work")


class Call:
    """Pickles as a call of a function by its name, which need not exist."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """Writes a Call as the two instructions it is."""

    def save(self, thing, save_persistent_id=True):
        if not isinstance(thing, Call):
            return super().save(thing, save_persistent_id)
        self.write(f"c{thing.module}\n{thing.name}\n".encode())
        super().save(thing.arguments)
        self.write(b"R")
        return None


def pickled(thing):
    file = io.BytesIO()
    Pickler(file, 2).dump(thing)
    return file.getvalue()


def bad_torch():
    """users.md 2b, Z, K and T, through the program; tests/pytorch.c has the files that lie byte by byte."""
    bad = BadFolders()
    weights = load_file(bad.good / "model.safetensors")
    (bad.good / "model.safetensors").unlink()
    name = "transformer.wte.weight"
    path = bad.folder / "pytorch_model.bin"
    state = {**weights, "lm_head.weight": weights[name]}

    def expect(label, write, outcome="refuse"):
        with check(f"torch: {label}"):
            bad.fresh()
            write()
            bad.expect(outcome)

    def save(label, thing, outcome="refuse", **options):
        expect(label, lambda: torch.save(thing, path, **options), outcome)

    def data(label, data, outcome="refuse"):
        expect(label, lambda: path.write_bytes(data), outcome)

    old = {"_use_new_zipfile_serialization": False}
    for protocol in (2, 3, 4, 5):
        save(f"zip, protocol {protocol}", state, "work", pickle_protocol=protocol)
        save(f"K78 the old format, protocol {protocol}", state, "work", pickle_protocol=protocol, **old)
    for label, thing in {
        "in state_dict": {"state_dict": state, "epoch": 1},
        "in module, beside an optimizer": {"module": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        "in model, in state_dict": {"state_dict": {"model": state}},
        "names of several GPUs": {f"module.{n}": t for n, t in state.items()},
        "T83 transposed": {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in state.items()},
        "T82 parts of a larger storage": {n: torch.cat([t, t + 1])[: len(t)] for n, t in state.items()},
        "f64": {n: t.double() for n, t in state.items()},
        "T86 a tensor that no model has": {**state, "more": torch.ones(3)},
    }.items():
        save(label, thing, "work")
        save(f"{label}, old format", thing, "work", **old)
    with warnings.catch_warnings():  # it is going to be removed
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(weights[name], 0.1, 0, torch.qint8)
    for label, thing in {
        "T86 a tensor is missing": {n: t for n, t in state.items() if "ln_f.bias" not in n},
        "T82 expanded to another shape": {**state, name: weights[name][:1].expand(99, 14)},
        "integer weights": {**state, name: weights[name].long()},
        "T84 sparse": {**state, name: weights[name].to_sparse()},
        "T84 quantized": {**state, name: quantized},
        "T84 complex": {**state, name: weights[name].to(torch.complex64)},
        "A100 NaN": {**state, name: torch.full_like(weights[name], math.nan)},
        "a list": list(state.values()),
        "a tensor alone": weights[name],
        "nothing": {},
        "dictionaries of nothing": {"model": {"module": {}}},
        "a part of another name": {"network": state},
    }.items():
        save(label, thing)
        save(f"{label}, old format", thing, **old)
    save("a module, not its state dict", torch.nn.Linear(2, 2))

    # a pickle that would leave a mark if anything in it ran
    mark = WORK / "a pickle was run"
    torch.save(state, WORK / "good.bin")
    archive = zipfile.ZipFile(WORK / "good.bin")
    parts = {entry: archive.read(entry) for entry in archive.namelist()}
    pickle_name = next(entry for entry in parts if entry.endswith("/data.pkl"))

    def zipped(changes, **options):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", **options) as target:
            for entry, content in {**parts, **changes}.items():
                if content is not None:
                    target.writestr(entry, content)
        return file.getvalue()

    magic, version, facts = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}
    begin = b"".join(pickle.dumps(thing, 2) for thing in (magic, version, facts))
    data("written by Python's zipfile", zipped({}), "work")
    for label, call in {
        "K68 os.system": Call("os", "system", f"touch '{mark}'"),
        "K68 posix.system": Call("posix", "system", f"touch '{mark}'"),
        "K68 builtins.exec": Call("builtins", "exec", f"open({str(mark)!r}, 'w')"),
        "K68 __builtin__.eval": Call("__builtin__", "eval", f"open({str(mark)!r}, 'w')"),
        "K69 torch.os.system": Call("torch.os", "system", f"touch '{mark}'"),
        "K69 a dotted name": Call("torch", "os.system", f"touch '{mark}'"),
        "torch.load": Call("torch", "load", str(WORK / "good.bin")),
        "torch.hub.load": Call("torch.hub", "load", "x", "y"),
        "numpy": Call("numpy.core.multiarray", "_reconstruct", 1),
        "argparse.Namespace": Call("argparse", "Namespace"),
        "control characters": Call("os\x1b[31m\r", "sys\x00tem"),
    }.items():
        for place, thing in (("a value", {"a": call}), ("all of it", call), ("beside the weights", {"module": {}, "x": [call]})):
            data(f"{label} as {place}", zipped({pickle_name: pickled(thing)}))
            data(f"{label} as {place}, old format", begin + pickled(thing) + pickle.dumps([], 2))
    with check("torch: no pickle was run"):
        assert not mark.exists(), "a file appeared"
    data("K74 a billion laughs", zipped({pickle_name: b"\x80\x02]" + b"(2222222222e" * 20 + b"."}))
    laughs = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(30)) + b"."
    data("K74 a billion laughs from the memo", zipped({pickle_name: laughs}))
    data("Z61 deflated", zipped({}, compression=zipfile.ZIP_DEFLATED))
    data("Z61 a bomb", zipped({"good/data/99": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED))
    data("Z65 no data.pkl", zipped({pickle_name: None}))
    data("Z65 no storage", zipped({entry: None for entry in parts if entry.endswith("/data/0")}))
    data("Z65 big-endian", zipped({"good/byteorder": b"big"}))
    data("Z65 two roots", zipped({"evil/data/0": b"1234"}))
    data("Z64 a name that leaves the folder", zipped({"../../x": b"1"}))
    data("Z52 something before it", b"#!/bin/sh\n" + zipped({}))
    data("Z52 a zip file behind a zip file", zipped({}) + zipped({}))
    for label, content in {
        "S1 empty": b"",
        "one byte": b"P",
        "S36 safetensors": bad.file,
        "text": b"hello world " * 20,
        "K78 a tar file": b"sys_info".ljust(257, b"\0") + b"ustar".ljust(1000, b"\0"),
        "a pickle of nothing": pickle.dumps(None, 2),
        "zeros": bytes(10_000),
        "an unfetched file of git": b"version https://git-lfs.github.com/spec/v1\n",
    }.items():
        data(label, content)
    for form, options in (("zip", {}), ("old format", old)):
        torch.save(state, WORK / "whole.bin", **options)
        whole = (WORK / "whole.bin").read_bytes()
        for cut in [*sorted(random.Random(SEED).sample(range(1, len(whole)), 10)), len(whole) - 1]:
            data(f"S34 {form} cut after {cut} of {len(whole)} bytes", whole[:cut])
        rng = random.Random(SEED)
        for _ in range(20):
            at = rng.randrange(len(whole))
            changed = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
            data(f"{form} with a bit of byte {at} changed", changed, "survive")
    with check("torch: safetensors is preferred"):
        bad.fresh()
        path.write_bytes(b"nonsense")
        (bad.folder / "model.safetensors").write_bytes(bad.file)
        bad.expect("work")

    # shards
    names = list(weights)
    shard = "pytorch_model-00001-of-00001.bin"
    torch.save(state, WORK / "outside.bin")

    def index(label, weight_map, outcome="refuse"):
        def write():
            torch.save(weights, bad.folder / shard)
            (bad.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

        expect(f"index: {label}", write, outcome)

    every = dict.fromkeys(names, shard)
    index("as it should be", every, "work")
    for place in ("../outside.bin", str(WORK / "outside.bin"), "..\\outside.bin", "NUL", "", "..", "is-not-there.bin"):
        index(f"P37 shard {place!r}", dict.fromkeys(names, place))
    index("P39 a tensor that the shard lacks", {**every, "transformer.nonsense": shard})
    index("P40 the index as its own shard", dict.fromkeys(names, "pytorch_model.bin.index.json"))
    index("P41 50000 shards", {**every, **{f"x{i}": f"s{i}.bin" for i in range(50_000)}})
    index("shard that is no text", dict.fromkeys(names, 7))


def bad_config():
    """users.md 2b, J and C."""
    bad = BadFolders()
    text = (bad.good / "config.json").read_bytes().rstrip()

    def with_member(member):
        return text[:-1].rstrip() + b", " + member + b"}"

    for label, data in {
        "J43 arrays a million deep": b"[" * 1_000_000,
        "J43 objects deep": b'{"a":' * 300_000,
        "J43 deep inside": with_member(b'"x": ' + b"[" * 500_000),
        "J44 a minus alone": with_member(b'"x": -'),
        "J44 01": with_member(b'"x": 01'),
        "J44 .5": with_member(b'"x": .5'),
        "J44 1.": with_member(b'"x": 1.'),
        "J44 +1": with_member(b'"x": +1'),
        "J45 a bad escape": with_member(b'"x": "\\q"'),
        "J45 a short escape": with_member(b'"x": "\\u12"'),
        "J46 a comment": b"/* */" + text,
        "J46 a trailing comma": text[:-1] + b",}",
        "J46 single quotes": text.replace(b'"', b"'"),
        "J46 text after the end": text + b" x",
        "empty": b"",
        "null": b"null",
        "[]": b"[]",
        "a bare control character": with_member(b'"x": "a\nb"'),
        "tru": with_member(b'"x": tru'),
    }.items():
        bad.config(label, data)
    for cut in sorted(random.Random(SEED).sample(range(1, len(text) - 1), 15)):
        bad.config(f"J50 cut after {cut} bytes", text[:cut])
    for label, data in {
        "J44 NaN": with_member(b'"x": NaN'),
        "J44 Infinity": with_member(b'"x": -Infinity'),
        "J44 1e999": with_member(b'"x": 1e999'),
        "J44 1e-999": with_member(b'"x": 1e-999'),
        "J44 400 digits": with_member(b'"x": ' + b"9" * 400),
        "J45 a lone surrogate": with_member(b'"x": "\\udc00"'),
        "J45 NUL": with_member(b'"x": "a\\u0000b"'),
        "J46 a BOM": b"\xef\xbb\xbf" + text,
        "J47 a key twice": with_member(b'"n_layer": 1'),
        "invalid UTF-8": with_member(b'"x": "\xff"'),
    }.items():
        bad.config(label, data, "survive")
    bad.config("J48 a string of 10 MB", with_member(b'"x": "' + b"a" * 10_000_000 + b'"'), "work")
    bad.config(
        "unknown keys, nested",
        {"x": [1, [2.5e-3, {"y": None}], "\u00e9\U0001f642"], "task_specific_params": {"a": {"b": True}}},
        "work",
    )

    for label, changes in {
        "C87 n_embd 0": {"n_embd": 0},
        "C87 n_embd negative": {"n_embd": -14},
        "C87 n_embd 2^40": {"n_embd": 2**40},
        "C87 n_head 0": {"n_head": 0},
        "C87 n_head does not divide": {"n_head": 3},
        "C87 n_head 10^9": {"n_head": 10**9},
        "no layers": {"n_layer": 0},
        "C87 n_layer negative": {"n_layer": -1},
        "C87 n_layer 10^9": {"n_layer": 10**9},
        "C87 n_layer 2^63": {"n_layer": 2**63},
        "C87 n_layer 2^64+1": {"n_layer": 2**64 + 1},
        "C87 vocab_size -1": {"vocab_size": -1},
        "C87 vocab_size 0": {"vocab_size": 0},
        "C87 vocab_size past the rows": {"vocab_size": 62},
        "C87 n_positions 0": {"n_positions": 0},
        "C87 n_positions past the rows": {"n_positions": 18},
        "C87 n_positions 2^62": {"n_positions": 2**62},
        "C87 eps NaN": {"layer_norm_epsilon": math.nan},
        "C87 eps negative": {"layer_norm_epsilon": -1e-5},
        "C87 activation exec": {"activation_function": "exec"},
        "n_layer a string": {"n_layer": "1"},
        "n_head 1.5": {"n_head": 1.5},
        "n_embd a list": {"n_embd": [14]},
        "n_inner 0": {"n_inner": 0},
        "n_inner negative": {"n_inner": -5},
        "n_inner 18": {"n_inner": 18},
        "model_type unknown": {"model_type": "nonsense", "architectures": ["NonsenseModel"]},
        "architecture unknown": {"architectures": ["NonsenseForNothing"]},
        "architectures a number": {"architectures": 7},
        "activation a number": {"activation_function": 3},
        "control characters in a name": {"activation_function": "a\x1b[31m\r\nb"},
    }.items():
        bad.config(label, changes)
    for label, changes in {
        "C87 eps 0": {"layer_norm_epsilon": 0},
        "C88 eos negative": {"eos_token_id": -1},
        "C88 pad 2^40": {"pad_token_id": 2**40},
        "C89 id2label with gaps": {"id2label": {"0": "a", "7": "b"}, "label2id": {"a": 0, "b": 7}},
        "eos a list": {"eos_token_id": [0, 5]},
        "architectures empty": {"architectures": []},
    }.items():
        bad.config(label, changes, "survive")
    # GPT2Config's own defaults, which every small model made from it carries
    bad.config("C88 bos and eos past the vocabulary", {"bos_token_id": 50256, "eos_token_id": 50256}, "work")
    with check("config: generate with the default end token past the vocabulary"):
        ids = [1, 2, 3]
        want = goldens.generate_ids(bad.model, ids, {"max_new_tokens": 6, "min_new_tokens": 6})[0]
        assert (
            ok(
                "generate", bad.folder, "--ids", "1,2,3", "--max-new-tokens", 6, "--min-new-tokens", 6, "--json"
            ).object()["ids"]
            == want
        )
    with check("config: none"):
        bad.fresh()
        (bad.folder / "config.json").unlink()
        bad.expect("refuse")
    with check("config: J49 a locale with a decimal comma"):
        bad.fresh()
        ok("forward", bad.folder, "--in", bad.inputs, "--out", bad.out, LC_ALL="de_DE.UTF-8")
        compare(load_file(bad.out), {"logits": bad.expected})


def bad_tokenizer():
    """users.md 2b, C90 to C96."""
    good = new_folder("bad-tokenizer-good")
    save_tokenizer(good, 3)
    original = json.loads((good / "tokenizer.json").read_text())
    folder = WORK / "bad-tokenizer"

    def attempt(label, change, outcome="refuse"):
        with check(f"tokenizer: {label}"):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(good, folder)
            value = change(json.loads(json.dumps(original)))
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            (folder / "tokenizer.json").write_bytes(data)
            args = ("tokenize", folder, "--json", "--text", "abc def <|endoftext|> 12")
            (refuse if outcome == "refuse" else survive)(*args, before=limit_memory)

    def vocabulary(**changes):
        return lambda t: {**t, "model": {**t["model"], "vocab": {**t["model"]["vocab"], **changes}}}

    def merges(value):
        return lambda t: {**t, "model": {**t["model"], "merges": value}}

    attempt("C90 a negative id", vocabulary(zzz=-1))
    attempt("C90 an id that is a float", vocabulary(zzz=1.5))
    attempt("C90 an id that is a text", vocabulary(zzz="5"))
    attempt("C90 an id of 2^31", vocabulary(zzz=2**31), "survive")
    attempt("C90 an id of 2^64", vocabulary(zzz=2**64))
    attempt("C90 two tokens with one id", vocabulary(zzz=7), "survive")
    attempt("C90 an empty token", vocabulary(**{"": 9000}), "survive")
    attempt("C91 merges of unknown pieces", merges([["zzz", "yyy"]]))
    attempt("C91 a merge whose result is unknown", merges([["a", "Ġ"]]))
    attempt("C91 merges of three pieces", merges([["a", "b", "c"]]))
    attempt("C91 merges that are numbers", merges([1, 2]))
    attempt("C91 a merge without a space", merges(["ab"]))
    attempt("C91 the merges a thousand times over", lambda t: merges(t["model"]["merges"] * 1000)(t), "survive")
    attempt("C93 a piece of 100 KB", vocabulary(**{"a" * 100_000: 9000}), "survive")
    attempt("C93 a piece with NUL", vocabulary(**{"a\0b": 9000}), "survive")
    for piece in ("<0x-1>", "<0xZZ>", "<0x>", "<0x100>", "<0xFFFFFFFF0>"):
        pieces = {**{f"<0x{i:02X}>": i for i in range(256)}, "a": 256, piece: 257}
        model = {"type": "BPE", "byte_fallback": True, "vocab": pieces, "merges": []}
        attempt(f"C92 the byte token {piece}", lambda t, model=model: {**t, "model": model}, "survive")
    for label, charsmap in {
        "of 1 byte": b"\x01",
        "of 3 bytes": b"\x04\x00\x00",
        "longer than it is": b"\xff\xff\xff\x7f" + bytes(8),
        "with a wild trie": struct.pack("<I", 1024) + b"\xff" * 1024 + b"a\0b",
        "of an odd length": struct.pack("<I", 7) + bytes(7) + b"a\0",
    }.items():
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
        attempt(f"C94 a charsmap {label}", lambda t, n=normalizer: {**t, "normalizer": n}, "survive")
    for label, text in {
        "1 MB of one letter": b"a" * 1_000_000,
        "1 MB of blank lines": b"\n" * 1_000_000,
        "1 MB of bytes that are no UTF-8": b"\xff" * 1_000_000,
        "special tokens": b"<|endoftext|>" * 50_000,
        "combining marks": "a\u0301\u0300".encode() * 100_000,
    }.items():
        with check(f"tokenizer: C95 {label}"):
            (WORK / "long.txt").write_bytes(text)
            assert ok("tokenize", good, "--json", "--file", WORK / "long.txt", before=limit_memory).object()["ids"]
    attempt("vocabulary a list", lambda t: {**t, "model": {**t["model"], "vocab": [1]}})
    attempt("no vocabulary", lambda t: {**t, "model": {"type": "BPE", "merges": []}})
    attempt("no model", lambda t: {key: value for key, value in t.items() if key != "model"})
    attempt("model of an unknown type", lambda t: {**t, "model": {**t["model"], "type": "Nonsense"}})
    attempt("pre-tokenizer of an unknown type", lambda t: {**t, "pre_tokenizer": {"type": "Nonsense"}})
    attempt("added tokens that are numbers", lambda t: {**t, "added_tokens": [1, 2]})
    attempt("added token without content", lambda t: {**t, "added_tokens": [{"id": 0}]})
    attempt("added token with id -3", lambda t: {**t, "added_tokens": [{**t["added_tokens"][0], "id": -3}]})
    attempt(
        "an empty added token", lambda t: {**t, "added_tokens": [{**t["added_tokens"][0], "content": ""}]}, "survive"
    )
    attempt(
        "template that names an unknown token",
        lambda t: {
            **t,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        },
    )
    attempt("deep nesting", lambda t: b'{"model":' * 300_000)
    attempt("empty", lambda t: b"")
    attempt("not UTF-8", lambda t: json.dumps(t, ensure_ascii=False).encode("utf-16"))
    text = json.dumps(original).encode()
    for cut in sorted(random.Random(SEED).sample(range(1, len(text) - 1), 8)):
        attempt(f"cut after {cut} bytes", lambda t, cut=cut: text[:cut])
    with check("tokenizer: none"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        (folder / "tokenizer.json").unlink()
        refuse("tokenize", folder, "--text", "abc")
    files = new_folder("bad-tokenizer-files")
    save_tokenizer(files, 3, "files")
    vocab_text, merges_text = ((files / name).read_bytes() for name in ("vocab.json", "merges.txt"))
    for label, vocab_data, merges_data in [
        ("merges.txt is missing", vocab_text, None),
        ("vocab.json is cut", vocab_text[:500], merges_text),
        ("merges.txt of unknown pieces", vocab_text, b"#version: 0.2\nzz yy\n"),
        ("merges.txt with a line of one piece", vocab_text, b"#version: 0.2\nab\n"),
        ("merges.txt is binary", vocab_text, bytes(range(256)) * 4),
    ]:
        with check(f"tokenizer: {label}"):
            (files / "vocab.json").write_bytes(vocab_data)
            (files / "merges.txt").write_bytes(merges_data) if merges_data is not None else (
                files / "merges.txt"
            ).unlink()
            refuse("tokenize", files, "--json", "--text", "abc")


def full_disk():
    """users.md 2b, A101: a write that fails leaves neither the file nor a piece of it."""

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    source = new_folder("full-source")
    model = save_random_model(source, n_positions=23, vocab_size=53)
    place = new_folder("full-place")
    inputs = goldens.Inputs(model.config, 3, 9, 1).token_labels().tensors
    goldens.write_tensors(WORK / "in.safetensors", inputs)
    with check("a full disk: forward"):
        refuse(
            "forward",
            source,
            "--in",
            WORK / "in.safetensors",
            "--out",
            place / "out.safetensors",
            "--grads",
            before=small_files,
        )
        assert not list(place.iterdir()), f"left: {[p.name for p in place.iterdir()]}"
    with check("a full disk: forward over an older file keeps that one"):
        (place / "out.safetensors").write_text("older")
        refuse(
            "forward",
            source,
            "--in",
            WORK / "in.safetensors",
            "--out",
            place / "out.safetensors",
            "--grads",
            before=small_files,
        )
        assert [(p.name, p.read_text()) for p in place.iterdir()] == [("out.safetensors", "older")]
    with check("a device as the output stays a device, and is called one"):
        assert b"device" in refuse("forward", source, "--in", WORK / "in.safetensors", "--out", "/dev/full").err
        assert not os.path.isfile("/dev/full")
    with check("convert of weights without a tensor"):
        nothing = new_folder("full-nothing")
        shutil.copy(source / "config.json", nothing)
        goldens.write_tensors(nothing / "model.safetensors", {})
        refuse("convert", nothing, place / "nothing", "--dtype", "f16")
        assert not (place / "nothing").exists(), "a folder is left"
    with check("a full disk: convert"):
        refuse("convert", source, place / "converted", "--dtype", "f32", before=small_files)
        assert not (place / "converted" / "model.safetensors").exists()
        assert not (place / "converted").exists() or not list((place / "converted").glob("*safetensors*")), (
            "a piece is left"
        )
    with check("a full disk: train"):
        goldens.write_tensors(
            WORK / "data.safetensors", {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}
        )
        path, folder = write_config(
            {
                "model": str(source),
                "train_file": str(WORK / "data.safetensors"),
                "max_steps": 2,
                "logging_steps": 100,
                "output_dir": str(place / "run"),
            },
            "full",
        )
        refuse("train", path, before=small_files)
        assert not list(folder.glob("iter-*-ckpt/model.safetensors")), "half a checkpoint is left"
    with check("a full device: stdout"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [TWINKLE, "info", str(source), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
                check=False,
            )
        assert done.returncode == 1, f"exit status {done.returncode}"
    if os.geteuid() != 0:
        with check("a folder that must not be written"):
            place.chmod(0o555)
            refuse("forward", source, "--in", WORK / "in.safetensors", "--out", place / "new.safetensors")
            place.chmod(0o755)


GROUPS = {
    "bad_weights": bad_weights,
    "bad_index": bad_index,
    "bad_torch": bad_torch,
    "bad_config": bad_config,
    "bad_tokenizer": bad_tokenizer,
    "full_disk": full_disk,
}
