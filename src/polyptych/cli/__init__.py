"""The command line: parses words, calls one function each, turns user errors into one line.

One file holds the commands of one purpose; groups of commands that belong to a method or a stage
(``demon``, ``cheetah``, ``index``) are defined there and only named here.
"""

from __future__ import annotations

from polyptych.cli import (
    asking,
    comparing,
    converting,
    data,
    evaluating,
    first_steps,
    improving,
    merging,
    scoring,
    training,
)
from polyptych.cli.common import command_group, example
from polyptych.evaluation.demon.commands import add_commands as add_demon_commands
from polyptych.methods.cheetah.commands import DISCRIMINATE_EXAMPLE, discriminative
from polyptych.retrieval.commands import add_commands as add_index_commands

app = command_group(
    "Language models that read several pictures together: train, run and score them.",
    'polyptych ask --image a.jpg --image b.jpg "What do these have in common?"',
)
for part in (asking, training, evaluating, scoring, comparing, improving, merging, first_steps):
    app.add_typer(part.commands)  # without a name: its commands stand beside the others

app.add_typer(data.commands, name="data")
app.add_typer(scoring.tasks_app, name="tasks")
app.add_typer(converting.commands, name="convert")
demon_app = command_group(
    "The DEMON benchmark: a drawn sample, lmms-eval tasks, reports. To run it: evaluate.",
    "polyptych demon make-sample data/demon",
)
add_demon_commands(demon_app, example)
app.add_typer(demon_app, name="demon")
cheetah_app = command_group(
    "What only Cheetah needs: its discriminative training data.", DISCRIMINATE_EXAMPLE
)
cheetah_app.command("discriminate", epilog=example(DISCRIMINATE_EXAMPLE))(discriminative)
cheetah_app.callback()(lambda: None)  # with one command alone typer would drop its name
app.add_typer(cheetah_app, name="cheetah")
index_app = command_group(
    "Retrieval: index examples by picture or text, and find those nearest to a question.",
    "polyptych index build data/facts --out data/facts.index",
)
add_index_commands(index_app, example)
app.add_typer(index_app, name="index")
app.add_typer(improving.stages, name="sima")


def main() -> None:
    """Entry point of the ``polyptych`` command."""
    app(prog_name="polyptych")
