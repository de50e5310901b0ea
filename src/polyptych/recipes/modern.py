r"""Methods on a model of transformers, trained alone.

The base comes from the command line: a LLaVA, LLaVA-OneVision, Qwen-VL, InternVL, Idefics3, SmolVLM
or Gemma 3. Sizes of the methods (width, layer k) are chosen from its config. Data first, or any
records of your own::

    for task in group_captioning storytelling; do
        polyptych data make storybook --task $task --split train --count 10000 --out data/$task
        polyptych data make storybook --task $task --split validation --count 200 \
            --out data/$task-validation
    done
    polyptych train modern --base llava-hf/llava-onevision-qwen2-0.5b-ov-hf --methods sam,vpgc
"""

from polyptych.recipes import Recipe

RECIPE = Recipe(
    name="modern",
    stage="finetune",
    trainable=("polyptych_methods",),
    data={
        "train": ["data/group_captioning/records.jsonl", "data/storytelling/records.jsonl"],
        "validation": [
            "data/group_captioning-validation/records.jsonl",
            "data/storytelling-validation/records.jsonl",
        ],
    },
    optimizer={
        # New layers on a frozen base learn at ten times the rate that Cheetah gives its own, which
        # starts from a Q-Former that can already see.
        "learning_rate": 2e-4,
        "betas": (0.9, 0.98),  # BLIP-2, section 3.4
        "weight_decay": 0.05,  # BLIP-2, section 3.4
        "schedule": "cosine",
        "warmup_steps": 100,
    },
    steps=2000,
    global_batch_size=32,
    micro_batch_size=4,  # 4 rows of 8 images with 576 tokens each are 18,000 tokens
    gradient_checkpointing=True,
    precision="bf16",
    log_every=20,
    save_every=200,
    validation={"every": 500, "max_new_tokens": 24},  # the longest reference has about 20 tokens
)
