"""How JSON, CSV and text files become documents: against Python's own parsers, and bad input."""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_helpers import config, parquet, refused, text_of, written
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.config.fields import DataConfig
from charlm.corpus import readers
from charlm.corpus.batches import TextSource
from charlm.corpus.prepared import prepare
from charlm.corpus.records import ROWS
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError, CharlmWarning
from charlm.files import Local


def documents(data: DataConfig, kind: str, content: bytes | str, piece: int = 1 << 20) -> list[str]:
    """The documents of a file, read in pieces and batches of about so many bytes."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", piece)
        patch.setattr(readers, "BATCH", piece + 1)
        path = written(Path(folder) / f"a.{kind}", content)
        reader = readers.Records([Local(path, "a")], ROWS[kind](data))
        source = TextSource(([reader], 0, None), steps=data.normalize)
        found, text = [], ""
        for batch in itertools.chain.from_iterable(map(source.batches, source.pieces)):
            for low, high, ends in zip(batch.offsets, batch.offsets[1:], batch.ends, strict=False):
                text += batch.utf8[low:high].tobytes().decode("utf-8")
                if ends:
                    found.append(text)
                    text = ""
        assert text == "" and len(found) == source.documents
        return found


pieces = st.sampled_from([1, 2, 3, 7, 29, 1 << 20])
characters = st.sampled_from([*'ab \n\r\t\\"{}[]:,é中😀\0\u2028\ufeff', "text"])
texts = st.lists(characters, max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "text", ""]), inner),
    max_leaves=5,
)


@st.composite
def json_rows(draw) -> list[dict]:
    """Objects whose text is null, absent or a string, at any place among other values."""
    others = st.dictionaries(texts.map("x{}".format), values, max_size=3)
    given = st.fixed_dictionaries({}, optional={"text": st.none() | texts, "doc": st.just({}) | others})
    rows = [draw(others) | draw(given) | draw(others) for _ in range(draw(st.integers(0, 4)))]
    return [{"text": draw(texts)}, *rows]  # first a column


@given(
    rows=json_rows(), ascii=st.booleans(), layout=st.sampled_from(["lines", "array", "pretty"]), piece=pieces
)
@example([{"text": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") * 9}], True, "lines", 3)
def test_json_is_what_python_reads(rows, ascii, layout, piece):
    """In blocks of any size, so that rows, escapes and characters straddle them."""
    if layout == "array":
        content = json.dumps(rows, ensure_ascii=ascii, indent=1)
    else:
        indent, end = (1, "\n") if layout == "pretty" else (None, " \r\n\n")
        content = "".join(json.dumps(row, ensure_ascii=ascii, indent=indent) + end for row in rows)
    content = b"\xef\xbb\xbf" + content.encode("utf-8", "surrogatepass")
    assert documents(DataConfig(), "json", content, piece) == [row.get("text") or "" for row in rows]


@given(
    rows=st.lists(st.tuples(texts, texts, texts), max_size=5), delimiter=st.sampled_from(",;\t"), piece=pieces
)
def test_csv_is_what_python_reads(rows, delimiter, piece):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([("a", "text", "b"), *rows])
    content = ("\ufeff" + file.getvalue()).encode()
    found = documents(DataConfig(field_delimiter=delimiter), "csv", content, piece)
    assert found == [text for _, text, _ in rows]
    found = documents(
        DataConfig(field_delimiter=delimiter, header=False, text_column=3), "csv", content, piece
    )
    assert found == ["b", *(text for _, _, text in rows)]
    lines = [[re.sub(r"[\r\n;]", "", text) or "-" for text in row] for row in rows]
    content = "\n".join(map(";".join, [["a", "text", "b"], *lines]))
    found = documents(DataConfig(field_delimiter=";", quotes=False), "csv", content, piece)
    assert found == [text for _, text, _ in lines]


parts = st.lists(st.sampled_from(["a", "b#", "\n", "\r\n", "é", "😀", "##", "\n\n"]), max_size=14).map(
    "".join
)


@given(text=parts, piece=pieces)
@example(text="aaaaaaa\nb\n\nc", piece=7)  # cut before a line break of the first document
def test_delimiters_and_blank_lines_part_documents(text, piece):
    line_end = "(?:\r?\n)"
    for delimiter, pattern in {"##": f"{line_end}?##{line_end}?", "\n\n": f"{line_end}{{2,}}"}.items():
        if delimiter == "\n\n":
            text = re.sub(f"^{line_end}+", "", text)
        found = documents(DataConfig(delimiter=delimiter), "text", text, piece)
        assert found == [part for part in re.split(pattern, text) if part]


# JSON and CSV that other readers get wrong, refuse, or hold in memory


@pytest.mark.parametrize(
    "kind, content, found",
    [
        (
            "json",
            '{"text": "a", "n": 1}\n{"n": "x", "text": "b", "more": [1, {}]}\n{"n": NaN, "text": "c"}',
            "abc",
        ),
        ("json", '{"text": "2020-01-01"}\n\n {"text": null} \r\n{"no": 1}\n', ["2020-01-01", "", ""]),
        ("json", '["a", "b\\u00e9"]', ["a", "bé"]),
        ("json", '{\n "text": "a",\n "id": 3\n}', "a"),
        ("json", '{"te\\u0078t": "a\tb\\/\\n"}', ["a\tb/\n"]),
        ("json", '{"a": {"text": "no"}, "b": [{"text": "no"}], "text": "a"}', "a"),
        ("csv", "text,label\na,pos,\nb,neg,\n", "ab"),  # a delimiter at the end of rows
        ("csv", "n,text\n1,True\n2\n\n \t\n3,07\n4,NA", ["True", "", "07", "NA"]),
        ("csv", 'text\r"a ""b""\r\n"\rc', ['a "b"\r\n', "c"]),
        ("csv", ",text\n0,a\n1,b", "ab"),
    ],
)
def test_rows_that_are_kept(kind, content, found):
    assert documents(DataConfig(), kind, content) == [*found]


def test_rows_are_those_of_datasets(tmp_path):
    """Where `datasets` reads them rightly: the same texts in the same order."""
    texts = ['a, "b"', "é\r\n中", "", "😀\tnull", " x ", "NA", "1"]
    rows = [{"n": i, "text": text, "m": {"x": [i]}} for i, text in enumerate(texts)]
    lines = "".join(json.dumps(row, ensure_ascii=i % 2) + "\n" for i, row in enumerate(rows))
    file = io.StringIO()
    csv.writer(file).writerows([["n", "text", "m"], *([i, text, "m"] for i, text in enumerate(texts))])
    contents = [("json", lines), ("json", lines.replace("\n", "\r\n\n").rstrip()), ("json", json.dumps(rows))]
    contents += [("csv", file.getvalue()), ("csv", "\ufeff" + file.getvalue())]
    for i, (kind, content) in enumerate(contents):
        path = written(tmp_path / f"{i}.{kind}", content)
        options = {"keep_default_na": False} if kind == "csv" else {}
        theirs = datasets.load_dataset(kind, data_files=path, split="train", **options)
        assert documents(DataConfig(), kind, content) == theirs["text"][:] == texts


BAD = {
    "json": {
        '{"text": "b"': "not JSON",
        '{"text": "b"} {"text": "b"}': "not JSON",
        '{"text" "b"}': "not JSON",
        '{"text": "b"]': "not JSON",
        '{"text": "b",}': "not JSON",
        '"b"': "not JSON",
        "null": "not JSON",
        "[]": "not JSON",
        "<html>": "not JSON",
        '{"text": "\\x"}': "not JSON",
        '{"text": ["b"]}': "data.text_column='text' holds no text",
        '{"text": 2}': "data.text_column='text' holds no text",
        '{"text": "b", "text": "c"}': "data.text_column='text' is there twice",
    },
    "csv": {
        "1,b,c": "more fields than the header",
        '1,b,"c"': "more fields than the header",
        '1,"b \\"c\\""': "a quote within quotes is not doubled",
    },
}


@pytest.mark.parametrize("kind, row", [(kind, row) for kind, rows in BAD.items() for row in rows])
def test_a_bad_row_is_named_or_skipped(tmp_path, kind, row):
    good = ['{"text": "a"}', '{"text": "z"}'] if kind == "json" else ["1,a", '2,"z"']
    head = [] if kind == "json" else ["n,text"]
    content = "\n".join([*head, good[0], row, good[1]])
    place = f"a: line {len(head) + 2}: {BAD[kind][row]}"
    with pytest.raises(CharlmError, match=rf"{re.escape(place)}.*data\.on_bad_line skip"):
        documents(DataConfig(), kind, content)
    with pytest.raises(CharlmError, match=re.escape(place)):
        documents(DataConfig(), kind, content, 1)
    assert documents(DataConfig(on_bad_line="skip"), kind, content) == ["a", "z"]
    file = written(tmp_path / f"a.{kind}", content)
    corpus = prepare(config(tmp_path, kind, data_files=file, on_bad_line="skip"))
    assert (text_of(corpus), corpus.info["skipped"]) == ("a\nz", 1)
    assert "skipped      1 row " in corpus.report()


def test_a_damaged_archive_of_xml_is_named(tmp_path):
    whole = gzip.compress(b"<mediawiki> " * 3000)
    file = written(tmp_path / "a.xml.gz", whole[:40] + b"\xff" * 9 + whole[49:])
    with pytest.raises(CharlmError, match=r"a\.xml\.gz"):
        prepare(config(tmp_path, "text", data_files=file))


def test_half_a_character(tmp_path):
    """A lone surrogate; invalid UTF-8 only where it is the text."""
    content = '{"text": "a \\ud83d"}\n{"text": "\\udcff\\ud83d\\n"}\n{"text": "\\ud83d\\ud83d\\ude00"}\n'
    with pytest.raises(CharlmError, match=r"line 1: data\.text_column='text' holds a lone surrogate"):
        documents(DataConfig(), "json", content)
    for piece in (1, 5, 1 << 20):
        found = ["a \ufffd", "\ufffd\ufffd\n", "\ufffd😀"]
        assert documents(DataConfig(on_bad_line="skip"), "json", content, piece) == found
    content = b'{"n": "\xff", "text": "a"}\n{"text": "Gr\xfc\xdfe"}\n{"text": "b"}'
    assert documents(DataConfig(on_bad_line="skip"), "json", content) == ["a", "b"]
    file = written(tmp_path / "a.jsonl", content)
    refused(tmp_path, config(tmp_path, "json", data_files=file), f"{file}: line 2", "0xFC", "data.encoding")


@pytest.mark.parametrize(
    "kind, content",
    [
        ("json", '[{"text": "a"}, x]'),
        ("json", '["a", "b"] ["c"]'),
        ("csv", 'text\n"a\nb'),
        ("csv", 'text\n"a\nb\n"c"'),
    ],
)
def test_what_cannot_be_skipped(kind, content):
    with pytest.raises(CharlmError, match=r"a: (line 1: not JSON|line 2: a quote is not closed)"):
        documents(DataConfig(on_bad_line="skip"), kind, content)


# columns, encodings, archives


def test_several_columns_and_columns_within_columns(tmp_path):
    rows = [
        {"title": "T", "doc": {"text": "a"}},
        {"title": None, "doc": {"text": "b"}},
        {"title": "U", "doc": None},
    ]
    rows += [{"title": None, "doc": None}]
    file = written(tmp_path / "a.jsonl", "".join(map("{}\n".format, map(json.dumps, rows))))
    table = parquet(tmp_path / "a.parquet", pa.array([row["doc"] for row in rows]), "doc")
    columns = ["title", "doc.text"]
    assert documents(DataConfig(text_column=columns), "json", Path(file).read_text(), 1) == [
        "T\na",
        "b",
        "U",
        "",
    ]
    for source, path in {"json": file, "parquet": table}.items():
        made = config(tmp_path, source, data_files=path, text_column="doc.text", separator="|")
        assert text_of(prepare(made)) == "a|b||"
    nested, dotted = '{"doc": {"text": "a"}, "x": {"text": "no"}}', '{"doc.text": "a", "doc": {"x": 1}}'
    for content in (nested, dotted):
        assert documents(DataConfig(text_column="doc.text"), "json", content) == ["a"]
    assert documents(DataConfig(text_column=["b", "a"]), "csv", "a,b\n1,2\n3,\n") == ["2\n1", "\n3"]

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "two.parquet")
    made = config(
        tmp_path, "parquet", data_files=str(tmp_path / "two.parquet"), text_column=columns, separator="|"
    )
    assert text_of(prepare(made)) == "T\na|b|U|"
    for source, path in {"json": file, "parquet": table}.items():
        made = config(tmp_path / "no", source, data_files=path, text_column="doc.no")
        refused(tmp_path / "no", made, "data.text_column='doc.no' is not a column of", path, "doc")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis"])
def test_text_in_other_encodings(tmp_path, encoding):
    text = "Gr\u00fc\u00dfe\r\n" if encoding != "shift_jis" else "日本\r\n"
    contents = {
        "text": text * 9,
        "json": json.dumps({"text": text}, ensure_ascii=False),
        "csv": f'text\n"{text}"\n',
    }
    for source, content in contents.items():
        file = written(tmp_path / f"{source}.x", content.encode(encoding))
        corpus = prepare(config(tmp_path, source, data_files=file, encoding=encoding))
        assert text_of(corpus) == (text * 9 if source == "text" else text)


def test_text_that_is_not_in_its_encoding(tmp_path):
    file = written(tmp_path / "a.txt", "abc\udcff".encode("utf-8", "surrogateescape"))
    refused(tmp_path, config(tmp_path, "text", data_files=file), f"{file}: byte 3", "data.encoding")
    for content in (b"a\0\0\xdc", b"a\0b"):
        file = written(tmp_path / "b.txt", content)
        made = config(tmp_path, "text", data_files=file, encoding="utf-16-le")
        refused(tmp_path, made, f"{file}: is not utf-16-le", "set another data.encoding")


def packed(folder: Path, content: bytes) -> dict[str, str]:
    """The same text in every kind of archive: path → name in errors."""
    files = {
        "a.txt.gz": gzip.compress(content),
        "a.txt.bz2": bz2.compress(content),
        "a.txt.xz": lzma.compress(content),
        "a.txt.zst": pa.compress(content, "zstd", asbytes=True),
    }
    names = {written(folder / name, data): name for name, data in files.items()}
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("in/a.txt", content)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        archive.add(written(folder / "a.txt", content), "a.txt")
    names |= {str(folder / "a.zip"): "a.zip::in/a.txt", f"zip://in/a.txt::{folder}/a.zip": "a.zip::in/a.txt"}
    return names | {str(folder / "a.tar.gz"): "a.tar.gz::a.txt"}


def test_archives_without_a_network(tmp_path):
    """HF_HUB_OFFLINE is set in all tests. An error names the member, not a file of a cache."""
    for path in packed(tmp_path, "é\r\n".encode() * 9):
        assert text_of(prepare(config(tmp_path, "text", data_files=path))) == "é\r\n" * 9
    for path, name in packed(tmp_path / "bad", b"ab\xff").items():
        message = refused(
            tmp_path / "bad", config(tmp_path / "bad", "text", data_files=path), f"{name}: byte 2"
        )
        assert "/charlm/" not in message
    for path, name in packed(tmp_path / "cut", bytes(range(128)) * 99).items():
        if "::" in path or path.endswith(("zip", "tar.gz")):
            continue
        written(Path(path), Path(path).read_bytes()[:-20])
        made = config(tmp_path / "cut", "text", data_files=path)
        refused(tmp_path / "cut", made, f"{name}: cannot be extracted", "damaged or cut off")


@pytest.mark.parametrize("name", ["[1984].txt", "in/notes [old].txt", "b].txt"])
def test_brackets_in_names_of_an_archive(tmp_path, name):
    """`datasets` takes them for the address of a machine."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "é\n" * 99)
    path = str(tmp_path / "a.zip")
    for named in (path, f"zip://{name}::{path}"):
        assert text_of(prepare(config(tmp_path, "text", data_files=named))) == "é\n" * 99


def test_a_pipe_in_an_archive_is_not_waited_for(tmp_path):
    pipe = tarfile.TarInfo("b.txt")
    pipe.type = tarfile.FIFOTYPE
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(written(tmp_path / "a.txt", "abc\n" * 99), "a.txt")
        archive.addfile(pipe)
    assert text_of(prepare(config(tmp_path, "text", data_files=str(tmp_path / "a.tar")))) == "abc\n" * 99


@pytest.mark.parametrize(
    "content, source, reason",
    [
        ("text,n,text\na,1,b\n", "csv", r"'text' is more than one column of .* \(columns: text, n, text\)"),
        (
            '{"id": 1, "doc": {"text": "a", "n": 2}}\n',
            "json",
            r"\(columns: id, doc, doc\.text, doc\.n\); name one",
        ),
        ("text\na\n".encode("utf-16"), "csv", "begins as UTF-16 does; set data.encoding=utf-16"),
        ('{"text": "a"}\n'.encode("utf-16"), "json", "begins as UTF-16 does; set data.encoding=utf-16"),
        ("a\n".encode("utf-16"), "text", r"byte 0 \(0xFF\) is not UTF-8 .*: set data.encoding=utf-16"),
        (b"PK\3\4\x14\0\0\0\0\0cut off", "text", r"/in: a zip archive that is damaged or cut off"),
    ],
)
def test_what_is_refused_with_its_mend(tmp_path, content, source, reason):
    file = written(tmp_path / "in", content)
    with pytest.raises(CharlmError, match=reason):
        prepare(config(tmp_path, source, data_files=file))


@pytest.mark.parametrize("text", ["PK\3\4 begins this text\n", "BZh9 begins this text\n"])
def test_text_that_begins_as_an_archive_does(tmp_path, text):
    assert text_of(prepare(config(tmp_path, "text", data_files=written(tmp_path / "a.txt", text)))) == text


def test_what_is_no_text_is_left_out_of_archives_and_folders_and_named(tmp_path):
    members = {
        "a.txt": b"a\n",
        "cover.PNG": b"\x89PNG\xff",
        "in/b": b"b\n",
        "old.zip": b"PK\3\4",
        "x.pdf": b"%\xff",
    }
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members.items():
            archive.writestr(name, content)
            tar.add(written(tmp_path / "in" / name, content), name)
    for name in ("a.zip", "a.tar"):
        with pytest.warns(CharlmWarning, match=rf"{name}: left out as no text: cover\.PNG, old\.zip, x\.pdf"):
            corpus = prepare(config(tmp_path / "of" / name, "text", data_files=str(tmp_path / name)))
        assert text_of(corpus) == "a\n\nb\n"
    corpus = prepare(config(tmp_path, str(tmp_path / "in")))
    assert corpus.info["origins"]["other files"] == "4, not read (b, cover.PNG, old.zip, …)"


def test_a_split_that_is_named_like_a_folder_does_not_stand_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "train" / "other.txt", "c")
    files = {"train": written(tmp_path / "a.txt", "a" * 99), "test": written(tmp_path / "b.txt", "b" * 99)}
    corpus = prepare(config(tmp_path, "text", data_files=files, test="test"))
    assert "other files" not in corpus.info["origins"]


def test_documents_without_text_are_counted(tmp_path):
    rows = [{"text": "a"}, {"text": None}, {"n": 1}, {"text": ""}, {"text": "b"}]
    contents = {
        "json": "".join(map("{}\n".format, map(json.dumps, rows))),
        "csv": "n,text\n1,a\n2\n3,\n4,b\n",
    }
    for source, content in contents.items():
        corpus = prepare(config(tmp_path, source, data_files=written(tmp_path / f"a.{source}", content)))
        assert (corpus.info["empty"], text_of(corpus)) in ((3, "a\n\n\n\nb"), (2, "a\n\n\nb"))
        assert f"empty        {corpus.info['empty']} documents without text" in corpus.report()
    column = pa.array(["a", None, "b", "a"])
    for kind in (pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        file = parquet(tmp_path / f"{kind}.parquet"[:9], column.cast(kind))
        corpus = prepare(config(tmp_path, "parquet", data_files=file))
        assert (corpus.info["empty"], text_of(corpus)) == (1, "a\n\nb\na")


# data.normalize


@pytest.mark.parametrize(
    "steps, text, found",
    [
        (["nfc"], "e\u0301 \u1112\u1161\u11ab", "é 한"),
        (["nfkc", "lower"], "ﬁN²É", "fin2é"),
        (["crlf"], "a\r\nb\rc\r\r\n", "a\nb\rc\r\n"),
        (["strip_bom"], "\ufeffa\ufeffb", "ab"),
        (["text8"], "On 3 März, 1990!", "on three m rz one nine nine zero "),
        (["nfc", "crlf", "lower"], "E\u0301\r\n", "é\n"),
    ],
)
def test_steps_of_normalization(tmp_path, steps, text, found):
    assert documents(DataConfig(normalize=steps), "text", text * 3, 1 << 20) == [
        re.sub(" +", " ", found * 3) if "text8" in steps else found * 3
    ]
    file = written(tmp_path / "a.jsonl", json.dumps({"text": text * 3}))
    corpus = prepare(config(tmp_path, "json", data_files=file, normalize=steps))
    assert text_of(corpus) == (re.sub(" +", " ", found * 3) if "text8" in steps else found * 3)
    assert Vocab.load(corpus.folder).normalize == steps
    assert corpus.vocab.decode(corpus.vocab.encode(text)) == found
    assert corpus.vocab.decode(corpus.vocab.encode(text.encode())) == found


mixed = st.lists(
    st.sampled_from(
        ["a", "É", "e\u0301", "\u0323", "\r\n", "\r", "\n", " ", "中", "か\u3099", "ﬁ", "7", "\ufeff"]
    ),
    max_size=20,
).map("".join)


@given(text=mixed, piece=pieces)
@example("e" + "\u0301" * 4 + "\u0323", 1)
def test_a_text_is_normalized_as_a_whole(text, piece):
    """Also where a part ends between a letter and its accent, within \\r\\n, or within a run of spaces."""
    whole = text.replace("\ufeff", "").replace("\r\n", "\n")
    steps = ["strip_bom", "crlf", "nfc"]
    assert documents(DataConfig(normalize=steps), "text", text, piece) == [
        unicodedata.normalize("NFC", whole)
    ]
    (found,) = documents(DataConfig(normalize=["text8"]), "text", text, piece)
    assert found == re.sub(
        "[^a-z]+", " ", re.sub("[A-Z]", lambda m: m[0].lower(), text).replace("7", " seven ")
    )


def test_normalized_text_must_be_utf8_and_decomposed_text_is_reported(tmp_path):
    file = written(tmp_path / "a.txt", b"ab\xff")
    made = config(tmp_path, "text", data_files=file, normalize=["nfc"])
    refused(tmp_path, made, f"{file}: byte 2 is not UTF-8", "data.encoding")
    file = written(tmp_path / "b.txt", unicodedata.normalize("NFD", "für élève " * 50))
    plain, composed = (
        prepare(config(tmp_path, "text", data_files=file, normalize=n)) for n in (None, ["nfc"])
    )
    assert "data.normalize: [nfc]" in plain.report() and "warning" not in composed.report()


def test_bad_options_of_text(tmp_path):
    for options, words in (
        ({"encoding": "latin1000"}, ["data.encoding='latin1000'", "cp1252"]),
        ({"encoding": "rot13"}, ["data.encoding='rot13'"]),
        ({"normalize": ["nfd"]}, ["data.normalize=['nfd']", "nfkc"]),
        ({"field_delimiter": "||"}, ["data.field_delimiter='||'", "one ASCII character"]),
        ({"header": False}, ["data.text_column='text'", "number of a column"]),
        ({"text_column": []}, ["data.text_column=[]"]),
    ):
        with contextlib.suppress(FileNotFoundError), pytest.raises(CharlmError) as caught:
            config(tmp_path, "csv", data_files="a.csv", **options)
        assert all(word in str(caught.value) for word in words), caught.value
