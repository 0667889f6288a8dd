"""Which files a config names, as what they are read, for which split, and what identifies their content. A
prepared corpus opens without `datasets` and pyarrow: they are not imported here."""

import glob
import hashlib
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Annotated, NamedTuple
from zipfile import ZipFile, is_zipfile

from charlm.checked import SOME_FIGURES, Count
from charlm.config.fields import BUILDERS, WITHOUT_EFFECT, Config, DataConfig
from charlm.errors import CharlmError, CharlmWarning, redact
from charlm.files import copy_of_pipe, digests, files_below, head_of, refuse_dump

SPLITS = ("train", "validation", "test")
FORMAT = {"format": "charlm corpus", "version": 2}
Code = Annotated[Count, (lambda code: code < 0x110000, "is no code point")]
BASELINE = SOME_FIGURES | {"bpb": float, "repeated?": float}
BASELINE |= dict.fromkeys(("order?", "train_symbols?", "held_out_bytes?"), Count)
SIZE = dict.fromkeys(("symbols", "characters", "bytes", "documents?"), Count) | {"sha256": str}
INFO = FORMAT | {  # the content of corpus.json
    "splits": {"train": SIZE, "validation?": SIZE, "test?": SIZE},
    "floors": dict[str, BASELINE],
    **dict.fromkeys(("documents", "characters", "bytes", "left_out_characters", "skipped?", "empty?"), Count),
    **dict.fromkeys(("fallback_rate", "coverage", "seconds"), float),
    **dict.fromkeys(("most_frequent", "first_left_out"), list[tuple[Code, Count]]),
    **{"passes": dict[str, float], "kept?": dict[str, Count], "duplicates?": Count, "decomposed?": Count},
    **{"origins?": dict[str, str], "fingerprint": str},
}

SUFFIXES = {  # of files, before that of a compression
    "text": (".txt", ".md"),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
SPLIT_WORDS = {  # in mappings of data_files, and in names below a folder
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_ABOUT = ("README.md", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
# Fields of section data when the format of fingerprints was fixed.
_FIELDS = "source name revision split data_files text text_column document separator split_by validation test"
_FIELDS = (*_FIELDS.split(), "seed", "max_documents", "max_characters")


class Unreadable(CharlmError):
    """Text that cannot be read now but may be later: an error of the network, the disk or a damaged file."""


class File(NamedTuple):
    """A file to read. path: local, a URL, or member::archive. format: a key of SUFFIXES, or wikiextractor."""

    path: str
    format: str

    @property
    def on_disk(self) -> str:
        """The path of the local file or archive; '' if there is none."""
        place = self.path.rsplit("::", 1)[-1]
        return "" if "://" in place else place


def describe(data: DataConfig) -> str:
    """The text of a config, in errors."""
    files = f", data.data_files={data.data_files!r}" if data.data_files else ""
    return f"data.source={data.source!r}{files}"


def stdlib_files() -> list[Path]:
    """The sources of this Python's standard library, sorted, without tests. Raises CharlmError for none."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    skip |= {path.name for path in root.glob("_sysconfigdata*")}  # of the machine that built this Python
    files = [path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts)]
    if not files:
        raise CharlmError(f"data.source=stdlib: this Python has no source under {root}: name other text")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def format_of(path: str) -> str:
    """The format that the suffix of a file, URL or member::archive stands for, compressed or not; or ''."""
    name = path.split("::")[0].split("?")[0].rpartition("/")[2].lower().lstrip(".")
    suffix = next((s for part in name.split(".")[:0:-1] if (s := f".{part}") not in PACKED), "")
    return next((name for name, known in SUFFIXES.items() if suffix in known), "")


def files_of(data: DataConfig) -> dict[str, list[File]]:
    """Split → its files, in order, each once. data.validation and data.test may be paths, then they are keys.
    Without files of the Hub; '' → all files, their format unknown, of a folder that `datasets` reads. Raises
    CharlmError for a path that matches no file, and for a folder where splits are unclear."""
    given = data.source if data.source in SUFFIXES else ""
    splits = {}
    if data.source == "stdlib":
        splits["train"] = [File(str(path), "text") for path in stdlib_files()]
    elif data.source in BUILDERS and isinstance(data.data_files, dict):
        for split, named in data.data_files.items():
            splits[split] = [file for file, _ in named_files(named, given, "data.data_files")]
    elif data.source in BUILDERS:
        splits = _by_name([*named_files(data.data_files, given, "data.data_files")], describe(data))
    elif os.path.isdir(data.source):
        splits[""] = [File(p, os.path.relpath(p, data.source)) for p in files_below(data.source)]
    elif re.match(r"[./~]|[^/]*/[^/]*/", data.source):  # not an id of the Hub
        raise CharlmError(f"data.source={data.source!r}: no such file or folder (looked in {Path.cwd()})")
    for part in ("validation", "test"):
        if (path := getattr(data, part)) not in splits and is_path(path, data):
            splits[path] = [file for file, _ in named_files(path, given, f"data.{part}")]
    return {split: [*{_same(file): file for file in files}.values()] for split, files in splits.items()}


def _same(file: File) -> tuple:
    """Equal for two names of the same file."""
    status = os.stat(file.on_disk) if file.on_disk else None
    return (file.path.removesuffix(file.on_disk), *((status.st_dev, status.st_ino) if status else ()))


def origins(data: DataConfig) -> dict[str, str]:
    """Where train, validation and test come from, for people."""
    found, parts = files_of(data), {}
    for part, name in zip(SPLITS, (data.split, data.validation, data.test), strict=True):
        if files := found.get(name):
            kinds = " and ".join(sorted({file.format for file in files}))
            named = f"{len(files):,} files" if len(files) > 1 else os.path.basename(redact(files[0].path))
            parts[part] = f"{named} ({kinds})"
        elif isinstance(name, str) and data.source != "literal":
            parts[part] = f"split {name}"
        elif name and not isinstance(name, str):
            parts[part] = f"{100 * name:g} % of the {'documents' if data.split_by == 'document' else 'text'}"
    named = {str: [data.data_files], list: data.data_files}.get(type(data.data_files), [])
    folders = [path for path in map(os.path.expanduser, named) if os.path.isdir(path)]
    others = {file for path in folders for file in files_below(path)}
    if others := others - {file.path for files in found.values() for file in files}:
        names = ", ".join(sorted(map(os.path.basename, others))[:3]) + ", …" * (len(others) > 3)
        parts["other files"] = f"{len(others):,}, not read ({names})"
    return parts


def resolve(data: DataConfig, given: dict[str, list]) -> DataConfig:
    """The same with data.validation and data.test naming the given splits that are meant for them, where they
    have their defaults. given: files_of(data), or what else is by split."""
    for part in ("validation", "test"):
        names = [name for name in SPLIT_WORDS[part] if name in given and name != data.split]
        if names and getattr(data, part) == vars(DataConfig)[part]:
            data = replace(data, **{part: names[0]})
    return data


def is_path(value: float | str, data: DataConfig) -> bool:
    """Whether data.validation or data.test is a path, not a split such as test or train[:10%]."""
    path = isinstance(value, str) and ("/" in value or format_of(value))
    return bool(path) or (data.source in BUILDERS and isinstance(value, str) and os.path.exists(value))


def _by_name(found: list[tuple[File, str]], text: str) -> dict[str, list[File]]:
    """Split → files: by their names in a folder if all have a split there, and some have train."""
    splits = {s: of for s in (*SPLIT_WORDS, "") if (of := [file for file, name in found if name == s])}
    if "train" not in splits or splits.keys() <= {"train", ""}:
        return {"train": [file for file, _ in found]}
    if "" in splits:
        names = " and ".join(splits[split][0].path for split in ("train", ""))
        advice = "name the files of each split, as in data.data_files={train: …, test: …}, or all by a glob"
        raise CharlmError(f"{text} holds files of splits and others, such as {names}: {advice}")
    return splits


def named_files(patterns: str | list[str], given: str, option: str) -> Iterator[tuple[File, str]]:
    """(file, split by its name) of all files that these paths, globs, folders and URLs name; the split is ''
    outside folders, and where the name has none. given: their format; '' to infer it."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        member, mark, place = pattern.removeprefix("file://").rpartition("::")
        place = os.path.expanduser("/dev/stdin" if place == "-" else place)
        if os.path.isdir(place):
            yield from _in_folder(place, given, option)
            continue
        if os.path.exists(place) and not os.path.isfile(place):  # a pipe
            place = copy_of_pipe(place, os.stat(place).st_ino)[0]
        one = "://" in place or os.path.isfile(place)
        matches = [place] if one else sorted(glob.glob(place, recursive=True))
        paths = matches if one else [*filter(os.path.isfile, matches)]
        if not paths:
            folders = f" matches only folders: name files, as in {pattern}/*"
            reason = folders if matches else f": no such file (looked in {Path.cwd()})"
            raise CharlmError(f"{option}={pattern!r}{reason}")
        for path in paths:
            refuse_dump(path)
            name = member + mark + path
            yield File(name, given or _format_by_content(name) or format_of(name) or _format_in_zip(name)), ""


def _in_folder(folder: str, given: str, option: str) -> Iterator[tuple[File, str]]:
    """The files of a folder and those below it that have a known format, with the split in their names."""
    paths = files_below(folder)
    formats = {path: _format_by_content(path) or format_of(path) for path in paths}
    known = {path: found for path, found in formats.items() if found and given in ("", found)}
    chosen = {path: found for path, found in known.items() if os.path.basename(path) not in _ABOUT} or known
    if not chosen:
        kinds = sorted({PurePath(path).suffix or PurePath(path).name for path in paths})
        holds = f"it holds {', '.join(kinds[:8])}" if kinds else "it is empty"
        suffixes = ", ".join(chain(*([SUFFIXES[given]] if given else SUFFIXES.values())))
        problem = f"no file of this folder ends in {suffixes} ({holds})"
        raise CharlmError(f"{option}={folder!r}: {problem}; name files, as in {os.path.join(folder, '*')}")
    split_of = {word: split for split, words in SPLIT_WORDS.items() for word in words}
    for path, found in chosen.items():
        words = re.split(r"[-._/0-9]", path[len(folder) :].lower())
        yield File(path, found), next((split_of[word] for word in words if word in split_of), "")


def _format_by_content(path: str) -> str:
    """The format of a file of WikiExtractor, such as AA/wiki_00; '' of any other."""
    if "::" in path or not re.fullmatch(r"wiki_\d+(\.bz2)?", os.path.basename(path)):
        return ""
    return {b"{": "json", b"<": "wikiextractor"}.get(head_of(path)[:1], "")


def _format_in_zip(path: str) -> str:
    """The format of the files in a zip archive, else text. CharlmError for several, or several splits."""
    names = ZipFile(path).namelist() if is_zipfile(path) else []
    formats = {format_of(name) for name in names} - {""} or {"text"}
    words = {word for name in names for word in re.split(r"[-._/0-9]", name.lower())}
    splits = [split for split, known in SPLIT_WORDS.items() if words & {*known}]
    if len(formats) > 1 or ("train" in splits and len(splits) > 1):
        several = " and ".join(sorted(formats) if len(formats) > 1 else splits)
        raise CharlmError(f"{path}: holds files of {several}: unpack it, and name the folder")
    return formats.pop()


def fingerprinted(data: DataConfig) -> dict:
    """The fields of section data that decide the content of a corpus; not newer ones at their defaults."""
    fields = {k: v for k, v in asdict(data).items() if f"data.{k}" not in WITHOUT_EFFECT}
    return {k: v for k, v in fields.items() if k in _FIELDS or v != vars(DataConfig)[k]}


def fingerprint(config: Config, found: dict[str, list[File]] | None = None) -> str:
    """12 hex digits of what decides the content: the vocab section, the data section without the names of
    local files, and the content of these (for stdlib, names and sizes). found: files_of(config.data)."""
    listed, found = found, files_of(config.data) if found is None else found
    data = resolve(config.data, found)
    fields = fingerprinted(data)
    content = {"format": FORMAT, "data": fields, "vocab": asdict(config.vocab)}
    if data.source == "stdlib":
        on_disk = [f.on_disk for f in chain(*found.values()) if f.on_disk]
        content["files"] = [(os.path.basename(path), os.stat(path).st_size) for path in on_disk]
    elif found:
        parts = {data.test: "test", data.validation: "validation", data.split: "split"}
        fields |= {part: part for name, part in parts.items() if name in found}
        fields |= {"source": "", "data_files": None} if data.source in BUILDERS or "" in found else {}
        read = [*chain(*found.values())]
        on_disk = sorted({f.on_disk for f in read if f.on_disk})
        digest = dict(zip(on_disk, digests(on_disk, data.dir), strict=True)) | {"": ""}
        files = {f: (f.format, f.path.removesuffix(f.on_disk), digest[f.on_disk]) for f in read}
        content["files"] = {parts.get(s, s): [files[f] for f in of] for s, of in found.items()}
        trained = {files[f]: f.path for f in found.get(data.split, ())}
        held_out = [f for s in {data.validation, data.test} - {data.split} for f in found.get(s, ())]
        equal = [(f.path, trained[files[f]]) for f in held_out if files[f] in trained]
        if equal and listed is None:
            text = f"{equal[0][0]} is held out and equal to {equal[0][1]}, which is trained on"
            warnings.warn(text, CharlmWarning, stacklevel=2)
    return _hashed(content)


def _hashed(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def former_fingerprint(config: Config, found: dict[str, list[File]]) -> str:
    """That of charlm 0.1, with names, sizes and times of local files; '' if it read them otherwise."""
    if config.data.source not in BUILDERS or resolve(config.data, found) != config.data:
        return ""
    paths = [f.path for files in found.values() for f in files if "://" not in f.path]
    stats = ((os.path.basename(path), os.stat(path)) for path in paths)
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    fields = {"data": fingerprinted(config.data), "vocab": asdict(config.vocab), "files": files}
    return _hashed({"format": FORMAT} | fields)
