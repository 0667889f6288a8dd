"""Errors that the user can correct, and warnings; what neither these nor files may hold."""

import re


def each(value, change):
    """The same with every text of a value such as data.data_files, in lists and mappings too, changed."""
    if isinstance(value, dict):
        return {key: each(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [each(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def redact(value):
    """The texts of a value without passwords and queries (signatures) of URLs."""

    def change(text: str) -> str:
        text = re.sub(r"(?<=://)[^/\s]+(?=@)", "***", text)
        return re.sub(r"(://[^\s?'\"]+\?)[^\s'\"]+", r"\1***", text)

    return each(value, change)


class CharlmError(ValueError):
    """An error that the user can correct. The message names the thing, its value and the fix."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, in a notebook too, instead of a traceback."""
        return [f"charlm: error: {self}"]

    def __str__(self) -> str:
        return redact(super().__str__())


class UsageError(CharlmError):
    """A command line with an unknown command, option or word."""


class CharlmWarning(UserWarning):
    """A problem that the user should be aware of; charlm continues."""
