"""The error that reports a user's mistake."""


class UserError(ValueError):
    """A mistake in the user's input: one line that names the key and the allowed values.

    The command line prints it and exits with code 2. Any other exception that reaches the user is a bug.
    """
