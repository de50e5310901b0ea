"""Makes the models known to transformers' Auto classes, without importing torch before it is used.

``AutoModelForImageTextToText.from_pretrained(folder)`` has to find our classes after a plain
``import polyptych``, yet drawing pictures, scoring a file and ``polyptych --help`` must not wait
seconds for torch. The Auto classes can only be asked once transformers is imported, so that moment
is when we register:

- transformers is already there: at once;
- it comes later: when the import that brings it is over, noticed by a finder on ``sys.meta_path``
  that finds nothing itself and only tells when a module is done.

Over means the *outermost* import among transformers and our own modules. ``import
polyptych.models.blip2`` brings transformers while blip2 is half imported; registering right then
would meet half a module. When the outermost one is done, everything is whole.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register() -> None:
    """Enter every model with its config and processor into the Auto classes (again: no effect)."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from polyptych.methods.camml.model import (
        PolyptychCammlConfig,
        PolyptychCammlForConditionalGeneration,
    )
    from polyptych.methods.cheetah.linear import (
        PolyptychLinearCheetahConfig,
        PolyptychLinearCheetahForConditionalGeneration,
    )
    from polyptych.methods.cheetah.model import (
        PolyptychCheetahConfig,
        PolyptychCheetahForConditionalGeneration,
    )
    from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
    from polyptych.models.blip2 import PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration
    from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
    from polyptych.models.processor import PolyptychProcessor

    for config, model in (
        (PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration),
        (PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration),
        (PolyptychSamConfig, PolyptychSamForConditionalGeneration),
        (PolyptychCheetahConfig, PolyptychCheetahForConditionalGeneration),
        (PolyptychLinearCheetahConfig, PolyptychLinearCheetahForConditionalGeneration),
        (PolyptychCammlConfig, PolyptychCammlForConditionalGeneration),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoProcessor.register(config, PolyptychProcessor, exist_ok=True)


def install() -> None:
    """Register now if transformers is imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())


class _RegisterAfterImport:
    def __init__(self) -> None:
        self._thread = threading.local()  # .depth: watched imports under way in this thread

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "transformers" and not name.startswith("polyptych."):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        if hasattr(spec.loader, "exec_module"):
            # On the loader instance (one per module): a wrapper class would hide the loader's other
            # abilities, such as reading the package's files.
            spec.loader.exec_module = self._watched(spec.loader.exec_module)  # type: ignore[method-assign, union-attr]
        return spec

    def _watched(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        @functools.wraps(execute)
        def exec_module(module: ModuleType) -> None:
            self._thread.depth = getattr(self._thread, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self._thread.depth -= 1
            if self._thread.depth == 0 and "transformers" in sys.modules:
                self._finish()

        return exec_module

    def _finish(self) -> None:
        if self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        try:
            register()
        except ImportError as error:  # `import transformers` itself must not fail because of us
            warnings.warn(
                f"polyptych's models are not known to transformers' Auto classes: {error}; "
                "`polyptych doctor` looks for the cause",
                RuntimeWarning,
                stacklevel=2,
            )
