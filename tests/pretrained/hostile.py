"""Hostile files, and a program that reads each and prints what came of it: `python -m hostile read FOLDER`.

An audit hook records whatever a file would run, import, open or connect to while it is read.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROTO, STOP, MARK = b"\x80\x04", b".", b"("
WATCHED = (
    "exec",
    "compile",
    "import",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pty.",
    "webbrowser.",
    "urllib.",
)
"""Beginnings of audit events that reading a file may not raise, except for those in `HARMLESS`."""
HARMLESS = {"os.listdir", "os.scandir", "os.mkdir", "os.chmod"}  # of the unpacking itself, checked by its target below


def word(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + MARK + b"".join(args) + b"tR"


def whole(body: bytes) -> bytes:
    return PROTO + body + STOP


def number(value: int) -> bytes:
    return b"\x8a" + bytes([8]) + value.to_bytes(8, "little", signed=True)


STORAGE = MARK + word("storage") + glob("torch", "FloatStorage") + word("0") + word("cpu") + number(4) + b"tQ"


def tensor(shape: bytes, stride: bytes, offset: int = 0, storage: bytes = STORAGE) -> bytes:
    arguments = (storage, number(offset), shape, stride, b"\x89", call(glob("collections", "OrderedDict")))
    return call(glob("torch._utils", "_rebuild_tensor_v2"), *arguments)


def nested(opener: bytes, levels: int, first: bytes) -> bytes:
    """Objects that contain the one before twice."""
    body = first
    for _ in range(levels):
        body += b"2" + opener  # DUP, then a pair of both
    return body


def module_bomb(levels: int) -> bytes:
    """A pickled network in which each module contains the one before twice."""
    empty = glob("torch.nn", "Module") + b")\x81}" + word("_modules") + b"}sb"
    body = empty + b"q\x00"
    for level in range(levels):
        children = b"}" + word("a") + b"h" + bytes([level]) + b"s" + word("b") + b"h" + bytes([level]) + b"s"
        body += glob("torch.nn", "Module") + b")\x81}" + word("_modules") + children + b"sbq" + bytes([level + 1])
    return body


GETATTR = glob("builtins", "getattr")
IN_A_STATE = b"}" + word("encoder.weight")
OS_SYSTEM = call(glob("os", "system"), word("touch made"))
PICKLES: dict[str, bytes] = {
    "os_system": whole(OS_SYSTEM),
    "posix_system": whole(call(glob("posix", "system"), word("touch made"))),
    "nt_system": whole(call(glob("nt", "system"), word("touch made"))),
    "popen": whole(call(glob("subprocess", "Popen"), word("true"))),
    "eval": whole(call(glob("builtins", "eval"), word("open('made', 'w')"))),
    "exec_python_2": whole(call(glob("__builtin__", "execfile"), word("made"))),
    "import": whole(call(glob("builtins", "__import__"), word("antigravity"))),
    "open": whole(call(glob("builtins", "open"), word("made"), word("w"))),
    "import_module": whole(call(glob("importlib", "import_module"), word("antigravity"))),
    "run_path": whole(call(glob("runpy", "run_path"), word("made.py"))),
    "pty": whole(call(glob("pty", "spawn"), word("true"))),
    "web": whole(call(glob("webbrowser", "open"), word("file:///made"))),
    "rmtree": whole(call(glob("shutil", "rmtree"), word("made"))),
    "pip": whole(call(glob("pip", "main"), b"]" + word("install") + b"a" + word("made") + b"a")),
    "console": whole(call(glob("code", "interact"))),
    "torch_load": whole(call(glob("torch", "load"), word("made.pth"))),
    "torch_hub": whole(call(glob("torch.hub", "load"), word("made/made"), word("made"))),
    "numpy_load": whole(call(glob("numpy", "load"), word("made.npy"))),
    "partial": whole(call(call(glob("functools", "partial"), glob("os", "system"), word("touch made")))),
    "attrgetter": whole(call(call(glob("operator", "attrgetter"), word("system")), glob("os", "path"))),
    "getattr_chain": whole(
        call(
            call(
                glob("builtins", "getattr"),
                call(glob("builtins", "getattr"), glob("torch", "os"), word("path")),
                word("join"),
            ),
            word("a"),
        )
    ),
    "dotted_name": whole(PROTO + word("collections") + word("OrderedDict.__init__.__globals__") + b"\x93"),
    "names_that_are_numbers": whole(number(1) + number(2) + b"\x93"),
    "inst": whole(MARK + word("touch made") + b"ios\nsystem\n"),
    "obj": whole(MARK + glob("os", "system") + word("touch made") + b"o"),
    "newobj": whole(glob("os", "system") + MARK + word("touch made") + b"t\x81"),
    "newobj_ex": whole(glob("subprocess", "Popen") + MARK + word("true") + b"t}\x92"),
    "extension": whole(b"\x82\x01"),
    "buffer": whole(b"\x97"),
    "set_state_of_a_class": whole(glob("torch.nn", "Module") + b"}" + word("forward") + OS_SYSTEM + b"sb"),
    "class_of_an_instance": whole(
        glob("torch.nn", "Module") + b")\x81}" + word("__class__") + glob("subprocess", "Popen") + b"sb"
    ),
    "hidden_in_an_optimizer": whole(b"}" + word("model") + b"}s" + word("opt") + OS_SYSTEM + b"s"),
    "hidden_in_tokens": whole(b"]" + word("xxunk") + b"a" + OS_SYSTEM + b"a"),
    "persistent_module": whole(MARK + word("module") + glob("os", "system") + word("made.py") + word("") + b"tQ"),
    "persistent_text": whole(b"Pmade\n"),
    "storage_of_a_class": whole(
        MARK + word("storage") + glob("subprocess", "Popen") + word("0") + word("cpu") + number(4) + b"tQ"
    ),
    "tensor_without_end": whole(IN_A_STATE + tensor(number(1 << 40) * 2 + b"\x86", number(0) * 2 + b"\x86") + b"s"),
    "tensor_before_its_storage": whole(IN_A_STATE + tensor(number(2) + b"\x85", number(1) + b"\x85", -4) + b"s"),
    "tensor_beyond_its_storage": whole(IN_A_STATE + tensor(number(9) + b"\x85", number(1) + b"\x85") + b"s"),
    "tensor_of_text": whole(IN_A_STATE + tensor(word("a") + b"\x85", number(1) + b"\x85") + b"s"),
    "memo_bomb": whole(b"N" + b"r" + struct.pack("<I", (1 << 32) - 1)),
    "memo_that_is_empty": whole(b"j" + struct.pack("<I", 77)),
    "string_of_a_terabyte": PROTO + b"\x8d" + struct.pack("<Q", 1 << 40) + b"a",
    "bytes_of_a_terabyte": PROTO + b"\x8e" + struct.pack("<Q", 1 << 40) + b"a",
    "bytearray_of_a_terabyte": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a",
    "frame_of_a_terabyte": PROTO + b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "millions_of_sets": whole(b"\x8f" * 1_200_000),
    "millions_of_marks": whole(MARK * 1_200_000),
    "key_that_hashes_forever": whole(b"}" + nested(b"\x86", 80, number(1)) + b"Ns"),
    "set_that_hashes_forever": whole(b"\x8f" + MARK + nested(b"\x86", 80, number(1)) + b"\x90"),
    "frozen_set_that_hashes_forever": whole(MARK + nested(b"\x86", 80, number(1)) + b"\x91"),
    "billion_laughs": whole(nested(b"\x86", 200, word("ha"))),
    "a_million_lists_deep": whole(b"]" * 400_000 + b"a" * 399_999),
    "list_that_contains_itself": whole(b"]q\x00h\x00a"),
    "network_without_end": whole(module_bomb(60)),
    "integer_of_a_million_digits": PROTO + b"L" + b"9" * 1_000_000 + b"L\n.",
    "deep_ordered_dict": whole(call(glob("collections", "OrderedDict"), nested(b"\x86", 60, number(1)))),
    "not_a_pickle": bytes(range(256)) * 100,
    "nothing": b"",
    "cut": pickle.dumps(["xxunk"] * 1000)[:-20],
}
"""Pickles by name; each is read as weights, as the pickle in a zip archive of torch.save, and as tokens."""


def tar_of(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(path: Path, name: str, content: bytes, mode: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, compression
        archive.writestr(info, content)


def tar_bomb(path: Path) -> None:
    tar_of(path, entry("model.pth"), content=bytes(300 << 20))


def header_bomb(path: Path) -> None:
    """A header that is half a gigabyte long, which tarfile holds in memory."""
    info = tarfile.TarInfo("model.pth")
    info.pax_headers = {"comment": "a" * (300 << 20)}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)


def many_files(path: Path) -> None:
    tar_of(path, *[entry(f"{i}.pth") for i in range(3000)])


def torch_zip_bomb(path: Path) -> None:
    zip_of(path, "archive/data.pkl", bytes(300 << 20))


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "tar_above.tgz": lambda path: tar_of(path, entry("../made"), content=b"a"),
    "tar_absolute.tgz": lambda path: tar_of(path, entry("/tmp/ulmfit-dist-made"), content=b"a"),
    "tar_symlink.tgz": lambda path: tar_of(path, entry("a", tarfile.SYMTYPE, "/etc"), entry("a/made")),
    "tar_hardlink.tgz": lambda path: tar_of(path, entry("a", tarfile.LNKTYPE, "/etc/passwd")),
    "tar_device.tgz": lambda path: tar_of(path, entry("a", tarfile.CHRTYPE)),
    "tar_twice.tgz": lambda path: tar_of(path, entry("a"), entry("a")),
    "tar_bomb.tgz": tar_bomb,
    "tar_header_bomb.tgz": header_bomb,
    "tar_many.tgz": many_files,
    "tar_cut.tgz": lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)),
    "zip_above.zip": lambda path: zip_of(path, "a/../../made", b"a"),
    "zip_backslash.zip": lambda path: zip_of(path, "..\\made", b"a"),
    "zip_symlink.zip": lambda path: zip_of(path, "a", b"/etc", mode=0o120777),
    "zip_bomb.zip": lambda path: zip_of(path, "model.pth", bytes(300 << 20)),
}


def write(folder: Path) -> list[Path]:
    """Write all hostile files and return their paths."""
    paths = []
    for name, content in PICKLES.items():
        paths.append(folder / f"{name}.pth")
        paths[-1].write_bytes(content)
        if len(content) > 100_000:
            continue  # takes seconds
        paths += [folder / f"{name}.zip.pth", folder / f"{name}.pkl"]
        zip_of(paths[-2], "archive/data.pkl", content, compression=zipfile.ZIP_STORED)
        paths[-1].write_bytes(content)
    for name, make in ARCHIVES.items():
        paths.append(folder / name)
        make(paths[-1])
    paths.append(folder / "torch_zip_bomb.pth")
    torch_zip_bomb(paths[-1])
    with (folder / "gigabyte_string.pth").open("wb") as file:
        file.write(PROTO + b"\x8d" + struct.pack("<Q", 1 << 30))
        file.truncate((1 << 30) + 100)  # a sparse file
    return [*paths, folder / "gigabyte_string.pth"]


def main(folder: Path) -> None:
    """Read each file of a folder and print a JSON line: name, whether and why it was refused, seconds, events."""
    from ulmfit_dist.errors import UserError
    from ulmfit_dist.pretrained.archives import RefusedArchiveError, unpack
    from ulmfit_dist.pretrained.model_files import ModelFiles
    from ulmfit_dist.pretrained.reader import read_state, read_tokens

    paths = sorted(path for path in folder.iterdir() if path.is_file())
    events: list[str] = []
    is_watching = False

    def watch(event: str, args: tuple[object, ...]) -> None:
        if not is_watching:
            return
        is_writing = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (event.startswith(WATCHED) and event not in HARMLESS) or (is_writing and "unpacked" not in str(args[0])):
            events.append(f"{event} {args[:1]}")

    def read(path: Path) -> None:
        if path.suffix in (".tgz", ".zip"):
            (folder / "unpacked" / path.name).mkdir(parents=True)
            unpack(path, folder / "unpacked" / path.name)
        elif path.suffix == ".pkl":
            read_tokens(ModelFiles(path, path, None, None), 5)
        else:
            read_state(path)

    first = [folder / "os_system.zip.pth", folder / "nothing.pkl", folder / "tar_cut.tgz", folder / "zip_above.zip"]
    for path in first:  # imports what reading needs
        with suppress(UserError, RefusedArchiveError):
            read(path)
    sys.addaudithook(watch)
    for path in paths:
        if path in first:
            continue
        events.clear()
        start, reason = time.process_time(), None
        is_watching = True
        try:
            read(path)
        except (UserError, RefusedArchiveError) as error:
            reason = str(error)
        except Exception as error:
            reason = f"NOT A REFUSAL: {type(error).__name__}: {error}"
        is_watching = False
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        line = {
            "name": path.name,
            "reason": reason,
            "seconds": time.process_time() - start,
            "events": events[:5],
            "mib": peak,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    {"write": write, "read": main}[sys.argv[1]](Path(sys.argv[2]))
