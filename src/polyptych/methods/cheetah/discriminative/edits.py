"""Step 2, edit description: what is to be changed about an ignored object.

Four kinds: modify an attribute, swap the object, delete it, add a new one on free background.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyptych.methods.cheetah.discriminative import (
    DroppedError,
    Edit,
    EditKind,
    Mask,
    Region,
    SourcePicture,
)
from polyptych.methods.cheetah.discriminative.detection import load_pipeline
from polyptych.storybook.graph import (
    Scene,
    Thing,
    ThingSpec,
    change_thing,
    colored_kinds_in,
    remove_thing,
)
from polyptych.storybook.rendering import BACKGROUND, draw_with_masks, silhouette_area
from polyptych.storybook.scenes import add_thing
from polyptych.storybook.tasks.composition import may_stand, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, SIZES, Split


class EditWriter(Protocol):
    """Writes an edit of a given kind that fits a picture."""

    name: str

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """The edit of ``region``; raises `DroppedError` where none fits."""


# Drawn pictures: edits of the scene graph.

_LEAST_VISIBLE = 0.5  # of each thing's silhouette, after the edit
_MOST_COVERED = 0.1  # of an added thing's pixels, over other things
_PLACEMENTS = 200  # how often an added thing is placed anew until it lies in the window


@dataclass(frozen=True)
class StorybookEdits:
    """Edits of the scene graph, with compositions of one split only.

    Args:
        split: Owner of the pairs of kind and color, and of kind and place, that an edit makes.
    """

    split: Split = "train"
    name: str = "storybook edits"

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """The first edit, in random order, that leaves everything visible."""
        scene = picture.scene
        assert scene is not None  # the masks came from it
        size = region.mask.shape[0]
        before = draw_with_masks(scene, size)[1]
        for after, description, change in self._options(scene, region, kind, rng):
            changed = self._changed(scene, after, before, region, kind)
            if changed is not None:
                new = f"{change.get('new_color', '')} {change.get('new_kind', '')}".strip()
                return Edit(
                    kind,
                    description,
                    with_article(new) if new else "the background",
                    Region(changed, region.label or "background", region.index),
                    after,
                    change,
                )
        raise DroppedError("no fitting edit", f"{kind} of the {region.label}")

    def _options(
        self, scene: Scene, region: Region, kind: EditKind, rng: random.Random
    ) -> Iterator[tuple[Scene, str, dict[str, str]]]:
        if kind == "add":
            yield from self._additions(scene, region.mask, rng)
            return
        assert region.index is not None  # only background has none
        thing = scene.things[region.index]
        same = ThingSpec(thing.kind, thing.color)
        if sum(same.matches(other) for other in scene.things) > 1:
            raise DroppedError("ambiguous object", f"more than one {region.label}")
        if kind == "delete":
            words = {"type": "delete", "kind": thing.kind, "color": thing.color}
            yield remove_thing(scene, region.index), f"remove the {region.label}", words
        elif kind == "swap":
            yield from self._swaps(scene, region.index, thing, rng)
        else:
            yield from self._modifications(scene, region.index, thing, rng)

    def _modifications(
        self, scene: Scene, index: int, thing: Thing, rng: random.Random
    ) -> Iterator[tuple[Scene, str, dict[str, str]]]:
        """Another color or another size, whichever comes first by chance."""
        old = f"the {thing.color} {thing.kind}"
        colors = [
            color
            for color in rng.sample(list(COLORS), len(COLORS))
            if (thing.kind, color) in pairs_of(self.split)
            and (thing.kind, color) not in colored_kinds_in(scene)
        ]
        sizes = [size for size in rng.sample(list(SIZES), len(SIZES)) if size != thing.size]
        by_color = [
            (
                change_thing(scene, index, color=color),
                f"change the color of {old} to {color}",
                {
                    "type": "color",
                    "kind": thing.kind,
                    "color": thing.color,
                    "new_color": color,
                },
            )
            for color in colors
        ]
        by_size = [
            (
                change_thing(scene, index, size=size),
                f"make {old} {'larger' if SIZES[size] > SIZES[thing.size] else 'smaller'}",
                {
                    "type": "size",
                    "kind": thing.kind,
                    "color": thing.color,
                    "size": thing.size,
                    "new_size": size,
                },
            )
            for size in sizes
        ]
        first, second = (by_color, by_size) if rng.random() < 0.5 else (by_size, by_color)
        yield from first
        yield from second

    def _swaps(
        self, scene: Scene, index: int, thing: Thing, rng: random.Random
    ) -> Iterator[tuple[Scene, str, dict[str, str]]]:
        """Another kind in its place: what flies is replaced by what flies."""
        pairs = pairs_of(self.split)
        for kind, color in rng.sample(pairs, len(pairs)):
            fits = kind != thing.kind and KINDS[kind].flying == KINDS[thing.kind].flying
            if fits and self._may_appear(scene, kind, color):
                words = {
                    "type": "swap",
                    "kind": thing.kind,
                    "color": thing.color,
                    "new_kind": kind,
                    "new_color": color,
                }
                text = (
                    f"replace the {thing.color} {thing.kind} by {with_article(f'{color} {kind}')}"
                )
                yield change_thing(scene, index, kind=kind, color=color), text, words

    def _additions(
        self, scene: Scene, window: Mask, rng: random.Random
    ) -> Iterator[tuple[Scene, str, dict[str, str]]]:
        """A small or medium thing whose middle lies in the window."""
        side = window.shape[0]
        for _ in range(_PLACEMENTS):
            kind, color = rng.choice(pairs_of(self.split))
            if not self._may_appear(scene, kind, color):
                continue
            spec = ThingSpec(kind, color, rng.choice(("small", "medium")))
            try:
                after = add_thing(rng, scene, spec, split=self.split)
            except ValueError:  # no room for this one
                continue
            (new,) = (thing for thing in after.things if thing not in scene.things)
            if window[min(int(new.y * side), side - 1), min(int(new.x * side), side - 1)]:
                text = f"add {with_article(f'{color} {kind}')}"
                yield after, text, {"type": "add", "new_kind": kind, "new_color": color}

    def _may_appear(self, scene: Scene, kind: str, color: str) -> bool:
        return (kind, color) not in colored_kinds_in(scene) and may_stand(
            self.split, kind, scene.place
        )

    def _changed(
        self,
        scene: Scene,
        after: Scene,
        before: np.ndarray[Any, Any],
        region: Region,
        kind: EditKind,
    ) -> Mask | None:
        """Pixels of the thing before and after the edit; None if something is hidden by it."""
        owners = draw_with_masks(after, len(before))[1]
        for index, thing in enumerate(after.things):
            shown = np.count_nonzero(owners == index)
            if shown < _LEAST_VISIBLE * silhouette_area(thing, len(before)):
                return None
        if kind == "delete":
            return region.mask
        if kind != "add":
            return region.mask | (owners == region.index)
        (index,) = (i for i, thing in enumerate(after.things) if thing not in scene.things)
        new = owners == index
        covered = np.count_nonzero(new & (before != BACKGROUND))
        return new if covered <= _MOST_COVERED * np.count_nonzero(new) else None


# Photographs: an instruction-tuned language model.

EDIT_PROMPT = (
    "You plan small edits of photographs. You get the caption of a photograph, one region of it "
    "and the kind of edit. Think of one edit of that kind that fits the scene and that anybody "
    "would notice when the photographs lie side by side.\n"
    "Kinds: modify = the object stays, one visible property of it changes; swap = another object "
    "of similar size takes its place; delete = the object is gone; add = a new object stands in "
    "the free region.\n"
    'Answer with one line of JSON and nothing else: {"kind": "<the kind>", "edit": "<the edit as '
    'a short instruction>", "shows": "<what the region shows after the edit, without reference '
    'to what was there before>"}\n\n'
    "Caption: a man reads on a bench in the park\n"
    "Region: hat, at the top in the middle, 2 % of the photograph\n"
    "Kind: modify\n"
    'Answer: {"kind": "modify", "edit": "turn the hat bright yellow", "shows": "a man\'s head '
    'with a bright yellow hat"}\n\n'
    "Caption: {caption}\n"
    "Region: {region}\n"
    "Kind: {kind}\n"
    "Answer:"
)
"""What the language model is told; the three last names in braces are filled in."""

_LONGEST_REPLY = 200  # characters of each text in it


@dataclass(frozen=True)
class LanguageModelEdits:
    """Edits by a ``text-generation`` pipeline of transformers, decoded greedily.

    Args:
        pipeline: ``prompt -> [{"generated_text": reply}]``.
        prompt: See :data:`EDIT_PROMPT`.
        name: What wrote the edits, for the records.
    """

    pipeline: Any
    prompt: str = EDIT_PROMPT
    name: str = "text-generation"

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """Ask once; a reply that is not exactly as asked for is dropped."""
        values = {"caption": picture.caption, "region": describe_region(region), "kind": kind}
        prompt = self.prompt
        for field_name, value in values.items():
            prompt = prompt.replace(f"{{{field_name}}}", value)
        reply = parse_reply(ask(self.pipeline, prompt), kind)
        return Edit(kind, reply["edit"], reply["shows"], region)


def describe_region(region: Region) -> str:
    """Label, position and size in words: "cup, at the bottom on the left, 4 % of the photograph"."""
    height, width = region.mask.shape
    left, top, right, bottom = region.box
    rows = ("at the top", "in the middle", "at the bottom")
    columns = ("on the left", "in the center", "on the right")
    row = rows[min(2, int(3 * (top + bottom) / 2 / height))]
    column = columns[min(2, int(3 * (left + right) / 2 / width))]
    share = max(1, round(100 * float(region.mask.mean())))
    return f"{region.label or 'object'}, {row} {column}, {share} % of the photograph"


def ask(pipeline: Any, prompt: str, max_new_tokens: int = 120) -> str:
    """One reply of a ``text-generation`` pipeline, through the chat template where it has one."""
    chat = getattr(getattr(pipeline, "tokenizer", None), "chat_template", None)
    told: Any = [{"role": "user", "content": prompt}] if chat else prompt
    replies = pipeline(told, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False)
    return str(replies[0]["generated_text"])


def parse_reply(reply: str, kind: EditKind) -> Mapping[str, str]:
    """The fields of a reply, which is one JSON object in its first line.

    Raises:
        DroppedError: For anything else, or another kind than asked for.
    """
    line = next(iter(reply.strip().splitlines()), "")
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DroppedError("unparsable edit", f"no JSON: {line[:80]!r}") from None
    if not isinstance(fields, dict) or fields.keys() != {"kind", "edit", "shows"}:
        raise DroppedError("unparsable edit", f"other fields than asked for: {line[:80]!r}")
    if fields["kind"] != kind:
        raise DroppedError("unparsable edit", f"kind {fields['kind']!r}, asked for {kind!r}")
    for name in ("edit", "shows"):
        text = fields[name]
        if not isinstance(text, str) or not 0 < len(text.strip()) <= _LONGEST_REPLY:
            raise DroppedError(
                "unparsable edit", f"{name!r} is no text of 1 to {_LONGEST_REPLY} letters"
            )
    return {name: text.strip() for name, text in fields.items()}


def load_language_model(folder: str, *, device: str = "cpu") -> Any:
    """A ``text-generation`` pipeline of an instruction-tuned model in a local folder.

    Raises:
        PolyptychError: If there is none.
    """
    return load_pipeline("text-generation", folder, device)
