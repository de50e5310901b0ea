"""Each paper's claim in the small: a study per method, and what all studies share.

A study's package has ``main.py`` (stages, and the command), ``study.py`` (settings, variants, what
is asked) and ``real.py`` (the same over real data).
"""
