"""charlm.corpus.vocabulary: any text round-trips, ids are in the order promised, and bad input is named."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.config.fields import VocabConfig
from charlm.corpus.vocabulary import END, MAX_SIZE, Vocab, codes_of, name_of
from charlm.errors import CharlmError

AWKWARD = "a\0\r\n\té́🏳️‍🌈👩‍👩‍👧ßﬁ中\ufeff\ufffd\u2028\x85\U0010ffff\u0378\ue000"
texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(AWKWARD + "helo")), max_size=40)
KINDS = ("all", "max_size", "coverage", "helo", "bytes")


def counts_of(text: str, documents: int = 0) -> np.ndarray:
    counts = np.zeros(END + 1, np.int64)
    for c in text:
        counts[ord(c)] += 1
    counts[END] = documents
    return counts


def make(kind: str, seen: str, end: bool) -> Vocab:
    """A vocabulary of each kind, chosen from the counts of a text."""
    options = {
        "all": {},
        "max_size": {"max_size": 246},
        "coverage": {"coverage": 0.5},
        "helo": {"characters": "helo"},
        "bytes": {"bytes_only": True},
    }
    return Vocab.from_counts(
        counts_of(seen or "x", documents=2), VocabConfig(**options[kind], end_of_document=end)
    )


def slow_ids(text: str, vocab: Vocab) -> list[int]:
    """The obvious encoder: one character at a time."""
    out = []
    for c in text:
        if c in vocab.characters:
            out.append(vocab.characters.index(c))
        else:
            out += [len(vocab.characters) + vocab.byte_symbols.index(b) for b in c.encode("utf-8")]
    return out


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(seen=texts, text=texts)
@example(seen="hello", text=AWKWARD)
@example(seen=AWKWARD, text=AWKWARD)
@example(seen="", text="")
def test_any_text_round_trips_and_equals_the_slow_encoder(kind, end, seen, text):
    vocab = make(kind, seen, end)
    ids = vocab.encode(text)
    assert ids.dtype == vocab.dtype and ids.ndim == 1
    assert ids.tolist() == slow_ids(text, vocab)
    assert vocab.decode(ids) == text
    assert vocab.decode_bytes(ids) == text.encode("utf-8")
    assert vocab.end is None or vocab.end not in ids
    assert vocab.encode(text.encode("utf-8")).tolist() == ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
@given(seen=texts, text=texts)
@example(seen="hello", text=AWKWARD)
def test_symbols_count_the_characters_and_bytes_of_the_text(kind, seen, text):
    vocab = make(kind, seen, True)
    ids = np.append(vocab.encode(text), vocab.end).astype(vocab.dtype)  # the end of a document counts as none
    characters = len(text.encode("utf-8")) if kind == "bytes" else len(text)
    assert vocab.characters_per_symbol[ids].sum() == characters
    assert vocab.bytes_per_symbol[ids].sum() == len(text.encode("utf-8"))
    assert (
        len(vocab.characters_per_symbol) == len(vocab.bytes_per_symbol) == len(vocab.spelling) == len(vocab)
    )


@given(st.binary(max_size=40))
@example(bytes(range(256)))
@example(b"\xff\xc3(\xe2\x82\xed\xa0\x80\xf5")
def test_bytes_only_keeps_any_bytes(data):
    vocab = Vocab("")
    assert len(vocab) == 256 and vocab.bytes_only and vocab.dtype == np.uint8
    assert vocab.encode(data).tolist() == list(data)
    assert vocab.decode_bytes(vocab.encode(data)) == data
    assert vocab.decode(vocab.encode(data)) == data.decode("utf-8", "replace")


def test_every_code_point_that_utf8_can_hold_round_trips():
    """Not one is spelled with a byte that has no symbol."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    vocab = Vocab("helo")
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    assert len(np.unique(ids)) == len(vocab)  # and no symbol is there in vain


# the order of ids


def test_hello_is_h_e_l_o():
    vocab = Vocab.from_counts(counts_of("hello"), VocabConfig(characters="helo", unknown="error"))
    assert vocab.characters == tuple("helo") and len(vocab) == 4 and vocab.byte_symbols == ()
    assert vocab.encode("hello").tolist() == [0, 1, 2, 2, 3]
    assert vocab.decode([0, 1, 2, 2, 3]) == "hello"


def test_counted_characters_stand_in_code_point_order_then_bytes_then_end():
    vocab = Vocab.from_counts(counts_of("zébra😀zz"), VocabConfig(end_of_document=True))
    assert vocab.characters == tuple("abrzé😀")
    utf8 = {b for c in range(0x110000) if not 0xD800 <= c < 0xE000 for b in chr(c).encode() if b >= 0x80}
    ascii_left = set(range(128)) - set(b"abrz")
    assert vocab.byte_symbols == tuple(sorted(ascii_left | utf8))
    assert vocab.end == len(vocab) - 1 == 6 + len(vocab.byte_symbols)


def test_characters_keep_the_order_given():
    assert Vocab("oleh").encode("hello").tolist() == [3, 2, 1, 1, 0]


@pytest.mark.parametrize("end, dtype", [(False, np.uint8), (True, np.uint16)])
def test_257_symbols_need_16_bits(end, dtype):
    vocab = Vocab("", end_of_document=end)
    assert len(vocab) == 256 + end and vocab.dtype == vocab.encode("aé").dtype == dtype


# which characters are kept


@pytest.mark.parametrize("end", [False, True])
def test_max_size_keeps_the_most_frequent_and_breaks_ties_by_code_point(end):
    counts = counts_of("öööö" + "ää" + "中中" + "üü" + "é", documents=9)
    kept = {
        243 + end + k: Vocab.from_counts(
            counts, VocabConfig(max_size=243 + end + k, end_of_document=end)
        ).characters
        for k in range(1, 6)
    }
    assert list(kept.values()) == [tuple(t) for t in ("ö", "äö", "äöü", "äöü中", "äéöü中")]


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), st.integers(243, 300), st.booleans())
@example("".join(map(chr, range(128))), 244, True)
def test_max_size_counts_all_symbols_and_is_used_up(text, max_size, end):
    config = VocabConfig(max_size=max_size, end_of_document=end)
    ranked = sorted(set(text), key=lambda c: (-text.count(c), ord(c)))
    smallest = Vocab(ranked[0], end_of_document=end)
    if len(smallest) > max_size:
        with pytest.raises(CharlmError, match=f"vocab.max_size={max_size}"):
            Vocab.from_counts(counts_of(text), config)
        return
    vocab = Vocab.from_counts(counts_of(text), config)
    assert len(vocab) <= max_size
    assert vocab.characters == tuple(sorted(ranked[: len(vocab.characters)]))  # by rank, without gaps
    if len(vocab.characters) < len(ranked):
        assert len(Vocab(ranked[: len(vocab.characters) + 1], end_of_document=end)) > max_size


def test_max_size_without_byte_symbols_counts_characters_only():
    config = VocabConfig(max_size=2, unknown="error")
    assert Vocab.from_counts(counts_of("aabbbc"), config).characters == ("a", "b")


@pytest.mark.parametrize("end, least", [(False, 243), (True, 244)])
def test_a_max_size_too_small_to_spell_text_is_refused(end, least):
    with pytest.raises(CharlmError) as caught:
        Vocab.from_counts(counts_of("中"), VocabConfig(max_size=least - 1, end_of_document=end))
    for words in (f"vocab.max_size={least - 1}", str(least), "vocab.bytes_only"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "coverage, kept",
    [
        (0.1, "a"),
        (0.5, "a"),
        (0.51, "ab"),
        (0.8, "ab"),
        (0.81, "abc"),
        (0.9, "abc"),
        (0.99, "abcd"),
        (1, "abcd"),
    ],
)
def test_coverage_keeps_the_fewest_that_reach_the_share(coverage, kept):
    text = "aaaaa" + "bbb" + "c" + "d"
    assert Vocab.from_counts(counts_of(text), VocabConfig(coverage=coverage)).characters == tuple(kept)


def test_document_ends_do_not_count_towards_coverage():
    counts = counts_of("aaaaabbbcd", documents=1000)
    assert Vocab.from_counts(counts, VocabConfig(coverage=0.5, end_of_document=True)).characters == ("a",)


def test_65535_symbols_fit_and_one_more_is_refused():
    characters = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x20000)]][: MAX_SIZE + 1]
    assert MAX_SIZE == 65535
    vocab = Vocab(characters[:MAX_SIZE], unknown="error")
    text = "".join(characters[:MAX_SIZE])
    assert vocab.decode(vocab.encode(text)) == text
    with pytest.raises(CharlmError, match=r"65,536 symbols.*65,535.*vocab\.max_size"):
        Vocab(characters, unknown="error")
    with pytest.raises(CharlmError, match=r"vocab\.max_size"):
        Vocab.from_counts(np.ones(END + 1, np.int64), VocabConfig())


@pytest.mark.parametrize("characters", ["", "hello"])
def test_no_symbols_and_double_characters_are_refused(characters):
    with pytest.raises(CharlmError, match="at least one symbol, and every character only once"):
        Vocab(characters, unknown="error")


# text that cannot be encoded


@pytest.mark.parametrize(
    "text, character, place, name",
    [
        ("hellx", "'x' (U+0078", "position 4", "LATIN SMALL LETTER X"),
        ("h\0", "(U+0000", "position 1", ""),
        ("éh😀", "'é' (U+00E9", "position 0", "LATIN SMALL LETTER E WITH ACUTE"),
        ("hh😀é", "'😀' (U+1F600", "position 2", "GRINNING FACE"),
    ],
)
def test_a_closed_vocabulary_names_character_code_point_and_position(text, character, place, name):
    with pytest.raises(CharlmError) as caught:
        Vocab("helo", unknown="error").encode(text)
    for words in (character, place, name, "closed vocabulary of 4 symbols", "vocab.unknown=bytes"):
        assert words in str(caught.value)


def test_a_lone_surrogate_is_named():
    for vocab in (Vocab("helo"), Vocab(""), Vocab("helo", normalize=["nfc"])):
        with pytest.raises(CharlmError, match=r"position 2 holds a lone surrogate \('\\ud83d'\)"):
            vocab.encode("he\ud83dl")


def test_bytes_that_are_not_utf8_are_refused_by_a_character_vocabulary():
    with pytest.raises(UnicodeDecodeError) as caught:
        Vocab("helo").encode(b"he\xffl")
    assert caught.value.start == 2


def test_codes_of_ascii_is_the_bytes_themselves():
    ascii_, wide = (np.frombuffer(t.encode(), np.uint8) for t in ("hé"[:1] + "i", "hé😀"))
    assert codes_of(ascii_) is ascii_
    assert codes_of(wide).tolist() == [ord(c) for c in "hé😀"] and codes_of(wide).dtype == np.uint32


def test_names_of_characters():
    assert name_of("é") == "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)"
    assert unicodedata.name("\u0378", None) is None and name_of("\u0378") == "'\\u0378' (U+0378)"


# ids → text


@pytest.mark.parametrize(
    "data, text",
    [
        (b"\xff", "\ufffd"),
        (b"a\xc3", "a\ufffd"),
        (b"\xe2\x82a", "\ufffda"),
        (b"\x80\x80", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
)
def test_bytes_that_are_not_utf8_decode_to_replacement_characters(data, text):
    vocab = Vocab("")
    assert vocab.decode(list(data)) == text
    assert vocab.decode_bytes(list(data)) == data


def streamed(vocab, ids, end="") -> list[str]:
    text_of = vocab.stream(end)
    return [text_of(i) for i in [*map(int, ids), None]]


@pytest.mark.parametrize("kind", KINDS)
@given(seen=texts, text=texts)
@example(seen="hello", text=AWKWARD)
def test_stream_emits_whole_characters_as_soon_as_they_are_there(kind, seen, text):
    vocab = make(kind, seen, False)
    pieces = streamed(vocab, vocab.encode(text))
    assert "".join(pieces) == text and pieces[-1] == ""
    assert [p for p in pieces if p] == list(text)  # one character at a time, "\ufffd" only where it was


@given(st.lists(st.integers(0, 2**16), max_size=30))
def test_a_stream_of_any_symbols_joins_to_decode(numbers):
    vocab = Vocab("helo")
    ids = [n % len(vocab) for n in numbers]
    assert "".join(streamed(vocab, ids)) == vocab.decode(ids)


def test_stream_shows_the_end_of_a_document_as_asked():
    vocab = Vocab("helo", end_of_document=True)
    ids = [*vocab.encode("hé").tolist(), vocab.end, *vocab.encode("o").tolist()]
    assert "".join(streamed(vocab, ids, "<end>")) == "hé<end>o"
    assert "".join(streamed(vocab, ids)) == vocab.decode(ids) == "héo"
    half = [int(vocab.encode("é")[0]), vocab.end]
    assert streamed(vocab, half, "|") == ["", "\ufffd|", ""]


# vocab.json


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_vocab_json_round_trips(tmp_path, kind, end):
    vocab = make(kind, AWKWARD, end)
    vocab.save(tmp_path / "vocab.json")
    for path in (tmp_path / "vocab.json", tmp_path):
        again = Vocab.load(path)
        assert again == vocab and again.encode(AWKWARD).tolist() == vocab.encode(AWKWARD).tolist()
        assert (len(again), again.end, again.unknown) == (len(vocab), vocab.end, vocab.unknown)
    tree = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert (tree["format"], tree["version"], tree["size"]) == ("charlm vocabulary", 1, len(vocab))
    assert "".join(tree["characters"]) == "".join(vocab.characters)  # readable, in id order


def test_vocabularies_differ_by_order_bytes_and_end():
    several = [
        Vocab("helo"),
        Vocab("oleh"),
        Vocab("helo", unknown="error"),
        Vocab("helo", end_of_document=True),
    ]
    assert all((a == b) == (a is b) for a in several for b in several)
    assert Vocab("helo") == Vocab("helo") and Vocab("helo") != "helo"


def broken(**changes) -> str:
    return json.dumps({k: v for k, v in (Vocab("helo").to_dict() | changes).items() if v is not ...})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        broken(version=2),
        broken(format="other"),
        broken(size=5),
        broken(size=...),
        broken(characters=...),
        broken(characters=list("hell")),
        broken(characters=5),
        broken(characters=["he", "l", "o"], size=3 + len(Vocab("helo").byte_symbols)),
        broken(byte_symbols=[999], size=5),
        broken(unknown=...),
    ],
)
def test_a_broken_vocab_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "vocab.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CharlmError) as caught:
        Vocab.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_binary_vocab_json_is_refused_by_name(tmp_path):
    with pytest.raises(CharlmError, match=r"vocab\.json: cannot be read as a vocabulary"):
        Vocab.load(tmp_path)
    (tmp_path / "vocab.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CharlmError, match=r"vocab\.json: cannot be read as a vocabulary"):
        Vocab.load(tmp_path / "vocab.json")
