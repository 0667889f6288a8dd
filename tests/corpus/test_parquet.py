"""Parquet files: read in place, in pieces, from disk or a URL; slices, columns and damage."""

import io
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_helpers import (
    HELD_OUT,
    arrow_files,
    config,
    contents,
    jsonl,
    of_parquet,
    parquet,
    pieces_of,
    refused,
    sha_of,
    small_pieces,
    text_of,
    written,
)

from charlm.corpus.prepared import prepare, verify
from charlm.errors import CharlmError


@pytest.mark.parametrize("sizes", [[3, 2], [1, 100], [100, 1], [5]])
def test_parquet_makes_no_arrow_cache(tmp_path, monkeypatch, sizes):
    """Several files, of several row groups, or of one that is longer than all others."""
    small_pieces(monkeypatch)
    before, texts, files = arrow_files(), [], []
    for number, size in enumerate(sizes):
        rows = [f"{number} {row} naïve 中文\r\n" * (row % 5) for row in range(103)]
        files.append(parquet(tmp_path / f"{number}.parquet", rows, row_group_size=size))
        texts += rows
    corpus = prepare(of_parquet(tmp_path, files, separator="|"))
    assert text_of(corpus) == "|".join(texts) and corpus.info["documents"] == len(texts)
    assert arrow_files() == before


SLICES = ["train[10%:50%]+train[70%:]", "train[:3]+train[3:3]+train[-2:]", "train[5:90]", "train[-30%:-10%]"]


@pytest.mark.parametrize("split", [*SLICES, "train"])
@pytest.mark.parametrize("source", ["parquet", "json"])
def test_slices_are_those_of_datasets(tmp_path, monkeypatch, split, source):
    small_pieces(monkeypatch)
    texts = [f"{row} é" * (row % 4) for row in range(97)]
    path, cache = tmp_path / f"a.{source}", str(tmp_path / "cache")
    file = jsonl(path, texts) if source == "json" else parquet(path, texts, row_group_size=11)
    expected = list(datasets.load_dataset(source, data_files=file, split=split, cache_dir=cache)["text"])
    made = config(tmp_path, source, {"end_of_document": True}, data_files=file, split=split)
    corpus = prepare(made)
    ids = corpus["train"]
    ends = np.flatnonzero(ids == corpus.vocab.end)
    assert [corpus.vocab.decode(part) for part in np.split(ids, ends + 1)[:-1]] == expected
    assert corpus.info["documents"] == len(expected)


def test_what_datatrove_writes(tmp_path):
    """Its ParquetWriter: text, id and a struct of metadata whose fields differ between files."""
    for i, metadata in enumerate(({"url": "u", "score": 0.5}, {"date": "2020-01-01", "score": None})):
        rows = [{"text": f"{i} {n}\r\n", "id": f"<{n}>", "metadata": metadata} for n in range(3)]
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"in/{i:05}.parquet", compression="zstd")
    corpus = prepare(of_parquet(tmp_path, str(tmp_path / "in" / "*.parquet"), separator="|"))
    assert text_of(corpus) == "|".join(f"{i} {n}\r\n" for i in range(2) for n in range(3))


def test_columns_that_look_alike(tmp_path):
    """A nested column with the same leaf, a column with a dot in its name, and both at once."""
    nested = pa.array([{"text": "inner", "b": "leaf"}] * 2)
    tables = {
        "nested": {"a": nested, "text": ["one", "twö"]},
        "dotted": {"text.en": ["no", "not"], "text": ["one", "twö"], "text.de": ["nein", "nicht"]},
        "both": {"a": nested, "a.text": ["no", "not"], "text": ["one", "twö"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")

    def read(name: str, column: str) -> str:
        file = str(tmp_path / f"{name}.parquet")
        return text_of(prepare(of_parquet(tmp_path, file, text_column=column)))

    assert [read(name, "text") for name in tables] == ["one\ntwö"] * 3
    assert read("dotted", "text.en") == "no\nnot" and read("both", "a.text") == "no\nnot"
    assert read("nested", "a.text") == "inner\ninner" and read("nested", "a.b") == "leaf\nleaf"
    with pytest.raises(CharlmError, match=r"'a\.no' is not a column of .* \(columns: a, text\)"):
        read("nested", "a.no")


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    made = of_parquet(tmp_path, tmp_path / "a.parquet")
    refused(tmp_path, made, "data.text_column='text'", "more than one column of", "(columns: text, text)")


def test_a_file_that_will_not_do_is_named_among_many(tmp_path):
    good = [parquet(tmp_path / "in" / f"{n}.parquet", [n]) for n in "ac"]
    lacks = parquet(tmp_path / "in" / "b.parquet", ["b"], "body")
    made = of_parquet(tmp_path, str(tmp_path / "in" / "*"))
    refused(tmp_path, made, f"'text' is not a column of {lacks} (columns: body)")
    other = written(tmp_path / "in" / "b.parquet", "text\nno parquet\n")
    refused(tmp_path, made, f"{other}: datasets cannot read it", "magic bytes")
    assert all(Path(file).exists() for file in good)


NOT_TEXT = {
    "int64": pa.array([1, 2]),
    "list<element: string>": pa.array([["a"], ["b"]]),
    "dictionary<": pa.array([1, 2]).dictionary_encode(),
    "struct<x: string>": pa.array([{"x": "a"}] * 2),
    "double": pa.array([0.5, 1.5]),
    "date32": pa.array([0, 1], pa.date32()),
}


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_a_column_of_another_type(tmp_path, kind):
    file = parquet(tmp_path / "a.parquet", NOT_TEXT[kind])
    refused(
        tmp_path,
        of_parquet(tmp_path, file),
        "data.text_column='text'",
        file,
        "holds int64" if kind == "dictionary<" else f"holds {kind}",
    )


def test_streaming_gives_the_same_bytes_and_keeps_nothing(tmp_path, site, monkeypatch):
    small_pieces(monkeypatch)
    root, url = site
    files = [f"{url}/{Path(pieces_of(root / f'{i}.parquet', n, i)).name}" for i, n in enumerate((4, 7))]
    made = {s: of_parquet(tmp_path / str(s), files, streaming=s, **HELD_OUT) for s in (True, False)}
    downloads = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
    before = sorted(downloads.rglob("*"))
    streamed = prepare(made[True])
    assert sorted(downloads.rglob("*")) == before
    downloaded = prepare(made[False])
    assert len(sorted(downloads.rglob("*"))) > len(before)
    assert streamed.folder.name == downloaded.folder.name  # how it is read does not decide the content
    assert contents(streamed.folder) == contents(downloaded.folder)
    local = of_parquet(tmp_path / "l", [str(root / f"{i}.parquet") for i in range(2)], **HELD_OUT)
    assert sha_of(prepare(local)) == sha_of(streamed)
    verify(made[True])


@pytest.mark.parametrize("source", ["json", "text", "csv"])
def test_streaming_of_anything_but_parquet_is_refused(tmp_path, source):
    file = written(tmp_path / "a", "text\nx\n" if source == "csv" else '{"text": "x"}\n')
    made = config(tmp_path, source, data_files=file, streaming=True)
    refused(tmp_path, made, "data.streaming=True", "not made of parquet files", "data.streaming=false")


def test_a_damaged_parquet_file_is_named(tmp_path):
    """Its footer, cut or overwritten; a page of its data."""
    file = Path(pieces_of(tmp_path / "a.parquet", 6))
    whole = file.read_bytes()
    made = of_parquet(tmp_path, str(file))
    for damaged in (whole[:-1], whole[:1000], whole[:-60] + b"\xff" * 52 + whole[-8:]):
        file.write_bytes(damaged)
        refused(tmp_path, made, str(file), "datasets cannot read it")
    begin = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(2).column(0)
    at = begin.dictionary_page_offset or begin.data_page_offset
    file.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
    with pytest.raises(CharlmError, match=re.escape(f"{file}: datasets cannot read it")):
        prepare(made)
    file.write_bytes(whole)
    assert prepare(made).info["documents"] == 42
