"""Owns the usual way of items into a prompt: each marker becomes a piece of text or ids, whose runs hold the features."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media_item import MediaItem, PlacedItem
from preprocess.processors.processor import PromptText


def replace_markers(
    prompt: PromptText,
    items: Sequence[MediaItem],
    markers: dict[str, str],
    replacement: Callable[[MediaItem, int], str],
) -> str:
    """The prompt's text with the markers of each modality replaced, in order; still to be encoded.

    `markers` is a modality's marker, made of control tokens or of plain text; `replacement(item, index)` what stands in its
    place, the index counting items of that modality from 0. Items of one modality are in the order of their markers.
    Raises InvalidRequest (MEDIA_COUNT) where the numbers differ.
    """
    written = {prompt.write(marker): modality for modality, marker in markers.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True))))
    queues = {modality: [item for item in items if item.modality == modality] for modality in markers}
    found = Counter(written[match[0]] for match in pattern.finditer(prompt.text))
    check_counts({modality: found[modality] for modality in markers}, items)
    taken: Counter[str] = Counter()

    def replaced(match: re.Match[str]) -> str:
        modality = written[match[0]]
        index = taken[modality]
        taken[modality] += 1
        return prompt.write(replacement(queues[modality][index], index))

    return pattern.sub(replaced, prompt.text)


def replace_ids(
    token_ids: Sequence[int],
    items: Sequence[MediaItem],
    markers: dict[str, Sequence[int]],
    replacement: Callable[[MediaItem, int], Sequence[int]],
) -> list[int]:
    """The same for ids: each occurrence of a modality's marker ids becomes `replacement(item, index)`."""
    queues = {modality: [item for item in items if item.modality == modality] for modality in markers}
    taken: Counter[str] = Counter()
    result: list[int] = []
    position = 0
    while position < len(token_ids):
        modality = next(
            (m for m, ids in markers.items() if list(token_ids[position : position + len(ids)]) == list(ids)), None
        )
        if modality is None:
            result.append(token_ids[position])
            position += 1
            continue
        if taken[modality] < len(queues[modality]):
            result += replacement(queues[modality][taken[modality]], taken[modality])
        taken[modality] += 1
        position += len(markers[modality])
    check_counts({modality: taken[modality] for modality in markers}, items)
    return result


def place(
    token_ids: list[int], items: Sequence[MediaItem], feature_ids: dict[str, Collection[int]]
) -> tuple[PlacedItem, ...]:
    """Where each item's features go: tokens with an id in feature_ids[modality] take them in order, item after item.

    They come in the order of the prompt, whatever their modality.

    Raises InvalidRequest (MEDIA_COUNT) where there are more or fewer such tokens than features.
    """
    rows = {
        modality: [index for index, token_id in enumerate(token_ids) if token_id in ids]
        for modality, ids in feature_ids.items()
    }
    placed, used = [], Counter()
    for item in items:
        first = used[item.modality]
        used[item.modality] += item.num_features
        placed.append(PlacedItem(item, spans_of(rows[item.modality][first : used[item.modality]])))
    for modality, found in rows.items():
        if len(found) != used[modality]:
            raise InvalidRequest(
                f"the prompt has {len(found):,} tokens that stand for {modality} features; its items have {used[modality]:,}",
                ErrorReason.ERROR_REASON_MEDIA_COUNT,
            )
    return tuple(sorted(placed, key=lambda item: item.spans))


def is_expanded(token_ids: Sequence[int], items: Sequence[MediaItem], feature_ids: dict[str, Collection[int]]) -> bool:
    """Whether the ids have a token for every feature of the items already."""
    wanted: Counter[str] = Counter()
    for item in items:
        wanted[item.modality] += item.num_features
    return bool(items) and all(
        sum(token_id in ids for token_id in token_ids) == wanted[modality] for modality, ids in feature_ids.items()
    )


def spans_of(rows: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indexes as spans (start, length)."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        if spans and row == sum(spans[-1]):
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((row, 1))
    return tuple(spans)


def check_counts(found: dict[str, int], items: Sequence[MediaItem]) -> None:
    """Raises InvalidRequest (MEDIA_COUNT) unless there are as many markers as items of each modality."""
    given = Counter(item.modality for item in items)
    for modality, count in found.items():
        if count != given[modality]:
            problem = f"the prompt has {count} places for {modality} items, and {given[modality]} are given"
            raise InvalidRequest(problem, ErrorReason.ERROR_REASON_MEDIA_COUNT)
    for modality in given.keys() - found.keys():
        raise InvalidRequest(f"this model takes no {modality} items", ErrorReason.ERROR_REASON_MEDIA_UNUSABLE)
