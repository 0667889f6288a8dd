"""charlm.corpus from sources to prepared: the text on disk is the text that the config names, or no text."""

import bz2
import contextlib
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from corpus_helpers import (
    bytes_of,
    config,
    folders,
    fork,
    jsonl,
    limited,
    parquet,
    refused,
    sha_of,
    text_of,
    tree_of,
    written,
)
from forks import Fork
from hypothesis import example, given
from hypothesis import strategies as st

import charlm.corpus.prepared
import charlm.corpus.sources
import charlm.files
from charlm.config.fields import Config, DataConfig
from charlm.config.parse import from_dict, load_config
from charlm.corpus import readers
from charlm.corpus.batches import TextSource, utf8_of
from charlm.corpus.prepared import Corpus, folder_of, prepare, verify
from charlm.corpus.sources import files_of, fingerprint, stdlib_files
from charlm.corpus.texts import Text
from charlm.errors import CharlmError, CharlmWarning
from charlm.files import Local

MIXED = (
    "naïve café\r\n中文 😀👩‍👩‍👧 ß\rlone\n\n\0end"  # every UTF-8 length, every line ending, no last newline
)
DOCUMENTS = ["alpha", "bé\r\n", "", "中文😀", "\r", "omega"]


# where text comes from


def test_from_yaml_to_arrays(tmp_path):
    """The path a user goes: a YAML file, overrides, prepare."""
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"data: {{source: text, data_files: {written(tmp_path / 'a.txt', 'hello')}}}")
    corpus = prepare(
        load_config(
            yaml,
            f"data.dir={tmp_path / 'data'}",
            "data.split_by=character",
            "data.validation=0.4",
            "data.test=0",
            "vocab.characters=helo",
            "vocab.unknown=error",
        )
    )
    assert corpus["train"].tolist() == [0, 1, 2] and corpus["validation"].tolist() == [2, 3]
    assert corpus.folder.parent == tmp_path / "data"


TEXTS = [MIXED, "a\r\nb\r\n", "a\rb\r", "no newline", "\n\n", "\r\n", "\ufeffab", " a "]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_kept_to_the_byte(tmp_path, text):
    """The text builder of `datasets` would turn every line ending into \\n."""
    file = written(tmp_path / "a.txt", text)
    for made in (config(tmp_path, "text", data_files=file), config(tmp_path, "literal", text=text)):
        assert bytes_of(prepare(made)) == text.encode("utf-8")


@pytest.mark.parametrize("builder", ["json", "csv", "parquet"])
@pytest.mark.parametrize("end", [False, True])
def test_every_builder_gives_the_documents_in_order(tmp_path, builder, end):
    texts = [t for t in DOCUMENTS if t != "\r"]
    path = tmp_path / f"a.{builder}"
    if builder == "json":
        jsonl(path, texts, "body")
    elif builder == "parquet":
        parquet(path, texts, "body")
    else:
        written(path, "body,n\n" + "".join(f'"{t}",{i}\n' for i, t in enumerate(texts)))
    made = config(
        tmp_path, builder, {"end_of_document": end}, data_files=str(path), text_column="body", separator="<|>"
    )
    corpus = prepare(made)
    assert text_of(corpus) == ("" if end else "<|>").join(texts)
    assert corpus.info["documents"] == corpus.splits["train"]["documents"] == len(texts)
    if end:
        at = np.flatnonzero(corpus["train"] == corpus.vocab.end)
        assert [corpus.vocab.decode(p) for p in np.split(corpus["train"], at + 1)[:-1]] == texts
        assert at[-1] == len(corpus["train"]) - 1


def test_a_json_array_is_read(tmp_path):
    file = written(tmp_path / "a.json", json.dumps([{"text": t} for t in ("a", "bé")]))
    assert text_of(prepare(config(tmp_path, "json", data_files=file))) == "a\nbé"


def test_csv_text_that_looks_like_nothing_is_text(tmp_path):
    """The words NA, null and None are text like any other."""
    file = written(tmp_path / "a.csv", "text,n\nNA,1\nnull,2\nNone,3\nnan,4\nx,5\n")
    assert text_of(prepare(config(tmp_path, "csv", data_files=file))) == "NA\nnull\nNone\nnan\nx"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_every_kind_of_text_column_and_nulls_as_empty_documents(tmp_path, kind):
    texts = [b"a\xc3\xa9", None, b"", b"\xe4\xb8\xad", None]
    file = parquet(tmp_path / "a.parquet", pa.array(texts, pa.binary()).cast(kind))
    corpus = prepare(config(tmp_path, "parquet", {"end_of_document": True}, data_files=file))
    assert corpus.info["documents"] == 5
    assert "".join(map(corpus.vocab.stream("|"), corpus["train"])) == "aé|||中||"


def test_globs_lists_and_their_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt", "sub/d.txt"):
        written(tmp_path / "in" / name, name[-5].upper() + name[-5])
    cases = {
        "AaBbCc": str(tmp_path / "in" / "*.txt"),
        "AaBb": str(tmp_path / "in" / "[ab].txt"),
        "CcAaBb": [str(tmp_path / "in" / "c.txt"), str(tmp_path / "in" / "[ab].txt")],
        "Dd": str(tmp_path / "in" / "sub" / "*"),
        "BbAa": {"train": [str(tmp_path / "in" / "b.txt"), str(tmp_path / "in" / "a.txt")]},
    }
    for text, files in cases.items():
        assert text_of(prepare(config(tmp_path, "text", data_files=files, separator=""))) == text
    deep = prepare(config(tmp_path, "text", data_files=str(tmp_path / "in" / "**" / "*.txt"), separator=""))
    assert sorted(text_of(deep)) == list("ABCDabcd")


@pytest.mark.parametrize("source", ["text", "json"])
def test_the_data_set_s_own_splits(tmp_path, source):
    texts = {"train": "train é", "dev": "devä", "final": "finalö"}
    files = {
        s: written(tmp_path / f"{s}.txt", t) if source == "text" else jsonl(tmp_path / f"{s}.jsonl", [t])
        for s, t in texts.items()
    }
    corpus = prepare(config(tmp_path, source, data_files=files, validation="dev", test="final"))
    assert list(corpus.splits) == ["train", "validation", "test"]
    for split, name in zip(corpus.splits, texts, strict=True):
        assert text_of(corpus, split) == texts[name]
        assert corpus.splits[split]["documents"] == 1
    assert set("éäö") <= set(corpus.vocab.characters)  # the vocabulary is counted over all that is encoded


def test_an_own_validation_and_a_drawn_test(tmp_path):
    files = {
        "train": jsonl(tmp_path / "a.jsonl", ["aa", "bb", "cc", "dd"]),
        "dev": jsonl(tmp_path / "b.jsonl", ["xx"]),
    }
    corpus = prepare(config(tmp_path, "json", data_files=files, validation="dev", test=0.25))
    assert text_of(corpus, "validation") == "xx"
    parts = text_of(corpus, "train").split("\n") + text_of(corpus, "test").split("\n")
    assert sorted(parts) == ["aa", "bb", "cc", "dd"]
    assert [corpus.splits[s]["documents"] for s in ("train", "validation", "test")] == [3, 1, 1]


def test_stdlib(tmp_path):
    corpus = prepare(config(tmp_path, "stdlib", max_documents=20))
    files = stdlib_files()
    assert text_of(corpus) == "\n".join(f.read_bytes().decode("utf-8") for f in files[:20])
    assert corpus.info["documents"] == 20
    assert Path(os.__file__).resolve() in [f.resolve() for f in files]
    assert not [f for f in files if {"test", "tests", "site-packages"} & set(f.parts)]
    assert files == sorted(files, key=lambda f: f.relative_to(files[0].parent).as_posix())


# which files are read, as what, for which split


def folder_of_all_formats(folder: Path) -> list[bytes]:
    """Files of every format, in two folders, one compressed, some that are no text. Returns the documents."""
    written(folder / "a.txt", "one\r\ntwo\n")
    written(folder / "b" / "c.MD", "# é")
    written(folder / "b" / "d.txt.gz", gzip.compress(b"packed\n"))
    jsonl(folder / "e.jsonl", ["row 1", "row 2"])
    written(folder / "f.csv", "n,text\n1,in a table\n")
    parquet(folder / "g.parquet", ["columns"])
    for name in (".hidden.txt", "README.md", "notes.pdf", "b/state.json", ".git/x.txt"):
        written(folder / name, "not text")
    return [b"one\r\ntwo\n", "# é".encode(), b"packed\n", b"row 1", b"row 2", b"in a table", b"columns"]


def test_a_folder_or_a_list_of_any_formats_is_read_to_the_byte(tmp_path, monkeypatch):
    """However it is named; a new time of change makes no other corpus, new content and new files do."""
    folder = tmp_path / "books"
    documents = folder_of_all_formats(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [
        "a.txt",
        "b/c.MD",
        "./b/d.txt.gz",
        str(folder / "e.jsonl"),
        "~/books/f.csv",
        "../books/g.parquet",
    ]
    same = [config(tmp_path, "files", data_files=named) for named in (str(folder), "~/books", ["."], names)]
    same += [config(tmp_path, str(folder)), config(tmp_path, "stdlib", data_files="../books/")]
    first, *others = map(prepare, same)
    assert bytes_of(first) == b"\n".join(documents) and first.info["documents"] == len(documents)
    assert {other.folder for other in others} == {first.folder}
    assert re.search(
        r"train: 6 files \(csv and json and parquet and text\),\s+other files: 3", first.report()
    )
    assert "kept         carriage returns: 1\n" in first.report()
    os.utime(folder / "a.txt", (1, 1))
    assert prepare(same[0]).folder == first.folder
    written(folder / "a.txt", "one\r\n2wo\n")
    written(folder / "z.txt", "new")
    edited = b"\n".join([b"one\r\n2wo\n", *documents[1:], b"new"])
    assert [bytes_of(prepare(made)) for made in (same[0], same[4])] == [edited] * 2


SPLIT_FILES = {"train": "the training text", "valid": "a validation text", "test": "for the final test"}


@pytest.mark.parametrize(
    "named",
    [
        {"data_files": "{}"},
        {"data_files": "{}/../deep"},
        {"data_files": {"train": "{}/train.txt", "valid": "{}/valid.txt", "test": "{}/test.txt"}},
        {"data_files": "{}/train.txt", "validation": "{}/valid.txt", "test": "{}/../deep/test/*"},
        {"source": "text", "data_files": ["{}/train.txt"], "validation": "valid.txt", "test": "./test.txt"},
        {
            "source": "literal",
            "text": SPLIT_FILES["train"],
            "validation": "../deep/dev-0",
            "test": "test.txt",
        },
    ],
)
def test_files_of_a_split_are_that_split(tmp_path, monkeypatch, named):
    for name, text in SPLIT_FILES.items():
        written(tmp_path / "in" / f"{name}.txt", text)
        written(tmp_path / "deep" / name.replace("valid", "dev-0") / "0.md", text)
    monkeypatch.chdir(tmp_path / "in")
    named = json.loads(json.dumps(named).replace("{}", str(tmp_path / "in")))
    tree = {"data": {"dir": str(tmp_path / "data")} | named}
    corpus = prepare(from_dict(tree))
    assert [text_of(corpus, split) for split in corpus.splits] == list(SPLIT_FILES.values())
    assert re.search(r"validation: (valid\.txt|0\.md) \(text\),\s+test: (test\.txt|0\.md)", corpus.report())
    before = folder_of(from_dict(tree))
    for path in [*tmp_path.glob("in/*.txt"), *tmp_path.glob("deep/*/*.md")]:
        written(path, path.read_text() + "!")
    assert folder_of(from_dict(tree)) != before


def test_names_of_splits_do_not_count_unless_all_files_have_one(tmp_path):
    """A book may be called test.txt; explicit values win; what is unclear is refused."""
    names = ("test.txt", "a.txt", "b.txt", "c.txt")
    files = [written(tmp_path / "in" / name, name) for name in names]
    made = config(tmp_path, "files", data_files=str(tmp_path / "in"), separator=" ")
    assert text_of(prepare(made)) == "a.txt b.txt c.txt test.txt"
    written(tmp_path / "in/train.txt", "train.txt")
    refused(
        tmp_path / "x", replace(made, data=replace(made.data, dir=str(tmp_path / "x/data"))), "train.txt and"
    )
    by_glob = replace(made, data=replace(made.data, data_files=str(tmp_path / "in/*.txt")))
    assert prepare(by_glob).info["documents"] == 5
    both = {"train": files, "validation": files[0]}
    with pytest.warns(
        CharlmWarning, match="splits that are not read: validation; data.validation=validation"
    ):
        drawn = prepare(config(tmp_path, "text", data_files=both, validation=0.25))
    assert drawn.splits["validation"]["documents"] == 1 and drawn.info["documents"] == 4


def test_equal_paths_are_read_once(tmp_path):
    file = written(tmp_path / "a.txt", "abc")
    os.symlink(file, tmp_path / "link.txt")
    named = [file, str(tmp_path / "*.txt"), f"{tmp_path}/../{tmp_path.name}/a.txt"]
    assert text_of(prepare(config(tmp_path, "text", data_files=named))) == "abc"


@pytest.mark.parametrize("piece, batch", [(3, 5), (8 << 20, 4 << 20)])
def test_equal_documents_are_left_out_on_request(tmp_path, piece, batch):
    """Long ones and short ones, within a split and between two; the one held out keeps its document."""
    texts = ["a\r\nlong document", "b", "", "a\r\nlong document", "c" * 20, "", "held out", "b", "d", "b"]
    names = [str(tmp_path / f"{i}.txt") for i in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        written(Path(name), text)
    held = jsonl(tmp_path / "dev.jsonl", ["x", "held out", "x"])
    with pieces_of(piece, batch):
        made = config(tmp_path, "files", data_files=names, validation=held, separator="|", deduplicate=True)
        corpus = prepare(made)
        assert text_of(corpus, "train") == "|".join(["a\r\nlong document", "b", "", "c" * 20, "d"])
        assert text_of(corpus, "validation") == "x|held out"
        assert corpus.splits["train"]["documents"] == 5 and corpus.info["documents"] == 7
        assert "  duplicates   6 documents, left out\n" in corpus.report()
        verify(made)
        drawn = prepare(config(tmp_path, "text", data_files=names, validation=0.5, deduplicate=True))
        assert [drawn.splits[s]["documents"] for s in drawn.splits] == [3, 3]
        file = jsonl(tmp_path / "rows.jsonl", texts)
        made = config(tmp_path, "json", data_files=file, deduplicate=True, max_characters=57, separator="|")
        assert text_of(prepare(made)) == "|".join(["a\r\nlong document", "b", "", "c" * 20, "held"])


def test_a_bad_byte_after_documents_that_were_left_out_is_named_where_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\na\nb\na\n\xff\n")
    data = {"data_files": str(tmp_path / "a.txt"), "document": "line", "deduplicate": True}
    with pytest.raises(CharlmError, match=r"a\.txt: byte 8 \(0xFF\)"):
        prepare(config(tmp_path, "text", **data))


def test_a_folder_with_configurations_for_datasets_is_read_as_they_say(tmp_path):
    folder = tmp_path / "in"
    written(folder / "README.md", "---\nconfigs:\n- config_name: x\n  data_files: here/*.txt\n---\n")
    written(folder / "here/a.txt", "a\r\nb")
    written(folder / "there.txt", "c")
    made = config(tmp_path, str(folder))
    assert bytes_of(prepare(made)) == b"a\r\nb"
    written(folder / "here/a.txt", "edited")
    assert bytes_of(prepare(made)) == b"edited"


def test_splits_of_a_dataset_are_used_by_default(tmp_path):
    """Of a repository's folder, as `datasets` finds it on the Hub; not where a share was asked for."""
    configs = "".join(f"  - split: {s}\n    path: {s}.jsonl\n" for s in ("train", "validation", "test"))
    written(tmp_path / "in/README.md", f"---\nconfigs:\n- config_name: x\n  data_files:\n{configs}---\n")
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"in/{split}.jsonl", [f"{split} {i}" for i in range(9)])
    made = {"source": str(tmp_path / "in"), "dir": str(tmp_path / "data")}
    corpus = prepare(from_dict({"data": made}))
    for split in ("train", "validation", "test"):
        assert text_of(corpus, split) == "\n".join(f"{split} {i}" for i in range(9))
    assert corpus.info["origins"] == {s: f"split {s}" for s in ("train", "validation", "test")}
    with pytest.warns(CharlmWarning, match="splits that are not read: validation; "):
        corpus = prepare(from_dict({"data": made | {"validation": 0.2}}))
    assert corpus.splits["validation"]["documents"] == 2 and corpus.splits["test"]["documents"] == 9


def test_a_held_out_file_that_is_equal_to_one_of_train_is_named(tmp_path):
    files = {split: written(tmp_path / f"{split}.txt", "text " * 9) for split in ("train", "validation")}
    with pytest.warns(CharlmWarning, match=r"validation\.txt is held out and equal to .*train\.txt, which"):
        prepare(config(tmp_path, "text", data_files=files, validation=0.05))


def test_rows_that_datasets_streams_are_read_from_a_pipe(tmp_path):
    """Without a file of them. An error names the pipe."""
    jsonl(tmp_path / "in/a.jsonl", ["a", "b\n", "é"])
    rows = datasets.load_dataset("json", data_files=str(tmp_path / "in/*"), split="train", streaming=True)
    for bad in ("", "{"):
        pipe = tmp_path / f"pipe{bad}"
        os.mkfifo(pipe)
        lines = "".join(json.dumps(row) + "\n" for row in rows) + bad
        threading.Thread(target=pipe.write_text, args=(lines,), daemon=True).start()
        made = config(tmp_path, "json", data_files=str(pipe), separator="|")
        if bad:
            assert refused(tmp_path / "no", made, f"{pipe}: line 4: not JSON").startswith(str(pipe))
        else:
            assert text_of(prepare(made)) == "a|b\n|é"


def test_a_pipe_is_read_once_and_identified_by_its_content(tmp_path):
    pipe, file = tmp_path / "pipe", written(tmp_path / "a.txt", MIXED)
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(MIXED.encode(),), daemon=True).start()
    corpus = prepare(config(tmp_path, "files", data_files=str(pipe)))
    assert text_of(corpus) == MIXED
    assert folder_of(config(tmp_path, "text", data_files=file)) == corpus.folder


def test_files_of_wikiextractor_are_documents_and_a_dump_is_refused(tmp_path):
    marked = (
        '<doc id="1" url="u" title="A > b">\nA > b\n\nText.\n\n</doc>\n<doc id="2" title="">\nTwo\n</doc>\n'
    )
    written(tmp_path / "in/AA/wiki_00", marked)
    written(tmp_path / "in/AA/wiki_01.bz2", bz2.compress(marked.replace("Two", "Zwei").encode()))
    written(tmp_path / "in/AB/wiki_00", '{"id": "3", "text": "Three"}\n')
    corpus = prepare(config(tmp_path, str(tmp_path / "in"), {"bytes_only": True}, separator="|"))
    assert bytes_of(corpus) == b"A > b\n\nText.|Two|A > b\n\nText.|Zwei|Three"
    dump = written(tmp_path / "x/wiki.xml.bz2", bz2.compress(b'<mediawiki xmlns="x">\n<page>'))
    refused(
        tmp_path / "x", config(tmp_path / "x", "text", data_files=dump), dump, "WikiExtractor", "wikipedia-en"
    )


def test_a_corpus_that_charlm_0_1_prepared_is_found(tmp_path):
    """Its folder is named by names, sizes and times of the files, and by the paths as they were written."""
    file = Path(written(tmp_path / "a.txt", "hello"))
    made = config(tmp_path, "text", data_files=str(file))
    fields = (
        "source name revision split data_files text text_column document separator split_by validation test"
    )
    fields = {k: vars(made.data)[k] for k in (*fields.split(), "seed", "max_documents", "max_characters")}
    content = {"format": {"format": "charlm corpus", "version": 2}, "data": fields, "vocab": vars(made.vocab)}
    content["files"] = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    old = (
        os.rename(prepare(made).folder, tmp_path / "data" / f"a-{digest}")
        or tmp_path / "data" / f"a-{digest}"
    )
    assert prepare(made).folder == old
    os.utime(file, (1, 1))
    assert folder_of(made) != old


def test_digests_of_much_text_are_kept_and_an_edit_in_place_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(charlm.files, "KEPT", 0)
    file = Path(written(tmp_path / "a.txt", "hello"))
    made = config(tmp_path, "text", data_files=str(file))
    (tmp_path / "data").mkdir()
    first, kept = folder_of(made), tmp_path / "data" / ".digests.json"
    assert list(json.loads(kept.read_text())) == [str(file)]
    kept.write_text(kept.read_text().replace('"]', 'x"]'))
    assert folder_of(made) != first, "computed again"
    before = file.stat()
    written(file, "hullo")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    edited = folder_of(made)
    monkeypatch.setattr(charlm.files, "KEPT", 1 << 20)
    assert folder_of(made) == edited != first


def test_two_spellings_of_one_path_are_one_file_however_large(tmp_path, monkeypatch):
    file = written(tmp_path / "a.txt", "hello")
    other = os.path.join(tmp_path, ".", "a.txt")
    made = config(tmp_path, "text", data_files=file, validation=other)
    few = folder_of(made)
    monkeypatch.setattr(charlm.files, "KEPT", 0)
    assert folder_of(made) == few


def test_a_held_out_file_beside_the_standard_library_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "v.txt"
    made = config(tmp_path, "stdlib", validation=str(file))
    folders = {folder_of(made) for text in ("a", "ab") if file.write_text(text)}
    assert len(folders) == 2


# over http


@pytest.mark.parametrize("files", ["{url}/a.txt", "{url}/one.zip", "zip://text8::{url}/two.zip"])
def test_a_file_an_archive_and_a_member_of_an_archive_over_http(tmp_path, site, files):
    root, url = site
    written(root / "a.txt", MIXED)
    for name, members in {"one.zip": ["text8"], "two.zip": ["other", "text8"]}.items():
        with zipfile.ZipFile(root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in members:
                archive.writestr(member, b"not this\xff" if member == "other" else MIXED.encode("utf-8"))
    corpus = prepare(config(tmp_path, "text", data_files=files.format(url=url)))
    assert bytes_of(corpus) == MIXED.encode("utf-8")


def test_a_missing_file_and_a_missing_host_are_named(tmp_path, site):
    _, url = site
    refused(tmp_path, config(tmp_path, "text", data_files=f"{url}/missing.txt"), f"{url}/missing.txt")
    closed = "http://127.0.0.1:1/a.txt"
    refused(tmp_path, config(tmp_path, "text", data_files=closed), closed, "cannot be reached")


# documents, separators, limits


@pytest.mark.parametrize(
    "text, lines",
    [
        ("één\ntwo\r\n\nfour\rstill four\nlast", ["één", "two\r", "", "four\rstill four", "last"]),
        ("a\nb\n", ["a", "b"]),  # a last newline starts no line
    ],
)
def test_lines_as_documents(tmp_path, text, lines):
    file = written(tmp_path / "a.txt", text)
    corpus = prepare(config(tmp_path, "text", data_files=file, document="line", separator="|"))
    assert text_of(corpus) == "|".join(lines) and corpus.info["documents"] == len(lines)


@pytest.mark.parametrize("separator", ["", "\n", "é", "<|😀|>"])
@pytest.mark.parametrize("vocab", [{}, {"bytes_only": True}])
def test_the_separator_stands_between_documents(tmp_path, separator, vocab):
    file = jsonl(tmp_path / "a.jsonl", ["a", "bé", "", "c"])
    corpus = prepare(config(tmp_path, "json", vocab, data_files=file, separator=separator))
    assert text_of(corpus) == separator.join(["a", "bé", "", "c"])


@pytest.mark.parametrize("vocab", [{}, {"bytes_only": True}, {"characters": "ab", "unknown": "bytes"}])
def test_end_of_document_after_every_document_of_every_split(tmp_path, vocab):
    file = jsonl(tmp_path / "a.jsonl", [c * 3 for c in "abcdeé"])
    corpus = prepare(
        config(tmp_path, "json", vocab | {"end_of_document": True}, data_files=file, validation=0.3, test=0.2)
    )
    seen = []
    for split in corpus.splits:
        ids, end = corpus[split], corpus.vocab.end
        assert ids[-1] == end and np.count_nonzero(ids == end) == corpus.splits[split]["documents"]
        seen += [corpus.vocab.decode(part) for part in np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]]
    assert sorted(seen) == sorted(c * 3 for c in "abcdeé")


def test_max_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 3)  # a document is several rows
    files = [written(tmp_path / f"{c}.txt", c * 7) for c in "abcd"]
    for n in (1, 2, 3, 4, 5):
        corpus = prepare(config(tmp_path, "text", data_files=files, max_documents=n))
        assert text_of(corpus) == "\n".join(c * 7 for c in "abcd"[:n])
        assert corpus.info["documents"] == min(n, 4)


def test_max_documents_of_each_split(tmp_path):
    files = {s: jsonl(tmp_path / f"{s}.jsonl", [s[0] + str(i) for i in range(5)]) for s in ("train", "dev")}
    corpus = prepare(config(tmp_path, "json", data_files=files, validation="dev", max_documents=2))
    assert text_of(corpus, "train") == "t0\nt1" and text_of(corpus, "validation") == "d0\nd1"


@pytest.mark.parametrize("batch", [2, 8 << 20])
def test_max_characters_counts_characters_of_text_without_separators(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(readers, "BATCH", batch)
    texts = ["éa", "", "中😀b", "cdé"]
    file = parquet(tmp_path / "a.parquet", texts)
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 99):
        left, kept = n, []
        for text in texts:
            if left > 0:
                kept.append(text[:left].encode())
                left -= len(text)
        source = TextSource(([readers.ParquetFile(Local(file, file), ["text"])], 0, None))
        source.limit(None, n, by_bytes=False)
        assert documents_of(source) == kept and source.documents == len(kept), n
    corpus = prepare(config(tmp_path, "parquet", data_files=file, max_characters=4))
    assert text_of(corpus) == "éa\n\n中😀" and corpus.info["documents"] == 3


def test_max_characters_are_bytes_in_a_bytes_only_vocabulary(tmp_path):
    made = config(tmp_path, "literal", {"bytes_only": True}, text="aé中", max_characters=4)
    assert bytes_of(prepare(made)) == "aé中".encode()[:4]


def test_max_characters_then_split(tmp_path):
    made = config(
        tmp_path,
        "literal",
        text="0123456789" * 3,
        max_characters=20,
        split_by="character",
        validation=0.25,
        test=0.1,
    )
    corpus = prepare(made)
    assert [len(corpus[s]) for s in corpus.splits] == [13, 5, 2]
    assert text_of(corpus) == "0123456789" * 2


# splits


def lines(tmp_path: Path, n: int) -> str:
    return written(tmp_path / "lines.txt", "".join(f"line {i:03}\n" for i in range(n)))


def drawn(tmp_path: Path, file: str, seed: int, folder: str = "data") -> dict[str, list[str]]:
    made = config(tmp_path, "text", data_files=file, document="line", validation=0.1, test=0.07, seed=seed)
    made.data.dir = str(tmp_path / folder)
    corpus = prepare(made)
    out = {s: text_of(corpus, s).split("\n") for s in corpus.splits}
    assert {s: len(d) for s, d in out.items()} == {s: corpus.splits[s]["documents"] for s in corpus.splits}
    return out


def test_documents_are_drawn_once_each_in_order_and_by_seed(tmp_path):
    file = lines(tmp_path, 100)
    first, again, other = (
        drawn(tmp_path, file, 3),
        drawn(tmp_path, file, 3, "elsewhere"),
        drawn(tmp_path, file, 4),
    )
    assert {s: len(d) for s, d in first.items()} == {"train": 83, "validation": 10, "test": 7}
    together = [line for split in first.values() for line in split]
    assert len(together) == 100 and sorted(together) == [f"line {i:03}" for i in range(100)]
    assert all(split == sorted(split) for split in first.values())
    assert first == again
    assert first["validation"] != other["validation"] and first["test"] != other["test"]
    assert not set(first["validation"]) >= {f"line {i:03}" for i in range(90, 100)}  # a draw, not the tail


@pytest.mark.parametrize("n", [20, 1003])
@pytest.mark.parametrize("vocab", [{}, {"bytes_only": True}])
def test_contiguous_splits_are_the_text_cut_in_three(tmp_path, n, vocab):
    text = "".join("aé中😀\r\n"[i * i % 6] for i in range(n))
    whole = text.encode("utf-8") if vocab else text
    made = config(tmp_path, "literal", vocab, text=text, split_by="character", validation=0.2, test=0.3)
    corpus = prepare(made)
    cuts = [0, len(whole) - math.ceil(len(whole) / 2), math.floor(len(whole) * Fraction(7, 10)), len(whole)]
    for split, low, high in zip(corpus.splits, cuts, cuts[1:], strict=False):
        ids = corpus[split]
        part = corpus.vocab.decode_bytes(ids) if vocab else corpus.vocab.decode(ids)
        assert part == whole[low:high]
        assert "documents" not in corpus.splits[split]  # they are cut
    assert bytes_of(corpus) == text.encode("utf-8")


@pytest.mark.parametrize(
    "n, validation, test, sizes",
    [
        (100_000, 0.05, 0.05, [90_000, 5_000, 5_000]),
        (1_115_394, 0.1, 0, [int(1_115_394 * 0.9), 1_115_394 - int(1_115_394 * 0.9)]),  # nanoGPT's
        (100_000, 0, 0.1, [90_000, 10_000]),
        (1_000, 0.1, 0.2, [700, 100, 200]),  # 1 - 0.1 - 0.2 in floats would make 699
        (43, 0.1, 0.1, [34, 4, 5]),
    ],
)
def test_sizes_of_contiguous_splits(tmp_path, n, validation, test, sizes):
    made = config(tmp_path, "literal", text="a" * n, split_by="character", validation=validation, test=test)
    corpus = prepare(made)
    assert [len(corpus[s]) for s in corpus.splits] == sizes


@pytest.mark.parametrize("vocab", [{}, {"end_of_document": True}])
def test_contiguous_splits_go_across_documents(tmp_path, vocab):
    texts = ["abc", "", "déf", "gh", "ijk"]
    made = config(
        tmp_path,
        "json",
        vocab,
        data_files=jsonl(tmp_path / "a.jsonl", texts),
        separator="--",
        split_by="character",
        validation=0.3,
        test=0.3,
    )
    corpus = prepare(made)
    if vocab:
        whole = np.concatenate([corpus[s] for s in corpus.splits])
        assert corpus.vocab.decode(whole) == "".join(texts)
        assert np.count_nonzero(whole == corpus.vocab.end) == 5 and whole[-1] == corpus.vocab.end
        assert len(whole) == 11 + 5
    else:
        assert text_of(corpus) == "--".join(texts)
        assert [len(corpus[s]) for s in corpus.splits] == [7, 6, 6]


# exactness, whatever the pieces it is read in

alphabet = st.sampled_from("ab\n\r\0é中😀\u0301\ufeff")


def documents_of(source: TextSource, whole_characters: bool = True) -> list[bytes]:
    """The documents of a source, from its batches."""
    documents, text, begins = [], b"", True
    for batch in (batch for piece in source.pieces for batch in source.batches(piece, whole_characters)):
        assert (batch.document, batch.begins) == (len(documents), begins)
        for low, high, end in zip(batch.offsets, batch.offsets[1:], batch.ends, strict=False):
            row = batch.utf8[low:high].tobytes()
            assert not whole_characters or row.decode("utf-8") is not None
            text += row
            if end:
                documents.append(text)
                text = b""
        begins = bool(batch.ends[-1])
    assert text == b"" and len(documents) == source.documents
    return documents


def text_files(folder: Path, contents: list[bytes], document: str = "file") -> TextSource:
    paths = [written(folder / f"{i}.txt", content) for i, content in enumerate(contents)]
    files, rows = [Local(path, path) for path in paths], Text(DataConfig(document=document))
    return TextSource(([readers.Records(files, rows)], 0, None))


sizes = {"piece": st.integers(1, 13), "batch": st.integers(1, 17)}


@given(
    texts=st.lists(st.text(alphabet, max_size=25), min_size=1, max_size=7),
    document=st.sampled_from(["file", "line"]),
    **sizes,
)
@example(["ab😀" * 5, "é", "", "中"], "file", 1, 1)
def test_text_files_are_read_whole_in_pieces_of_any_size(texts, document, piece, batch):
    """Characters straddle the borders of pieces; documents are longer than pieces, and shorter."""
    with tempfile.TemporaryDirectory() as folder, pieces_of(piece, batch):
        documents = documents_of(text_files(Path(folder), [t.encode() for t in texts], document))
    assert documents == [t.encode() for t in (texts if document == "file" else lines_of(texts))]


@given(data=st.binary(max_size=80), **sizes)
@example(b"\xff" * 12, 1, 1)
@example("😀".encode() * 4 + b"\xf0\x9f\x98", 5, 3)
@example(b"\xe4\xb8" * 8, 3, 2)
def test_any_bytes_are_read_whole_in_pieces_of_any_size(data, piece, batch):
    with tempfile.TemporaryDirectory() as folder, pieces_of(piece, batch):
        assert documents_of(text_files(Path(folder), [data]), whole_characters=False) == [data]


def lines_of(texts: list[str]) -> list[str]:
    return [line for text in texts if text for line in text.removesuffix("\n").split("\n")]


@contextlib.contextmanager
def pieces_of(piece: int, batch: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", piece)
        patch.setattr(readers, "BATCH", batch)
        yield


@pytest.mark.parametrize(
    "vocab, split_by, document, shuffle",
    [
        ({}, "document", "file", 0),
        ({"bytes_only": True}, "character", "file", 0),
        ({"end_of_document": True}, "document", "line", 0),
        ({"end_of_document": True}, "character", "file", 0),
        ({"characters": "ab"}, "character", "line", 0),
        ({"bytes_only": True}, "document", "file", 2),
        ({"end_of_document": True}, "document", "file", 1),
    ],
)
def test_the_corpus_does_not_depend_on_the_size_of_pieces(tmp_path, vocab, split_by, document, shuffle):
    texts = ["ab😀" * 5, "é\n\n中", "", "中\na\r\n", "b" * 9]
    documents = texts if document == "file" else lines_of(texts)
    files = [written(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    for held_out in ({}, {"validation": 0.3, "test": 0.2}):
        options = {"data_files": files, "document": document, "split_by": split_by, "seed": 3} | held_out
        options["shuffle"] = shuffle
        whole = prepare(config(tmp_path / f"whole{len(held_out)}", "text", vocab, **options))
        if not held_out and not shuffle:
            assert text_of(whole) == ("" if "end_of_document" in vocab else "\n").join(documents)
        assert whole.info["documents"] == len(documents)
        with pieces_of(7, 11) if held_out else pieces_of(1, 1):
            other = prepare(config(tmp_path / f"pieces{len(held_out)}", "text", vocab, **options))
        assert other.splits == whole.splits and other.vocab == whole.vocab


def test_bytes_only_keeps_any_file_to_the_byte(tmp_path):
    data = b"\xff" * 5 + "😀".encode() * 4 + b"\xe4\xb8\xe4\xb8\xf0\x9f\x98"
    made = config(tmp_path, "text", {"bytes_only": True}, data_files=written(tmp_path / "a.txt", data))
    with pieces_of(5, 3):
        corpus = prepare(made)
    assert bytes_of(corpus) == data
    assert corpus.splits["train"]["bytes"] == corpus.splits["train"]["characters"] == len(data)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    "values", [["aé", None, "", "中", None, "z"], ["", "", ""], [None, None], ["abc"], []]
)
def test_utf8_of_any_slice_with_nulls(kind, values):
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    array = pa.array([v.encode() if binary and v is not None else v for v in values], kind)
    for low in range(len(values) + 1):
        for high in range(low, len(values) + 1):
            utf8, offsets = utf8_of(array[low:high])
            rows = [(v or "").encode() for v in values[low:high]]
            assert utf8.dtype == np.uint8 and offsets.dtype == np.int64
            assert offsets[0] == 0 and offsets[-1] == len(utf8)
            assert [utf8[a:b].tobytes() for a, b in itertools.pairwise(offsets)] == rows


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_utf8_of_a_null_that_hides_bytes(kind):
    """Arrow lets a null slot hold bytes; they are not text."""
    _, offsets, values = pa.array(["ab", "hidden", "é"]).buffers()
    array = pa.Array.from_buffers(kind, 3, [pa.py_buffer(bytes([0b101])), offsets, values])
    for low, rows in ((0, [b"ab", b"", "é".encode()]), (1, [b"", "é".encode()])):
        utf8, starts = utf8_of(array[low:])
        assert [utf8[a:b].tobytes() for a, b in itertools.pairwise(starts)] == rows


def test_utf8_of_an_all_null_column():
    utf8, offsets = utf8_of(pa.nulls(3))
    assert utf8.size == 0 and offsets.tolist() == [0, 0, 0, 0]


# the folder


@pytest.mark.parametrize("end, dtype", [(False, np.uint8), (True, np.uint16)])
def test_ids_take_16_bits_when_256_do_not_suffice(tmp_path, end, dtype):
    vocab = {"bytes_only": True, "end_of_document": end}
    corpus = prepare(config(tmp_path, "literal", vocab, text=MIXED))
    assert corpus["train"].dtype == dtype
    assert (
        np.load(corpus.folder / "train.npy").tolist()
        == list(MIXED.encode()) + [256] * end
        == corpus["train"].tolist()
    )


def test_arrays_are_memory_mapped_and_may_be_written_without_harm(tmp_path):
    corpus = prepare(config(tmp_path, "literal", text="hello"))
    ids = corpus["train"]
    assert isinstance(ids, np.memmap)
    ids[:] = 0
    assert text_of(corpus) == "hello"


def test_corpus_json_says_what_it_is(tmp_path):
    texts = ["aé", "bb", "中中中", "d-", "e😀"]
    file = jsonl(tmp_path / "in.jsonl", texts)
    made = config(
        tmp_path, "json", {"characters": "abc"}, data_files=file, separator="c", validation=0.2, test=0.2
    )
    corpus = prepare(made)
    info = json.loads((corpus.folder / "corpus.json").read_text(encoding="utf-8"))
    assert (info["format"], info["version"]) == ("charlm corpus", 2)
    assert corpus.folder.name == f"in-{info['fingerprint']}" and info["fingerprint"] == fingerprint(made)
    assert info["source"]["source"] == "json" and info["source"]["data_files"] == file
    assert info["source"]["text_column"] == "text" and "dir" not in info["source"]
    assert info["vocab"]["characters"] == "abc" and info["vocab"]["size"] == len(corpus.vocab)
    assert set(info["splits"]) == {"train", "validation", "test"}
    assert info["documents"] == 5
    fallback = 0
    for split, size in info["splits"].items():
        ids, text = corpus[split], text_of(corpus, split)
        assert size["characters"] == len(text) and size["bytes"] == len(text.encode())
        assert size["symbols"] == len(ids) and size["documents"] == text.count("c") + 1
        assert size["sha256"] == hashlib.sha256(ids.tobytes()).hexdigest()
        fallback += int((ids >= 3).sum())
    for key in ("characters", "bytes", "symbols"):
        assert info[key] == sum(size[key] for size in info["splits"].values())
    assert info["characters"] == len("".join(texts)) + 2  # the splits of 3, 1 and 1 hold 2 separators
    assert info["fallback_rate"] == fallback / info["symbols"] > 0
    assert info["seconds"] > 0
    assert {"charlm", "python", "datasets", "numpy", "pyarrow"} <= set(info["versions"])
    corpus.verify()


def test_the_report_shows_the_folder_the_sizes_and_the_baselines(tmp_path):
    corpus = prepare(config(tmp_path, "literal", text="é" * 1234))
    for words in (str(corpus.folder), "1,234 characters", "2,468 bytes", f"symbols      {len(corpus.vocab)}"):
        assert words in corpus.report()
    assert corpus.info["floors"] == {} and "unigram" not in corpus.report()
    corpus = prepare(config(tmp_path, "literal", text="aaabbé" * 9, split_by="character", validation=0.4))
    unigram = corpus.info["floors"]["unigram"]
    assert re.search(rf"unigram +{unigram['bpc']:.3f} +{unigram['bpb']:.3f}$", corpus.report(), re.MULTILINE)


def test_the_same_config_finds_the_folder_and_does_not_rebuild(tmp_path):
    made = config(tmp_path, "text", data_files=written(tmp_path / "a.txt", MIXED))
    corpus = prepare(made)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in corpus.folder.iterdir()}
    assert {"train.npy", "vocab.json", "corpus.json"} == set(before)
    again = prepare(made)
    assert again.folder == corpus.folder == folder_of(made)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in again.folder.iterdir()} == before
    assert folders(tmp_path) == [corpus.folder.name]


def test_a_prepared_corpus_opens_without_datasets(tmp_path):
    """On a node with no network and no cache: neither datasets nor pyarrow is imported."""
    made = config(tmp_path, "text", data_files=written(tmp_path / "a.txt", MIXED))
    prepare(made)
    code = (
        "import sys, json; from charlm.config.parse import from_dict;"
        "from charlm.corpus.prepared import prepare;"
        "print(prepare(from_dict(json.loads(sys.argv[1]))).folder.name);"
        "print(*[m for m in ('datasets', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tree_of(made)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [folder_of(made).name, ""]


def test_another_config_is_another_folder(tmp_path):
    file = written(tmp_path / "a.txt", "a\nb\nc\nd\n" * 3)
    base = {"data_files": file, "document": "line"}
    configs = [
        config(tmp_path, "text", **base),
        config(tmp_path, "text", **base, separator=" "),
        config(tmp_path, "text", **base, max_documents=3),
        config(tmp_path, "text", **base, max_characters=5),
        config(tmp_path, "text", **base, validation=0.2),
        config(tmp_path, "text", **base, validation=0.2, seed=1),
        config(tmp_path, "text", **base, validation=0.2, split_by="character"),
        config(tmp_path, "text", {"end_of_document": True}, **base),
        config(tmp_path, "text", {"max_size": 250}, **base),
        config(tmp_path, "text", {"characters": "abcd\n"}, **base),
        config(tmp_path, "text", {"characters": "abcd\n", "unknown": "error"}, **base),
        config(tmp_path, "text", {"bytes_only": True}, **base),
    ]
    names = {folder_of(c).name for c in configs}
    assert len(names) == len(configs) and all(name.startswith("a-") for name in names)


def test_what_does_not_decide_the_content_does_not_move_the_folder(tmp_path):
    base = config(tmp_path, "literal", text="hello")
    other = from_dict(
        {"data": vars(base.data), "train": {"steps": 3}, "model": {"hidden_size": 6}, "run_dir": "r"}
    )
    other.data.dir = str(tmp_path / "elsewhere")
    assert folder_of(base).name == folder_of(other).name
    assert folder_of(other).parent == tmp_path / "elsewhere"


def test_a_changed_file_is_another_folder(tmp_path):
    file = tmp_path / "a.txt"
    made = config(tmp_path, "text", data_files=written(file, "hello"))
    first = prepare(made)
    written(file, "hullo")  # as long as before
    second = prepare(made)
    assert first.folder != second.folder
    assert (text_of(first), text_of(second)) == ("hello", "hullo")
    written(tmp_path / "b.txt", "more")
    glob = config(tmp_path, "text", data_files=str(tmp_path / "*.txt"))
    third = folder_of(glob)
    written(tmp_path / "c.txt", "still more")  # one more file for the same glob
    assert folder_of(glob) != third and text_of(prepare(glob)) == "hullo\nmore\nstill more"


# damage


@pytest.fixture
def built(tmp_path) -> Corpus:
    return prepare(config(tmp_path, "literal", text="hello world" * 9, split_by="character", validation=0.2))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_verify_finds_a_flipped_byte(built, split):
    built.verify()
    path = built.folder / f"{split}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CharlmError, match=rf"{split}\.npy: sha256 .* delete "):
        Corpus(built.folder).verify()


@pytest.mark.parametrize("change", ["cut", "longer", "empty", "missing", "garbage", "header"])
def test_a_damaged_array_is_refused_when_opened(built, change):
    path = built.folder / "validation.npy"
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    elif change == "longer":
        np.save(path, np.append(np.load(path), np.uint8(0)))
    elif change == "header":
        np.save(path, np.load(path).astype(np.uint16))
    else:
        path.write_bytes({"cut": content[:-1], "empty": b"", "garbage": b"no npy" * 50}[change])
    with pytest.raises(CharlmError) as caught:
        Corpus(built.folder)
    assert str(path) in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize(
    "file, content",
    [
        ("corpus.json", text)
        for text in ("", "{", "[]", "null", "{}", '{"format": "charlm corpus", "version": 2}')
    ]
    + [("vocab.json", "{")],
)
def test_a_damaged_json_file_is_refused(built, file, content):
    (built.folder / file).write_text(content)
    with pytest.raises(CharlmError, match=re.escape(str(built.folder))):
        Corpus(built.folder)


def test_a_corpus_json_without_its_splits_is_refused(built):
    info = {k: v for k, v in built.info.items() if k != "splits"}
    (built.folder / "corpus.json").write_text(json.dumps(info))
    with pytest.raises(CharlmError, match=re.escape(str(built.folder))):
        Corpus(built.folder)


def test_a_folder_that_is_no_corpus_and_a_split_that_is_not_there(tmp_path, built):
    with pytest.raises(CharlmError, match="not a prepared corpus"):
        Corpus(tmp_path / "nothing")
    with pytest.raises(CharlmError, match=r"no split 'test' \(it has train, validation\)"):
        built["test"]


def test_a_leftover_of_a_crash_is_ignored_and_cleaned(tmp_path):
    made = config(tmp_path, "literal", text="hello")
    partial = folder_of(made).with_name(f".{folder_of(made).name}.partial")
    written(partial / "train.npy", b"half an array")
    written(partial / "corpus.json", "{}")
    written(partial / "deep" / "er", "")
    assert text_of(prepare(made)) == "hello"
    assert folders(tmp_path) == [folder_of(made).name]
    assert sorted(p.name for p in folder_of(made).iterdir()) == ["corpus.json", "train.npy", "vocab.json"]


# two processes, and the end of one


def child(made: Config, before: str = "") -> Fork:
    """A process that does something before it prepares."""
    tree, size = json.loads(tree_of(made)), readers.PIECE
    return fork(
        before=f"""{before}
charlm.corpus.readers.PIECE, charlm.corpus.readers.BATCH = {size}, 50_000  # so that a pass takes a while
try:
    print(prepare(from_dict({tree})).folder)
except CharlmError as error:
    print("refused:", error)
sys.exit()
"""
    )


def test_two_processes_at_once_get_the_same_folder(tmp_path):
    file = written(tmp_path / "a.txt", MIXED * 20_000)
    made = config(tmp_path, "text", data_files=file)
    both = [child(made) for _ in range(2)]
    ended = [(process.wait(), *process.communicate()) for process in both]
    assert [out.strip() for _, out, _ in ended] == [str(folder_of(made))] * 2, ended
    assert folders(tmp_path) == [folder_of(made).name]
    Corpus(folder_of(made)).verify()


def test_a_process_ended_in_the_middle_leaves_no_corpus_and_the_next_run_works(tmp_path):
    """By SIGTERM; test_build.py ends others with SIGKILL and SIGINT."""
    file = written(tmp_path / "a.txt", MIXED * 60_000)
    made = config(tmp_path, "text", data_files=file, split_by="character", validation=0.1)
    folder = folder_of(made)
    partial = folder.with_name(f".{folder.name}.partial")
    process = child(made)
    deadline = time.monotonic() + 300
    while not ((partial / "train.npy").exists() and (partial / "train.npy").stat().st_size > 1000):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() != 0
    assert not folder.exists(), "the process was done before it was ended: make the file larger"
    assert (partial / "counts-0.log").exists(), "the next run counts again what was counted"
    again = prepare(made)
    again.verify()
    assert folders(tmp_path) == [folder.name]
    undisturbed = config(tmp_path / "other", "text", data_files=file, split_by="character", validation=0.1)
    assert sha_of(again) == sha_of(prepare(undisturbed))


# text that cannot be read: the error names it, and no files are left


@pytest.mark.parametrize("source", ["text", "json"])
@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("missing.txt", "no such file"),
        ("*.text", "no such file"),
        ("in/*", "matches only folders"),
        ("in", "(it is empty); name files, as in {}/*"),
    ],
)
def test_patterns_that_match_no_file(tmp_path, source, pattern, reason):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    path = str(tmp_path / pattern)
    for files in (path, [written(tmp_path / "a.txt", "a"), path]):
        made = config(tmp_path, source, data_files=files)
        refused(tmp_path, made, f"data.data_files={path!r}", reason.format(path))


@pytest.mark.parametrize("document", ["file", "line"])
@pytest.mark.parametrize("validation", [0, 0.1])
def test_an_empty_file(tmp_path, document, validation):
    file = written(tmp_path / "a.txt", "")
    made = config(tmp_path, "text", data_files=file, document=document, validation=validation)
    refused(tmp_path, made, file, "the text is empty")


@pytest.mark.parametrize("texts", [["", "", ""], [None, None]])
@pytest.mark.parametrize("vocab", [{}, {"end_of_document": True}, {"bytes_only": True}])
def test_an_empty_column(tmp_path, texts, vocab):
    file = parquet(tmp_path / "a.parquet", pa.array(texts, pa.string()))
    refused(tmp_path, config(tmp_path, "parquet", vocab, data_files=file), file, "the text is empty")


def test_a_validation_split_without_a_character(tmp_path):
    """Empty documents with their end-of-document symbols: nothing to score by the character."""
    files = {
        "train": jsonl(tmp_path / "a.jsonl", ["abc", "b"]),
        "dev": jsonl(tmp_path / "b.jsonl", ["", "", ""]),
    }
    made = config(tmp_path, "json", {"end_of_document": True}, data_files=files, validation="dev")
    refused(tmp_path, made, "the validation split")


def test_a_column_that_is_missing_or_not_text(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", ["a", "b"], "body")
    text = f"not a column of {file}"
    refused(tmp_path, config(tmp_path, "json", data_files=file), "data.text_column='text'", text, "body, n")
    numbers = config(tmp_path, "json", data_files=file, text_column="n")
    place = f"{file}: line 1: data.text_column='n' holds no text"
    refused(tmp_path, numbers, place, "--data.on_bad_line skip")


def test_a_split_that_is_not_there_lists_the_splits(tmp_path):
    file = written(tmp_path / "a.txt", "abc")
    refused(tmp_path, config(tmp_path, "text", data_files=file, validation="dev"), "'dev'", "train")
    file = jsonl(tmp_path / "a.jsonl", ["abc"])
    refused(tmp_path, config(tmp_path, "json", data_files=file, validation="dev"), "dev", "train")


@pytest.mark.parametrize(
    "source, content, problem",
    [
        ("json", '{"text": "x"', "line 1: not JSON"),
        ("parquet", "no parquet", "cannot read"),
        ("csv", 'text\n"a,b\n', "line 2: a quote is not closed"),
    ],
)
@pytest.mark.parametrize("folder", ["in", "offline"])
def test_a_broken_file_is_named(tmp_path, caplog, source, content, problem, folder):
    """Also where its name looks like an error of the network."""
    file = written(tmp_path / folder / f"connect.{source}", content)
    message = refused(tmp_path, config(tmp_path, source, data_files=file), file, problem)
    assert "reached" not in message
    assert not caplog.records, "reported once, by charlm"


@pytest.mark.parametrize("document", ["file", "line"])
@pytest.mark.parametrize("chunk", [5, 4 << 20])
@pytest.mark.parametrize(
    "content, byte",
    [
        (b"\xffabc", 0),
        (b"abc\xff", 3),
        ("é中😀abc\n".encode() + b"de\xc3", 15),  # a character that the file breaks off
        ("é中😀abc\n".encode() + b"de\xe4\xb8x\nmore", 15),
        (b"ab\ncd\nef\n\xed\xa0\x80gh", 9),  # a surrogate
        (b"a" * 12 + b"\xc0\x80" + b"a" * 12, 12),  # an overlong NUL
    ],
)
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(
    tmp_path, monkeypatch, document, chunk, content, byte
):
    monkeypatch.setattr(readers, "PIECE", chunk)
    files = [written(tmp_path / "good.txt", "good"), written(tmp_path / "bad.txt", content)]
    refused(
        tmp_path,
        config(tmp_path, "text", data_files=files, document=document),
        f"{files[1]}: byte {byte:,} (0x{content[byte]:02X}) is not UTF-8",
        "vocab.bytes_only",
    )


def test_a_far_offset_is_named_past_the_first_piece_of_the_real_size(tmp_path):
    size = readers.PIECE
    file = written(tmp_path / "a.txt", b"a" * (size + 5) + b"\xfe" + b"a" * size)
    refused(tmp_path, config(tmp_path, "text", data_files=file), f"{file}: byte {size + 5:,} (0xFE)")


@pytest.mark.parametrize("batch", [4, 8 << 20])
def test_bytes_that_are_not_utf8_in_a_column_are_named_by_row(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(readers, "BATCH", batch)
    rows = [b"abc", "dé".encode(), b"", b"ok\xffno", b"end"]
    binary = pa.array(rows, pa.binary())
    bad = pa.StringArray.from_buffers(len(rows), *binary.buffers()[1:])
    file = parquet(tmp_path / "a.parquet", bad)
    refused(tmp_path, config(tmp_path, "parquet", data_files=file), "row 3, byte 2", "not UTF-8")


@pytest.mark.parametrize("batch", [1, 8 << 20])
@pytest.mark.parametrize("split_by", ["document", "character"])
def test_a_character_outside_a_closed_vocabulary(tmp_path, monkeypatch, batch, split_by):
    monkeypatch.setattr(readers, "BATCH", batch)
    file = jsonl(tmp_path / "a.jsonl", ["abc", "ab", "cé😀", "aé"])
    made = config(
        tmp_path, "json", {"characters": "abc\n", "unknown": "error"}, data_files=file, split_by=split_by
    )
    refused(
        tmp_path,
        made,
        "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)",
        "character 6 of the text (document 2)",
        "vocab.characters",
        "vocab.unknown=bytes",
    )


def test_a_separator_outside_a_closed_vocabulary(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", ["abc", "ab"])
    made = config(tmp_path, "json", {"characters": "abc", "unknown": "error"}, data_files=file, separator="|")
    refused(tmp_path, made, "data.separator='|'", "closed vocabulary of 3 symbols")


@pytest.mark.parametrize("documents, validation, test", [(1, 0.1, 0), (2, 0.1, 0.1), (2, 0.3, 0.5)])
def test_too_few_documents_to_split(tmp_path, documents, validation, test):
    file = jsonl(tmp_path / "a.jsonl", ["abc"] * documents)
    refused(
        tmp_path,
        config(tmp_path, "json", data_files=file, validation=validation, test=test),
        f"data.validation={validation}" + f" and data.test={test}" * (test > 0),
        f"cannot hold out whole documents, of which it has {documents}; set data.split_by=character",
        "data.validation=0" + " and data.test=0" * (test > 0),
    )


def test_too_little_text_for_a_contiguous_split(tmp_path):
    made = config(tmp_path, "literal", text="hello", split_by="character", validation=0.1)
    refused(tmp_path, made, "validation split would hold fewer than 2 symbols of text")


def test_text_out_of_reach(tmp_path):
    for source in ("nobody/nothing", "wikitext-of-mine"):
        made = config(tmp_path, source)
        refused(tmp_path, made, f"data.source={source!r}", "cannot be reached", "data.dir")
    url = "http://127.0.0.1:9/a.txt"  # and HF_HUB_OFFLINE is set
    refused(tmp_path, config(tmp_path, "text", data_files=url), url, "cannot be reached")


# disks that are full or read-only


def test_a_data_dir_that_is_a_file(tmp_path):
    written(tmp_path / "data", "a file")
    made = config(tmp_path, "literal", text="hello")
    for folder in (tmp_path / "data", tmp_path / "data" / "deeper"):
        made.data.dir = str(folder)
        with pytest.raises(CharlmError, match=rf"{re.escape(str(folder))}.* cannot be written"):
            prepare(made)
    assert (tmp_path / "data").read_text() == "a file"


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small file system of its own; needs root."""
    made = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a file system, and not in every container")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_data_dir(tmp_path, mounted):
    disk = mounted("size=1m,ro")
    made = config(tmp_path, "literal", text="hello")
    made.data.dir = str(disk)
    with pytest.raises(
        CharlmError, match=rf"{disk}.* cannot be written \(Read-only file system\).* data\.dir"
    ):
        prepare(made)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_data_dir_of_someone_else(mode):
    """As an ordinary user: root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:  # not below tmp_path, where only its owner may look
        os.chmod(folder, 0o755)
        made = config(Path(folder), "literal", text="hello")
        (Path(folder) / "data").mkdir()
        os.chmod(Path(folder) / "data", mode)
        nobody = "os.setgroups([]); os.setgid(65534); os.setuid(65534)" if os.geteuid() == 0 else ""
        process = child(made, nobody)
        process.wait()
        os.chmod(Path(folder) / "data", 0o755)
        out, err = process.communicate()
        assert re.search(rf"refused: {folder}/data/\S+: cannot be written \(Permission denied\)", out), err


def test_a_disk_that_fills_up_while_an_archive_is_extracted(tmp_path):
    file = written(tmp_path / "a.jsonl.gz", gzip.compress(json.dumps({"text": "hello" * 20_000}).encode()))
    made = config(tmp_path, "json", data_files=file)
    process = child(made, limited(30_000))
    process.wait()
    out, err = process.communicate()
    assert "refused: " in out and file in out and "File too large" in out, (out, err)
    assert folders(tmp_path) == []


def test_a_full_data_dir(tmp_path, mounted):
    disk = mounted("size=1m")
    made = config(tmp_path, "literal", text="hello" * 400_000)
    made.data.dir = str(disk)
    with pytest.raises(
        CharlmError, match=rf"{disk}.* cannot be written \(No space left on device: 0\.002 GB are"
    ):
        prepare(made)
    assert not list(disk.rglob("*.npy"))
    made.data.text = "hello" * 80_000  # the disk is about as free as before
    assert prepare(made).info["characters"] == 400_000


def test_a_full_cache_of_datasets(tmp_path, mounted, monkeypatch):
    disk = mounted("size=1m")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(disk))
    file = str(tmp_path / "a.zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "hello" * 400_000)
    refused(tmp_path, config(tmp_path, "text", data_files=file), "no space left", f"{disk}", "HF_HOME")


def test_a_folder_is_listed_once_to_find_its_corpus_without_what_is_hidden(tmp_path, monkeypatch):
    """Links are followed, also some that lead round in circles; each file is read once."""
    for name in ("b.txt", "a/c.TXT.gz", ".hidden.txt", "a/.hidden/d.txt"):
        written(tmp_path / "text" / name, name)
    for name in ("up", "around"):
        (tmp_path / "text" / "a" / name).symlink_to("..")  # 2^40 ways to b.txt
    (tmp_path / "text" / "gone.txt").symlink_to("nowhere")
    listed = []

    def files_below(folder):
        listed.append(charlm.files.files_below(folder))
        return listed[-1]

    monkeypatch.setattr(charlm.corpus.sources, "files_below", files_below)
    data = config(tmp_path, "text", data_files=str(tmp_path / "text"))
    charlm.corpus.prepared.folder_of(data)
    assert len(listed) == 1
    assert listed[0] == [str(tmp_path / "text" / name) for name in ("a/c.TXT.gz", "b.txt")]
    files = charlm.corpus.sources.files_of(data.data)["train"]
    assert [os.path.basename(file.path) for file in files] == ["c.TXT.gz", "b.txt"]


@pytest.mark.parametrize(
    "members, expected",
    [
        ({"a.jsonl": '{"text": "one"}\n{"text": "two"}\n', "b/c.jsonl": '{"text": "three"}\n'}, "json"),
        ({"a.txt": "one\n", "b.md": "two\n"}, "text"),
        ({"a.txt": "one\n", "b.jsonl": '{"text": "two"}\n'}, "holds files of json and text: unpack it"),
        ({"train.txt": "one\n", "test.txt": "two\n"}, "holds files of train and test: unpack it"),
    ],
)
def test_the_format_of_a_zip_is_that_of_its_files(tmp_path, members, expected):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    data = from_dict({"data": {"data_files": str(tmp_path / "z.zip")}}).data
    if expected in ("json", "text"):
        assert [file.format for file in files_of(data)["train"]] == [expected]
    else:
        with pytest.raises(CharlmError, match=f"z.zip: {expected}"):
            files_of(data)
