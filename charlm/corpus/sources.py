"""Which files a config reads: found without importing `datasets`, so that a prepared corpus opens at once."""

from __future__ import annotations

import glob
import os
import sysconfig
from pathlib import Path

from charlm.config.fields import DataConfig
from charlm.errors import CharlmError


def describe(data: DataConfig) -> str:
    """How errors name the text."""
    files = f", data.data_files={data.data_files!r}" if data.data_files else ""
    return f"data.source={data.source!r}{files}"


def stdlib_files() -> list[Path]:
    """The source files of this Python's standard library, without its tests, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    found = [
        path
        for path in root.rglob("*.py")
        if not skip & set(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    ]
    if not found:
        raise CharlmError(
            f"data.source=stdlib: no Python source under {root}; this Python came without it: name other text"
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def is_local(pattern: str) -> bool:
    """True for a path or glob on this machine, False for URLs and chained ones."""
    return "://" not in pattern


def local_files(data: DataConfig) -> list[Path]:
    """The local files a config reads. Raises CharlmError for a path or glob that matches nothing."""
    if data.source == "stdlib":
        return stdlib_files()
    found = []
    for pattern in _patterns(data):
        if is_local(pattern):
            matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            if not matches:
                raise CharlmError(f"data.data_files={pattern!r}: no such file (looked in {Path.cwd()})")
            for match in matches:
                if Path(match).is_dir() and not glob.has_magic(pattern):
                    raise CharlmError(f"data.data_files={match!r} is a folder: name files, as in {match}/*")
            files = [Path(m) for m in matches if Path(m).is_file()]
            if not files:
                raise CharlmError(f"data.data_files={pattern!r} matches only folders: name files")
            found += files
    return found


def _patterns(data: DataConfig) -> list[str]:
    groups = data.data_files.values() if isinstance(data.data_files, dict) else [data.data_files]
    return [p for group in groups for p in ([group] if isinstance(group, str) else group or [])]
