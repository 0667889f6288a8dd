"""From a config to the sources it names, through `datasets`.

Parquet, the format of the Hub, is read where it is: on the local disk, where `datasets` downloads it if
need be, or with data.streaming over the network. Everything else `datasets` turns into Arrow files in its
cache first.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen

from charlm.config.fields import BUILDERS, DataConfig
from charlm.corpus.batches import Source
from charlm.corpus.readers import ArrowFile, Memory, ParquetFile
from charlm.corpus.sources import describe, stdlib_files
from charlm.corpus.textfile import TextFiles
from charlm.errors import CharlmError


class Unreadable(CharlmError):
    """Text that cannot be read now, and perhaps later: of the network, the disk, or a damaged file."""


def open_sources(data: DataConfig, bytes_only: bool, cache: str | None = None) -> dict[str, Source]:
    """The splits to read: 'train', and 'validation' and 'test' where they are the dataset's own.

    cache: a folder for the Arrow files of `datasets`, instead of the one where it may find older ones.
    Raises CharlmError for anything that cannot be found, reached or read.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # explained() says it
    wanted = {"train": data.split}
    wanted |= {s: n for s in ("validation", "test") if isinstance(n := getattr(data, s), str)}
    try:
        readers = _readers(data, cache)
        sources = {split: _selected(data, readers, name) for split, name in wanted.items()}
        for source in sources.values():
            source.until(data.max_documents, data.max_characters, bytes_only)
        return sources
    except CharlmError:
        raise
    except Exception as error:
        raise explained(error, data) from error


def _readers(data: DataConfig, cache: str | None) -> dict[str, list]:
    """The files of every split of the dataset."""
    if data.source == "literal":
        return {"train": [Memory(data.text)]}
    if data.source == "stdlib":
        return {"train": [TextFiles([str(path) for path in stdlib_files()], "file")]}
    options = {"data_files": data.data_files} if data.data_files else {}
    if data.source == "csv":
        options["keep_default_na"] = False  # pandas would read the text "NA" as nothing
    if data.source not in BUILDERS:
        options |= {"name": data.name or None, "revision": data.revision or None}
    builder = datasets.load_dataset_builder(data.source, cache_dir=cache, **options)
    if isinstance(builder, Parquet):
        files = _files(builder, data.streaming)
        return {name: [_opened(path, data) for path in some] for name, some in files.items()}
    if data.streaming:
        raise CharlmError(
            f"data.streaming=True: {describe(data)} is not made of parquet files; set data.streaming=false"
        )
    if data.source == "text":
        return {name: [TextFiles(some, data.document)] for name, some in _files(builder).items()}
    builder.download_and_prepare()
    return {
        str(name): [
            ArrowFile(file["filename"], data.text_column, describe(data)) for file in split.cache_files
        ]
        for name, split in builder.as_dataset().items()
    }


def _files(builder: datasets.DatasetBuilder, streaming: bool = False) -> dict[str, list[str]]:
    """The files of every split that a builder of `datasets` would read: local ones, or streamed from where
    they are. What lies in an archive is copied out of it, into the cache of `datasets`."""
    options = {
        "base_path": builder.base_path,
        "dataset_name": builder.dataset_name,
        "download_config": datasets.DownloadConfig(token=builder.token),
    }
    manager = (datasets.StreamingDownloadManager if streaming else datasets.DownloadManager)(**options)
    found = {}
    for split in builder._split_generators(manager):
        parts = split.gen_kwargs.get("files_iterables") or [split.gen_kwargs["files"]]
        files = [str(file) for part in parts for file in part]
        found[str(split.name)] = files if streaming else [_copied_out(file) for file in files]
    return found


def _opened(file: str, data: DataConfig) -> ParquetFile:
    try:
        return ParquetFile(file, data.text_column)
    except Exception as error:  # of one file among many
        raise explained(error, data, file) from error


def _copied_out(path: str) -> str:
    """The path of a plain local file; of an archive's member (member::archive), that of a copy."""
    if "::" not in path:
        return path
    archive = os.stat(path.rsplit("::", 1)[1])
    told = f"{path} {archive.st_size} {archive.st_mtime_ns}"
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "charlm" / sha256(told.encode()).hexdigest()
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=copy.parent, delete=False) as beside:
            try:
                with xopen(path, "rb") as member:
                    shutil.copyfileobj(member, beside, 1 << 20)
                beside.close()
                os.replace(beside.name, copy)
            except BaseException:
                os.unlink(beside.name)
                raise
    return str(copy)


def _selected(data: DataConfig, readers: dict[str, list], name: str) -> Source:
    """The rows that a split such as train, or train[10%:20%], names."""
    base = {n: Source(data, files) for n, files in readers.items() if n in name}
    rows = {n: sum(p.rows for p in source.pieces) for n, source in base.items()}
    if name in base:
        return base[name]
    try:
        parts = datasets.ReadInstruction.from_spec(name).to_absolute(rows)
    except (ValueError, AssertionError) as error:
        raise CharlmError(
            f"{data.source} has no split {name!r} (splits: {', '.join(readers)}): {error}"
        ) from error
    chosen = [Source(data, readers[part.splitname], part.from_, part.to) for part in parts]
    return sum(chosen[1:], start=chosen[0])


def explained(error: BaseException, data: DataConfig, file: str = "") -> CharlmError:
    """What went wrong inside `datasets` or Arrow, in the user's terms. file: what was being read."""
    what = describe(data) + (f", {file}" if file else "")
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    for e in chain:
        if isinstance(e, CharlmError):
            return e
        if isinstance(e, OSError) and e.errno == 28:
            cache = datasets.config.HF_DATASETS_CACHE
            return CharlmError(f"{what}: no space left for the cache of datasets in {cache}; set HF_HOME")
    message = " ".join(str(error).split()) or type(error).__name__
    if "corresponds to no data" in message:
        return CharlmError(f"{what}: the text is empty")
    lost = isinstance(error, FileNotFoundError) and "://" in message
    if (
        lost
        or isinstance(error, ConnectionError)
        or any(w in message.lower() for w in ("connect", "offline"))
    ):
        return Unreadable(
            f"{what}: cannot be reached ({message}). Run `charlm prepare` where there is a network; nodes "
            f"without one find the prepared corpus in data.dir (HF_HUB_OFFLINE=1 spares them the wait)"
        )
    deepest = " ".join(str(chain[-1]).split())
    return Unreadable(
        f"{what}: datasets cannot read it: {message}" + (f" ({deepest})" if deepest not in message else "")
    )
