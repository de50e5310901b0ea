"""Noto emoji (Apache-2.0) as group captioning: name the most specific thing that all members are.

Every drawing has a place in a small tree, such as *animals or plants > animals > birds*. Birds
share "birds", birds with mammals "animals", birds with flowers "animals or plants": the answer is
the deepest node above all members, so no member alone holds it.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from polyptych.data.readers.emoji_tree import Node, branch_of
from polyptych.data.readers.grouping import GROUP_SIZES, group_example, read_labels
from polyptych.data.readers.splitting import SplitName, split_keys, wanted_splits
from polyptych.data.records import OnError
from polyptych.errors import PolyptychError
from polyptych.schema import Example

FRACTIONS: Mapping[SplitName, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Share of each subgroup's drawings in each split: enough for groups of the larger ones in test."""

INSTRUCTIONS = (
    "What do all of these pictures have in common?",
    "What are all of these? Be as specific as you can.",
    "Name the narrowest kind that fits every picture.",
    "Which one description fits all of these pictures?",
    "Say what the pictures share, as precisely as possible.",
)

REFERENCES = (
    "All of these are {what}.",
    "These pictures all show {what}.",
    "What they have in common is that they are {what}.",
    "Every picture shows {what}.",
    "They are all {what}.",
)

_PERSON = re.compile(r"\b(man|men|woman|women|person|people|boy|girl)('s)?\b")

Pools = Mapping[Node, list[str]]


def read_noto_emoji(
    path: str | Path,
    *,
    split: SplitName | None = None,
    count: int = 1000,
    seed: int = 0,
    on_error: OnError | None = None,
) -> Iterator[Example]:
    """Draw groups of emoji whose common description lies at every level of the tree equally often.

    Variants of one drawing (man, woman, person running) always fall into the same split.

    Args:
        path: The folder with ``emoji.jsonl`` (``{"file", "name", "group", "subgroup"}``).
        split: Only this split; all of them, one after the other, by default.
        count: Groups in each split.
        seed: Decides the split and the groups.
        on_error: Called for each bad line of the label file, which is then skipped.

    Raises:
        PolyptychError: At the first bad line, naming file and line.
    """
    folder = Path(path)
    emoji = _emoji_by_split(folder, seed, on_error)
    for name in wanted_splits(split):
        rng = random.Random(f"noto_emoji:{seed}:{name}")
        pools = {branch: files for (part, branch), files in emoji.items() if part == name}
        nodes = _drawable_nodes(pools)
        if not nodes:
            raise PolyptychError(f"{folder}: too few drawings in split {name!r} to form groups")
        for number in range(count):
            node = rng.choice(nodes[rng.choice(sorted(nodes))])
            yield _group(f"noto_emoji-{name}-{number:05d}", node, pools, folder, name, rng)


def _emoji_by_split(
    folder: Path, seed: int, on_error: OnError | None
) -> dict[tuple[SplitName, Node], list[str]]:
    members: dict[Node, list[tuple[str, str]]] = defaultdict(list)
    for item in read_labels(folder / "emoji.jsonl", ("file", "name", "subgroup"), on_error):
        branch = branch_of(item["subgroup"])
        if branch is not None:
            stem = " ".join(_PERSON.sub("", item["name"]).split())
            members[branch].append((item["file"], stem))
    emoji: dict[tuple[SplitName, Node], list[str]] = defaultdict(list)
    for branch, named in members.items():
        splits = split_keys({stem for _, stem in named}, FRACTIONS, seed)
        for file, stem in named:
            emoji[splits[stem], branch].append(file)
    return emoji


def _drawable_nodes(pools: Pools) -> dict[str, list[Node]]:
    """Nodes of the tree by level for which this split has a group.

    A leaf needs as many drawings as the smallest group; an inner node two children and that many.
    """
    below: dict[Node, dict[Node, int]] = defaultdict(lambda: defaultdict(int))
    for branch, files in pools.items():
        for depth in range(1, len(branch) + 1):
            below[branch[:depth]][branch[: depth + 1]] += len(files)
    nodes: dict[str, list[Node]] = defaultdict(list)
    for node, children in sorted(below.items()):
        leaf = node in pools
        if sum(children.values()) >= min(GROUP_SIZES) and (leaf or len(children) > 1):
            nodes[_level(node, leaf)].append(node)
    return dict(nodes)


def _level(node: Node, leaf: bool) -> str:
    return "subgroup" if leaf else "group" if len(node) == 1 else "family"


def _group(
    identity: str, node: Node, pools: Pools, folder: Path, split: SplitName, rng: random.Random
) -> Example:
    depth = len(node)
    children: dict[Node, list[str]] = defaultdict(list)
    for branch, members in sorted(pools.items()):
        if branch[:depth] == node:
            children[branch[: depth + 1]] += members
    # One member from each of two children, so that nothing deeper than the node is shared.
    two = rng.sample(sorted(children), min(2, len(children)))
    files = [rng.choice(children[child]) for child in two]
    rest = [file for child in children.values() for file in child if file not in files]
    size = min(rng.choice(GROUP_SIZES), len(files) + len(rest))
    files += rng.sample(rest, size - len(files))
    rng.shuffle(files)
    return group_example(
        identity=identity,
        images=[folder / file for file in files],
        instructions=INSTRUCTIONS,
        references=[text.format(what=node[-1]) for text in REFERENCES],
        metadata={
            "source": "Noto emoji",
            "split": split,
            "shared": node[-1],
            "level": _level(node, node in pools),
        },
        rng=rng,
    )
