"""African Storybook (africanstorybook.org, CC BY): picture books as next-page storytelling.

``stories.jsonl`` holds ``{"id", "title", "cover", "pages": [{"image", "text"}, ...], "text_by",
"illustration_by", "license"}``. The prompt shows earlier pages with picture and text, then the
picture of the next page; its text is the answer. The credit stays in the metadata of every example.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from polyptych.data.images import image_hash
from polyptych.data.readers.splitting import SplitName, connected, split_keys, wanted_splits
from polyptych.data.records import OnError, check_example, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

FRACTIONS: Mapping[SplitName, float] = {"train": 0.75, "validation": 0.1, "test": 0.15}
"""Share of the books (of families of books that share a picture or a title) in each split."""

INSTRUCTIONS = (
    "These are pages of a picture book in order. Write the text of the last page.",
    "Read the pages and look at the pictures. What does the last page say?",
    "Continue the story: write the text that belongs to the last picture.",
    "Here are pages that follow each other. Tell what happens in the last picture.",
    "Use the earlier pages to write the words under the last picture.",
)

_KEYS = ("id", "title", "text_by", "illustration_by", "license")
_CREDIT = ("text_by", "illustration_by", "license")


def read_african_storybook(
    path: str | Path,
    *,
    split: SplitName | None = None,
    window: int = 4,
    seed: int = 0,
    on_error: OnError | None = None,
) -> Iterator[Example]:
    """Read every page but the first of every book as one example.

    Books that share a picture or a title always fall into the same split.

    Args:
        path: The folder with ``stories.jsonl``.
        split: Only this split; all of them by default.
        window: Most earlier pages in a prompt; near the start of a book there are fewer.
        seed: Decides the split and the wording of the instruction.
        on_error: Called for each bad book, which is then skipped.

    Raises:
        PolyptychError: At the first bad book, naming file and line.
    """
    if window < 1:
        raise PolyptychError(f"window must be at least 1, got {window}")
    folder = Path(path)
    stories = list(_stories(folder / "stories.jsonl", on_error))
    splits = _split_stories(stories, folder, seed)
    for name in wanted_splits(split):
        for story in stories:
            if splits[story["id"]] == name:
                for page in range(1, len(story["pages"])):
                    yield _page_example(story, page, folder, name, window, seed)


def _stories(path: Path, on_error: OnError | None) -> Iterator[dict[str, Any]]:
    for where, line in read_lines(path):
        try:
            story = parse_json(line, where)
            _check_story(story, where)
        except PolyptychError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield story


def _check_story(story: Any, where: str) -> None:
    for key in _KEYS:
        if not isinstance(story, dict) or not isinstance(story.get(key), str):
            raise PolyptychError(f"{where}: missing or wrong {key!r}")
    pages = story.get("pages")
    if not isinstance(pages, list):
        raise PolyptychError(f"{where}: missing or wrong 'pages'")
    for number, page in enumerate(pages, start=1):
        for key in ("image", "text"):
            if not (isinstance(page, dict) and isinstance(page.get(key), str) and page[key]):
                raise PolyptychError(f"{where}: page {number}: missing or wrong {key!r}")


def _split_stories(
    stories: Sequence[Mapping[str, Any]], folder: Path, seed: int
) -> dict[str, SplitName]:
    traits = {}
    for story in stories:
        traits[story["id"]] = {f"title {story['title'].casefold()}"}
        for page in story["pages"]:
            with suppress(PolyptychError):  # a missing picture is reported when it is decoded
                traits[story["id"]].add(image_hash(ImageRef(path=str(folder / page["image"]))))
    family = connected([story["id"] for story in stories], traits)
    splits = split_keys(set(family.values()), FRACTIONS, seed)
    return {identity: splits[family[identity]] for identity in family}


def _page_example(
    story: Mapping[str, Any], page: int, folder: Path, split: SplitName, window: int, seed: int
) -> Example:
    identity = f"{story['id']}-{page + 1:02d}"
    shown = story["pages"][max(0, page - window) : page + 1]
    instruction = random.Random(f"{seed}:{identity}").choice(INSTRUCTIONS)
    blocks: list[Block] = [TextBlock(f"{instruction}\n")]
    for number, earlier in enumerate(shown[:-1], start=1):
        blocks += [ImageBlock(), TextBlock(f"\nPage {number}: {earlier['text']}\n")]
    blocks += [ImageBlock(), TextBlock(f"\nPage {len(shown)}:")]
    target = shown[-1]["text"]
    example = Example(
        id=identity,
        messages=(
            Message("user", tuple(blocks)),
            Message("assistant", (TextBlock(target),)),
        ),
        images=tuple(ImageRef(path=str(folder / item["image"])) for item in shown),
        references=(target,),
        metadata={
            "task": "storytelling",
            "source": "African Storybook",
            "split": split,
            "story": story["id"],
            "title": story["title"],
            "page": page + 1,
            **{key: story[key] for key in _CREDIT},
        },
    )
    check_example(example, f"{folder} story {story['id']} page {page + 1}")
    return example
