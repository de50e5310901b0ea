r"""Second stage over Storybook: the aligned base learns to read groups, with SAM's guidance.

After ``storybook_align`` and its data::

    for task in group_captioning storytelling; do
        polyptych data make storybook --task $task --split train --count 10000 --out data/$task
        polyptych data make storybook --task $task --split validation --count 200 \
            --out data/$task-validation
    done
    polyptych train storybook_finetune --out runs/storybook-sam
"""

from polyptych.recipes import Recipe

BASE = "runs/storybook-align/best"

RECIPE = Recipe(
    name="storybook_finetune",
    stage="finetune",
    model={
        "checkpoint": BASE,
        "config": {"model_type": "polyptych_sam", "guidance": "paper"},
        # The W-former starts as a copy of the Q-Former (SAM shares its weights outright).
        "parts": {"connector.guidance.w_former.tower": f"{BASE}#connector.qformer"},
    },
    # SAM trains its three new layers alone, on a base that has seen groups of pictures. Ours has
    # only seen single ones, so the connector and the small language model learn along.
    trainable=("connector", "language_model"),
    data={
        "train": ["data/group_captioning/records.jsonl", "data/storytelling/records.jsonl"],
        "validation": [
            "data/group_captioning-validation/records.jsonl",
            "data/storytelling-validation/records.jsonl",
        ],
        "feature_cache": "runs/storybook-align/features",  # frozen encoder: computed once
    },
    optimizer={
        "learning_rate": 5e-4,  # half of the first stage's
        "betas": (0.9, 0.98),  # as in the first stage
        "weight_decay": 0.05,  # as in the first stage
        "schedule": "cosine",
        "warmup_steps": 100,
    },
    steps=2000,
    global_batch_size=32,
    log_every=20,
    save_every=200,
    validation={"every": 500, "max_new_tokens": 24},  # the longest reference has about 20 tokens
)
