"""From a config to the text that it names: local files, and the splits of a dataset through `datasets`.

Parquet, the format of the Hub, is read in place: from the local disk, after a download by `datasets` if need
be, or over the network with data.streaming. Text files are read in place too. `datasets` converts all other
formats to Arrow files in its cache. A prepared corpus opens without `datasets` and pyarrow: functions that
open text import them.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from charlm.config.fields import BUILDERS, DataConfig
from charlm.errors import CharlmError

if TYPE_CHECKING:
    from charlm.corpus.batches import TextSource


class Unreadable(CharlmError):
    """Text that cannot be read now but may be later: an error of the network, the disk or a damaged file."""


def describe(data: DataConfig) -> str:
    """The text of a config, in errors."""
    files = f", data.data_files={data.data_files!r}" if data.data_files else ""
    return f"data.source={data.source!r}{files}"


def stdlib_files() -> list[Path]:
    """The source files of this Python's standard library, without its tests, sorted. Raises CharlmError if
    it has none."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    skip |= {path.name for path in root.glob("_sysconfigdata*")}  # of the machine that built this Python
    files = [path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts)]
    if not files:
        raise CharlmError(f"data.source=stdlib: this Python has no source under {root}: name other text")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def local_files(data: DataConfig) -> list[Path]:
    """The local files of a config: of data_files, or of stdlib; URLs are skipped. Raises CharlmError for a
    path or glob that matches no file."""
    if data.source == "stdlib":
        return stdlib_files()
    groups = data.data_files.values() if isinstance(data.data_files, dict) else [data.data_files]
    patterns = [p for group in groups for p in ([group] if isinstance(group, str) else group or [])]
    found = []
    for pattern in patterns:
        if "://" in pattern:
            continue
        matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not matches:
            raise CharlmError(f"data.data_files={pattern!r}: no such file (looked in {Path.cwd()})")
        files = [path for path in map(Path, matches) if path.is_file()]
        if not files:
            raise CharlmError(
                f"data.data_files={pattern!r} matches only folders: name files, as in {pattern}/*"
            )
        found += files
    return found


def open_sources(data: DataConfig, bytes_only: bool, cache: str | None = None) -> dict[str, TextSource]:
    """The splits to read: 'train', and 'validation' and 'test' if they are splits of the dataset.

    cache: a folder for the Arrow files of `datasets`, instead of its own, which may hold older ones.
    Raises CharlmError for text that cannot be found, reached or read.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # read_error reports it
    names = {"train": data.split}
    names |= {s: n for s in ("validation", "test") if isinstance(n := getattr(data, s), str)}
    try:
        readers = _readers(data, cache)
        sources = {split: _selected(data, readers, name) for split, name in names.items()}
        for source in sources.values():
            source.limit(data.max_documents, data.max_characters, bytes_only)
        return sources
    except CharlmError:
        raise
    except Exception as error:
        raise read_error(error, data) from error


def _readers(data: DataConfig, cache: str | None) -> dict[str, list]:
    """The files of every split of the dataset."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.parquet.parquet import Parquet

    from charlm.corpus.readers import ArrowFile, Literal, ParquetFile, TextFiles

    if data.source == "literal":
        return {"train": [Literal(data.text)]}
    if data.source == "stdlib":
        return {"train": [TextFiles([str(path) for path in stdlib_files()], "file")]}
    options = {"data_files": data.data_files} if data.data_files else {}
    if data.source == "csv":
        options["keep_default_na"] = False  # pandas would read the text "NA" as a missing value
    if data.source not in BUILDERS:
        options |= {"name": data.name or None, "revision": data.revision or None}
    builder = load_dataset_builder(data.source, cache_dir=cache, **options)

    def parquet(file: str) -> ParquetFile:
        try:
            return ParquetFile(file, data.text_column)
        except Exception as error:  # names the file among many
            raise read_error(error, data, file) from error

    if isinstance(builder, Parquet):
        return {name: [*map(parquet, files)] for name, files in _files(builder, data.streaming).items()}
    if data.streaming:
        text = f"{describe(data)} is not made of parquet files"
        raise CharlmError(f"data.streaming=True: {text}; set data.streaming=false")
    if data.source == "text":
        return {name: [TextFiles(files, data.document)] for name, files in _files(builder).items()}
    builder.download_and_prepare()
    return {
        str(name): [ArrowFile(f["filename"], data.text_column, describe(data)) for f in split.cache_files]
        for name, split in builder.as_dataset().items()
    }


def _files(builder, streaming: bool = False) -> dict[str, list[str]]:
    """The files of every split of a builder: URLs if streaming, else local files, extracted from archives."""
    import datasets

    kind = datasets.StreamingDownloadManager if streaming else datasets.DownloadManager
    download = datasets.DownloadConfig(token=builder.token)
    manager = kind(builder.dataset_name, base_path=builder.base_path, download_config=download)
    found = {}
    for split in builder._split_generators(manager):
        parts = split.gen_kwargs.get("files_iterables") or [split.gen_kwargs["files"]]
        files = [str(file) for part in parts for file in part]
        found[str(split.name)] = files if streaming else [*map(_extracted, files)]
    return found


def _extracted(path: str) -> str:
    """The path of a local file; for a member of an archive (member::archive) that of a copy."""
    import datasets
    from datasets.utils.file_utils import xopen

    if "::" not in path:
        return path
    archive = os.stat(path.rsplit("::", 1)[1])
    key = f"{path} {archive.st_size} {archive.st_mtime_ns}"
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "charlm" / sha256(key.encode()).hexdigest()
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=copy.parent) as partial:
            with xopen(path, "rb") as member, open(f"{partial}/member", "wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            os.replace(f"{partial}/member", copy)
    return str(copy)


def _selected(data: DataConfig, readers: dict[str, list], name: str) -> TextSource:
    """The rows of a split such as train, or train[10%:20%]."""
    from datasets import ReadInstruction

    from charlm.corpus.batches import TextSource

    if name in readers:
        return TextSource((readers[name], 0, None))
    rows = {}
    for split in (split for split in readers if split in name):
        rows[split] = sum(len(ends) for reader in readers[split] for _, ends, _ in reader.parts())
    try:
        parts = ReadInstruction.from_spec(name).to_absolute(rows)
    except (ValueError, AssertionError) as error:
        splits = ", ".join(readers)
        raise CharlmError(f"{data.source} has no split {name!r} (splits: {splits}): {error}") from error
    return TextSource(*((readers[part.splitname], part.from_, part.to) for part in parts))


def read_error(error: BaseException, data: DataConfig, file: str = "") -> CharlmError:
    """An error of `datasets`, Arrow or the disk in the terms of the config. file: the one being read."""
    text = describe(data) + (f", {file}" if file else "")
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, CharlmError):
            return cause
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            from datasets.config import HF_DATASETS_CACHE as cache

            return CharlmError(f"{text}: no space left for the cache of datasets in {cache}; set HF_HOME")
    message = " ".join(str(error).split()) or type(error).__name__
    if "corresponds to no data" in message:
        return CharlmError(f"{text}: the text is empty")
    missing = isinstance(error, FileNotFoundError) and "://" in message
    offline = any(word in message.lower() for word in ("connect", "offline"))
    if missing or offline or isinstance(error, ConnectionError):
        return Unreadable(
            f"{text}: cannot be reached ({message}). Run `charlm prepare` where there is a network; machines "
            f"without one open the prepared corpus in data.dir (HF_HUB_OFFLINE=1 spares them the wait)"
        )
    first = " ".join(str(cause).split())
    message += f" ({first})" if first not in message else ""
    return Unreadable(f"{text}: datasets cannot read it: {message}")
