"""SAM: Semantic Alignment for Multimodal LLMs (not Segment Anything). The idea of the paper.

arXiv 2408.12867. While the visual tokens of an image are extracted, a second stream, the W-former,
reads the images around it (*contextual semantic generation*), told by the current image's initial
visual tokens what to look for; its result goes back into the first stream (*assisted visual token
extraction*). Two zero-initialized linear layers carry the exchange, so that training starts from
the base model exactly.

Two forms (chosen by ``guidance`` in the config):

``released``  what the published code computes: the W-former shares every weight with the Q-Former,
              its image is the mean of **all** images weighted per patch position, and the exchange
              happens before the last layer only, after which nothing looks at pixels again (for an
              even number of layers).
``paper``     what the method figure shows: a W-former of its own, contextual images are the
              **other** images, all their patches can be chosen, the current image's initial visual
              tokens enter before layer l, the contextual semantics leave after layer k >= l, and a
              later layer looks at the current image again. A lone image is left untouched.

Notation of the comments: Q stream = the Q-Former reading the current image; W stream = W-former;
h_j = initial visual tokens of image j; c_j = contextual semantics for image j; V_j = its features.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyptych.connectors.qformer import KeyValue, QFormer
from polyptych.connectors.zero_linear import ZeroLinear

Record = dict[str, Tensor] | None
"""Receives the named intermediates of a pass, where somebody asked for them."""


class AdaptiveAdjustment(nn.Module):
    """One learned score per patch; images compete for each patch position.

    ``w_j[p] = softmax_j(V_j[p] a + b)``, ``C[p] = sum_j w_j[p] V_j[p]``
    """

    def __init__(self, vision_width: int) -> None:
        super().__init__()
        self.score = nn.Linear(vision_width, 1)

    def forward(
        self,
        features: Float[Tensor, "I P D_v"],
        example: Int[Tensor, " I"],
        num_examples: int,
        record: Record = None,
    ) -> Float[Tensor, "B P D_v"]:
        """The contextual image of each example, mixed from all its images."""
        scores = self.score(features)
        index = example[:, None, None].expand_as(scores)
        top = scores.new_full((num_examples, *scores.shape[1:]), float("-inf"))
        top = top.scatter_reduce(0, index, scores.detach(), "amax")
        weights = (scores - top[example]).exp()
        total = torch.zeros_like(top).index_add(0, example, weights)
        weights = weights / total[example]
        pooled = features.new_zeros(num_examples, *features.shape[1:])
        pooled = pooled.index_add(0, example, weights * features)
        if record is not None:
            record.update({"adaptive.scores": scores, "adaptive.weights": weights})
            record["adaptive.pooled"] = pooled
        return pooled


class ReleasedGuidance(nn.Module):
    """The published computation, with nothing computed twice.

    The W stream does not depend on the current image before the last layer, so it runs once per
    example (the released code: once per image), and the keys and values of the contextual image
    are projected once.
    """

    def __init__(self, width: int, vision_width: int) -> None:
        super().__init__()
        self.adaptive_adjustment = AdaptiveAdjustment(vision_width)
        self.query_to_w = ZeroLinear(width, width)  # released name: one_2_muliple
        self.w_to_query = ZeroLinear(width, width)  # released name: multiple_2_one

    def forward(
        self,
        qformer: QFormer,
        features: Float[Tensor, "I P D_v"],
        example: Int[Tensor, " I"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None,
        instruction_mask: Int[Tensor, "B T_q"] | None,
        record: Record = None,
    ) -> Float[Tensor, "I R D_q"]:
        """Guided queries of every image (R = Q; all rows when intermediates are recorded)."""
        num_queries, last = qformer.num_query_tokens, len(qformer.layers) - 1
        pooled = self.adaptive_adjustment(features, example, len(image_counts), record)
        embedded = qformer.embed(len(image_counts), instruction_ids)
        w_mask = qformer.self_mask(instruction_mask)
        q_mask = None if w_mask is None else w_mask[example]
        own, shared = qformer.image_key_values(features), qformer.image_key_values(pooled)

        w, q = embedded, embedded[example]
        _note(record, "qformer.embeddings", q)
        for index, layer in enumerate(qformer.layers[:last]):
            _note_attention(record, qformer, index, q, own[index])
            _note(record, f"streamW.layer.{index}.in", w)
            _note(record, f"streamQ.layer.{index}.in", q)
            w = layer(w, num_queries, w_mask, shared[index])
            if index == 0:
                q = layer(embedded, num_queries, w_mask, own[0], example=example)
            else:
                q = layer(q, num_queries, q_mask, own[index])
            _note(record, f"streamW.layer.{index}.out", w)
            _note(record, f"streamQ.layer.{index}.out", q)

        # The only place of exchange: q are the initial visual tokens h_j.
        _note_attention(record, qformer, last, q, own[last])
        layer, context = qformer.layers[last], _rows(shared[last], example)
        told = self.query_to_w(q)
        w_in = w[example] + told
        w_out = layer(w_in, num_queries, q_mask, context)
        semantics = self.w_to_query(w_out)  # c_j
        q_in = q + semantics
        q_out = layer(q_in, num_queries, q_mask, own[last], queries_only=record is None)
        if record is not None:
            record.update({"guid.q_to_w.in": q, "guid.q_to_w.out": told})
            record.update({"guid.w_to_q.in": w_out, "guid.w_to_q.out": semantics})
            record.update({f"streamW.layer.{last}.in": w_in, f"streamW.layer.{last}.out": w_out})
            record.update({f"streamQ.layer.{last}.in": q_in, f"streamQ.layer.{last}.out": q_out})
        return q_out


class WFormer(nn.Module):
    """The paper's second tower: layers 0..k of its own, which read the *other* images.

    Starts as a copy of the Q-Former (queries, text embeddings, layers), as the figure draws it.
    """

    def __init__(self, qformer: QFormer, num_layers: int) -> None:
        super().__init__()
        tower = copy.deepcopy(qformer)
        tower.layers = tower.layers[:num_layers]
        self.tower = tower


class PaperGuidance(nn.Module):
    """The method as drawn: steered choice among the other images' patches, then a second look.

    Args:
        qformer: The base Q-Former; its layers are copied for the W-former.
        vision_width: D_v.
        exchange_from: l, the layer before which the W stream receives h_j.
        exchange_to: k >= l, the layer after which the Q stream receives c_j.

    Raises:
        ValueError: If h_j has not looked at its image, if no W layer in l..k looks at the context,
            or if no Q layer after k looks at its image again.
    """

    def __init__(
        self, qformer: QFormer, vision_width: int, exchange_from: int, exchange_to: int
    ) -> None:
        super().__init__()
        looks = [i for i, layer in enumerate(qformer.layers) if layer.has_cross_attention]
        if not (
            any(i < exchange_from for i in looks)
            and any(exchange_from <= i <= exchange_to for i in looks)
            and any(i > exchange_to for i in looks)
        ):
            raise ValueError(
                f"exchange layers l={exchange_from}, k={exchange_to} leave no cross-attention "
                f"(layers {looks}) before l, in l..k and after k"
            )
        width = qformer.config.hidden_size
        self.exchange_from, self.exchange_to = exchange_from, exchange_to
        self.w_former = WFormer(qformer, exchange_to + 1)
        self.adaptive_adjustment = AdaptiveAdjustment(vision_width)
        self.query_to_w = ZeroLinear(width, width)
        self.w_to_query = ZeroLinear(width, width)

    def forward(
        self,
        qformer: QFormer,
        features: Float[Tensor, "I P D_v"],
        example: Int[Tensor, " I"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None,
        instruction_mask: Int[Tensor, "B T_q"] | None,
        record: Record = None,
    ) -> Float[Tensor, "I Q D_q"]:
        """Guided queries of every image."""
        num_queries, last = qformer.num_query_tokens, len(qformer.layers) - 1
        ids = None if instruction_ids is None else instruction_ids[example]
        text = None if instruction_mask is None else instruction_mask[example]
        mask, own = qformer.self_mask(text), qformer.image_key_values(features)
        q = qformer.embed(len(features), ids)
        for index, layer in enumerate(qformer.layers):
            if index == self.exchange_from:
                _note(record, "initial_visual_tokens", q)
                guided, semantics = self.contextual_semantics(
                    q, features, image_counts, instruction_ids, instruction_mask, record
                )
            _note_attention(record, qformer, index, q, own[index])
            q = layer(q, num_queries, mask, own[index], queries_only=index == last)
            if index == self.exchange_to:
                q = q.index_add(0, guided, semantics.to(q.dtype))
        return q

    def contextual_semantics(
        self,
        initial: Float[Tensor, "I S D_q"],
        features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None,
        instruction_mask: Int[Tensor, "B T_q"] | None,
        record: Record,
    ) -> tuple[Int[Tensor, " G"], Float[Tensor, "G S D_q"]]:
        """c_j for the G images that have a context, and which images those are.

        The W stream runs over slots: the C examples that have several images, times the largest
        number J of their images. All slots of an example share the keys and values of its images.
        """
        several = (image_counts > 1).nonzero()[:, 0]
        if len(several) == 0:
            return several, initial[:0]
        image, filled = image_slots(image_counts, several)
        tower, slots = self.w_former.tower, image.shape[1]
        ids, text = (
            None if x is None else x[several].repeat_interleave(slots, dim=0)
            for x in (instruction_ids, instruction_mask)
        )
        context = tower.image_key_values(features[image].flatten(1, 2))
        score = self.adaptive_adjustment.score(features).squeeze(-1)[image].flatten(1)
        patches = filled[..., None].expand(-1, -1, features.shape[1])
        visible = context_mask(patches, tower.num_query_tokens)
        w, mask = tower.embed(image.numel(), ids), tower.self_mask(text)
        for index, layer in enumerate(tower.layers):
            if index == self.exchange_from:
                w = w + self.query_to_w(initial[image.flatten()])
            seen = context[index]
            if record is not None and seen is not None:
                looked = layer.cross_attention.weights(
                    w[:, : tower.num_query_tokens], seen, visible, score
                )
                looked = looked.unflatten(1, (slots, -1))[filled.flatten()]
                record[f"context.attention.layer.{index}"] = looked
            w = layer(w, tower.num_query_tokens, mask, seen, visible, score)
        guided, semantics = image[filled], self.w_to_query(w[filled.flatten()])
        if record is not None:
            record["context.guided"], record["contextual_semantics"] = guided, semantics
            of_example = image[:, None].expand(-1, slots, -1)
            record["context.images"] = of_example.flatten(0, 1)[filled.flatten()]
        return guided, semantics


def image_slots(
    image_counts: Int[Tensor, " B"], examples: Int[Tensor, " C"]
) -> tuple[Int[Tensor, "C J"], Bool[Tensor, "C J"]]:
    """The images of some examples as a table, and which of its places hold one.

    Empty places repeat the example's first image. Counts ``[2, 0, 3]`` and examples ``[0, 2]``:
    ``[[0, 1, 0], [2, 3, 4]]``, ``[[T, T, F], [T, T, T]]``.
    """
    counts = image_counts[examples, None]
    first = (image_counts.cumsum(0) - image_counts)[examples, None]
    place = torch.arange(int(counts.max()), device=counts.device)
    filled = place < counts
    return first + place * filled, filled


def context_mask(present: Bool[Tensor, "C J P"], num_queries: int) -> Bool[Tensor, "C 1 R K"]:
    """What each slot's queries may choose among: what is present of the *other* images.

    Two images at least of each example; the queries of an empty slot see all of them. R = J Q
    queries, K = J P patches.
    """
    count, slots, places = present.shape
    itself = torch.eye(slots, dtype=torch.bool, device=present.device)
    visible = present[:, None] & ~itself[..., None]  # (C, J, J, P): slot, image, place
    visible = visible[:, :, None].expand(-1, -1, num_queries, -1, -1)
    return visible.reshape(count, 1, slots * num_queries, slots * places)


def _rows(key_value: KeyValue | None, index: Tensor) -> KeyValue | None:
    return None if key_value is None else (key_value[0][index], key_value[1][index])


def _note(record: Record, name: str, value: Tensor) -> None:
    if record is not None:
        record[name] = value


def _note_attention(
    record: Record, qformer: QFormer, index: int, hidden: Tensor, image: KeyValue | None
) -> None:
    if record is not None:
        qformer.record_attention(record, index, hidden, image)
