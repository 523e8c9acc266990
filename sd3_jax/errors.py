"""The exceptions that the command line turns into one line and an exit status."""


class UserError(Exception):
    """Bad input, said in one line: what, where, what would be valid. The command line exits with status 2."""


class RunFailed(Exception):
    """A run that was asked for properly and came to nothing, said in one line. Exit status 1."""


class LeaseLost(Exception):
    """Another process has the run now: this one writes nothing more. Exit status 75 (EX_TEMPFAIL)."""


class Stopped(Exception):
    """A run that was told to stop, and has saved what it had: the same command goes on. Exit status 42."""
