"""Synthetic discriminative training data for VPG-C: two pictures that differ in an ignored detail.

Paper: arXiv 2308.04152, section 3.2 (ICLR 2024). For each picture:

1. ignored-object detection: which objects does the task-agnostic Q-Former hardly look at?
2. edit description: modify, swap or delete one of them, or add one on free background
3. edited image, kept only if the edit shows
4. text target: the description rewritten as a sentence that says the difference

Each step is a protocol with an embedded implementation over drawn pictures (true masks, edits of
the scene graph) and one for photographs (Segment Anything, an instruction-tuned language model,
inpainting, CLIP). The authors published neither thresholds nor prompts nor the mix of kinds: the
defaults are ours.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from polyptych.data.images import image_hash, load_image
from polyptych.data.records import ImageStore, record_of
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import (
    EDIT_KINDS,
    Candidate,
    DroppedError,
    Edit,
    EditKind,
    SourcePicture,
)
from polyptych.methods.cheetah.discriminative.detection import AttentionMap, Selection, select
from polyptych.methods.cheetah.discriminative.masks import background_windows
from polyptych.methods.cheetah.discriminative.running import (
    RECORDS_FILE,
    SUMMARY_FILE,
    append,
    finish,
    finished_summary,
    resume,
)
from polyptych.methods.cheetah.discriminative.steps import Steps, photograph_steps, storybook_steps
from polyptych.methods.cheetah.discriminative.texts import INSTRUCTIONS
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.graph import scene_to_json

__all__ = [
    "DiscriminativeSettings",
    "Steps",
    "build_discriminative_data",
    "edit_picture",
    "photograph_steps",
    "storybook_steps",
]

TASK = "discriminative"
"""``metadata["task"]`` of the records."""


@dataclass(frozen=True, slots=True)
class DiscriminativeSettings:
    """What is chosen and how; the steps have their own settings."""

    selection: Selection = "least_attended"
    """``random`` chooses objects by chance: the control that shows what detection is good for."""
    edits_per_picture: int = 1
    """Edits, each of another region and each of the untouched picture."""
    quantile: float = 0.5
    """Only this share of a picture's regions, the least attended ones, counts as ignored."""
    kinds: tuple[EditKind, ...] = EDIT_KINDS
    """Kinds of edits, equally likely; ``add`` takes a background window, the others an object."""
    smallest_area: float = 0.004
    """Objects below this share of the picture are left alone: nobody would see the edit."""
    largest_area: float = 0.35
    """Objects above it are no detail."""
    window: float = 0.15
    """Side of the background window for an added object, as a share of the picture's; a drawn
    object has its middle there, a painted one all of itself."""
    batch_size: int = 16
    """Pictures that the Q-Former reads together."""
    seed: int = 0
    """Of all chance in choices, edits and painting."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(EDIT_KINDS))
        if unknown or not self.kinds:
            raise PolyptychError(f"kinds of edits {unknown}; known: {', '.join(EDIT_KINDS)}")
        if self.edits_per_picture < 1 or self.batch_size < 1:
            raise PolyptychError(
                f"edits_per_picture {self.edits_per_picture} and batch_size {self.batch_size} "
                "have to be at least 1"
            )


# The pipeline.


def build_discriminative_data(
    pictures: Sequence[SourcePicture],
    out: str | Path,
    steps: Steps,
    *,
    settings: DiscriminativeSettings | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Edit every picture and write what comes out.

    Writes ``records.jsonl`` (native format), ``images/*.png`` and ``summary.json`` into ``out``. A
    killed run goes on behind the last picture that was finished, and its result is the same, byte
    for byte, as that of a run without a break.

    Args:
        pictures: In order; ids are unique.
        out: Folder for everything; made if missing.
        steps: Implementations of the steps.
        settings: Default: `DiscriminativeSettings`.
        progress: Show a bar, on a terminal.

    Returns:
        The summary: how many items were tried, kept and dropped for which reason, and what made
        them. ``tried == kept + dropped``, and is the number of pictures times
        ``edits_per_picture``.

    Raises:
        PolyptychError: If ``out`` holds a run of other settings, steps or pictures, or when the
            system refuses to write.
    """
    settings, out = settings or DiscriminativeSettings(), Path(out)
    if not len(pictures):
        raise PolyptychError("0 pictures to edit")
    run = {
        "pictures": len(pictures),
        "first_picture": _fingerprint(pictures[0]),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "steps": steps.software(),
    }
    if (out / SUMMARY_FILE).exists():
        return finished_summary(out / SUMMARY_FILE, run)
    running = out / (RECORDS_FILE + ".running")
    done = resume(running, run, pictures)
    starts = range(done - done % settings.batch_size, len(pictures), settings.batch_size)
    shown = progress and Console(stderr=True).is_terminal
    for start in track(
        starts, "pictures", console=Console(stderr=True), disable=not shown, transient=True
    ):
        batch = pictures[start : start + settings.batch_size]
        for line in _edit_batch(batch, max(0, done - start), out, steps, settings):
            append(running, line)
    return finish(out, running, run)


def _fingerprint(picture: SourcePicture) -> str:
    """Twelve hex digits of its pixels, so that other pictures of the same names are noticed."""
    try:
        return image_hash(picture.image)[:12]
    except PolyptychError:
        return "unreadable"


def _edit_batch(
    batch: Sequence[SourcePicture],
    finished: int,
    out: Path,
    steps: Steps,
    settings: DiscriminativeSettings,
) -> Iterator[dict[str, Any]]:
    """The result of each picture behind those finished before: its records and what was dropped.

    The Q-Former looks at all of the batch, also after a break: rounding depends on neighbors.
    """
    images = [_decode(picture) for picture in batch]
    readable = [image for image in images if isinstance(image, Image.Image)]
    maps = iter(steps.attention(readable) if readable else ())
    looks = [next(maps) if isinstance(image, Image.Image) else None for image in images]
    for picture, image, look in islice(zip(batch, images, looks, strict=True), finished, None):
        if isinstance(image, DroppedError):
            items: list[Example | DroppedError] = [image] * settings.edits_per_picture
        else:
            assert look is not None
            items = list(edit_picture(picture, image, look, steps, settings))
        yield _result(picture, items, out)


def _decode(picture: SourcePicture) -> Image.Image | DroppedError:
    try:
        return load_image(picture.image, where=picture.id)
    except PolyptychError as error:
        return DroppedError("unreadable picture", str(error))


def edit_picture(
    picture: SourcePicture,
    image: Image.Image,
    attention: AttentionMap,
    steps: Steps,
    settings: DiscriminativeSettings,
) -> Iterator[Example | DroppedError]:
    """Steps 1 to 4 for one picture: ``edits_per_picture`` examples, or why there is none."""
    chance = _chance(settings, picture.id, "kinds")
    kinds = [chance.choice(settings.kinds) for _ in range(settings.edits_per_picture)]
    objects, windows = _candidates(picture, image, attention, steps, settings)
    for number, kind in enumerate(kinds):
        candidate = next(windows if kind == "add" else objects, None)
        identity = f"{picture.id}-{number}"
        try:
            if candidate is None:
                raise DroppedError("no free background" if kind == "add" else "no ignored object")
            yield _edit_region(identity, picture, image, candidate, kind, steps, settings)
        except DroppedError as dropped:
            yield dropped


def _candidates(
    picture: SourcePicture,
    image: Image.Image,
    attention: AttentionMap,
    steps: Steps,
    settings: DiscriminativeSettings,
) -> tuple[Iterator[Candidate], Iterator[Candidate]]:
    """Step 1: ignored objects, and ignored windows of background."""
    found = steps.masks(picture, image)
    objects = [
        region
        for region in found.objects
        if settings.smallest_area <= region.mask.mean() <= settings.largest_area
    ]
    windows = background_windows(found.occupied, settings.window)
    chosen = (
        select(
            regions,
            attention,
            _chance(settings, picture.id, name),
            selection=settings.selection,
            most=settings.edits_per_picture,
            quantile=settings.quantile,
        )
        for name, regions in (("objects", objects), ("windows", windows))
    )
    return iter(next(chosen)), iter(next(chosen))


def _edit_region(
    identity: str,
    picture: SourcePicture,
    image: Image.Image,
    candidate: Candidate,
    kind: EditKind,
    steps: Steps,
    settings: DiscriminativeSettings,
) -> Example:
    """Steps 2 to 4 for one region.

    Raises:
        DroppedError: If a step refuses it.
    """
    edit = steps.edits(picture, candidate.region, kind, _chance(settings, identity, "edit"))
    seed = _chance(settings, identity, "image").getrandbits(32)
    edited = steps.images(image, edit, seed)
    similarity = steps.similarity(image, edited, edit)
    targets = steps.targets(edit)

    chance = _chance(settings, identity, "text")
    instruction, target = chance.choice(INSTRUCTIONS), chance.choice(targets)
    asked = (
        *(TextBlock("Picture 1: "), ImageBlock(), TextBlock(" Picture 2: "), ImageBlock()),
        TextBlock(f" {instruction}"),
    )
    return Example(
        id=identity,
        messages=(Message("user", asked), Message("assistant", (TextBlock(target),))),
        images=(_png(image), _png(edited)),
        references=targets,
        metadata=_provenance(picture, candidate, edit, similarity, seed, settings),
    )


def _provenance(
    picture: SourcePicture,
    candidate: Candidate,
    edit: Edit,
    similarity: float,
    seed: int,
    settings: DiscriminativeSettings,
) -> dict[str, Any]:
    """Where an item comes from; scenes and change as in ``change_captioning``, where drawn."""
    height, width = candidate.region.mask.shape
    left, top, right, bottom = candidate.region.box
    box = (left / width, top / height, right / width, bottom / height)
    metadata: dict[str, Any] = {
        "task": TASK,
        "source": {"id": picture.id, "caption": picture.caption},
        "region": {
            "label": candidate.region.label,
            "box": [round(side, 4) for side in box],
            "area": round(float(candidate.region.mask.mean()), 5),
            "importance": candidate.importance,
            "rank": candidate.rank,
            "of": candidate.of,
            "selection": settings.selection,
        },
        "edit": {"kind": edit.kind, "description": edit.description, "shows": edit.shows},
        "similarity": similarity,
        "seeds": {"run": settings.seed, "image": seed},
    }
    if picture.split is not None:
        metadata["split"] = picture.split
    if edit.change:
        metadata["change"] = dict(edit.change)
    if picture.scene is not None and edit.scene is not None:
        metadata["scenes"] = [scene_to_json(picture.scene), scene_to_json(edit.scene)]
    return metadata


def _chance(settings: DiscriminativeSettings, identity: str, use: str) -> random.Random:
    """A stream of chance of its own for each use, whatever was drawn before."""
    return random.Random(f"{settings.seed}/{identity}/{use}")


def _png(image: Image.Image) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return ImageRef(data=buffer.getvalue())


def _result(
    picture: SourcePicture, items: Sequence[Example | DroppedError], out: Path
) -> dict[str, Any]:
    """The line of one picture; its images are stored."""
    records, dropped = [], []
    for item in items:
        if isinstance(item, DroppedError):
            dropped.append({"reason": item.reason, "detail": item.detail})
        else:
            with ImageStore(out) as store:
                records.append(record_of(store.with_paths(item), out))
    return {"id": picture.id, "records": records, "dropped": dropped}
