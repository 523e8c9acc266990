"""The one exception that means "the user's input is wrong"."""


class UserError(Exception):
    """Bad input, said in one line: what, where, what would be valid. The command line exits with status 2."""
