"""Facts about text, and the agreement of cells with them."""

import numpy as np
import pytest

from charlm.report.text_facts import NAMES, Correlations, fact_values


def fact(name: str, text: str) -> list[float]:
    return fact_values(text)[:, NAMES.index(name)].tolist()


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
    assert fact_values("a").shape == (1, len(NAMES)) and len(set(NAMES)) == len(NAMES)


def test_correlations_are_those_of_numpy_however_the_text_is_cut():
    generator = np.random.default_rng(3)
    text = "".join(generator.choice(list("ab (){}\"'\n#1X"), 400))
    facts, cells = fact_values(text), generator.normal(size=(400, 3)).astype(np.float32)
    cells[:, 1] = 3 - 2 * facts[:, NAMES.index("word position")]  # one that follows a fact
    cells[:, 2] = 7  # and one that is constant
    correlations = Correlations(3)
    for low, high in ((0, 150), (150, 400)):
        correlations.add(facts[low:high], cells[low:high])
    found = correlations.values()
    assert found.shape == (len(NAMES), 3)
    for i in range(len(NAMES)):
        if facts[:, i].std() > 0:
            expected = np.corrcoef(facts[:, i], cells[:, :2].T)[0, 1:]
            assert found[i, :2] == pytest.approx(expected, abs=1e-6)
        else:
            assert found[i].tolist() == [0, 0, 0]
    assert found[NAMES.index("word position"), 1] == pytest.approx(-1) and not found[:, 2].any()
