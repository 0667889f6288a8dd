"""From a config to the local files that it names, and the errors of reading text in terms of the config.

A prepared corpus opens without `datasets` and pyarrow: they are not imported here.
"""

import errno
import glob
import os
import sysconfig
from pathlib import Path

from charlm.config.fields import DataConfig
from charlm.errors import CharlmError


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
    patterns = [p for group in groups for p in ([group] if isinstance(group, str) else group)]
    found = []
    for pattern in (p for p in patterns if "://" not in p):
        matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        files = [path for path in map(Path, matches) if path.is_file()]
        if not files:
            folders = f" matches only folders: name files, as in {pattern}/*"
            reason = folders if matches else f": no such file (looked in {Path.cwd()})"
            raise CharlmError(f"data.data_files={pattern!r}{reason}")
        found += files
    return found


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
