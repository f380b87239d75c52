"""What can go wrong between kvbench and a server; each is one line for the user."""

from kvbench.config.errors import UserError


class ServingError(UserError):
    """A server could not be started, or did not do what was asked."""


class NotReady(ServingError):
    """Nobody listens there, or the server still says 503 (or 429) after all the waiting."""


class Rejected(ServingError):
    """The server answered with an error.

    Attributes:
        status: HTTP status; 200 for an error inside a stream.
    """

    def __init__(self, message: str, status: int) -> None:
        """The line, and the HTTP status."""
        super().__init__(message)
        self.status = status


class CutOff(ServingError):
    """The answer ended before its end: nothing of it is kept."""


class TooSlow(ServingError):
    """No whole answer within the time limit."""


class BadAnswer(ServingError):
    """An answer that lacks what it must hold, or is not of the expected form."""
