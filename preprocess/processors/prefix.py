"""Owns prompts whose picture has no marker: its features come before everything, even before what the tokenizer puts there."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media_item import EncodedPrompt, MediaItem, PlacedItem
from preprocess.processors.placeholders import is_expanded


def with_prefix(token_ids: list[int], items: Sequence[MediaItem], token_id: int) -> EncodedPrompt:
    """The prompt behind the item's tokens, each a `token_id`, which may stand there already.

    Raises InvalidRequest (MEDIA_COUNT) for more than one item.
    """
    if not items:
        return EncodedPrompt(token_ids)
    if len(items) > 1:
        raise InvalidRequest(
            f"the prompt comes with {len(items)} pictures; this model takes 1", ErrorReason.ERROR_REASON_MEDIA_COUNT
        )
    (item,) = items
    run = [token_id] * item.num_features
    there = is_expanded(token_ids, items, {item.modality: (token_id,)}) and token_ids[: len(run)] == run
    return EncodedPrompt(token_ids if there else run + token_ids, (PlacedItem(item, ((0, len(run)),)),))
