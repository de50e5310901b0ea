"""Our models in VLMEvalKit: interleaved parts stay in their order, all images are seen.

VLMEvalKit has no plug-ins; its table of models is filled before its ``run.py`` starts. From a
checkout of it, save this as ``run_polyptych.py``:

    import functools, runpy
    from vlmeval.config import supported_VLM
    from polyptych.integrations.vlmevalkit import Polyptych
    supported_VLM["polyptych"] = functools.partial(Polyptych, model_path="storybook-sam")
    runpy.run_path("run.py", run_name="__main__")

    python run_polyptych.py --data POPE BLINK --model polyptych --judge exact_matching

``import vlmeval`` switches off the check of TLS certificates in its process, and its ``.xlsx``
cells end at 32,767 characters (``PRED_FORMAT=tsv``). Where a server runs, ``run.py --base-url``
needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from polyptych.evaluation.task import GenerationSettings
from polyptych.integrations.devices import best_device
from polyptych.integrations.messages import parts_example

SETTINGS = GenerationSettings(max_new_tokens=512)
"""Greedy; long enough for its open questions."""


def __getattr__(name: str) -> Any:
    """``Polyptych``, whose base class is VLMEvalKit's, is made when it is asked for."""
    if name == "Polyptych":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _model_class() -> type:
    from vlmeval.vlm.base import BaseModel

    class Polyptych(BaseModel):
        """A model that VLMEvalKit asks one question at a time.

        Args:
            model_path: A folder, hub name, bundled name, server or function.
            device: Where a model in memory computes; default: a GPU if there is one.
            max_new_tokens: Longest answer in tokens.
        """

        INSTALL_REQ = False
        INTERLEAVE = True

        def __init__(
            self,
            model_path: str,
            device: str | None = None,
            max_new_tokens: int = SETTINGS.max_new_tokens,
            **_: Any,
        ) -> None:
            from polyptych.serving.answerers import load_answerer

            super().__init__()
            self.answerer = load_answerer(model_path, device=device or best_device())
            self.settings = GenerationSettings(max_new_tokens=max_new_tokens)

        def generate_inner(
            self, message: Sequence[dict[str, Any]], dataset: str | None = None
        ) -> str:
            """Answer one question of text and image parts."""
            example = parts_example(dataset or "question", message)
            return self.answerer.answer([example], self.settings)[0]

    return Polyptych
