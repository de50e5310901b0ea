"""Where files, prompts and licences of benchmarks were looked up, and what could not be found.

The other benchmarks' files and prompts are those that LLaVA, CaMML, SIMA, SAM and Cheetah document.
Repositories are GitHub's, cards are those of the Hugging Face hub; all were read in stored copies.
"""

from __future__ import annotations

_BLINK = (
    "Layout: zeyofu/BLINK_Benchmark eval/test_benchmark.py, eval/evaluate.py. Folders and licence: "
    "card BLINK-Benchmark/BLINK. Not found: the card's own list of columns."
)
_AMBER = (
    "Layout, counts and licence: junyangwang0410/AMBER data/, inference.py, README.md, LICENSE. "
    "Not found: the folder of its archive of images (image/ and images/ are tried)."
)

EVIDENCE: dict[str, str] = {
    "blink": _BLINK,
    "blink_test": _BLINK,
    "muirbench": (
        "Columns and prompt: lmms-eval tasks/muirbench; the benchmark's own prompt: "
        "muirbench/MuirBench eval/utils/preprocess.py. Path and licence: card MUIRBENCH/MUIRBENCH."
    ),
    "mantis_eval": (
        "Prompts and scorer: TIGER-AI-Lab/Mantis mantis/benchmark/eval.py, templates/. Columns, "
        "path and licence: card TIGER-Lab/Mantis-Eval."
    ),
    "mirb": (
        "Prompts and scorer: ys-zong/MIRB utils/model_inference.py, utils/utils.py, evals/eval.py, "
        "results_summary.py. Files and licence: card VLLMs/MIRB. Not found: a record of its files."
    ),
    "amber": _AMBER,
    "amber_generative": _AMBER,
    "amber_discriminative": _AMBER,
    "mm_vet": (
        "Layout and grading: yuweihao/MM-Vet mm-vet_evaluator.py; ids: haotian-liu/LLaVA "
        "scripts/convert_mmvet_for_eval.py. Licence: card whyu/mm-vet (the repository's "
        "LICENSE_DATASET: non-commercial research). Not found: a line of llava-mm-vet.jsonl."
    ),
    "llava_bench": (
        "Layout and grading: haotian-liu/LLaVA llava/eval/eval_gpt_review_bench.py, "
        "summarize_gpt_review.py, scripts/v1_5/eval/llavabench.sh. Files and licence: card "
        "liuhaotian/llava-bench-in-the-wild. Not found: a line of context.jsonl (a caption may be "
        "a text or a list)."
    ),
    "mmhal": (
        "Fields and grading: llava-rlhf/LLaVA-RLHF MMHal-Bench-eval/, MMHal-Bench.py of the card "
        "Shengcao1006/MMHal-Bench, which also has files and licence."
    ),
}
"""Name of a benchmark to what is known of how it was checked."""
