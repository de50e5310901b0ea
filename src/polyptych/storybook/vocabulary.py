"""The words of Storybook: kinds, colors, places, characters, and which of them are held out.

Splits are by composition: a test picture may ask for a *pair* of kind and color, a character or a
combination of factors that no training picture shows, while every kind and every color on its own
occurs in training. The assignment depends on the words alone, so it never moves between versions
of Python, machines or seeds.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

Split = Literal["train", "validation", "test"]
RGB = tuple[int, int, int]

PERSON = "person"
"""``Thing.kind`` of a character; it is no entry of :data:`KINDS`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object.

    Attributes:
        name: The word itself, one lower-case noun.
        category: Key of :data:`CATEGORIES`.
        plural: The plural noun.
        article: "a" or "an".
        width: Width of its bounding box in units of its size (:data:`SIZES`).
        height: Height of its bounding box, in the same unit.
        flying: It hovers in the upper half of a picture instead of standing on the ground.
        surface: Other things can stand *on* it, at this fraction of its height from the top.
        canopy: Other things fit *under* it, below this fraction of its height from the top.
        tilt: Largest angle, in degrees, by which a view may turn it.
    """

    name: str
    category: str
    plural: str
    article: str
    width: float
    height: float
    flying: bool
    surface: float | None
    canopy: float | None
    tilt: float


_IRREGULAR = {
    "bus": "buses",
    "butterfly": "butterflies",
    "cactus": "cactuses",
    "cherry": "cherries",
    "dress": "dresses",
    "fish": "fish",
    "wrench": "wrenches",
}


def _kind(
    name: str,
    width: float,
    height: float,
    *,
    flying: bool = False,
    surface: float | None = None,
    canopy: float | None = None,
    tilt: float = 10.0,
) -> Kind:
    """A kind whose category is filled in by the table that it stands in."""
    article = "an" if name[0] in "aeiou" else "a"
    plural = _IRREGULAR.get(name, name + "s")
    return Kind(name, "", plural, article, width, height, flying, surface, canopy, tilt)


CATEGORIES: dict[str, str] = {
    "animal": "animals",
    "fruit": "fruits",
    "vehicle": "vehicles",
    "piece of furniture": "pieces of furniture",
    "toy": "toys",
    "instrument": "instruments",
    "garment": "garments",
    "plant": "plants",
    "building": "buildings",
    "tool": "tools",
    "dish": "dishes",
}
"""Singular → plural word of every category; the singular is its key."""

_TABLE: dict[str, tuple[Kind, ...]] = {
    "animal": (
        _kind("cat", 0.9, 1.0, tilt=5),
        _kind("rabbit", 0.75, 1.1, tilt=5),
        _kind("fish", 1.1, 0.75),
        _kind("bird", 1.0, 0.85, flying=True),
        _kind("turtle", 1.15, 0.75, tilt=5),
        _kind("elephant", 1.2, 1.0, tilt=3),
        _kind("butterfly", 1.0, 0.95, flying=True),
    ),
    "fruit": (
        _kind("apple", 0.95, 1.0),
        _kind("banana", 1.1, 0.8),
        _kind("pear", 0.8, 1.1),
        _kind("cherry", 0.95, 1.0),
        _kind("pineapple", 0.7, 1.2),
    ),
    "vehicle": (
        _kind("car", 1.3, 0.75, tilt=3),
        _kind("bus", 1.35, 0.85, tilt=3),
        _kind("boat", 1.1, 1.1, tilt=8),
        _kind("bicycle", 1.3, 0.85, tilt=4),
        _kind("airplane", 1.35, 0.75, flying=True),
        _kind("rocket", 0.75, 1.2, flying=True, tilt=20),
    ),
    "piece of furniture": (
        _kind("chair", 0.75, 1.15, tilt=3),
        _kind("table", 1.4, 0.9, surface=0.08, canopy=0.24, tilt=0),
        _kind("bed", 1.4, 0.85, surface=0.52, tilt=0),
        _kind("sofa", 1.35, 0.85, surface=0.6, tilt=0),
        _kind("lamp", 0.85, 1.4, canopy=0.42, tilt=0),
        _kind("stool", 0.85, 0.85, surface=0.1, tilt=0),
    ),
    "toy": (
        _kind("ball", 0.95, 0.95, tilt=30),
        _kind("kite", 0.95, 1.2, flying=True, tilt=20),
        _kind("balloon", 0.75, 1.2, flying=True),
        _kind("robot", 0.9, 1.1, tilt=4),
        _kind("pinwheel", 0.9, 1.2),
    ),
    "instrument": (
        _kind("guitar", 0.75, 1.25, tilt=20),
        _kind("drum", 1.0, 0.9, surface=0.14, tilt=0),
        _kind("trumpet", 1.3, 0.65),
        _kind("bell", 0.95, 1.0, tilt=15),
        _kind("harp", 0.9, 1.15, tilt=4),
    ),
    "garment": (
        _kind("shirt", 1.15, 0.95),
        _kind("dress", 0.9, 1.15),
        _kind("sock", 0.85, 1.1),
        _kind("boot", 0.95, 1.0, tilt=5),
        _kind("mitten", 0.85, 1.05),
    ),
    "plant": (
        _kind("tree", 1.25, 1.5, canopy=0.56, tilt=0),
        _kind("palm", 1.3, 1.5, canopy=0.45, tilt=0),
        _kind("pine", 0.95, 1.4, tilt=3),
        _kind("cactus", 0.9, 1.15, tilt=3),
        _kind("flower", 0.8, 1.15),
    ),
    "building": (
        _kind("house", 1.15, 1.15, tilt=2),
        _kind("castle", 1.25, 1.15, tilt=2),
        _kind("tent", 1.25, 0.95, tilt=2),
        _kind("lighthouse", 0.65, 1.45, tilt=2),
        _kind("windmill", 1.05, 1.4, tilt=2),
        _kind("bridge", 1.6, 1.0, surface=0.16, canopy=0.42, tilt=0),
    ),
    "tool": (
        _kind("hammer", 0.85, 1.1, tilt=25),
        _kind("saw", 1.3, 0.7, tilt=15),
        _kind("wrench", 0.55, 1.2, tilt=25),
        _kind("shovel", 0.5, 1.25, tilt=20),
        _kind("ladder", 0.6, 1.25, tilt=8),
    ),
    "dish": (
        _kind("cup", 1.0, 0.85),
        _kind("teapot", 1.25, 0.95),
        _kind("bowl", 1.1, 0.7),
        _kind("jug", 0.85, 1.1),
        _kind("pan", 1.35, 0.65),
    ),
}


KINDS: dict[str, Kind] = {
    kind.name: replace(kind, category=category) for category, row in _TABLE.items() for kind in row
}
"""Every kind of object by its name."""

COLORS: dict[str, RGB] = {
    "red": (222, 72, 66),
    "orange": (245, 152, 58),
    "yellow": (250, 214, 76),
    "green": (104, 178, 92),
    "blue": (78, 134, 212),
    "purple": (146, 98, 188),
    "pink": (246, 158, 192),
    "white": (250, 247, 240),
}

SIZES: dict[str, float] = {"small": 0.155, "medium": 0.22, "large": 0.305}
"""Size words → length of one unit of a kind's box, as a fraction of the picture."""


@dataclass(frozen=True, slots=True)
class Place:
    """A background: its name, the phrase of a sentence, and where the ground begins.

    Attributes:
        name: Key of :data:`PLACES`.
        phrase: "on the beach", to be put behind a clause.
        horizon: Fraction of the picture's height above the ground.
    """

    name: str
    phrase: str
    horizon: float


PLACES: dict[str, Place] = {
    place.name: place
    for place in (
        Place("beach", "on the beach", 0.52),
        Place("street", "in the street", 0.55),
        Place("night", "under the night sky", 0.58),
        Place("kitchen", "in the kitchen", 0.56),
        Place("forest", "in the forest", 0.50),
        Place("desert", "in the desert", 0.50),
        Place("snow", "in the snow", 0.50),
        Place("bedroom", "in the bedroom", 0.56),
        Place("meadow", "in the meadow", 0.50),
        Place("mountains", "in the mountains", 0.54),
    )
}

RELATIONS: tuple[str, ...] = ("under", "on", "above", "beside", "holding")
"""Predicates: "the cup is under the tree", "the robot is holding the bell" (persons only)."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a character visibly does: "is waving", "waved"; ``base`` is "wave"."""

    gerund: str
    past: str
    base: str
    width: float
    height: float


ACTS: dict[str, Act] = {
    act.gerund: act
    for act in (
        Act("standing", "stood", "stand", 0.24, 0.40),
        Act("waving", "waved", "wave", 0.26, 0.40),
        Act("cheering", "cheered", "cheer", 0.28, 0.40),
        Act("sitting", "sat", "sit", 0.26, 0.36),
        Act("running", "ran", "run", 0.32, 0.40),
        Act("jumping", "jumped", "jump", 0.28, 0.40),
        Act("sleeping", "slept", "sleep", 0.42, 0.25),
        Act("reading", "read", "read", 0.24, 0.40),
        Act("holding", "held", "hold", 0.28, 0.40),
    )
}
"""Acts by their gerund, with the character's box as fractions of the picture.

"holding" comes with a thing and a relation; all others stand alone.
"""


@dataclass(frozen=True, slots=True)
class Person:
    """What makes one character: the same in every picture of a story."""

    hair: str
    hair_color: str
    skin: str
    hat: str | None
    clothes: str
    clothes_color: str
    glasses: bool


HAIR = ("short", "long", "curly", "braided")
HAIR_COLORS: dict[str, RGB] = {
    "black": (52, 46, 54),
    "brown": (126, 82, 52),
    "blond": (242, 208, 112),
    "red": (206, 96, 50),
    "gray": (190, 190, 198),
}
SKINS: dict[str, RGB] = {"light": (252, 220, 194), "tan": (218, 164, 118), "dark": (152, 102, 74)}
HATS: dict[str | None, RGB] = {
    None: (0, 0, 0),
    "cap": (70, 120, 200),
    "crown": (248, 200, 60),
    "beanie": (214, 76, 84),
    "top hat": (66, 58, 72),
    "straw hat": (236, 204, 132),
}
CLOTHES = ("shirt", "dress", "striped sweater")


def _digest(*words: str) -> int:
    """A number in [0, 2**64) that depends on the words alone."""
    data = "\x1f".join(words).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _person_key(person: Person) -> str:
    fields = (getattr(person, name) for name in Person.__slots__)
    return "|".join(str(value) for value in fields)


def _spread_characters(count: int) -> tuple[Person, ...]:
    """Persons that differ pairwise in at least two attributes.

    The color of the clothes is a check digit over the other attributes (their index sum modulo 8,
    and no attribute has more than 8 values), so changing one attribute always changes it, too.
    """
    colors, hair_colors, skins, hats = tuple(COLORS), tuple(HAIR_COLORS), tuple(SKINS), tuple(HATS)
    options = (HAIR, hair_colors, skins, hats, CLOTHES, (False, True))
    choices = itertools.product(*(range(len(values)) for values in options))
    persons = [
        Person(
            hair=HAIR[hair],
            hair_color=hair_colors[hair_color],
            skin=skins[skin],
            hat=hats[hat],
            clothes=CLOTHES[clothes],
            clothes_color=colors[
                (hair + hair_color + skin + hat + clothes + glasses) % len(colors)
            ],
            glasses=bool(glasses),
        )
        for hair, hair_color, skin, hat, clothes, glasses in choices
    ]
    persons.sort(key=lambda person: _digest("character", _person_key(person)))
    return tuple(persons[:count])


CHARACTERS: tuple[Person, ...] = _spread_characters(360)

NAMES: tuple[str, ...] = (
    *("Ada", "Ali", "Amy", "Ana", "Ben", "Bo", "Cleo", "Dan", "Eli", "Ella", "Emma", "Eva"),
    *("Finn", "Gus", "Hugo", "Ida", "Ines", "Ivy", "Jack", "Joy", "Kai", "Kim", "Lena", "Leo"),
    *("Lily", "Luca", "Mara", "Max", "Mia", "Mo", "Nina", "Noah", "Nora", "Omar", "Otto", "Pia"),
    *("Ravi", "Rosa", "Ruth", "Sam", "Tara", "Theo", "Tom", "Uma", "Vera", "Will", "Yara", "Zoe"),
)


@cache
def _held_out_colors(kind: str) -> dict[str, Split]:
    """The colors of one kind that never occur in training: about 10 % and 20 % over all kinds."""
    order = sorted(COLORS, key=lambda color: _digest("pair", kind, color))
    turn = list(KINDS).index(kind) % 5  # 1.6 of 8 colors for test, 0.8 of 8 for validation
    tests = 2 if turn < 3 else 1
    validations = 0 if turn == 2 else 1
    held_out: dict[str, Split] = dict.fromkeys(order[:tests], "test")
    return held_out | dict.fromkeys(order[tests : tests + validations], "validation")


def pair_split(kind: str, color: str) -> Split:
    """Split that owns a pair of kind and color (70 / 10 / 20 %).

    Args:
        kind: Key of :data:`KINDS`.
        color: Key of :data:`COLORS`.
    """
    return _held_out_colors(kind).get(color, "train")


def character_split(person: Person) -> Split:
    """Split that owns a character (70 / 10 / 20 %)."""
    return _split_of(_digest("person", _person_key(person)))


def combination_split(*factors: str) -> Split:
    """Split that owns an unordered combination of factors, such as a kind and a place."""
    return _split_of(_digest("combination", *sorted(factors)))


def _split_of(digest: int) -> Split:
    part = digest % 10
    if part < 7:
        return "train"
    return "validation" if part == 7 else "test"
