"""Building a corpus: exact, restartable, in shards, and verified."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from corpus_helpers import (
    HELD_OUT,
    arrow_files,
    bytes_of,
    config,
    contents,
    folders,
    fork,
    jsonl,
    limited,
    of_parquet,
    parquet,
    pieces_of,
    preparing,
    refused,
    sha_of,
    small_pieces,
    strict,
    text_of,
    tree_of,
    written,
)
from helpers import charlm as run
from helpers import environment
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import charlm.commands.cli
import charlm.corpus.batches
import charlm.corpus.build
import charlm.corpus.layout
import charlm.corpus.prepared
import charlm.corpus.readers
from charlm.config.fields import Config
from charlm.config.parse import from_dict
from charlm.corpus import baselines
from charlm.corpus.batches import TextSource
from charlm.corpus.build import Build
from charlm.corpus.count_encode import Text, in_order
from charlm.corpus.layout import LAYOUT_FILE
from charlm.corpus.prepared import (
    Corpus,
    folder_of,
    merge,
    prepare,
    prepare_shard,
    verify,
)
from charlm.corpus.vocabulary import END, Vocab
from charlm.errors import CharlmError
from charlm.files import Journal

KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]


# kernels: counts and ids, against the reference


class InMemory:
    """Arrays of Arrow as a file whose parts they are."""

    name, skipped = "arrays in memory", 0

    def __init__(self, arrays: list[pa.Array]):
        self.arrays = arrays

    def parts(self):
        for number, array in enumerate(self.arrays):
            yield number, np.ones(len(array), bool), array.nbytes

    def read(self, part):
        yield self.arrays[part]


def built(made: Config, arrays: list[pa.Array]) -> Corpus:
    """The corpus of these arrays: through the passes, the layout and the disk."""
    with pytest.MonkeyPatch.context() as patch:
        source = {"train": TextSource(([InMemory(arrays)], 0, None))}
        source["train"].limit(made.data.max_documents, made.data.max_characters, made.vocab.bytes_only)
        patch.setattr(charlm.corpus.build, "open_sources", lambda *_: (made.data, source))
        return prepare(made)


def hashed(i: int, seed: int) -> int:
    mask = 2**64 - 1
    z = (i + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def expected(documents: list[bytes], made: Config) -> tuple[Vocab, dict[str, list[int]]]:
    """What a corpus holds, by reference.py: vocabulary, and the ids of every split."""
    data, raw, end = made.data, made.vocab.bytes_only, made.vocab.end_of_document
    shares = {s: getattr(data, s) for s in ("validation", "test") if getattr(data, s)}
    streams = {"train": documents}
    if shares and data.split_by == "document":
        order, taken = sorted(range(len(documents)), key=lambda i: hashed(i, data.seed)), 0
        for split, share in shares.items():
            more = max(1, round(len(documents) * share))
            streams[split] = [documents[i] for i in sorted(order[taken : taken + more])]
            taken += more
        streams["train"] = [documents[i] for i in sorted(order[taken:])]
    counts = np.zeros(END + 1, np.int64)
    glue = [data.separator.encode()]
    for some in streams.values():
        between = [] if end else glue * (len(some) - 1)
        for code, times in reference.count([*some, *between], raw).items():
            counts[code] += times
    vocab = Vocab.from_counts(counts, made.vocab)
    if data.shuffle:
        order = sorted(range(len(streams["train"])), key=lambda i: hashed(i, data.shuffle))
        streams["train"] = [streams["train"][i] for i in order]
    ids = {split: reference.encode(some, vocab, data.separator) for split, some in streams.items()}
    if shares and data.split_by == "character":
        units: list[bytes | None] = []
        for number, document in enumerate(documents):
            for text in ([] if end or not number else glue) + [document]:
                units += [bytes([b]) for b in text] if raw else [c.encode() for c in text.decode()]
            units += [None] * end
        low, share, ids = 0, Fraction(0), {}
        begins = {}
        for split in reversed(shares):
            share += Fraction(str(shares[split]))
            begins[split] = math.floor(len(units) * (1 - share))
        begins["train"] = 0
        high = len(units)
        plain = Vocab(vocab.characters, vocab.byte_symbols, unknown=vocab.unknown)
        for split in begins:
            low = begins[split]
            part = [[vocab.end] if u is None else reference.encode([u], plain) for u in units[low:high]]
            ids[split], high = [i for unit in part for i in unit], low
    return vocab, ids


stretches = st.one_of(
    st.text(st.sampled_from("ab\n\r\0é中😀\u0301\ufeff\U0010ffff"), max_size=9),
    st.sampled_from([31, 32, 33, 64, 127, 128, 129, 160, 300]).map(lambda n: ("abc\n" * 99)[:n]),
)
texts = st.lists(stretches, max_size=4).map("".join)
vocabularies = st.sampled_from(
    [
        {},
        {"max_size": 247},
        {"coverage": 0.7},
        {"bytes_only": True},
        {"characters": "ab\ncé|中"},
        {"max_size": 249, "end_of_document": True},
        {"bytes_only": True, "end_of_document": True},
        {"end_of_document": True},
    ]
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    documents=st.lists(st.one_of(texts, texts, st.none()), min_size=1, max_size=9),
    kind=st.sampled_from(KINDS),
    chunk=st.integers(1, 5),
    offset=st.integers(0, 3),
    batch=st.sampled_from([1, 2, 5, 31, 33, 130, 4 << 20]),
    piece=st.sampled_from([1, 7, 100, 8 << 20]),
    workers=st.integers(1, 3),
    vocab=vocabularies,
    separator=st.sampled_from(["", "\n", "|é", "—😀"]),
    held_out=st.sampled_from([{}, {"validation": 0.3}, {"validation": 0.2, "test": 0.25}]),
    split_by=st.sampled_from(["document", "character"]),
    seed=st.integers(0, 5),
    shuffle=st.sampled_from([0, 1, 7]),
)
@example(
    ["a" * 31 + "é" + "b" * 128 + "中" + "c" * 32, None, "😀" * 40],
    *(pa.string(), 2, 1, 33, 7, 2, {}, "—😀"),
    *({"validation": 0.2, "test": 0.25}, "character", 1, 0),
)
@example(
    ["é" * 5, "", "x", None, "中"],
    *(pa.large_binary(), 1, 2, 1, 1, 3, {"max_size": 247}, "|é"),
    *({"validation": 0.2, "test": 0.25}, "document", 0, 7),
)
def test_a_corpus_is_what_the_reference_says(
    documents, kind, chunk, offset, batch, piece, workers, vocab, separator, held_out, split_by, seed, shuffle
):
    """Any text, any kind of column, slices with an offset, nulls; whatever the pieces and the threads."""
    rows = [None if d is None else d.encode() for d in documents]
    padded = [b"before"] * offset + rows + [b"\xff after"]
    array = pa.array(padded, pa.binary() if "large" not in str(kind) else pa.large_binary())
    if "string" in str(kind):
        array = pa.Array.from_buffers(
            kind, len(array), array.buffers()
        )  # bytes outside the slice are no text
    array = array[offset : offset + len(rows)]
    arrays = [array[low : low + chunk] for low in range(0, len(array), chunk)]
    data = {"source": "literal", "text": "x", "separator": separator, "split_by": split_by, "seed": seed}
    data |= {"validation": 0, "test": 0, "workers": workers} | held_out
    data["shuffle"] = 0 if split_by == "character" and held_out else shuffle
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(charlm.corpus.readers, "BATCH", batch)
        patch.setattr(charlm.corpus.readers, "PIECE", piece)
        made = from_dict({"data": data | {"dir": folder}, "vocab": vocab})
        try:
            corpus = built(made, arrays)
        except CharlmError as error:
            assert re.search("the text is empty|cannot hold out|split would hold", str(error)), error
            assert folders(Path(folder)) == []
            return
        vocabulary, ids = expected([r or b"" for r in rows], made)
        assert corpus.vocab == vocabulary
        assert set(ids) == set(corpus.splits)
        for split in ids:
            assert corpus[split].tolist() == ids[split], split
            assert corpus.splits[split]["bytes"] == len(vocabulary.decode_bytes(corpus[split]))
        corpus.verify()


def test_compiled_loops_and_numba_switched_off_agree(tmp_path):
    """NUMBA_DISABLE_JIT=1: the loops run in plain Python."""
    file = written(tmp_path / "a.txt", "naïve café 中文😀\r\n" * 30 + "x" * 300)
    words = ["prepare", "--data.source", "text", "--data.data_files", file, "--data.split_by", "character"]
    done = run(*words, "--data.dir", tmp_path / "plain", env=environment(NUMBA_DISABLE_JIT="1"))
    assert done.returncode == 0, done.stderr
    (plain,) = (tmp_path / "plain").glob("a-*")
    made = config(tmp_path, "text", data_files=file, split_by="character", validation=0.05, test=0.05)
    assert sha_of(Corpus(plain)) == sha_of(prepare(made))


# bad UTF-8


def not_checked(rows: list[bytes | None], wide: bool = False) -> pa.Array:
    """Bytes that call themselves text."""
    binary = pa.array(rows, pa.large_binary() if wide else pa.binary())
    return pa.Array.from_buffers(pa.large_string() if wide else pa.string(), len(rows), binary.buffers())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("split_by", ["document", "character"])
def test_bytes_that_are_not_utf8_deep_in_a_later_piece(tmp_path, monkeypatch, wide, split_by):
    monkeypatch.setattr(charlm.corpus.readers, "PIECE", 900)
    monkeypatch.setattr(charlm.corpus.readers, "BATCH", 300)
    rows = [f"row {i} é".encode() * 7 for i in range(120)]
    rows[83] = ("é" * 401).encode() + b"\xe4\xb8x" + b"tail"  # longer than BATCH
    file = parquet(tmp_path / "a.parquet", not_checked(rows, wide), row_group_size=11)
    made = of_parquet(tmp_path, file, split_by=split_by, **HELD_OUT)
    refused(tmp_path, made, "row 83, byte 802 (0xE4) is not UTF-8 (invalid continuation byte)", "a.parquet")


@settings(max_examples=40)
@given(
    good=st.lists(texts, min_size=0, max_size=5),
    bad=st.binary(max_size=6),
    lead=texts,
    batch=st.sampled_from([1, 3, 7, 33, 4 << 20]),
)
@example([], b"\x80" * 6, "", 1)
@example(["a"], b"\xf0\x9f\x98", "é" * 20, 7)
def test_what_python_refuses_is_refused_by_row_and_byte(good, bad, lead, batch):
    row = lead.encode() + bad
    byte = strict(row)
    rows = [g.encode() for g in good] + [row, b"end"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(charlm.corpus.readers, "BATCH", batch)
        data = {"source": "literal", "text": "x", "validation": 0, "test": 0, "dir": folder}
        made = from_dict({"data": data})
        if byte is None:
            assert bytes_of(built(made, [not_checked(rows)])) == b"\n".join(rows)
        else:
            place = rf"row {len(good)}, byte {byte} \(0x{row[byte]:02X}\)"
            with pytest.raises(CharlmError, match=f"{place} is not UTF-8"):
                built(made, [not_checked(rows)])
            assert folders(Path(folder)) == []


def test_a_long_row_of_continuation_bytes_is_refused_at_once(tmp_path):
    file = parquet(tmp_path / "a.parquet", not_checked([b"\x80" * (9 << 20)]))
    refused(tmp_path, of_parquet(tmp_path, file), "row 0, byte 0 (0x80) is not UTF-8")


# workers and shards: the same bytes


def words_of(made: Config) -> list[str]:
    """The command that prepares such a config."""
    files = made.data.data_files
    files = files if isinstance(files, str) else json.dumps(files)
    words = ["prepare", "--data.source", "parquet", "--data.data_files", files, "--data.dir", made.data.dir]
    return [*words, "--data.validation", str(made.data.validation), "--data.test", str(made.data.test)]


@pytest.mark.parametrize(
    "split_by, vocab, shuffle",
    [
        ("document", {"end_of_document": True}, False),
        ("character", {"max_size": 250}, False),
        ("document", {"max_size": 250}, True),
    ],
)
def test_any_number_of_workers_and_shards_gives_the_same_bytes(
    tmp_path, monkeypatch, split_by, vocab, shuffle
):
    monkeypatch.setattr(charlm.corpus.readers, "PIECE", 1 << 10)
    file = pieces_of(tmp_path / "a.parquet", 5)
    fixed = {"split_by": split_by, "shuffle": shuffle} | HELD_OUT

    def made(name: str, **data) -> Config:
        return of_parquet(tmp_path / name, file, vocab, **fixed, **data)

    whole = contents(prepare(made("w1", workers=1)).folder)
    assert {"train.npy", "validation.npy", "test.npy", "vocab.json", "corpus.json"} == set(whole)
    for workers in (2, 5):
        assert contents(prepare(made(f"w{workers}", workers=workers)).folder) == whole
    for shards in (1, 3, 7):  # of 5 pieces
        shared = made(f"s{shards}")
        parts = random.Random(shards).sample(range(shards), shards)
        for part in parts + parts[:2]:
            assert "counted" in prepare_shard(shared, part, shards)
        assert merge(shared, shards) is None
        for part in parts[::-1] + parts[:1]:
            assert "encoded" in prepare_shard(shared, part, shards)
        assert contents(merge(shared, shards).folder) == whole, shards
        assert folders(tmp_path / f"s{shards}") == [folder_of(shared).name]


def test_shards_as_commands_at_once_and_twice(tmp_path, capsys):
    """Processes that start together, one of them twice; the merge; messages that name the next command."""
    file = [pieces_of(tmp_path / f"{i}.parquet", 1, i) for i in range(6)]
    made = of_parquet(tmp_path, file, **HELD_OUT)
    words = words_of(made)

    def at_once(*shards: int) -> list[tuple[int, str, str]]:
        started = [fork(*words, "--shard", f"{i}/2") for i in shards]
        return [(process.wait(), *process.communicate()) for process in started]

    early = command_error(*words, "--merge", "2")
    assert "2 of 2 shards are not counted yet: 0, 1; the same command with --shard I/2" in early
    for code, out, err in at_once(0, 1, 1):
        counted = r"shard [01] of 2 is counted\. .*the same command with --merge 2\n"
        assert code == 0 and re.fullmatch(counted, out), err
    charlm.commands.cli.main([*words, "--merge", "2"])
    charlm.commands.cli.main([*words, "--shard", "1/2"])
    assert re.search(
        r"every --shard I/2 again, then --merge 2\nshard 1 of 2 is encoded\. ", capsys.readouterr().out
    )
    assert "1 of 2 shards are not encoded yet: 0;" in command_error(*words, "--merge", "2")
    assert [code for code, _, _ in at_once(0, 1)] == [0, 0]
    charlm.commands.cli.main([*words, "--merge", "2"])
    folder, one = folder_of(made), prepare(of_parquet(tmp_path / "one", file, **HELD_OUT))
    assert capsys.readouterr().out == Corpus(folder).report() + "\n"
    assert contents(folder) == contents(one.folder)
    assert [p.name for p in (tmp_path / "data").iterdir()] == [folder.name]
    assert prepare_shard(made, 1, 2) == f"{folder} is prepared already"


def command_error(*words: str) -> str:
    """The message of a command that fails."""
    with pytest.raises(SystemExit) as ended:
        charlm.commands.cli.main([*words])
    assert "\n" not in ended.value.code
    return ended.value.code


@pytest.mark.parametrize(
    "words, message",
    [
        ("--shard 4/4", "--shard 4/4: give a number from 0"),
        ("--shard x", "--shard x: give a number from 0"),
        ("--shard 1", "--shard 1: give"),
        ("--shard=-1/2", "--shard -1/2: give"),
        ("--shard 0/0", "--shard 0/0: give"),
        ("--shard 0.5/2", "--shard 0.5/2: give"),
        ("--shard", "--shard: expected one argument"),
        ("--merge 0", "--merge 0: give the number of shards"),
        ("--merge two", "--merge two: give the number of shards"),
        ("--shard 0/2 --verify", "not allowed with"),
        ("--merge 2 --shard 0/2", "not allowed with"),
        ("--verify --merge 2", "not allowed with"),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path, capfd, words, message):
    data = ["--data.source", "literal", "--data.text", "hello", "--data.dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as ended:
        charlm.commands.cli.main(["prepare", *data, *words.split()])
    out, err = capfd.readouterr()
    line = err or str(ended.value.code)
    assert out == "" and message in line and line.count("\n") <= 1 and line.startswith("charlm: error: ")
    assert not (tmp_path / "data").exists()


def test_a_source_that_changed_between_shards_is_refused(tmp_path, monkeypatch):
    """Counted from one text, encoded from another, as when a dataset on the Hub changes."""
    monkeypatch.setattr(charlm.corpus.readers, "PIECE", 1 << 10)
    file = tmp_path / "a.parquet"
    made = of_parquet(tmp_path, pieces_of(file, 4))
    prepare_shard(made, 0, 2)
    found = folder_of(made)
    pieces_of(file, 4, seed=4)
    assert folder_of(made) != found  # that of a local file does
    monkeypatch.setattr(charlm.corpus.prepared, "folder_of", lambda _: found)
    refusal = r"is not what another shard found: .* delete .*\.shards-2 and start again"
    with pytest.raises(CharlmError, match=refusal):
        prepare_shard(made, 1, 2)


# processes that are killed


def partial_of(made: Config, suffix: str = "partial") -> Path:
    """Where a build keeps its work."""
    return folder_of(made).with_name(f".{folder_of(made).name}.{suffix}")


@pytest.mark.parametrize("split_by, shuffle", [("document", 3), ("character", 0)])
def test_killed_again_and_again_it_ends_as_if_undisturbed(tmp_path, split_by, shuffle):
    """kill -9 at random moments of both passes, of the one that works and the one that waits."""
    data = {"data_files": pieces_of(tmp_path / "a.parquet", 60), "split_by": split_by} | HELD_OUT
    data["shuffle"] = shuffle
    made = config(tmp_path, "parquet", workers=2, **data)
    undisturbed = contents(prepare(config(tmp_path / "other", "parquet", **data)).folder)
    draw, kills, seen = random.Random(7), 0, set()
    partial = partial_of(made)

    def reached() -> list:
        files = [partial / name for name in ("counts-0.log", "encoded-0.json")]
        return [(p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None for p in files]

    for attempt in range(12):
        before, both = reached(), [preparing(made), preparing(made)]
        if attempt % 4:  # a little further than the one before; else at any moment, the first included
            while reached() == before and all(process.poll() is None for process in both):
                time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        for process in draw.sample(both, 2):
            kills += process.kill()
        seen |= {p.name for p in partial.glob("*")}
        if folder_of(made).exists():
            break
    assert kills >= 3 and "counts-0.log" in seen, (kills, seen)
    corpus = prepare(made)
    stored = contents(corpus.folder)
    assert {name: stored[name] for name in undisturbed} == undisturbed
    assert folders(tmp_path) == [folder_of(made).name]


def until(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


class Spy:
    """Records which pieces a pass reads."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str):
        self.firsts: list[int] = []
        inner = getattr(Text, name)

        def noted(text, piece, *rest):
            self.firsts.append(piece.first)
            return inner(text, piece, *rest)

        patch.setattr(Text, name, noted)


def test_what_was_counted_and_encoded_before_a_kill_is_not_done_again(tmp_path, monkeypatch):
    """A process killed in the first pass, another in the second."""
    small_pieces(monkeypatch)
    made = of_parquet(tmp_path, pieces_of(tmp_path / "a.parquet", 400), workers=2)
    log, progress = partial_of(made) / "counts-0.log", partial_of(made) / "encoded-0.json"
    process = preparing(made)
    until(lambda: log.exists() and log.stat().st_size > 20_000)
    assert process.kill()
    assert not (partial_of(made) / LAYOUT_FILE).exists(), "it had counted all: make the file larger"
    counted = sum(1 for _ in Journal.read(log))
    with monkeypatch.context() as patch:
        spy, build = Spy(patch, "count"), Build(made, folder_of(made))
        build.open()
        build.count()
    assert counted > 10 and len(spy.firsts) == 400 - counted and min(spy.firsts) == 7 * counted
    process = preparing(made)
    until(lambda: progress.exists() and json.loads(progress.read_text())["pieces"] > 0)
    assert process.kill()
    encoded = json.loads(progress.read_text())["pieces"]
    assert 0 < encoded < 400, "it had encoded all: make the file larger"
    count, encode = Spy(monkeypatch, "count"), Spy(monkeypatch, "encode")
    corpus = prepare(made)
    assert count.firsts == [] and len(encode.firsts) == 400 - encoded and min(encode.firsts) == 7 * encoded
    corpus.verify()
    verify(made)


def test_a_shard_killed_in_either_pass_and_run_again(tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    file = pieces_of(tmp_path / "a.parquet", 300)
    made = of_parquet(tmp_path, file, workers=2, **HELD_OUT)
    for stage, name in (("counted", "counts-1.log"), ("encoded", "encoded-1.json")):
        watched = partial_of(made, "shards-2") / name
        process = preparing(made, 1, 2)
        until(
            lambda watched=watched: (
                watched.exists() and (watched.suffix == ".json" or watched.stat().st_size > 9000)
            )
        )
        assert process.kill(), "it was done before it was killed: make the file larger"
        with pytest.raises(CharlmError, match=rf"2 of 2 shards are not {stage} yet: 0, 1; the same command"):
            merge(made, 2)
        assert stage in prepare_shard(made, 0, 2)
        with pytest.raises(CharlmError, match=rf"1 of 2 shards are not {stage} yet: 1; the same command"):
            merge(made, 2)
        assert stage in prepare_shard(made, 1, 2)
        corpus = merge(made, 2)
    other = of_parquet(tmp_path / "other", file, **HELD_OUT)
    assert contents(corpus.folder) == contents(prepare(other).folder)


@pytest.mark.parametrize("tail", [b"", b"\1" * 9, b"\0" * 64, b"\xff" * 40, "half", "flipped"])
def test_a_torn_journal(tmp_path, tail):
    """Of a killed process, or of a machine that went down: whole records are kept, what follows them goes."""
    path, records = tmp_path / "a.log", [b"one", b"two" * 999, b"three"]
    with Journal(path) as journal:
        for record in records:
            journal.append(record)
        assert len(journal) == 3
    content = path.read_bytes()
    if tail == "half":
        path.write_bytes(content[:-2])
    elif tail == "flipped":
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    else:
        path.write_bytes(content + tail)
    kept = records if isinstance(tail, bytes) else records[:2]
    assert list(Journal.read(path)) == kept
    with Journal(path) as journal:
        assert len(journal) == len(kept)
        journal.append(b"four")
    assert list(Journal.read(path)) == [*kept, b"four"]


def test_a_build_resumes_from_a_torn_journal(tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    file = pieces_of(tmp_path / "a.parquet", 20)
    made = of_parquet(tmp_path, file, workers=2)
    log = partial_of(made) / "counts-0.log"
    log.parent.parent.mkdir()
    ended = Build(made, folder_of(made))
    ended.open()
    ended.count()
    log.write_bytes(log.read_bytes()[:-3] + b"\xfe" * 99)
    other = of_parquet(tmp_path / "other", file)
    assert contents(prepare(made).folder) == contents(prepare(other).folder)


def test_a_partial_folder_of_another_text_is_deleted(tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    file = pieces_of(tmp_path / "a.parquet", 9)
    made = of_parquet(tmp_path, file)
    partial = partial_of(made)
    partial.parent.mkdir()
    other = of_parquet(tmp_path, pieces_of(tmp_path / "b.parquet", 9, 5))
    Build(other, folder_of(made)).open()
    with Journal(partial / "counts-0.log") as journal:
        for _ in range(9):
            journal.append(b"of another text")
    written(partial / "train.npy", b"of another text")
    corpus = prepare(made)
    assert corpus.info["documents"] == 63
    verify(made)


# other bad input


def test_a_million_empty_documents(tmp_path):
    """And one that is not."""
    rows = 1_000_003
    texts = pa.concat_arrays([pa.array([""] * (rows - 1)), pa.array(["aé"])])
    file = parquet(tmp_path / "a.parquet", texts)
    corpus = prepare(of_parquet(tmp_path, file, validation=0, separator="."))
    assert bytes_of(corpus) == b"." * (rows - 1) + "aé".encode()
    assert corpus.info["documents"] == rows
    ended = prepare(of_parquet(tmp_path, file, {"end_of_document": True}, split_by="character"))
    assert ended.info["symbols"] == rows + 2 and ended.info["characters"] == 2
    nothing = parquet(tmp_path / "b.parquet", texts[:-1])
    with pytest.raises(CharlmError, match="the text is empty"):
        prepare(of_parquet(tmp_path, nothing, validation=0.05))


def test_no_row_at_all(tmp_path):
    file = parquet(tmp_path / "a.parquet", pa.array([], pa.string()))
    for held_out in ({}, HELD_OUT):
        refused(tmp_path, of_parquet(tmp_path, file, **held_out), file, "the text is empty")


def test_a_corpus_of_one_character(tmp_path):
    made = config(tmp_path, "literal", text="a" * 1234, split_by="character", **HELD_OUT)
    corpus = prepare(made)
    assert corpus.vocab.characters == ("a",) and not corpus["train"].any()
    assert corpus.info["floors"]["unigram"]["bpc"] > 0 and corpus.info["coverage"] == 1
    assert "'a' (U+0061 LATIN SMALL LETTER A)" in corpus.report()
    made = config(tmp_path / "b", "literal", text="a")
    refused(tmp_path / "b", made, "the train split would hold fewer than 2 symbols of text")


def every_character(n: int) -> str:
    return "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x110000)][:n]))


def test_more_symbols_than_16_bits_hold(tmp_path):
    made = config(tmp_path, "literal", text=every_character(66_001) * 2)
    refused(tmp_path, made, "symbols and ids hold 65,535", "set vocab.max_size", "vocab.coverage")
    made.vocab.max_size = 65_535
    corpus = prepare(made)
    assert len(corpus.vocab) == 65_535 and corpus["train"].dtype == np.uint16
    assert text_of(corpus) == made.data.text and 0 < corpus.info["fallback_rate"] < 1
    most = config(tmp_path, "literal", {"unknown": "error"}, text=every_character(65_535))
    assert prepare(most)["train"].max() == 65_534


@pytest.mark.parametrize("size", [40 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_a_document_of_many_megabytes_in_one_row(tmp_path, size):
    unit = "naïve 中文 😀, plain and simple and long enough.\n".encode()
    text = unit * (size // len(unit))
    table = pa.table({"text": pa.array(["first", None, "last"], pa.large_string())})
    table = table.set_column(0, "text", pa.array([b"first", text, b"last"], pa.large_binary()))
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    del table
    made = of_parquet(tmp_path, str(tmp_path / "a.parquet"), separator="|")
    corpus = prepare(made)
    assert corpus.info["documents"] == 3 and corpus.info["bytes"] == len(text) + 11
    ids = corpus["train"]
    for at in (0, 1 << 22, len(ids) // 2, len(ids) - 3000):
        part = corpus.vocab.decode_bytes(ids[at : at + 2000])
        assert part in b"first|" + unit * 90 or part in unit * 90 + b"|last", at
    assert corpus.vocab.decode_bytes(ids[-6:]) == b"\n|last"
    histogram = Counter(unit.decode())
    sizes = np.bincount(ids, minlength=len(corpus.vocab))
    for character, times in histogram.items():
        at = corpus.vocab.characters.index(character)
        extra = "first|last|".count(character)
        assert sizes[at] == times * (size // len(unit)) + extra, character


def test_a_disk_that_fills_up_in_either_pass(tmp_path):
    """The command prints one line, leaves no half-written array, and resumes when there is room."""
    file = pieces_of(tmp_path / "a.parquet", 40)
    made = of_parquet(tmp_path, file, **HELD_OUT)
    words = words_of(made)
    for room in (600, 20_000):  # too little for the counts, then for the ids
        process = fork(*words, before=limited(room))
        code, err = process.wait(), process.communicate()[1]
        assert code == 1 and err.count("\n") == 1, err
        assert f"{folder_of(made)}: cannot be written (File too large)" in err
        assert not list(tmp_path.rglob("*.npy"))
    process = fork(*words)
    assert process.wait() == 0, process.communicate()
    assert [p.name for p in Path(made.data.dir).iterdir()] == [folder_of(made).name]


# --verify


@pytest.mark.parametrize("source", ["parquet", "text", "json", "csv"])
def test_verify_finds_a_changed_source_under_a_finished_corpus(tmp_path, source):
    """As long as before, with the same time of change: the cache of datasets is the same."""
    path = tmp_path / "in" / f"a.{source}"

    def write(word: str) -> None:
        text = word * 99
        if source == "parquet":
            parquet(path, [text, "b"])
        else:
            written(
                path, {"text": text, "json": f'{{"text": "{text}"}}\n', "csv": f"text,n\n{text},1\n"}[source]
            )

    write("hello")
    made = config(tmp_path, source, data_files=str(path), split_by="character", validation=0.2)
    before = path.stat()
    corpus = prepare(made)
    verify(made)
    arrow = arrow_files()
    for word in ("hullo", "ollhe"):  # another letter; the same letters in another order
        write(word)
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(CharlmError, match="if there was one, its files have changed since"):
            verify(made)
        moved = os.rename(corpus.folder, folder_of(made)) or folder_of(made)  # as if it were made of this
        with pytest.raises(CharlmError, match=rf"is not what {re.escape(str(moved))} was made of: .*delete"):
            verify(made)
        os.rename(moved, corpus.folder)
    write("hello")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    verify(made)
    assert arrow_files() == arrow
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("charlm-verify-*"))


def test_a_shuffled_corpus_is_built_again_after_a_kill_at_its_end_and_verified(tmp_path, monkeypatch):
    """The ids before and after are both on the disk until corpus.json is."""
    file = pieces_of(tmp_path / "a.parquet", 3)
    plain = prepare(of_parquet(tmp_path / "plain", file))
    made = of_parquet(tmp_path, file, shuffle=4)

    def stop(*_):
        raise KeyboardInterrupt

    for holder, name in ((Build, "_describe"), (os, "rename")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(holder, name, stop)
            prepare(made)
    corpus = prepare(made)
    assert folders(tmp_path) == [corpus.folder.name]
    assert "order        training documents are shuffled, data.shuffle=4" in corpus.report()
    assert sorted(p.name for p in corpus.folder.glob("*.npy")) == ["train.npy"]
    lines = text_of(corpus), text_of(plain)
    assert lines[0] != lines[1] and Counter(lines[0]) == Counter(lines[1])
    corpus.verify()
    verify(made)
    other = prepare(of_parquet(tmp_path, pieces_of(tmp_path / "b.parquet", 3, seed=4), shuffle=4))
    shutil.copy(other.folder / "train.npy", corpus.folder)
    with pytest.raises(CharlmError):
        verify(made)
    cut = of_parquet(tmp_path, file, shuffle=4, split_by="character", **HELD_OUT)
    with pytest.raises(CharlmError, match=r"data\.shuffle=4: permutes documents, .*data\.split_by=document"):
        prepare(cut)


def test_verify_as_a_command(tmp_path, capsys):
    file = pieces_of(tmp_path / "a.parquet", 3)
    made = of_parquet(tmp_path, file, **HELD_OUT)
    words = [*words_of(made), "--verify"]
    assert "no corpus of this config is prepared" in command_error(*words)
    corpus = prepare(made)
    capsys.readouterr()
    charlm.commands.cli.main(words)
    assert capsys.readouterr().out.startswith(f"{corpus.folder}: ")
    path = corpus.folder / "train.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert "train.npy: sha256" in command_error(*words)


# Ctrl-C


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(a file of many pieces, its corpus)"""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = pieces_of(folder / "a.parquet", 400)
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        return file, contents(prepare(of_parquet(folder, file, **HELD_OUT)).folder)


@pytest.mark.parametrize("stage", ["counts-0.log", "encoded-0.json"])
def test_ctrl_c_ends_the_command_and_the_next_one_resumes(tmp_path, undisturbed, monkeypatch, stage):
    small_pieces(monkeypatch)
    file, whole = undisturbed
    made = of_parquet(tmp_path, file, **HELD_OUT)
    process = fork(*words_of(made))
    watched = partial_of(made) / stage
    until(lambda: watched.exists() and watched.stat().st_size > 0)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.communicate()
    assert process.communicate() == ("", "charlm: stopped by Ctrl-C\n")
    assert partial_of(made).is_dir() and not folder_of(made).exists()
    count = Spy(monkeypatch, "count")
    corpus = prepare(made)
    assert len(count.firsts) < 400
    assert contents(corpus.folder) == whole


# what a person reads


def test_the_report_has_every_line_in_80_columns(tmp_path):
    """Of a corpus with the sizes of Wikipedia and the longest names there are."""
    long = ["\ufdfd", "\U0001f93b", "\u1f87", "\U0001242b", "\ufbf9"]
    text = "".join(c * (20 - i) for i, c in enumerate([*long, "a", "\n", "é", "中"])) * 9
    vocab = {"max_size": 245}
    corpus = prepare(config(tmp_path, "literal", vocab, text=text, split_by="character", **HELD_OUT))
    info = corpus.info
    report = corpus.report()
    for words in (
        f"{info['documents']:,} document, ",
        f"{info['characters']:,} characters",
        f"{info['bytes']:,} bytes",
        f"symbols      {len(corpus.vocab):,}",
        f"{100 * info['coverage']:.6g} % of the characters",
        f"{info['left_out_characters']:,} characters, spelled in bytes: {100 * info['fallback_rate']:.3g} %",
        "most frequent",
        "first left out",
        "ARABIC LIGATURE BISMILLAH",
        "baselines on validation",
        "unigram",
        "-gram, Witten-Bell",
        "xz",
        "bits per character, bits per byte",
        "Witten-Bell: smoothing",
        f"in {info['seconds']:.1f} s",
    ):
        assert words in report, words
    for split, size in corpus.splits.items():
        assert re.search(
            rf"^  {split} +cut +{size['characters']:,} +{size['bytes']:,} ", report, re.MULTILINE
        )
    info |= {
        "documents": 6_407_814,
        "characters": 19_876_543_210,
        "bytes": 20_876_543_210,
        "seconds": 12345.678,
    }
    info["passes"] = {"count": 4321.5, "encode": 5432.5, "join": 1234.5, "floors": 123.4}
    wide = corpus.report()
    assert "count 4321.5 s (5 MB/s)" in wide
    assert "join 1234.5 s" in wide and "20,876,543,210 bytes" in wide
    for line in report.splitlines()[1:] + wide.splitlines()[1:]:  # the first is the folder
        assert len(line) <= 80, line


def test_the_baselines_of_corpus_json_are_those_of_its_arrays(tmp_path):
    texts = [f"{n} der naïve Fuchs 中文 {n * n}\n" for n in range(400)]
    file = jsonl(tmp_path / "a.jsonl", texts)
    corpus = prepare(config(tmp_path, "json", {"max_size": 260}, data_files=file, **HELD_OUT))
    counts = {s: np.bincount(corpus[s], minlength=len(corpus.vocab)) for s in ("train", "validation")}
    assert corpus.info["floors"] == {
        "unigram": baselines.unigram(counts["train"], counts["validation"], corpus.vocab),
        "ngram": baselines.ngram(corpus["train"], corpus["validation"], corpus.vocab),
        "xz": baselines.xz(corpus["validation"], corpus.vocab),
    }


def test_help(capfd):
    with pytest.raises(SystemExit) as ended:
        charlm.commands.cli.main(["prepare", "--help", "all"])
    out = capfd.readouterr().out
    assert not ended.value.code
    for words in ("--shard I/N", "--merge N", "--verify", "--data.streaming", "--data.workers"):
        assert words in out, words


def test_in_a_log_progress_is_a_line_every_half_minute(monkeypatch, capsys):
    clock = iter([0.0, 20.0, 31.0, 31.0, 50.0, 62.0, 62.0])
    monkeypatch.setattr(charlm.corpus.count_encode, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    sizes, used = dict.fromkeys(range(4), 1000), []
    in_order("counting", lambda piece: piece * 2, used.append, sizes, 2)
    assert used == [0, 2, 4, 6]
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(r"counting: +(\d+)%\|.*B/s", line)[1] for line in lines] == ["50", "100"]


# memory

PEAK = """
import json, sys
from charlm.config.parse import from_dict
from charlm.corpus.prepared import prepare
prepare(from_dict(json.loads(sys.argv[1])))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["parquet", "text"])
def test_memory_does_not_grow_with_the_text(tmp_path, source):
    """Peak resident memory of preparing 320 MB is within 1.3 times that of 80 MB."""
    peaks = []
    rows = [f"{i} naïve 中文 {i * i % 9973} plain and simple\n" * 40 for i in range(10_000)]
    for copies in (1, 4):
        paths = []
        for number in range(5 * copies):
            path = tmp_path / f"{copies}-{number}.{source}"
            if source == "parquet":
                pq.write_table(pa.table({"text": rows}), path, row_group_size=1000)
            else:
                path.write_text("".join(rows))
            paths.append(str(path))
        made = config(tmp_path / str(copies), source, {"max_size": 260}, data_files=paths, workers=2)
        made.data.validation = made.data.test = 0.05 if source == "parquet" else 0
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tree_of(made)], capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        assert Corpus(folder_of(made)).info["bytes"] > 80e6 * copies
    assert peaks[1] < 1.3 * peaks[0], peaks
