"""The one exception that means: the user must change something."""


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a config value.

    The message is shown as it is, without a traceback, so it says what is wrong, where it came from and
    what to do. Mistakes of the program itself are assertions, never this class.
    """

    only_here: bool | None = None
    """Whether no other process reports the same; None where nobody could ask them."""
