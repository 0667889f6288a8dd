"""Simple facts about text that a cell may track, and their correlation with the values of cells.

The search for cells that track quotes, brackets and line ends follows Karpathy, Johnson and Fei-Fei 2015,
"Visualizing and Understanding Recurrent Networks".
"""

import numpy as np

# name → description. The facts of MEMORY depend on earlier text, those of LAST on the last character only.
MEMORY = {
    "inside double quotes": 'between " and the next " on the line',
    "inside single quotes": "between ' and the next ' on the line",
    "inside parentheses": "how many ( are open",
    "inside square brackets": "how many [ are open",
    "inside braces": "how many { are open",
    "inside angle brackets": "between < and > on the line",
    "line position": "characters since the start of the line, at most 100",
    "indentation": "width of the line's indentation, at most 40; a tab counts as 4",
    "before the line's first word": "only white space on the line so far",
    "blank line above": "the previous line is blank",
    "comment": "after # or // on the line",
    "word position": "letters of the current word so far, at most 12",
    "digits in a row": "digits of the current number so far, at most 8",
    "inside a web address": "after :// until white space",
    "since the sentence began": "characters since . ! or ?, at most 200",
}
LAST = {
    "line break": "the last character ended the line",
    "space": "the last character is a space",
    "capital": "the last character is a capital letter",
    "digit": "the last character is a digit",
    "punctuation": "the last character is neither a letter, a digit nor white space",
    "vowel": "the last character is a, e, i, o or u",
}
NAMES = (*MEMORY, *LAST)
_OPENING = {")": "(", "]": "[", "}": "{"}


def fact_values(text: str) -> np.ndarray:
    """float32[len(text), F]: the value of every fact after each character is read, in the order of NAMES.

    The text starts with a new line. NUL is the end of a document and resets every fact.
    """
    values, state = [], _State()
    for character in text:
        if character == "\0":
            state = _State()
        else:
            state.read(character)
        values.append(state.values(character))
    return np.array(values, np.float32)


class _State:
    """What the facts need from the text before."""

    def __init__(self) -> None:
        self.open = {"(": 0, "[": 0, "{": 0}
        self.word = self.number = self.sentence = 0
        self.blank_above = False
        self.start_line()

    def start_line(self) -> None:
        self.double = self.single = self.angle = self.comment = self.address = False
        self.column = self.indent = 0
        self.leading = True
        self.tail = ""  # the last three characters

    def read(self, character: str) -> None:
        self.sentence = 0 if character in ".!?" else self.sentence + 1
        self.word = self.word + 1 if character.isalpha() else 0
        self.number = self.number + 1 if character.isdigit() else 0
        if character == "\n":
            self.blank_above = self.leading
            if self.blank_above:  # a blank line closes brackets that the text left open
                self.open = dict.fromkeys(self.open, 0)
            self.start_line()
            return
        self.column += 1
        previous = self.tail[-1:]
        self.tail = (self.tail + character)[-3:]
        self.leading = self.leading and character in " \t"
        if self.leading:
            self.indent += 4 if character == "\t" else 1
        self.address = not character.isspace() and (self.address or self.tail == "://")
        if not self.comment:
            if character == '"' and not self.single:
                self.double = not self.double
            elif character == "'" and not self.double and (self.single or not previous.isalpha()):
                self.single = not self.single
        if not (self.double or self.single or self.address):
            self.comment = self.comment or character == "#" or self.tail.endswith("//")
        if character in self.open:
            self.open[character] += 1
        elif character in _OPENING:
            self.open[_OPENING[character]] = max(self.open[_OPENING[character]] - 1, 0)
        self.angle = character == "<" or (self.angle and character != ">")

    def values(self, character: str) -> tuple[float, ...]:
        """The facts in the order of NAMES."""
        blank = character.isspace() or character == "\0"
        return (
            *(self.double, self.single, *(min(n, 4) for n in self.open.values()), self.angle),
            *(min(self.column, 100), min(self.indent, 40), self.leading, self.blank_above, self.comment),
            *(min(self.word, 12), min(self.number, 8), self.address, min(self.sentence, 200)),
            *(character == "\n", character == " ", character.isupper(), character.isdigit()),
            *(not (character.isalnum() or blank), character in "aeiou"),
        )


class Correlations:
    """Correlations of facts with cells from running sums, so memory does not grow with the text."""

    def __init__(self, cells: int):
        self.n, self.products = 0, np.zeros((len(NAMES), cells))
        self.sums, self.squares = np.zeros((2, len(NAMES) + cells))  # of the facts, then of the cells

    def add(self, facts: np.ndarray, cells: np.ndarray) -> None:
        """Add n observations: facts float[n, F], cells float[n, C]."""
        both = np.concatenate([facts, cells], axis=1, dtype=np.float64)
        self.n += len(both)
        self.sums += both.sum(0)
        self.squares += (both**2).sum(0)
        self.products += both[:, : len(NAMES)].T @ both[:, len(NAMES) :]

    def values(self) -> np.ndarray:
        """float64[F, C]; 0 where the fact or the cell is constant."""
        n, facts = max(self.n, 1), len(NAMES)
        mean, square = self.sums / n, self.squares / n
        variance = square - mean**2
        variance[variance <= 1e-9 * (square + 1e-30)] = 0  # only rounding errors remain
        covariance = self.products / n - np.outer(mean[:facts], mean[facts:])
        variances = np.outer(variance[:facts], variance[facts:])
        return np.divide(covariance, variances**0.5, out=np.zeros_like(covariance), where=variances > 0)
