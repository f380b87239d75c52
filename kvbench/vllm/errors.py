"""Errors of starting and querying a vLLM server; each message is one line for the user."""

from kvbench.config.errors import UserError


class ServingError(UserError):
    """A server did not start, or did not do what was requested."""


class NotReady(ServingError):
    """No server listens at the address, or it still answers 503 (or 429) when the patience ends."""


class Rejected(ServingError):
    """The server answered with an error.

    Attributes:
        status: HTTP status; 200 for an error inside a stream.
    """

    def __init__(self, message: str, status: int) -> None:
        """Takes the message and the HTTP status."""
        super().__init__(message)
        self.status = status


class CutOff(ServingError):
    """The answer broke off before its end; the partial answer is dropped."""


class TooSlow(ServingError):
    """The whole answer did not arrive within the time limit."""


class BadAnswer(ServingError):
    """The answer lacks a required field, or is malformed."""
