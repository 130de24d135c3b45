"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Wrong use, said in one line: what was wrong (got versus expected), which file, how to fix it.

    The command line prints the message without a traceback and ends with exit code 2.
    """
