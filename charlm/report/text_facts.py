"""What a cell might keep track of: simple facts about text, and how well each cell agrees with each.

The idea of looking for cells that know of quotes, brackets and line ends is of Karpathy, Johnson and Fei-Fei
2015, "Visualizing and Understanding Recurrent Networks".
"""

from __future__ import annotations

import numpy as np

# name → what it is. MEMORY takes remembering; of LAST the last symbol alone tells.
MEMORY = {
    "inside double quotes": 'between " and the next " on the line',
    "inside single quotes": "between ' and the next ' on the line",
    "inside parentheses": "how many ( are open",
    "inside square brackets": "how many [ are open",
    "inside braces": "how many { are open",
    "inside angle brackets": "between < and > on the line",
    "line position": "characters since the line began, at most 100",
    "indentation": "how far the line is indented, at most 40; a tab counts 4",
    "before the line's first word": "only white space on the line so far",
    "blank line above": "the line before this one is blank",
    "comment": "after # or // on the line",
    "word position": "letters of the word so far, at most 12",
    "digits in a row": "digits of the number so far, at most 8",
    "inside a web address": "after :// until white space",
    "since the sentence began": "characters since . ! or ?, at most 200",
}
LAST = {
    "line break": "the last character ended the line",
    "space": "the last character is a space",
    "capital": "the last character is a capital letter",
    "digit": "the last character is a digit",
    "punctuation": "the last character is neither letter, digit nor white space",
    "vowel": "the last character is a, e, i, o or u",
}
NAMES = (*MEMORY, *LAST)


def detect(text: str) -> np.ndarray:
    """float32[len(text), detectors]: every fact after each character is read, in the order of NAMES.

    NUL is the end of a document, where all begin anew. A line begins with the text.
    """
    out = np.zeros((len(text), len(NAMES)), np.float32)
    at = _Place()
    for i, character in enumerate(text):
        at = _Place() if character == "\0" else at.after(character)
        out[i] = at.facts(character)
    return out


class _Place:
    """Where in a text one is."""

    def __init__(self) -> None:
        self.open = {"(": 0, "[": 0, "{": 0}
        self.word = self.number = self.sentence = 0
        self.above = False
        self._line()

    def _line(self) -> None:
        self.double = self.single = self.angle = self.comment = self.address = False
        self.column = self.indent = 0
        self.leading = True
        self.tail = ""

    def after(self, character: str) -> _Place:
        """The same place, one character on."""
        self.sentence = 0 if character in ".!?" else self.sentence + 1
        if character == "\n":
            self.above = self.leading
            if self.above:  # what was never closed is forgotten at a blank line
                self.open = dict.fromkeys(self.open, 0)
            self.word = self.number = 0
            self._line()
            return self
        self.column += 1
        before = self.tail[-1:]
        self.tail = (self.tail + character)[-3:]
        if self.leading and character in " \t":
            self.indent += 4 if character == "\t" else 1
        else:
            self.leading = False
        if character.isspace():
            self.address = False
        elif self.tail == "://":
            self.address = True
        if not self.comment:
            if character == '"' and not self.single:
                self.double = not self.double
            elif character == "'" and not self.double and not (before.isalpha() and not self.single):
                self.single = not self.single
        if not (self.double or self.single or self.address):
            self.comment = self.comment or character == "#" or self.tail.endswith("//")
        if character in self.open:
            self.open[character] += 1
        elif character in ")]}":
            opening = "([{"[")]}".index(character)]
            self.open[opening] = max(self.open[opening] - 1, 0)
        self.angle = character == "<" or (self.angle and character != ">")
        self.word = self.word + 1 if character.isalpha() else 0
        self.number = self.number + 1 if character.isdigit() else 0
        return self

    def facts(self, character: str) -> tuple[float, ...]:
        blank = character.isspace() or character == "\0"
        return (
            *(self.double, self.single, *(min(n, 4) for n in self.open.values()), self.angle),
            *(min(self.column, 100), min(self.indent, 40), self.leading, self.above, self.comment),
            *(min(self.word, 12), min(self.number, 8), self.address, min(self.sentence, 200)),
            *(character == "\n", character == " ", character.isupper(), character.isdigit()),
            not (character.isalnum() or blank),
            character in "aeiou",
        )


class Agreement:
    """Correlations of cells with detectors, from sums: text of any length takes the same memory.

    There are two sets of them. One is to choose by, and the other to score what was chosen: the best of
    thousands of pairs looks better than it is on the text that it was chosen by.
    """

    def __init__(self, cells: int):
        self.sums = [_Sums(cells), _Sums(cells)]

    def add(self, half: int, facts: np.ndarray, cells: np.ndarray) -> None:
        """Read more: facts float32[n, detectors], cells float32[n, C]. half: 0 to choose by, 1 to score."""
        self.sums[half].add(facts.astype(np.float64), cells.astype(np.float64))

    def correlations(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[detectors, C] twice, to choose by and to score; 0 where a side never changes."""
        return self.sums[0].correlations(), self.sums[1].correlations()


class _Sums:
    def __init__(self, cells: int):
        facts = len(NAMES)
        self.n, self.f, self.ff = 0, np.zeros(facts), np.zeros(facts)
        self.c, self.cc, self.fc = np.zeros(cells), np.zeros(cells), np.zeros((facts, cells))

    def add(self, facts: np.ndarray, cells: np.ndarray) -> None:
        self.n += len(facts)
        self.f += facts.sum(0)
        self.ff += (facts**2).sum(0)
        self.c += cells.sum(0)
        self.cc += (cells**2).sum(0)
        self.fc += facts.T @ cells

    def correlations(self) -> np.ndarray:
        n = max(self.n, 1)
        together = self.fc / n - np.outer(self.f, self.c) / n**2
        spread = np.outer(_variance(self.f, self.ff, n), _variance(self.c, self.cc, n)) ** 0.5
        return np.divide(together, spread, out=np.zeros_like(together), where=spread > 0)


def _variance(total: np.ndarray, squares: np.ndarray, n: int) -> np.ndarray:
    """Zero where rounding alone is left of it."""
    variance = squares / n - (total / n) ** 2
    return np.where(variance > 1e-9 * (squares / n + 1e-30), variance, 0)
