r"""First stage over Storybook: a small base learns to describe single pictures.

Data first, about a minute::

    polyptych data make storybook --task description --split train --count 20000 \
        --out data/description
    polyptych data make storybook --task description --split validation --count 200 \
        --out data/description-validation
    polyptych train storybook_align --out runs/storybook-align
"""

from polyptych.recipes import Recipe

RECIPE = Recipe(
    name="storybook_align",
    stage="align",  # single pictures only: the base that every variant starts from
    model={
        "config": {
            "model_type": "polyptych_blip2",
            "vision_config": {  # the bundled encoder's, see polyptych.reproduce.encoder
                "model_type": "resnet",
                "image_size": 96,  # Storybook's own size
                "embedding_size": 32,
                "hidden_sizes": [64, 128],
                "depths": [2, 2],
                "layer_type": "basic",
            },
            "qformer_config": {
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 6,
                "intermediate_size": 256,
                "cross_attention_frequency": 2,  # BLIP-2's rule: a look in every second layer
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "intermediate_size": 352,
                "max_position_embeddings": 256,
                "tie_word_embeddings": True,  # a third of the weights would be word embeddings
                # 0.02 is for widths of thousands; at 128 nothing finds the visual tokens for long.
                "initializer_range": 128**-0.5,
            },
            "instruction_aware": False,
            "num_query_tokens": 4,  # 32 in BLIP-2, for pictures with far more in them
        },
        "tokenizer_size": 1024,  # Storybook's words are one token each
        "layout": {"template": "qa", "max_length": 256},
        "parts": {"vision_encoder": "storybook-base"},
    },
    trainable=("connector", "language_model"),
    data={
        "train": ["data/description/records.jsonl"],
        "validation": ["data/description-validation/records.jsonl"],
        "feature_cache": "runs/storybook-align/features",  # frozen encoder: computed once
    },
    optimizer={
        "learning_rate": 1e-3,  # usual for transformers of this width trained from nothing
        "betas": (0.9, 0.98),  # BLIP-2, section 3.4
        "weight_decay": 0.05,  # BLIP-2, section 3.4
        "schedule": "cosine",  # BLIP-2, section 3.4
        "warmup_steps": 200,  # a tenth of the run
    },
    steps=2000,
    global_batch_size=32,
    log_every=20,
    save_every=200,
    validation={"every": 500, "select_by": "loss", "batch_size": 50},  # captions are long: no CIDEr
)
