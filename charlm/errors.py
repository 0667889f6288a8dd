"""Errors that the user can correct, and warnings."""


class CharlmError(ValueError):
    """An error that the user can correct. The message names the thing, its value and the fix."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, in a notebook too, instead of a traceback."""
        return [f"charlm: error: {self}"]


class UsageError(CharlmError):
    """A command line with an unknown command, option or word."""


class CharlmWarning(UserWarning):
    """A problem that the user should be aware of; charlm continues."""
