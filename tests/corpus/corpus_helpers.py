"""What the tests of the corpus share: files, configs, and the contents of a prepared corpus."""

import json
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from charlm.config.fields import Config
from charlm.config.parse import from_dict
from charlm.corpus.prepared import Corpus, prepare
from charlm.errors import CharlmError


def config(folder: Path, source: str, vocab: dict | None = None, **data) -> Config:
    """A config of sections data and vocab; all text goes to train by default."""
    data = {"source": source, "dir": str(folder / "data"), "validation": 0, "test": 0} | data
    return from_dict({"data": data, "vocab": vocab or {}})


def written(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(path)


def jsonl(path: Path, texts: list, column: str = "text") -> str:
    return written(path, "".join(json.dumps({column: t, "n": i}) + "\n" for i, t in enumerate(texts)))


def parquet(path: Path, texts: pa.Array | list, column: str = "text") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path)
    return str(path)


def text_of(corpus: Corpus, *splits: str) -> str:
    """The decoded text of splits, all of them by default, joined."""
    return "".join(corpus.vocab.decode(corpus[s]) for s in splits or corpus.splits)


def bytes_of(corpus: Corpus) -> bytes:
    return b"".join(corpus.vocab.decode_bytes(corpus[s]) for s in corpus.splits)


def folders(folder: Path) -> list[str]:
    """The names in data.dir, without lock files."""
    data = folder / "data"
    return sorted(p.name for p in data.iterdir() if p.suffix != ".lock") if data.is_dir() else []


def refused(folder: Path, bad: Config, *fragments: str) -> str:
    """prepare refuses a config, its message contains all fragments, and leaves nothing in data.dir."""
    with pytest.raises(CharlmError) as caught:
        prepare(bad)
    for words in fragments:
        assert words in str(caught.value), f"{words!r} is not in: {caught.value}"
    assert folders(folder) == []
    return str(caught.value)


def sha_of(corpus: Corpus) -> dict[str, str]:
    return {split: facts["sha256"] for split, facts in corpus.splits.items()}


def tree_of(made: Config) -> str:
    return json.dumps({"data": vars(made.data), "vocab": vars(made.vocab)})


def limited(file_size: int):
    """For a child: files may not grow beyond this; writing more fails as it does on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return limit
