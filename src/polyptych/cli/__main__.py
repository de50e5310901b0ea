"""``python -m polyptych.cli``, for where the command is not installed."""

from __future__ import annotations

from polyptych.cli import main

if __name__ == "__main__":
    main()
