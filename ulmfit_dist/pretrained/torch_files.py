"""Reader of the files of `torch.save`, of any version since 0.1.10, that runs nothing in them.

Two containers exist: a zip archive (torch 1.6 and newer) with the pickle and a record per storage, and before that several
pickles followed by the storages. Tensors are read one at a time, when they are needed.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ulmfit_dist.pretrained.restricted_pickle import (
    ITEM_SIZES,
    RefusedPickleError,
    RestrictedUnpickler,
    StorageRef,
    StubClass,
    TensorRef,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First pickle of a file of `torch.save` before 1.6."""
MAX_STORAGE_BYTES = 4 << 30
"""Maximum size of all storages that are read, in bytes: 60 times the largest model known."""
MAX_RECORDS = 100_000
"""Maximum number of records in a zip archive."""
_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}  # fmt: skip
"""Name of the dtype by torch's name of a storage class."""


class TorchFile:
    """The content of a file of `torch.save`, or of a plain pickle.

    Attributes:
        content: its objects; tensors as `TensorRef`s.
        container: zip, legacy or pickle.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._records: dict[str, tuple[int, int]] = {}
        if zipfile.is_zipfile(file):
            self.container, self.content = "zip", self._read_zip()
        else:
            file.seek(0)
            self.container, self.content = self._read_legacy()

    def tensor(self, reference: TensorRef) -> Tensor:
        """Return the elements of a tensor. Raises RefusedPickleError if the file does not have them."""
        storage = reference.storage
        start, size = self._records.get(storage.key, (0, -1))
        num_bytes = storage.numel * ITEM_SIZES[storage.dtype]
        if num_bytes > size:
            raise RefusedPickleError(f"storage {storage.key} has {max(size, 0):,} bytes in place of {num_bytes:,}")
        dtype = getattr(torch, storage.dtype)
        if 0 in reference.shape or not num_bytes:
            return torch.empty(reference.shape, dtype=dtype)
        self._file.seek(start)
        elements = torch.frombuffer(bytearray(self._file.read(num_bytes)), dtype=dtype)
        return elements.as_strided(reference.shape, reference.stride, reference.offset).clone()

    def _read_zip(self) -> Any:
        """Return the content of a zip archive and note where its records lie; they are stored without compression."""
        size = self._file.seek(0, 2)
        try:
            with zipfile.ZipFile(self._file) as archive:
                infos = archive.infolist()
                pickles = [info for info in infos if info.filename.split("/")[1:] == ["data.pkl"]]
                if len(pickles) != 1:
                    raise RefusedPickleError("a zip archive, but not of torch.save (no data.pkl)")
                if len(infos) > MAX_RECORDS or sum(info.file_size for info in infos) > size:
                    raise RefusedPickleError("its records are larger than the file")
                prefix = pickles[0].filename.removesuffix("data.pkl")
                for info in infos:
                    if info.filename.startswith(f"{prefix}data/") or info is pickles[0]:
                        self._records[info.filename.removeprefix(prefix).removeprefix("data/")] = self._place(info)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
            raise RefusedPickleError(f"damaged ({error})") from None
        self._file.seek(self._records.pop("data.pkl")[0])
        return RestrictedUnpickler(self._file, _storage).content()

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Return where a record's bytes begin, and how many there are."""
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedPickleError("its records are compressed or encrypted, which torch.save does not do")
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise RefusedPickleError("damaged (a record without a header)")
        name, extra = struct.unpack("<HH", header[26:30])
        return info.header_offset + 30 + name + extra, info.file_size

    def _read_legacy(self) -> tuple[str, Any]:
        """Return container and content of a file without records, and note where its storages lie."""
        first = RestrictedUnpickler(self._file, _storage).content()
        if first != MAGIC_NUMBER:
            return "pickle", first
        _version, _system = (RestrictedUnpickler(self._file).content() for _ in range(2))
        known: dict[str, StorageRef] = {}
        content = RestrictedUnpickler(self._file, lambda pid: _note(_storage(pid), known)).content()
        keys = RestrictedUnpickler(self._file).content()
        if not isinstance(keys, list) or len(keys) > MAX_RECORDS:
            raise RefusedPickleError("damaged (no list of storages)")
        for key in keys:
            numel = int.from_bytes(self._file.read(8), "little")
            size = numel * ITEM_SIZES[known[key].dtype] if isinstance(key, str) and key in known else MAX_STORAGE_BYTES + 1
            if size > MAX_STORAGE_BYTES:
                raise RefusedPickleError("damaged (a storage of an unknown size)")
            self._records[key] = self._file.tell(), size
            self._file.seek(size, 1)
        return "legacy", content


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of `torch.save` or a pickle.

    Raises:
        RefusedPickleError: the file is damaged, or contains what no model needs.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        yield TorchFile(file)


def _storage(pid: Any) -> StorageRef | StubClass:
    """Return the storage, or the class with its source code, that a persistent id of torch describes."""
    if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module" and isinstance(pid[1], StubClass):
        return pid[1]
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StubClass):
        raise RefusedPickleError("it refers to something other than a tensor's storage")
    _, storage_class, key, _location, numel, *view = pid
    name = storage_class.name.rpartition(".")[2].removesuffix("Storage")
    if name not in _DTYPES or not storage_class.name.startswith("torch."):
        raise RefusedPickleError(f"it has a storage of type {storage_class.name}"[:200])
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 1 << 48 or (view and view[0] is not None):
        raise RefusedPickleError("it has a storage of an unknown size, or a view of another one")
    return StorageRef(key, _DTYPES[name], numel)


def _note(storage: StorageRef | StubClass, known: dict[str, StorageRef]) -> StorageRef | StubClass:
    if isinstance(storage, StorageRef):
        known[storage.key] = storage
    return storage
