"""What can go wrong: errors that the user can correct, and warnings."""


class CharlmError(ValueError):
    """Something the user can mend. The message names the thing, its value and the mend."""


class UsageError(CharlmError):
    """Words of a command line that no command or option answers to."""


class CharlmWarning(UserWarning):
    """Something the user should know of, after which charlm goes on."""
