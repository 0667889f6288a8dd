"""Facts about text, and the agreement of cells with them."""

import numpy as np
import pytest

from charlm.report.text_facts import NAMES, Agreement, detect


def fact(name: str, text: str) -> list[float]:
    return detect(text)[:, NAMES.index(name)].tolist()


@pytest.mark.parametrize(
    "name, text, values",
    [
        ("inside double quotes", 'a"b\'"c', [0, 1, 1, 1, 0, 0]),
        ("inside double quotes", '"a\nb', [1, 1, 0, 0]),  # a quote ends with its line
        ("inside single quotes", "it's 'a'", [0, 0, 0, 0, 0, 1, 1, 0]),  # an apostrophe is no quote
        ("inside parentheses", "((a))b)(", [1, 2, 2, 1, 0, 0, 0, 1]),
        ("inside parentheses", "(\n\na", [1, 1, 0, 0]),  # forgotten at a blank line
        ("inside square brackets", "[a](", [1, 1, 0, 0]),
        ("inside braces", "{{}\0a", [1, 2, 1, 0, 0]),  # and at the end of a document
        ("inside angle brackets", "<b>a", [1, 1, 0, 0]),
        ("line position", "ab\ncd", [1, 2, 0, 1, 2]),
        ("indentation", "  a b\n\tc", [1, 2, 2, 2, 2, 0, 4, 4]),
        ("before the line's first word", " a \n b", [1, 0, 0, 1, 1, 0]),
        ("blank line above", "a\n \nb\nc", [0, 0, 0, 1, 1, 0, 0]),
        ("comment", "a#b\nc", [0, 1, 1, 0, 0]),
        ("comment", '"#" // a', [0, 0, 0, 0, 0, 1, 1, 1]),
        ("comment", "http://a b", [0] * 10),
        ("inside a web address", "http://a b", [0] * 6 + [1, 1, 0, 0]),
        ("word position", "ab cd1", [1, 2, 0, 1, 2, 0]),
        ("digits in a row", "a12b", [0, 1, 2, 0]),
        ("since the sentence began", "a. b", [1, 0, 1, 2]),
        ("capital", "aÉB1", [0, 1, 1, 0]),
        ("punctuation", "a, \0", [0, 1, 0, 0]),
    ],
)
def test_a_fact_after_each_character(name, text, values):
    assert fact(name, text) == values


def test_every_fact_has_a_column():
    assert detect("a").shape == (1, len(NAMES)) and len(set(NAMES)) == len(NAMES)


def test_agreement_is_numpys_correlation_however_the_text_is_cut():
    generator = np.random.default_rng(3)
    text = "".join(generator.choice(list("ab (){}\"'\n#1X"), 400))
    facts, cells = detect(text), generator.normal(size=(400, 3)).astype(np.float32)
    cells[:, 1] = 3 - 2 * facts[:, NAMES.index("word position")]  # one that keeps track
    cells[:, 2] = 7  # and one that never changes
    agreement = Agreement(3)
    for low, high in ((0, 150), (150, 200)):
        agreement.add(0, facts[low:high], cells[low:high])
    agreement.add(1, facts[200:], cells[200:])
    for found, part in zip(agreement.correlations(), (slice(200), slice(200, None)), strict=True):
        for i in range(len(NAMES)):
            if facts[part, i].std() > 0:
                right = np.corrcoef(facts[part, i], cells[part, :2].T)[0, 1:]
                assert found[i, :2] == pytest.approx(right, abs=1e-6)
            else:
                assert found[i].tolist() == [0, 0, 0]
        assert found[NAMES.index("word position"), 1] == pytest.approx(-1) and not found[:, 2].any()
