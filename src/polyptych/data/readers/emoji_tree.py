"""What emoji are, from general to specific: Unicode's groups and subgroups in plain words."""

from __future__ import annotations

Node = tuple[str, ...]
"""A place in the tree: descriptions from general to specific, ("animals or plants", "animals")."""

_TREE: dict[str, dict[str, str | dict[str, str]]] = {
    "smileys or signs of feeling": {
        "faces": {
            "face-smiling": "smiling faces",
            "face-affection": "faces full of affection",
            "face-tongue": "faces with the tongue out",
            "face-hand": "faces with a hand",
            "face-neutral-skeptical": "neutral or skeptical faces",
            "face-sleepy": "sleepy faces",
            "face-unwell": "faces that are unwell",
            "face-concerned": "worried faces",
            "face-negative": "angry or evil faces",
            "face-costume": "faces of fantasy beings",
            "cat-face": "cat faces",
        },
        "heart": "hearts",
        "emotion": "signs of emotion",
    },
    "people or parts of the body": {
        "hands": {
            "hand-fingers-open": "open hands",
            "hand-fingers-partial": "hands with some fingers up",
            "hand-single-finger": "pointing hands",
            "hand-fingers-closed": "closed hands",
            "hands": "pairs of hands",
        },
        "people": {
            "person": "portraits",
            "person-gesture": "people making gestures",
            "person-role": "people in a role or job",
            "person-fantasy": "fantasy beings",
            "person-activity": "people doing an activity",
            "person-sport": "people doing sport",
            "family": "couples or families",
        },
        "body-parts": "parts of the body",
    },
    "animals or plants": {
        "animals": {
            "animal-mammal": "mammals",
            "animal-bird": "birds",
            "animal-amphibian": "amphibians",
            "animal-reptile": "reptiles",
            "animal-marine": "sea animals",
            "animal-bug": "bugs",
        },
        "plants": {
            "plant-flower": "flowers",
            "plant-other": "trees and other plants",
        },
    },
    "food, drinks or dishes": {
        "food": {
            "food-fruit": "fruits",
            "food-vegetable": "vegetables",
            "food-prepared": "prepared meals",
            "food-asian": "Asian dishes",
            "food-marine": "seafood",
            "food-sweet": "sweets",
        },
        "drink": "drinks",
        "dishware": "dishware",
    },
    "ways to travel, places or the sky": {
        "places": {
            "place-geographic": "landscapes",
            "place-building": "buildings",
            "place-religious": "places of worship",
            "place-other": "sights of a town",
        },
        "means of transport": {
            "transport-ground": "land transport and traffic",
            "transport-water": "ships and boats",
            "transport-air": "air transport",
        },
        "time": "clocks and other timepieces",
        "sky & weather": "sky and weather",
    },
    "activities": {
        "event": "things for a celebration",
        "award-medal": "medals and trophies",
        "sport": "sports",
        "game": "games and toys",
        "arts & crafts": "arts and crafts",
    },
    "objects": {
        "clothing": "clothes and accessories",
        "sound": "sounds and signals",
        "music": "music equipment",
        "musical-instrument": "musical instruments",
        "phone": "telephones",
        "computer": "computer equipment",
        "light & video": "light and film equipment",
        "book-paper": "books and papers",
        "money": "money",
        "mail": "mail",
        "writing": "writing tools",
        "office": "office supplies",
        "lock": "locks and keys",
        "tool": "tools",
        "science": "science equipment",
        "medical": "medical supplies",
        "household": "household things",
    },
    "symbols": {
        "transport-sign": "public signs",
        "warning": "warning signs",
        "arrow": "arrows",
        "religion": "religious symbols",
        "zodiac": "signs of the zodiac",
        "av-symbol": "buttons of a player",
        "math": "math symbols",
        "punctuation": "punctuation marks",
        "keycap": "number keys",
        "alphanum": "buttons with letters",
        "geometric": "colored shapes",
    },
}
"""Group > family, where there is one > subgroup.

Subgroups that are no kind (``other-object``), that repeat another (``hand-prop``) or that stand
alone with fewer than four drawings are left out.
"""


def _branches() -> dict[str, Node]:
    branches: dict[str, Node] = {}
    for group, families in _TREE.items():
        for name, entry in families.items():
            if isinstance(entry, str):
                branches[name] = (group, entry)
            else:
                branches.update({sub: (group, name, text) for sub, text in entry.items()})
    return branches


_BRANCHES = _branches()


def branch_of(subgroup: str) -> Node | None:
    """The path from a Unicode group to ``subgroup``, or None for one that is left out."""
    return _BRANCHES.get(subgroup)
