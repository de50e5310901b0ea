"""The tasks of Storybook, one short file each: scenes, question, accepted answers and truth."""

from __future__ import annotations

from polyptych.storybook.tasks import description, group_captioning, storytelling
from polyptych.storybook.tasks.base import MakeExample

TASKS: dict[str, MakeExample] = {
    "group_captioning": group_captioning.make_example,
    "storytelling": storytelling.make_example,
    "description": description.make_example,
}
"""Name of a task → the function that draws one of its examples."""

RECORD_ROLES: dict[str, tuple[str, ...]] = {}
"""Tasks whose records come in linked pairs: one draw gives a record for each of these roles."""
