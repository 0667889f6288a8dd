"""Files that are either complete or absent, also after a crash of the machine; and what identifies files."""

import bz2
import codecs
import errno
import gzip
import json
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path, PurePath
from secrets import token_hex
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple
from zipfile import ZipFile, is_zipfile

import xxhash

from charlm.checked import Count, read
from charlm.errors import CharlmError, CharlmWarning
from charlm.locks import locked

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how its files begin
_writing = Lock()
KEPT = 64 << 20  # bytes of files from which digests are kept


def write_synced(path: str | Path, content: bytes | str, synced: bool = True) -> None:
    """Write a new file and, if synced, wait for the disk. FileExistsError where there is one, or a link."""
    with open(path, "xb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        if synced:
            os.fsync(file.fileno())


@contextmanager
def writing(name: str | Path) -> Iterator[None]:
    """Raise CharlmError, with the name of what is written, for an error of the disk."""
    try:
        yield
    except OSError as error:
        raise CharlmError(f"{name}: cannot be written ({error.strerror})") from error


def write_at(file, content: memoryview, offset: int) -> int:
    """Write at a place of an unbuffered file, in any thread; returns the bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file.fileno(), content, offset)
    with _writing:  # Windows
        file.seek(offset)
        return file.write(content)


def replace(path: str | Path, content: bytes | str, synced: bool = True) -> None:
    """Write a temporary file in the same folder and rename it: readers see the old file or the new one. With
    synced=False it does not wait for the disk, and a crash of the machine may leave the file empty. The
    temporary name is random: nobody can have put a link to another file there."""
    partial = Path(path).with_name(f".{Path(path).name[:50]}.{token_hex(8)}.partial")
    try:
        write_synced(partial, content, synced)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # where it was not renamed
    if synced:
        sync_folder(Path(path).parent)


def sync_folder(path: str | Path) -> None:
    """Wait until the entries of a folder are on the disk, if its file system and system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def digests(paths: list[str], folder: str) -> list[str]:
    """16 hex digits of the content of each file. For much text they are kept in `folder`, if that exists, and
    found again by path, size and times of change."""

    def digest(path: str) -> str:
        hashed = xxhash.xxh3_64()
        with open(path, "rb", 0) as file:
            while block := file.read(1 << 20):
                hashed.update(block)
        return hashed.hexdigest()

    stats = {os.path.abspath(p): [(s := os.stat(p)).st_size, s.st_mtime_ns, s.st_ctime_ns] for p in paths}
    with ThreadPoolExecutor() as pool:
        if sum(size for size, _, _ in stats.values()) < KEPT:
            groups = (paths[i : i + 32] for i in range(0, len(paths), 32))
            return [*chain.from_iterable(pool.map(lambda group: [*map(digest, group)], groups))]
        kept, writable = Path(folder) / ".digests.json", os.access(folder, os.W_OK)
        with locked(kept.with_suffix(".lock")) if writable else nullcontext():  # one process computes them
            known = {}
            with suppress(CharlmError):  # damaged or missing, it is written again
                known = read(kept, dict[str, tuple[Count, int, int, str]])
            new = [path for path, stat in stats.items() if known.get(path, [])[:3] != stat]
            for path, hashed in zip(new, pool.map(digest, new), strict=True):
                known[path] = [*stats[path], hashed]
            if new and writable:
                replace(kept, json.dumps(known))
    return [known[os.path.abspath(path)][3] for path in paths]


def files_below(folder: str) -> list[str]:
    """The files of a folder and those below it, without hidden ones; of a folder with several names, one."""
    paths, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):  # a link may lead to a folder above
        new = {os.path.realpath(root)} - seen
        seen |= new
        folders[:] = sorted(name for name in folders if new and name[0] != ".")
        paths += [os.path.join(root, name) for name in names if new and name[0] != "."]
    return sorted(filter(os.path.isfile, paths))


def absolute(path: str) -> str:
    """A path, if it is a local one or within an archive at one, from the root of the disk."""
    member, mark, place = (path or "-").rpartition("::")
    local = "://" not in place and place != "-"
    return member + mark + os.path.abspath(os.path.expanduser(place)) if local else path


def head_of(path: str) -> bytes:
    """The first bytes of a file, decompressed."""
    opened = {".bz2": bz2.open, ".gz": gzip.open}.get(PurePath(path).suffix, open)
    with suppress(OSError, EOFError, zlib.error), opened(path, "rb") as file:  # what reads it reports it
        return file.read(300)
    return b""


@cache
def copy_of_pipe(path: str, inode: int) -> tuple[str, TemporaryDirectory]:
    """A copy of what a pipe holds, which can be read twice, in a folder that is deleted with this process."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise CharlmError(f"{path}: several processes cannot read a pipe; name a file")
    folder = TemporaryDirectory(prefix="charlm-pipe-")
    copy = Path(folder.name + os.path.abspath(path))
    copy.parent.mkdir(parents=True)
    with open(path, "rb") as pipe, open(copy, "wb") as file:
        if not (stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode) or pipe.isatty()):
            raise CharlmError(f"{path}: is a device, which may have no end; name a file or a pipe")
        copyfileobj(pipe, file, 1 << 20)
    return str(copy), folder


# How archives and compressed files begin; zstd, which Arrow reads, is not among them.
_MAGIC = (rb"\x1f\x8b", rb"BZh[1-9](1AY|\x17rE)", rb"\xfd7z", rb"\x04\x22M\x18", rb"PK(\x03\x04.\0|\x05\x06)")
_MAGIC = re.compile(b"|".join([*_MAGIC, rb"7z\xbc", b"Rar!", rb".{257}ustar"]), re.DOTALL)
# Suffixes of what archives of texts also hold.
_FOREIGN = "png jpg jpeg gif webp svg bmp ico tif tiff pdf doc docx xls xlsx odt epub mobi mp3 mp4 wav zip"


class Local(NamedTuple):
    """A file on this disk. name: in errors, where path is that of a copy."""

    path: str
    name: str


def refuse_dump(path: str) -> None:
    """Raise CharlmError for a dump of a wiki as XML."""
    named = re.search(r"\.xml(\.(bz2|gz))?$", path)
    if named and (b"<mediawiki" in head_of(path) if "://" not in path else "-pages-" in path):
        way = "read wikimedia/wikipedia from the Hub (--config wikipedia-en)"
        other = "or run WikiExtractor and name the folder it writes"
        raise CharlmError(f"{path}: a dump of a wiki, XML with markup. For its text, {way}, {other}")


def local_files(paths: list[str], encoding: str = "utf-8") -> list[Local]:
    """Files on this disk, as UTF-8: those of paths, what archives at them hold, and downloads of URLs."""
    import datasets

    manager = datasets.DownloadManager("charlm", None, datasets.DownloadConfig(extract_on_the_fly=True))
    places = [path.rpartition("::")[2] for path in paths]
    urls = [*dict.fromkeys(place for place in places if "://" in place)]
    downloaded = dict(zip(urls, manager.download(urls), strict=True))
    utf8, files = codecs.lookup(encoding).name == "utf-8", []
    for path, place in zip(paths, places, strict=True):
        member, local = path[: len(path) - len(place)], downloaded.get(place, place)
        with open(local, "rb") as file:
            head = file.read(262)
        place = re.sub(r".*/charlm-pipe-\w+", "", place)  # in errors
        zstd = not member and head.startswith(b"\x28\xb5\x2f\xfd")  # `datasets` needs a package for it
        archive = not zstd and _MAGIC.match(head)
        if (member or archive) and head.startswith(b"PK\3\4") and not is_zipfile(local):
            raise CharlmError(f"{place}: a zip archive that is damaged or cut off")
        extracted = manager.extract(local) if archive and not member else member + local
        members = map(str, manager.iter_files(extracted) if archive and not member else [extracted])
        members = [m for m in members if "::" in m or os.path.isfile(m)]  # a tar archive may hold pipes
        suffixes = {m: PurePath(m.split("::")[0]).suffix.lower()[1:] for m in members}
        texts = [m for m in members if suffixes[m] not in _FOREIGN.split()] or members
        if left := ", ".join(PurePath(m.split("::")[0]).name for m in sorted({*members} - {*texts})):
            warnings.warn(f"{place}: left out as no text: {left}", CharlmWarning, stacklevel=2)
        for found in texts:
            inner = re.match(r"(?:zip|tar)://(.*?)::", found)
            below = os.path.relpath(found, extracted) if os.path.isdir(extracted) else inner and inner[1]
            name = f"{place}::{below}" if below else place
            copied = "::" in found or zstd or not utf8
            files.append(_copied(found, name, encoding, zstd) if copied else Local(found, name))
    return files


def _copied(path: str, name: str, encoding: str, zstd: bool = False) -> Local:
    """A copy of a file or member::archive, decompressed and as UTF-8. Raises CharlmError for what cannot be
    extracted or decoded."""
    import datasets
    import pyarrow as pa
    from datasets.utils.file_utils import xopen

    decoder = codecs.getincrementaldecoder(encoding)() if codecs.lookup(encoding).name != "utf-8" else None
    place = path.rpartition("::")[2]
    stat, bracketed = os.stat(place), re.match(r"zip://([^:]*[\[\]][^:]*)::", path)
    key = f"{path} {stat.st_size} {stat.st_mtime_ns}" + (f" {encoding}" if decoder else "")
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "charlm" / sha256(key.encode()).hexdigest()
    if copy.exists():
        return Local(str(copy), name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    read = 0
    try:
        if bracketed:  # which xopen takes for an IPv6 address
            path, xopen = bracketed[1], lambda name, _: ZipFile(place).open(name)  # noqa: SIM115
        with TemporaryDirectory(dir=copy.parent) as partial:
            with (
                pa.input_stream(path, "zstd") if zstd else xopen(path, "rb") as source,
                open(f"{partial}/member", "wb") as file,
            ):
                while block := source.read(1 << 20):
                    file.write(decoder.decode(block).encode() if decoder else block)
                    read += len(block)
                file.write(decoder.decode(b"", True).encode() if decoder else b"")
            os.replace(f"{partial}/member", copy)
    except UnicodeError as error:
        advice = "set another data.encoding, such as utf-8, latin-1, cp1252 or utf-16"
        problem = f"{name}: is not {encoding} from about byte {read:,} on"
        raise CharlmError(f"{problem} ({getattr(error, 'reason', error)}); {advice}") from error
    except Exception as error:  # of gzip, bz2, lzma, zipfile, tarfile, Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise CharlmError(f"{name}: cannot be extracted, it is damaged or cut off ({error})") from error
    return Local(str(copy), name)


class Journal(AbstractContextManager):
    """An append-only file of records, readable after a kill: opening it drops an incomplete last record. A
    record is its length and CRC-32 (uint64 each, little-endian), then its bytes, at least one."""

    def __init__(self, path: str | Path):
        lengths = [len(content) for content in self.read(path)]
        self._length = len(lengths)
        self._file = open(path, "ab")  # noqa: SIM115 - closed in __exit__
        self._file.truncate(16 * len(lengths) + sum(lengths))

    def __len__(self) -> int:
        return self._length

    def append(self, content: bytes) -> None:
        """Add a record, which survives a crash of this process, but not of the machine."""
        self._file.write(struct.pack("<QQ", len(content), zlib.crc32(content)) + content)
        self._file.flush()
        self._length += 1

    @staticmethod
    def read(path: str | Path) -> Iterator[bytes]:
        """The complete records of a journal, one after the other; none if the file does not exist."""
        if not os.path.exists(path):
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while len(head := file.read(16)) == 16:
                length, crc = struct.unpack("<QQ", head)
                if not 0 < length <= size:  # a crash of the machine can leave zeros, or anything
                    return
                content = file.read(length)
                if len(content) < length or zlib.crc32(content) != crc:
                    return
                yield content

    def __exit__(self, *_) -> None:
        self._file.close()
