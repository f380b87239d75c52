"""The errors that the command line turns into messages."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake in the user's input: one line that names the key and the allowed values.

    The command line prints it and exits with code 2. Any other exception that reaches the user is a bug.
    """


class CellsFailed(RuntimeError):
    """A run is over, and some of its cells failed; the command line exits with code 1.

    Attributes:
        text: what the run would have printed without them.
        failures: one line each.
    """

    def __init__(self, text: str, failures: Sequence[str]) -> None:
        super().__init__("\n".join(failures))
        self.text, self.failures = text, list(failures)


class Stopped(BaseException):
    """A run ends early and in order: what is done is stored, and the same command goes on; exit code 75.

    Not an Exception, so that nothing on its way takes it for the failure of a cell.
    """
