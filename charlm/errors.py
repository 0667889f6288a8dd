"""Errors that the user can correct, and warnings; what neither these nor files may hold."""

import re


def redact(value):
    """A text, or those in a list or mapping, without passwords and queries (signatures) of URLs."""
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    return re.sub(r"(://[^\s?'\"]+\?)[^\s'\"]+", r"\1***", re.sub(r"(?<=://)[^/\s@]+(?=@)", "***", value))


class CharlmError(ValueError):
    """An error that the user can correct. The message names the thing, its value and the fix."""

    def __str__(self) -> str:
        return redact(super().__str__())


class UsageError(CharlmError):
    """A command line with an unknown command, option or word."""


class CharlmWarning(UserWarning):
    """A problem that the user should be aware of; charlm continues."""
