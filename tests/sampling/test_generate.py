"""Sampling: what is drawn, from what, and that it is always text."""

import contextlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.config.fields import ModelConfig, SampleConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.sampling.generate import (
    BLOCK,
    ModelStepper,
    Sampler,
    generate,
    generate_ids,
    states_after,
    stream_text,
)

LETTERS = Vocab("abcdefg", unknown="error")
FALLBACK = Vocab("ab c", end_of_document=True)
BYTES = Vocab("")


def make(vocab=LETTERS, cell="lstm", layers=2, embedding=3, hidden=5, seed=0, **options) -> CharLM:
    torch.manual_seed(seed)
    config = ModelConfig(
        cell=cell, embedding_size=embedding, hidden_size=hidden, num_layers=layers, **options
    )
    model = CharLM(config, len(vocab))
    with torch.no_grad():  # far from uniform
        for p in model.parameters():
            p.mul_(3)
    return model


def always(shares, vocab=LETTERS) -> CharLM:
    """A model that gives these probabilities, whatever it has read."""
    model = make(vocab, layers=1)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.as_tensor(shares).log())
    return model


def draw(model, vocab=LETTERS, num_samples=1, **options) -> list[list[int]]:
    """Ids by sample: [num_samples][length]."""
    config = SampleConfig(**({"prompt": "a", "length": 20, "temperature": 1.0} | options))
    return [list(sample) for sample in zip(*generate_ids(model, vocab, config, num_samples), strict=True)]


def is_text(vocab: Vocab, ids: list[int]) -> bool:
    """Whether Python decodes what ids spell, perhaps with more bytes for a last character."""
    endings = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")
    for more in endings[: 1 if ids[-1] == vocab.end else None]:  # a document ends between characters
        with contextlib.suppress(UnicodeDecodeError):
            (vocab.decode_bytes(ids) + more).decode()
            return True
    return False


def likeliest(model, vocab, prompt: str, length: int) -> list[int]:
    """Greedy continuation by forward over the whole text again and again."""
    ids = vocab.encode(prompt).tolist()
    start = len(ids)
    model.eval()
    for _ in range(length):
        order = model(torch.tensor([ids]))[0][0, -1].argsort(descending=True, stable=True).tolist()
        ids.append(next(symbol for symbol in order if is_text(vocab, [*ids, symbol])))
    return ids[start:]


def too_unlikely(counts: torch.Tensor, shares: torch.Tensor) -> bool:
    """Pearson's chi-square beyond about 5 standard deviations of what chance gives."""
    expected = shares * counts.sum()
    assert expected.min() > 5
    freedom = len(shares) - 1
    return bool(((counts - expected) ** 2 / expected).sum() > freedom + 5 * (2 * freedom) ** 0.5)


SHARES = torch.tensor([0.3, 0.05, 0.25, 0.02, 0.2, 0.08, 0.1])  # by rank: a c e g f b d


# seeds


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_same_seed_draws_the_same_whatever_the_random_state_of_torch(cell):
    model = make(cell=cell)
    torch.manual_seed(1)
    first = draw(model, seed=5, num_samples=3)
    torch.manual_seed(2)
    assert draw(model, seed=5, num_samples=3) == first
    assert draw(model, seed=6, num_samples=3) != first


def test_drawing_leaves_the_random_states_of_torch_and_python_alone():
    model = make(dropout=0.5)
    before = torch.get_rng_state(), random.getstate()
    draw(model, num_samples=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_random_numbers_drawn_in_between_change_nothing():
    model = make()
    config = SampleConfig(prompt="a", length=15)
    ids = []
    for step in generate_ids(model, LETTERS, config, 2):
        torch.rand(3)
        ids.append(step)
    assert ids == list(generate_ids(model, LETTERS, config, 2))


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"temperature": 0.5}])
def test_a_sample_of_a_batch_equals_the_same_seed_drawn_alone(options):
    model = make()
    batch = draw(model, num_samples=4, seed=11, **options)
    assert len({tuple(sample) for sample in batch}) == 4
    for i in range(4):
        assert draw(model, seed=11 + i, **options) == [batch[i]]


# what is drawn


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_temperature_0_takes_the_likeliest_symbol_always(cell):
    model = make(cell=cell)
    expected = likeliest(model, LETTERS, "badge", 12)
    assert draw(model, prompt="badge", temperature=0, length=12, num_samples=2) == [expected] * 2


def test_top_k_1_takes_the_likeliest_symbol_always():
    model = make()
    expected = likeliest(model, LETTERS, "badge", 12)
    assert draw(model, prompt="badge", top_k=1, length=12, seed=9) == [expected]


def test_a_tiny_top_p_takes_the_likeliest_symbol_always():
    model = make()
    expected = likeliest(model, LETTERS, "badge", 12)
    assert draw(model, prompt="badge", top_p=1e-9, length=12, seed=9) == [expected]


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, "abcdefg"),
        ({"top_k": 1}, "a"),
        ({"top_k": 3}, "ace"),
        ({"top_k": 6}, "abcefg"),
        ({"top_k": 7}, "abcdefg"),
        ({"top_k": 100}, "abcdefg"),
        ({"top_p": 0.29}, "a"),
        ({"top_p": 0.31}, "ac"),
        ({"top_p": 0.54}, "ac"),
        ({"top_p": 0.56}, "ace"),
        ({"top_p": 0.97}, "abcefg"),
        ({"top_p": 0.99}, "abcdefg"),
        ({"top_p": 1.0}, "abcdefg"),
        ({"top_k": 3, "top_p": 0.7}, "ac"),  # of the three: 0.4, 0.33, 0.27
        ({"top_k": 2, "top_p": 0.9}, "ac"),
        ({"top_p": 0.5, "temperature": 0.5}, "ac"),  # squared: 0.42, 0.30, 0.19, …
        ({"top_p": 0.35, "temperature": 0.5}, "a"),
    ],
)
def test_top_k_and_top_p_draw_from_exactly_these_symbols(options, support):
    (ids,) = draw(always(SHARES), length=600, **options)
    assert "".join(sorted(set(LETTERS.decode(ids)))) == support


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_of_equally_likely_symbols_is_still_k_symbols(k):
    (ids,) = draw(always(torch.full((7,), 1 / 7)), length=400, top_k=k)
    assert len(set(ids)) == k


def test_top_p_of_equally_likely_symbols_is_the_fewest_that_reach_it():
    (ids,) = draw(always(torch.full((7,), 1 / 7)), length=400, top_p=0.5)  # 3/7 < 0.5 < 4/7
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, SHARES),
        ({"temperature": 0.7}, (SHARES.log() / 0.7).softmax(0)),
        ({"temperature": 2.0}, SHARES.sqrt() / SHARES.sqrt().sum()),
        ({"top_k": 3}, SHARES * torch.tensor([1, 0, 1, 0, 1, 0, 0]) / 0.75),
        ({"top_p": 0.5}, SHARES * torch.tensor([1, 0, 1, 0, 0, 0, 0]) / 0.55),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p"],
)
def test_frequencies_follow_the_probabilities(options, shares):
    (ids,) = draw(always(SHARES), length=2000, **options)
    counts = torch.bincount(torch.tensor(ids), minlength=7)
    inside = shares > 0
    assert counts[~inside].sum() == 0
    assert not too_unlikely(counts[inside], shares[inside])
    assert too_unlikely(counts[inside], shares[inside].flip(0)), "would not see a wrong distribution"


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_after_the_prompt_samples_are_drawn_from_what_forward_gives(cell):
    model = make(cell=cell).eval()
    prompt = "gadfbecadage"
    shares = model(torch.tensor([LETTERS.encode(prompt).tolist()]))[0][0, -1].softmax(0).detach()
    ids = torch.tensor(draw(model, prompt=prompt, length=1, num_samples=4000))[:, 0]
    counts = torch.bincount(ids, minlength=7)
    assert not too_unlikely(counts, shares)
    cold = model(torch.tensor([[4]]))[0][0, -1].softmax(0).detach()
    assert too_unlikely(counts, cold), "the prompt makes no difference: no test"


@pytest.mark.parametrize("length", [1, 2, 1023, 1024, 1025, 2049])
def test_a_long_prompt_is_read_to_its_last_character(length):
    model = make().eval()
    letters = random.Random(length)
    prompt = "".join(letters.choice("abcdefg") for _ in range(length))
    expected = likeliest(model, LETTERS, prompt, 4)
    assert draw(model, prompt=prompt, temperature=0, length=4) == [expected]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-3, 1e3])
def test_extreme_temperatures_draw(temperature):
    (ids,) = draw(always(SHARES), length=50, temperature=temperature)
    assert (set(ids) == {0}) == (temperature < 1)


# one draw at a time


QUARTERS = np.array([0.1, 0.4, 0.2, 0.3])


def anything(size: int) -> np.ndarray:
    """A table of states in which every symbol may be drawn."""
    return np.zeros((1, size), np.int8)


def at(uniform: float, shares=QUARTERS, following=None, **options) -> int:
    """The symbol at one uniform number."""
    following = anything(len(shares)) if following is None else following
    sampler = Sampler(SampleConfig(**({"temperature": 1.0} | options)), 1, following)
    sampler._uniform = iter(np.array([[uniform]]))
    return int(sampler.draw(np.log(np.float32([shares])))[0])


@pytest.mark.parametrize(
    ("options", "order", "shares"),
    [
        ({}, [0, 1, 2, 3], [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0, 1, 2, 3], np.array([1, 16, 4, 9]) / 30),
        ({"top_k": 3}, [1, 3, 2], np.array([4, 3, 2]) / 9),
        ({"top_p": 0.6}, [1, 3], np.array([4, 3]) / 7),
        ({"top_k": 3, "top_p": 0.44}, [1], [1]),  # of the three the likeliest has 4/9 = 0.444
        ({"top_k": 3, "top_p": 0.45}, [1, 3], np.array([4, 3]) / 7),
        ({"top_p": 1e-12}, [1], [1]),
        ({"temperature": 0.0}, [1], [1]),
    ],
)
def test_a_symbol_has_the_uniform_numbers_of_its_share(options, order, shares):
    borders = np.cumsum(shares)
    for symbol, low, high in zip(order, [0, *borders], borders, strict=False):
        for uniform in (low + 1e-6, (low + high) / 2, high - 1e-6):
            assert at(uniform, **options) == symbol


def test_the_ends_of_the_uniform_numbers():
    assert at(0.0, shares=np.array([1e-30, 0.5, 0.5, 1e-30])) in (0, 1)
    assert at(np.nextafter(1.0, 0)) == 3


def test_of_equally_likely_symbols_the_first_are_kept():
    equal = np.full(4, 0.25)
    assert {at(u, shares=equal, top_k=2) for u in np.linspace(0, 0.999, 50)} == {0, 1}
    assert at(0.7, shares=equal, temperature=0.0) == 0


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"temperature": 0}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad, options):
    sampler = Sampler(SampleConfig(**options), 2, anything(4))
    logits = np.zeros((2, 4), np.float32)
    sampler.draw(logits)
    logits[1, 2] = bad
    with pytest.raises(CharlmError, match="not finite"):
        sampler.draw(logits)


def test_numbers_go_on_from_block_to_block_and_are_torchs_of_the_seeds():
    sampler = Sampler(SampleConfig(seed=-7, temperature=1.0), 3, anything(8))
    logits = np.zeros((3, 8), np.float32)
    ids = np.stack([sampler.draw(logits).copy() for _ in range(BLOCK + 5)], 1)  # [3, draws]
    for i, seed in enumerate((-7, -6, -5)):
        generator = torch.Generator().manual_seed(seed)
        numbers = [torch.rand(BLOCK, generator=generator, dtype=torch.float64) for _ in range(2)]
        assert ids[i].tolist() == (torch.cat(numbers)[: BLOCK + 5] * 8).long().tolist()


# prompts


@pytest.mark.parametrize("vocab", [FALLBACK, BYTES], ids=["fallback", "bytes"])
@pytest.mark.parametrize("prompt", ["😀", "a€b", "中文 漢字", "\x00\r\n", "\U0010ffff", "e\u0301"])
def test_any_prompt_works_with_byte_symbols(vocab, prompt):
    model = make(vocab)
    (ids,) = draw(model, vocab, prompt=prompt, length=5, temperature=0)
    assert ids == likeliest(model, vocab, prompt, 5)


@pytest.mark.parametrize("vocab", [LETTERS, FALLBACK, BYTES], ids=["closed", "fallback", "bytes"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_an_empty_prompt_works(vocab, num_samples):
    samples = draw(make(vocab), vocab, prompt="", length=6, num_samples=num_samples)
    assert [len(sample) for sample in samples] == [6] * num_samples


def test_an_empty_prompt_starts_a_document_where_the_vocabulary_marks_them():
    model = make(FALLBACK).eval()
    (ids,) = draw(model, FALLBACK, prompt="", length=6, temperature=0)
    read = [FALLBACK.end]
    for _ in range(6):
        read.append(int(model(torch.tensor([read]))[0][0, -1].argmax()))
    assert ids == read[1:]


@pytest.mark.parametrize(
    ("first", "shares"),
    [((), SHARES), ((2, 4, 2, 6), torch.tensor([0, 0, 0.5, 0, 0.25, 0, 0.25]))],
    ids=["model without a record", "the training text's first symbols"],
)
def test_an_empty_prompt_begins_as_the_text_does_where_nothing_marks_a_start(first, shares):
    vocab = Vocab("abcdefg", unknown="error", first=first)
    ids = torch.tensor(draw(always(SHARES), vocab, prompt="", length=1, num_samples=1400))[:, 0]
    counts, inside = torch.bincount(ids, minlength=7), shares > 0
    assert counts[~inside].sum() == 0 and not too_unlikely(counts[inside], shares[inside])


def test_an_empty_prompt_gives_text():
    assert len(generate(make(), LETTERS, prompt="", length=8)) == 8


def test_a_closed_vocabulary_refuses_a_prompt_by_naming_the_character():
    with pytest.raises(CharlmError, match=r"'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\)"):
        draw(make(), prompt="abé")


def test_a_lone_surrogate_in_the_prompt_is_refused():
    with pytest.raises(CharlmError, match="surrogate"):
        draw(make(FALLBACK), FALLBACK, prompt="a\ud800")


# text


@given(st.integers(0, 10**6), st.sampled_from([BYTES, FALLBACK, Vocab("é€😀", end_of_document=True)]))
def test_an_untrained_model_never_writes_broken_text(seed, vocab):
    written = generate(make(vocab, seed=seed), vocab, prompt="é", length=40, seed=seed, temperature=1.5)
    assert written.encode("utf-8").decode("utf-8") == written
    assert not any(0xD800 <= ord(c) <= 0xDFFF for c in written)


@pytest.mark.parametrize("vocab", [BYTES, FALLBACK, Vocab("é€", end_of_document=True)])
def test_what_may_be_drawn_is_what_python_decodes(vocab):
    table, ways, done = states_after(vocab), {0: []}, set()
    while left := ways.keys() - done:  # a way into each state
        state = min(left)
        done.add(state)
        allowed = [symbol for symbol in range(len(vocab)) if is_text(vocab, [*ways[state], symbol])]
        assert np.flatnonzero(table[state] >= 0).tolist() == allowed, state
        for symbol in allowed:
            ways.setdefault(int(table[state, symbol]), [*ways[state], symbol])
    assert done == set(range(8))


@pytest.mark.parametrize("options", [{}, {"top_k": 200}, {"top_p": 0.95}, {"temperature": 0}])
def test_symbols_that_the_training_text_lacks_are_not_drawn(options):
    """Nor the first byte of a character whose other bytes it lacks, as where a text is cut within one."""
    for seen, drawn in ((b"ab\xc3", b"ab"), ("aé€".encode(), "aé€".encode())):
        vocab = Vocab("", unseen=[byte for byte in range(256) if byte not in seen])
        (ids,) = draw(make(vocab), vocab, **{"prompt": "z", "temperature": 5.0, "length": 300} | options)
        assert {*ids} == {*drawn} if "temperature" not in options else {*ids} <= {*drawn}


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, np.array([1, 0, 2, 3]) / 6),
        ({"temperature": 0.5}, np.array([1, 0, 4, 9]) / 14),
        ({"temperature": 0}, [0, 0, 0, 1]),
        ({"top_k": 1}, [0, 0, 0, 1]),
        ({"top_p": 1e-12}, [0, 0, 0, 1]),
    ],
)
def test_instead_of_a_symbol_that_may_not_be_drawn_the_others_are_by_their_shares(options, shares):
    table, uniform, free = anything(4), np.linspace(0, 1, 6001)[:-1], {"temperature": 1.0} | options
    table[0, 1] = -1
    drawn = np.array([at(u, following=table, **free) for u in uniform])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 6000, shares, atol=0.001)
    before = np.array([at(u, **free) for u in uniform])
    assert np.array_equal(drawn[before != 1], before[before != 1]), "another sample than before the mask"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (None, "bcdabcdabcda"),
        ("d", "bc"),
        ("dab", "bc"),
        (["dac", "bcdb"], "bcdabcdabcda"),  # both begin again and again
        (["cda", "cd"], "b"),
        ("abcdabcdabcd", "bcdabcdabcda"),  # not whole before the end
    ],
)
def test_a_sample_ends_before_a_stop_string(stop, text):
    model = chain(LETTERS, {0: 1, 1: 2, 2: 3, 3: 0})
    config = SampleConfig(prompt="a", length=12, temperature=0, stop=stop)
    pieces = [piece for (piece,) in stream_text(model, LETTERS, config)]
    assert "".join(pieces) == text
    assert len(pieces) < 12 or text == "bcdabcdabcda", "drawn on after the end"


def test_each_of_several_samples_ends_at_its_own_stop_string():
    model, options = make(), {"prompt": "a", "length": 40, "temperature": 1.0, "seed": 3}
    whole = [LETTERS.decode(ids) for ids in draw(model, num_samples=4, **options)]
    pieces = stream_text(model, LETTERS, SampleConfig(**options, stop=["ab", "gg"]), 4)
    cut = ["".join(sample) for sample in zip(*pieces, strict=True)]
    assert cut == [text.replace("gg", "ab").split("ab")[0] for text in whole]
    assert len({*map(len, cut)}) > 2


@pytest.mark.parametrize("vocab", [LETTERS, FALLBACK, BYTES], ids=["closed", "fallback", "bytes"])
def test_text_is_the_decoded_ids_without_the_prompt(vocab):
    model = make(vocab)
    (ids,) = draw(model, vocab, prompt="ab", length=30, seed=4)
    text = generate(model, vocab, prompt="ab", length=30, seed=4, temperature=1.0)
    assert text == vocab.decode(ids).removesuffix("\ufffd")  # the end may be within a character


def chain(vocab: Vocab, after: dict[int, int]) -> CharLM:
    """A model that is sure of the next symbol."""
    model = make(vocab, "rnn", 1, embedding=0, hidden=len(vocab))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.layers[0].weight_ih_l0.copy_(5 * torch.eye(len(vocab)))
        for x, y in after.items():
            model.output.weight[y, x] = 50
    return model


def test_a_character_spelled_in_bytes_is_written_whole():
    vocab = Vocab("a")
    e2, x82, ac = vocab.encode("€").tolist()
    model = chain(vocab, {0: e2, e2: x82, x82: ac, ac: 0})
    assert generate(model, vocab, prompt="a", length=8, temperature=1.0) == "€a€a"
    assert generate(model, vocab, prompt="a", length=6, temperature=1.0) == "€a"  # the end is in a character


def test_a_character_is_not_broken_off_by_another_or_by_the_end_of_a_document():
    for broken_off_by in ("b", "|"):
        vocab = Vocab("ab", end_of_document=True)
        e2, x82, ac = vocab.encode("€").tolist()
        other = 1 if broken_off_by == "b" else vocab.end
        model = chain(vocab, {0: e2, e2: other, x82: ac, ac: other, other: 0})
        with torch.no_grad():
            model.output.weight[x82, e2] = 25  # the likeliest of those that go on
        assert generate(model, vocab, "|", prompt="a", length=4, temperature=1.0) == f"€{broken_off_by}"


def test_the_end_of_a_document_is_shown_as_asked():
    shares = torch.full((len(FALLBACK),), 1e-30)
    shares[FALLBACK.end] = 1.0
    model = always(shares, FALLBACK)
    assert generate(model, FALLBACK, prompt="a", length=3, end="<end>") == "<end>" * 3
    assert generate(model, FALLBACK, prompt="a", length=3) == ""


def test_the_end_of_a_document_between_characters_is_shown_in_its_place():
    shares = torch.full((len(FALLBACK),), 1e-30)
    shares[FALLBACK.end] = shares[0] = 0.5
    model = always(shares, FALLBACK)
    (ids,) = draw(model, FALLBACK, length=30)
    expected = "".join("|" if i == FALLBACK.end else "a" for i in ids)
    assert {"a", "|"} == set(expected)
    assert generate(model, FALLBACK, "|", prompt="a", length=30, temperature=1.0) == expected


@pytest.mark.parametrize("length", [1, 2, 37])
def test_length_is_the_number_of_symbols(length):
    assert [len(sample) for sample in draw(make(), length=length, num_samples=3)] == [length] * 3
    assert len(generate(make(), LETTERS, prompt="a", length=length)) == length


def test_ids_come_one_step_at_a_time():
    steps = generate_ids(make(), LETTERS, SampleConfig(prompt="a", length=4), 3)
    first = next(steps)
    assert len(first) == 3 and all(isinstance(i, int) and 0 <= i < 7 for i in first)
    assert len(list(steps)) == 3


# the model is left as it was


@pytest.mark.parametrize("num_samples", [0, -1])
def test_fewer_than_one_sample_is_refused(num_samples):
    model = make()
    with pytest.raises(CharlmError, match=f"num_samples={num_samples}"):
        list(generate_ids(model, LETTERS, SampleConfig(prompt="a"), num_samples))
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_training_flag_is_restored(training):
    plain = draw(make())
    model = make(dropout=0.9).train(training)
    assert draw(model) == plain
    assert all(m.training is training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_training_flag_is_restored_after_an_error_and_when_nobody_reads_on():
    model = make()
    with pytest.raises(CharlmError):
        draw(model, prompt="é")
    assert model.training
    steps = generate_ids(model, LETTERS, SampleConfig(prompt="a"), 1)
    next(steps)
    steps.close()
    assert model.training


def test_training_goes_on_after_a_sample():
    model = make()
    draw(model)
    assert not torch.is_inference_mode_enabled()
    ids = torch.tensor([[0, 1, 2]])
    model(ids, None, ids)[0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_importing_it_does_not_import_the_compiler():
    """Training imports this module before its first step; numba is for the first sample."""
    code = "import sys, charlm.sampling.generate; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "options", [{}, {"embedding": 0}, {"norm": "layer", "residual": True}, {"norm": "rms"}]
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_model_that_computes_in_bf16_takes_its_steps_in_bf16(cell, options):
    """In rounded copies of the weights; on a CPU it is set by hand only."""
    model, logits = make(cell=cell, **options), []
    for model.compute_dtype in (torch.float32, torch.bfloat16):
        stepper = ModelStepper(model, model.zeros(2))
        logits.append(np.stack([stepper.step(np.array([1, 4]) + i).copy() for i in range(3)]))
        assert all(state.dtype == model.compute_dtype for state in stepper.carry)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    np.testing.assert_allclose(logits[1], logits[0], atol=0.02 * np.abs(logits[0]).max())
    assert not np.array_equal(*logits)
