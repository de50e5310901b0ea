"""What benchmarks exist: metric, flavors, files, licence, and who scores.

task = load_task("pope", "DATA")     # reads DATA/pope

What files, prompts and licences were checked against is in
:mod:`polyptych.evaluation.tasks.evidence`.
"""

from __future__ import annotations

from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.samples import amber as amber_samples
from polyptych.evaluation.samples import captions as caption_samples
from polyptych.evaluation.samples import judged, several_images, single_image
from polyptych.evaluation.scoring import amber_files, short_answer, vqa_accuracy, yes_no
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks import (
    amber,
    aokvqa,
    blink,
    captions,
    chair,
    gqa,
    llava_bench,
    mantis_eval,
    mementos,
    mirb,
    mm_vet,
    mmbench,
    mme,
    mmhal,
    muirbench,
    nlvr2,
    pope,
    refcoco,
    sam_sets,
    scienceqa,
    seed,
    vqa,
)
from polyptych.evaluation.tasks.benchmark import Benchmark, Scoring

_LLAVA = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"
_UNSTATED = "see the source"
_UNCHECKED = "{} (from memory; see the source)"
_CC_BY = _UNCHECKED.format("CC BY 4.0")


_VQA_SAMPLES = {
    "vqav2": single_image.sample_vqav2,
    "okvqa": single_image.sample_okvqa,
    "vizwiz": single_image.sample_vizwiz,
    "textvqa": single_image.sample_textvqa,
}
_MMBENCH_SAMPLES = {
    "mmbench": single_image.sample_mmbench,
    "mmbench_cn": single_image.sample_mmbench_cn,
}
_CAPTION_SAMPLES = {
    "coco_caption": caption_samples.sample_coco_caption,
    "flickr30k_caption": caption_samples.sample_flickr30k_caption,
}


def _vqa(name: str, title: str, terms: str, source: str, scoring: Scoring) -> Benchmark:
    layout = vqa.SETS[name]
    return Benchmark(
        name,
        title,
        "vqa_accuracy",
        vqa_accuracy.FLAVORS,
        (layout.questions, f"{layout.images}/", *layout.answers),
        terms,
        source,
        scoring,
        lambda root: vqa.vqa_task(name, root),
        sample=_VQA_SAMPLES[name],
    )


def _scienceqa(form: scienceqa.Form, title: str) -> Benchmark:
    return Benchmark(
        form,
        title,
        "accuracy",
        (scienceqa.RELEASED[form], "fixed"),
        (scienceqa.FILES[form], "problems.json", "images/test/"),
        "CC BY-NC-SA 4.0",
        "https://scienceqa.github.io",
        "local",
        lambda root: scienceqa.scienceqa_task(form, root),
        folder="scienceqa",
        sample=single_image.sample_scienceqa,
    )


def _mmbench(name: mmbench.Name, title: str, *, circular: bool = False) -> Benchmark:
    return Benchmark(
        name + mmbench.CIRCULAR if circular else name,
        title,
        "circular_accuracy" if circular else "accuracy",
        ("fixed",),
        (mmbench.FILES[name],),
        _UNSTATED,
        "https://github.com/open-compass/MMBench",
        "server",
        lambda root: mmbench.mmbench_task(name, root, circular=circular),
        folder="mmbench",
        sample=_MMBENCH_SAMPLES[name],
    )


def _captions(name: str, title: str, terms: str, source: str) -> Benchmark:
    layout = captions.SETS[name]
    return Benchmark(
        name,
        title,
        "cider",
        ("coco",),
        (layout.questions, layout.references[0], f"{layout.images}/"),
        terms,
        source,
        "local",
        lambda root: captions.caption_task(name, root),
        sample=_CAPTION_SAMPLES[name],
    )


def _refcoco(name: refcoco.Name, title: str) -> Benchmark:
    return Benchmark(
        name,
        title,
        "accuracy@0.5",
        ("square",),
        (f"{refcoco.QUESTIONS[name]} or {refcoco.WHOLE[name]}", f"{refcoco.IMAGES}/"),
        _UNSTATED,
        "https://github.com/lichengunc/refer",
        "local",
        lambda root: refcoco.refcoco_task(name, root),
        sample=lambda root: caption_samples.sample_refcoco(name, root),
    )


def _sam(name: str) -> Benchmark:
    return Benchmark(
        name,
        f"{sam_sets.NAMES[name]}, as SAM tests on it",
        "cider",
        ("sam",),
        ("annotations.json", "images/"),
        _UNSTATED,
        "https://arxiv.org/abs/2408.12867",
        "local",
        lambda root: sam_sets.sam_task(name, root),
        folder=f"sam/{sam_sets.NAMES[name]}",
        sample=lambda root: caption_samples.sample_sam(name, root),
    )


def _blink(name: blink.Name, title: str, scoring: Scoring) -> Benchmark:
    return Benchmark(
        name,
        title,
        "mean_accuracy",
        ("fixed",),
        tuple(f"{task}/{blink.SPLITS[name]}-*.parquet" for task in blink.SUB_TASKS),
        "Apache-2.0",
        "https://huggingface.co/datasets/BLINK-Benchmark/BLINK",
        scoring,
        lambda root: blink.blink_task(name, root),
        folder="blink",
        sample=lambda root: several_images.sample_blink(name, root),
    )


def _amber(name: amber.Name, title: str, metric: str, flavors: tuple[str, ...]) -> Benchmark:
    return Benchmark(
        name,
        title,
        metric,
        flavors,
        (amber.QUERIES[name], amber.ANNOTATIONS, amber.ASSOCIATED, amber.SAFE_WORDS, "image/"),
        "Apache-2.0",
        "https://github.com/junyangwang0410/AMBER",
        "local",
        lambda root: amber.amber_task(name, root),
        folder="amber",
        sample=amber_samples.sample_amber,
    )


BENCHMARKS: dict[str, Benchmark] = {
    found.name: found
    for found in (
        _vqa("vqav2", "VQAv2 test-dev", _CC_BY, "https://visualqa.org", "server"),
        _vqa("okvqa", "OK-VQA validation", _UNSTATED, "https://okvqa.allenai.org", "local"),
        _vqa("vizwiz", "VizWiz VQA test", _CC_BY, "https://vizwiz.org", "server"),
        _vqa("textvqa", "TextVQA validation", _CC_BY, "https://textvqa.org", "local"),
        _scienceqa("scienceqa_img", "ScienceQA, questions with an image"),
        _scienceqa("scienceqa", "ScienceQA, for fine-tuned models"),
        Benchmark(
            "pope",
            "POPE on COCO",
            "mean_f1",
            yes_no.FLAVORS,
            (*(f"coco/coco_pope_{name}.json" for name in pope.CATEGORIES), "val2014/"),
            "MIT",
            "https://github.com/AoiDragon/POPE",
            "local",
            pope.pope_task,
            sample=single_image.sample_pope,
        ),
        Benchmark(
            "mme",
            "MME",
            "perception",
            ("official",),
            ("llava_mme.jsonl", f"{mme.IMAGES}/"),
            _UNCHECKED.format("academic research only, on request"),
            _LLAVA,
            "local",
            mme.mme_task,
            sample=single_image.sample_mme,
        ),
        Benchmark(
            "seed",
            "SEED-Bench",
            "accuracy",
            seed.FLAVORS,
            ("llava-seed-bench.jsonl", "SEED-Bench.json", "SEED-Bench-image/"),
            "CC BY-NC 4.0",
            "https://github.com/AILab-CVC/SEED-Bench",
            "local",
            seed.seed_task,
            sample=single_image.sample_seed,
        ),
        _mmbench("mmbench", "MMBench dev"),
        _mmbench("mmbench_cn", "MMBench-CN dev"),
        _mmbench("mmbench", "MMBench dev, every rotation of the options", circular=True),
        _mmbench("mmbench_cn", "MMBench-CN dev, every rotation of the options", circular=True),
        Benchmark(
            "gqa",
            "GQA test-dev, balanced",
            "accuracy",
            short_answer.FLAVORS,
            (gqa.QUESTIONS, f"data/{gqa.TRUTHS}", "data/images/"),
            _CC_BY,
            "https://cs.stanford.edu/people/dorarad/gqa",
            "local",
            gqa.gqa_task,
            sample=single_image.sample_gqa,
        ),
        Benchmark(
            "aokvqa",
            "A-OKVQA validation, multiple choice",
            "accuracy",
            aokvqa.FLAVORS,
            (aokvqa.QUESTIONS, aokvqa.TRUTHS, "val2017/"),
            "MIT (its repository; the files state none)",
            "https://allenai.org/project/a-okvqa",
            "local",
            aokvqa.aokvqa_task,
            sample=single_image.sample_aokvqa,
        ),
        _captions(
            "coco_caption", "COCO captions, Karpathy test", "CC BY 4.0", "https://cocodataset.org"
        ),
        _captions(
            "flickr30k_caption",
            "Flickr30k captions, Karpathy test",
            _UNCHECKED.format("non-commercial research"),
            "https://shannon.cs.illinois.edu/DenotationGraph",
        ),
        _refcoco("refcoco", "RefCOCO validation"),
        _refcoco("refcoco_plus", "RefCOCO+ validation"),
        _refcoco("refcocog", "RefCOCOg validation"),
        *map(_sam, sam_sets.NAMES),
        Benchmark(
            "nlvr2",
            "NLVR2 public test",
            "accuracy",
            ("fixed",),
            (f"data/{nlvr2.QUESTIONS}", "images/test1/"),
            "CC BY 4.0",
            "https://lil.nlp.cornell.edu/nlvr",
            "local",
            nlvr2.nlvr2_task,
            sample=several_images.sample_nlvr2,
        ),
        _blink("blink", "BLINK validation", "local"),
        _blink("blink_test", "BLINK test", "server"),
        Benchmark(
            "muirbench",
            "MuirBench",
            "accuracy",
            ("fixed",),
            ("data/test-*.parquet",),
            "CC BY 4.0",
            "https://huggingface.co/datasets/MUIRBENCH/MUIRBENCH",
            "local",
            muirbench.muirbench_task,
            sample=several_images.sample_muirbench,
        ),
        Benchmark(
            "mantis_eval",
            "Mantis-Eval",
            "accuracy",
            mantis_eval.FLAVORS,
            ("mantis_eval/test-*.parquet",),
            "Apache-2.0",
            "https://huggingface.co/datasets/TIGER-Lab/Mantis-Eval",
            "local",
            mantis_eval.mantis_task,
            sample=several_images.sample_mantis_eval,
        ),
        Benchmark(
            "mirb",
            "MIRB",
            "mean_accuracy",
            ("released",),
            (*(f"{name}.json" for name in mirb.INSTRUCTIONS), "images/"),
            "MIT",
            "https://huggingface.co/datasets/VLLMs/MIRB",
            "local",
            mirb.mirb_task,
            sample=several_images.sample_mirb,
        ),
        Benchmark(
            "chair",
            "CHAIR on COCO photos; lower is better",
            "chair_s",
            chair.FLAVORS,
            (chair.SYNONYMS, f"{chair.ANNOTATIONS}/", "val2014/"),
            "BSD-2-Clause (synonyms), CC BY 4.0 (annotations)",
            "https://github.com/LisaAnne/Hallucination",
            "local",
            chair.chair_task,
            sample=judged.sample_chair,
        ),
        _amber("amber", "AMBER, descriptions and questions", "f1", amber_files.QUESTION_FLAVORS),
        _amber("amber_generative", "AMBER, descriptions", "chair", (amber_files.WORDS,)),
        _amber("amber_discriminative", "AMBER, questions", "f1", amber_files.QUESTION_FLAVORS),
        Benchmark(
            "mm_vet",
            "MM-Vet",
            "score",
            mm_vet.FLAVORS,
            (mm_vet.TRUTHS, f"{mm_vet.IMAGES}/"),
            "CC BY-NC 4.0",
            "https://github.com/yuweihao/MM-Vet",
            "judge",
            mm_vet.mm_vet_task,
            sample=judged.sample_mm_vet,
        ),
        Benchmark(
            "llava_bench",
            "LLaVA-Bench in the wild",
            "relative",
            llava_bench.FLAVORS,
            (
                llava_bench.QUESTIONS,
                llava_bench.CONTEXT,
                llava_bench.REFERENCES,
                f"{llava_bench.IMAGES}/",
            ),
            "Apache-2.0",
            "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            "judge",
            llava_bench.llava_bench_task,
            sample=judged.sample_llava_bench,
        ),
        Benchmark(
            "mmhal",
            "MMHal-Bench",
            "score",
            mmhal.FLAVORS,
            (mmhal.QUESTIONS, f"{mmhal.IMAGES}/"),
            "Apache-2.0",
            "https://huggingface.co/datasets/Shengcao1006/MMHal-Bench",
            "judge",
            mmhal.mmhal_task,
            sample=judged.sample_mmhal,
        ),
        Benchmark(
            "mementos",
            "Mementos",
            "object_f1",
            mementos.FLAVORS,
            (
                *(f"{domain}_description.csv" for domain in mementos.DOMAINS),
                "sym_graphs/",
                "images/",
            ),
            _UNSTATED,
            "https://github.com/si0wang/Mementos",
            "judge",
            mementos.mementos_task,
            sample=judged.sample_mementos,
        ),
    )
}
"""Every benchmark by its name."""


def load_task(name: str, data: str | Path) -> Task:
    """The task of a benchmark's name.

    Args:
        name: Key of :data:`BENCHMARKS`.
        data: Folder that holds the benchmarks' folders.

    Raises:
        PolyptychError: For an unknown name, or if its folder is missing.
    """
    if name not in BENCHMARKS:
        raise PolyptychError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name].task(data)
