"""The one error that users see: a single clear line; the command line ends with exit code 2."""

from __future__ import annotations


class PolyptychError(ValueError):
    """Bad input, said in one line that names the file, the line or id, and both numbers.

    Raised at the border (reading files, matching counts, loading checkpoints). The command line
    prints it without a traceback and exits with code 2.
    """
