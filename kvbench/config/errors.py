"""The one error type that a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the key and the allowed values.

    The command line prints it and exits with 2; anything else that escapes is a bug.
    """
