"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Wrong use, said in one line: what was wrong (got versus expected), which file, how to fix it.

    The command line prints the message without a traceback and ends with exit code 2.
    """


class RunEnded(OSError):
    """The output cannot be written any more: a full disk, a lost connection. It ends a run, whatever was going on.

    The message is for the user; the command line prints it and ends with exit code 1.
    """

    def __init__(self, message: str) -> None:
        # As OSError keeps it: workers send it to their parent, and the command line prints `strerror`.
        super().__init__(None, message)

    def __reduce__(self) -> tuple:
        return RunEnded, (self.strerror,)

    def __str__(self) -> str:
        return self.strerror
