"""What the tests of the corpus share: files, configs, and the contents of a prepared corpus."""

import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forks import Fork
from helpers import environment

import charlm.corpus.readers
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


def parquet(path: Path, texts: pa.Array | list, column: str = "text", **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path, **options)
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


def limited(file_size: int) -> str:
    """For a child: files may not grow beyond this; writing more fails as it does on a full disk."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_size}, {file_size}))"
    return f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {limit}"


def strict(row: bytes) -> int | None:
    """The first byte that Python's decoder refuses."""
    try:
        row.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a corpus; of corpus.json what does not tell the time."""
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    info = json.loads(files.pop("corpus.json"))
    return files | {"corpus.json": {k: v for k, v in info.items() if k not in ("seconds", "passes")}}


# parquet files of many small pieces

HELD_OUT = {"validation": 0.1, "test": 0.07}


def pieces_of(path: Path, n: int, seed: int = 3) -> str:
    """A parquet file of n row groups and about a thousand bytes in each; no two are alike."""
    draw = random.Random(seed)
    words = ["the", "naïve", "中文", "😀", "Быстрая", "\r\n", "fox", "", "a" * 40]
    rows = ["".join(f"{word} " for word in draw.choices(words, k=draw.randint(20, 60))) for _ in range(n * 7)]
    return parquet(path, rows, row_group_size=7)


def of_parquet(folder: Path, file: str | Path | list[str], vocab: dict | None = None, **data) -> Config:
    """A config that reads parquet files."""
    files = file if isinstance(file, list) else str(file)
    return config(folder, "parquet", vocab, data_files=files, **data)


def small_pieces(patch: pytest.MonkeyPatch) -> None:
    """As in those processes: the plan of a build depends on it."""
    patch.setattr(charlm.corpus.readers, "PIECE", 1 << 10)
    patch.setattr(charlm.corpus.readers, "BATCH", 1 << 9)


def arrow_files() -> list[Path]:
    """What `datasets` keeps in its cache, over all tests."""
    return sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


# processes that prepare

BEFORE = """
import os, sys
import charlm.corpus.layout, charlm.corpus.readers
from charlm.config.parse import from_dict
from charlm.corpus.prepared import prepare, prepare_shard
from charlm.errors import CharlmError
charlm.corpus.readers.PIECE, charlm.corpus.readers.BATCH = 1 << 10, 1 << 9
charlm.corpus.layout.SYNC_EVERY = 0.0
"""


def fork(*words: str, before: str = "") -> Fork:
    """`charlm` with these words, in many small pieces; before: code that is run first."""
    return Fork([*words], environment(), apart=True, before=BEFORE + before)


def preparing(made: Config, *shard: int) -> Fork:
    """A process that prepares a config, or one shard of it."""
    call = "prepare_shard" if shard else "prepare"
    return fork(before=f"{call}(from_dict({json.loads(tree_of(made))}), *{shard}); sys.exit()")
