"""How annotations are checked at run time: as type checkers read them, an int is a float, too."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
