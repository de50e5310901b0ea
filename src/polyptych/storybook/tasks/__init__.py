"""The tasks of Storybook, one short file each: scenes, question, accepted answers and truth."""

from __future__ import annotations

from polyptych.storybook.tasks import (
    change_captioning,
    description,
    existence,
    group_captioning,
    knowledge_qa,
    storytelling,
)
from polyptych.storybook.tasks.base import MakeExample

TASKS: dict[str, MakeExample] = {
    "group_captioning": group_captioning.make_example,
    "storytelling": storytelling.make_example,
    "change_captioning": change_captioning.make_example,
    "description": description.make_example,
    "existence": existence.make_example,
    "knowledge_qa": knowledge_qa.make_example,
}
"""Name of a task → the function that draws one of its examples."""

RECORD_ROLES: dict[str, tuple[str, ...]] = {
    "existence": existence.ANSWERS,
    "knowledge_qa": knowledge_qa.ROLES,
}
"""Tasks whose records come in linked pairs: one draw gives a record for each of these roles."""
