"""``import polyptych`` makes the models known to the Auto classes, in any order of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import polyptych
from polyptych.testing import tiny_model, tiny_processor

SOURCE = str(Path(polyptych.__file__).parents[1])

BOTH_KNOWN = """
from transformers import AutoConfig
for kind in ("polyptych_blip2", "polyptych_sam"):
    assert AutoConfig.for_model(kind).model_type == kind
"""


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_module_of_ours_that_brings_transformers_half_imported() -> None:
    """Registering at that moment would meet half a module; it waits until ours is whole."""
    process = run_python(f"import polyptych.connectors.qformer\n{BOTH_KNOWN}")
    assert process.returncode == 0, process.stderr


def test_importing_polyptych_imports_neither_torch_nor_transformers() -> None:
    process = run_python(
        "import sys, polyptych, polyptych.schema\n"
        "assert polyptych.Example is polyptych.schema.Example\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert process.stdout.strip() == "[]", process.stderr


@pytest.mark.parametrize(
    "first", ["import polyptych, transformers", "import transformers, polyptych"]
)
def test_auto_classes_load_a_saved_folder(first: str, tmp_path: Path) -> None:
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = processor(images=[], text="what do these pictures have in common?")
    with torch.inference_mode():
        expected = float(model(**batch).logits.sum())
    process = run_python(
        f"""
import sys
{first}
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
assert type(AutoConfig.from_pretrained(folder)) is polyptych.PolyptychSamConfig
processor = AutoProcessor.from_pretrained(folder)
assert type(processor) is polyptych.PolyptychProcessor
model = AutoModelForImageTextToText.from_pretrained(folder)
assert type(model) is polyptych.PolyptychSamForConditionalGeneration
torch.set_num_threads(1)
batch = processor(images=[], text="what do these pictures have in common?")
with torch.inference_mode():
    print(float(model.eval()(**batch).logits.sum()))
""",
        str(tmp_path),
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) == pytest.approx(expected, abs=1e-3)


def test_a_broken_model_module_does_not_break_transformers() -> None:
    process = run_python(
        "import sys, polyptych\n"
        "sys.modules['polyptych.models.blip2'] = None  # imports of it fail from here on\n"
        "import transformers\n"
        "print(transformers.__version__)"
    )
    assert process.returncode == 0, process.stderr
    assert "not known to transformers' Auto classes" in process.stderr


def test_package_files_can_still_be_read_through_the_watched_loaders() -> None:
    process = run_python(
        "import polyptych.evaluation, polyptych.errors\n"
        "from importlib.resources import files\n"
        "assert files('polyptych.evaluation').joinpath('report.css').read_text()\n"
        "import inspect; assert 'PolyptychError' in inspect.getsource(polyptych.errors)"
    )
    assert process.returncode == 0, process.stderr


def test_public_names_are_all_there() -> None:
    for name in polyptych.__all__:
        assert getattr(polyptych, name) is not None
        assert name in dir(polyptych)
    assert sorted(polyptych._HOMES) == sorted(polyptych.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        polyptych.no_such_name  # noqa: B018
