r"""First stage over Storybook: a small base learns to see, from single pictures, from nothing.

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
            "vision_config": {
                "model_type": "instructblip_vision_model",  # EVA-CLIP's shape, as in BLIP-2
                "image_size": 96,  # Storybook's own size
                "patch_size": 12,  # 8 x 8 patches: a small thing is about two patches wide
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "intermediate_size": 384,
                "initializer_range": 0.02,  # the default 1e-10 is for loading weights, not learning
            },
            "qformer_config": {
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "intermediate_size": 384,
                # BLIP-2 looks at the image in every second of 12 layers. SAM's paper form needs a
                # look before, in and after the exchange: every one of 4.
                "cross_attention_frequency": 1,
                "max_position_embeddings": 256,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "intermediate_size": 384,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,  # a third of the weights would be word embeddings
            },
            "num_query_tokens": 8,  # 32 in BLIP-2, for pictures with far more in them
        },
        "tokenizer_size": 1024,  # Storybook's words are one token each
        "layout": {"template": "qa", "max_length": 512},
    },
    trainable=("*",),  # nothing is pretrained, so nothing is frozen
    data={
        "train": ["data/description/records.jsonl"],
        "validation": ["data/description-validation/records.jsonl"],
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
