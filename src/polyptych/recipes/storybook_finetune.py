r"""Second stage over Storybook: a base learns to read groups of pictures, with SAM's guidance.

It starts from the bundled base; ``runs/storybook-align/best`` is one of your own. Data first::

    for task in group_captioning storytelling; do
        polyptych data make storybook --task $task --split train --count 10000 --out data/$task
        polyptych data make storybook --task $task --split validation --count 200 \
            --out data/$task-validation
    done
    polyptych train storybook_finetune --out runs/storybook-sam
"""

from polyptych.recipes import Recipe

BASE = "storybook-base"

RECIPE = Recipe(
    name="storybook_finetune",
    stage="finetune",
    model={
        "checkpoint": BASE,
        "config": {"model_type": "polyptych_sam", "guidance": "paper"},
        # The W-former starts as a copy of the Q-Former (SAM shares its weights outright).
        "parts": {"connector.guidance.w_former.tower": f"{BASE}#connector.qformer"},
    },
    # SAM trains its three new layers alone, on a base of billions of parameters. Ours is small, so
    # the connector and the language model learn along.
    trainable=("connector", "language_model"),
    data={
        "train": ["data/group_captioning/records.jsonl", "data/storytelling/records.jsonl"],
        "validation": [
            "data/group_captioning-validation/records.jsonl",
            "data/storytelling-validation/records.jsonl",
        ],
        "feature_cache": "runs/storybook-sam-features",  # frozen encoder: computed once
    },
    optimizer={
        "learning_rate": 5e-4,  # half of what the base was trained with
        "betas": (0.9, 0.98),  # BLIP-2, section 3.4
        "weight_decay": 0.05,  # BLIP-2, section 3.4
        "schedule": "cosine",
        "warmup_steps": 100,
    },
    steps=2000,
    global_batch_size=32,
    log_every=20,
    save_every=200,
    validation={"every": 500, "max_new_tokens": 24},  # the longest reference has about 20 tokens
)
