"""Words and their singulars, as object metrics need them: our own rules, no downloads.

A caption becomes lower-case tokens, where no full stop sticks to the last word of a sentence, and
every token its singular. Three readings of a token:

- ``fixed``: English plurals as they are; "men" is "man" and "vases" is "vase".
- ``reference``: what the suffix rules of the pattern library (3.6) make of nouns; it differs in a
  few words only, most of which no caption has.
- ``released``: what a WordNet 3.0 lemmatizer makes of nouns that takes the shortest lemma. It
  misses plurals of nouns that WordNet does not have ("smartphones"), "men" and "vases".

The differences were computed for every word of the public CHAIR list and are listed below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Literal, get_args

Reading = Literal["reference", "released", "fixed"]
READINGS: tuple[Reading, ...] = get_args(Reading)

# Applied to a run of letters and marks, in this order; each match gets blanks around it.
_APART = tuple(
    re.compile(pattern)
    for pattern in (
        r"""[;@#$%&?!*()\[\]{}<>"“”‘’«»„`]|''|\.{2,}|--""",
        r"[:,](?!\d)",
        r"(?<=[^.])\.$",
        r"(?<=[^\s'])(?:'(?:s|m|d|ll|re|ve)\b|n't\b)",
        r"(?<=[^\s'])'(?=\s|$)",
    )
)
_LAST_STOP = re.compile(r"""(?<=[^.])\.(?=['")\]}>»”’]+$)""")


def tokens(text: str) -> list[str]:
    """Lower-case words and marks of a text.

    Example:
        >>> tokens("The dog's bowl, full. Two cats!")
        ['the', 'dog', "'s", 'bowl', ',', 'full', '.', 'two', 'cats', '!']
    """
    runs = text.lower().split()
    if runs:  # a full stop before a closing mark ends a sentence at the end of the text only
        runs[-1] = _LAST_STOP.sub(" . ", runs[-1])
    return [token for run in runs for token in _take_apart(run)]


@lru_cache(maxsize=1 << 16)
def _take_apart(run: str) -> tuple[str, ...]:
    if run.isalnum():
        return (run,)
    for pattern in _APART:
        run = pattern.sub(r" \g<0> ", run)
    return tuple(run.split())


_IRREGULAR = {
    "broccolis": "broccoli",
    "calves": "calf",
    "children": "child",
    "corgis": "corgi",
    "feet": "foot",
    "geese": "goose",
    "grandchildren": "grandchild",
    "halves": "half",
    "kiwis": "kiwi",
    "knives": "knife",
    "leaves": "leaf",
    "lives": "life",
    "loaves": "loaf",
    "mice": "mouse",
    "oxen": "ox",
    "pocketknives": "pocketknife",
    "scarves": "scarf",
    "shelves": "shelf",
    "skis": "ski",
    "taxies": "taxi",
    "taxis": "taxi",
    "teeth": "tooth",
    "thieves": "thief",
    "wives": "wife",
    "wolves": "wolf",
    "zebus": "zebu",
}
_UNCHANGED = frozenset(
    (
        *("always", "canvas", "christmas", "gas", "has", "its", "lens", "news", "pants"),
        *("perhaps", "plus", "scissors", "series", "shears", "species", "specimen", "sports"),
        *("was", "yes"),
    )
)
_ENDS_WITH_IE = frozenset(
    (
        *("birdie", "brownie", "calorie", "collie", "cookie", "doggie", "foodie", "genie"),
        *("hoodie", "magpie", "movie", "pie", "pixie", "selfie", "smoothie", "tie", "veggie"),
        *("zombie",),
    )
)
_LOSES_ES = re.compile(r"(?:x|ss|ch|sh|zz|bus|[^aeo]o)es$")
_KEEPS_E = frozenset(("axes", "canoes", "hoes", "horseshoes", "shoes", "toes"))


def singular(word: str) -> str:
    """The singular of an English noun in lower case; other words lose a last s, too.

    Example:
        >>> [singular(word) for word in ("women", "buses", "ponies", "vases", "glass")]
        ['woman', 'bus', 'pony', 'vase', 'glass']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _UNCHANGED or word.endswith(("ss", "us", "is")) or len(word) < 3:
        return word
    if word.endswith("men"):
        return word[:-3] + "man"
    if word.endswith("ies") and word[:-1] not in _ENDS_WITH_IE:
        return word[:-3] + "y"
    if _LOSES_ES.search(word) and word not in _KEEPS_E:
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


_DIFFERENT: dict[Reading, dict[str, str]] = {
    "fixed": {},
    "reference": {
        "airbus": "airbu",
        "bus": "bu",
        "canoes": "cano",
        "collies": "collies",
        "doggies": "doggies",
        "glass": "glas",
        "magpies": "magpy",
        "minibus": "minibu",
        "people": "person",
        "sports": "sport",
        "tennis": "tenni",
        "thieves": "thieve",
        "ties": "ty",
    },
    "released": {
        "doggies": "doggy",
        "men": "men",
        "sports": "sport",
        "vases": "vas",
        **{
            word: word
            for word in (
                *("bikers", "bluejays", "brindles", "coworkers", "firetrucks", "hairdryers"),
                *("lenovos", "longboards", "macbooks", "netbooks", "paddleboats", "pitbulls"),
                *("riverboats", "sailboards", "shortboards", "skimboards", "smartphones"),
                *("soliders", "stovetops", "teddybears", "televisons"),
            )
        },
    },
}


def singular_of(reading: Reading) -> Callable[[str], str]:
    """The function from a token to its singular in one reading, which remembers what it has seen.

    Args:
        reading: See the head of this module.
    """
    different = _DIFFERENT[reading]
    return cache(lambda word: different[word] if word in different else singular(word))
