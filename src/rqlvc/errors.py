"""The one exception that users are meant to read."""


class RqlvcError(Exception):
    """A failure whose message is a clear sentence that says what is wrong and what to do.

    The command line prints the message on stderr and exits with 1; anything else that escapes is a defect of ours.
    """
