"""Packages that only retrieval needs, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from polyptych.errors import PolyptychError


class OptionalModule:
    """Stands for a module until something of it is asked for.

    Args:
        name: What is imported.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            module = importlib.import_module(self._name)
        except ImportError as error:
            raise PolyptychError(
                f"{self._name} is needed for retrieval: pip install 'polyptych[retrieval]'"
            ) from error
        return getattr(module, attribute)
