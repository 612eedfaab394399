"""Owns prompts in which a token or a text stands for an item, and becomes runs of a token that take the item's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.placeholders import is_expanded, place, replace_ids, replace_markers
from preprocess.processors.processor import PromptText
from preprocess.processors.tokens import token_text
from preprocess.tokenizer import TextTokenizer


class TokenRuns:
    """Expands prompts in text and in ids. Threads may share one."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        token_ids: Mapping[str, int],
        expansion: Callable[[MediaItem, int], str] | None = None,
        *,
        markers: Mapping[str, str] | None = None,
    ) -> None:
        """`token_ids` is each modality's token, and `expansion(item, index)` the text of a run that holds it once for each
        of the item's features; by default this alone. `markers` are what stands for an item, by default these tokens.
        Raises CheckpointError for an id that the tokenizer does not have.
        """
        self._tokenizer = tokenizer
        self._token_ids = dict(token_ids)
        tokens = {
            modality: token_text(tokenizer, token_id, f"an {modality}") for modality, token_id in token_ids.items()
        }
        self.markers = dict(markers or tokens)
        self._feature_ids = {modality: (token_id,) for modality, token_id in token_ids.items()}
        self._expansion = expansion

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        """See Processor."""
        token_ids = prompt.encode(replace_markers(prompt, items, self.markers, self._expanded))
        return EncodedPrompt(token_ids, place(token_ids, items, self._feature_ids))

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """See Processor."""
        token_ids = list(token_ids)
        if not is_expanded(token_ids, items, self._feature_ids):
            markers = {modality: self._encode(marker) for modality, marker in self.markers.items()}
            token_ids = replace_ids(token_ids, items, markers, self._expanded_ids)
        return EncodedPrompt(token_ids, place(token_ids, items, self._feature_ids))

    def _expanded(self, item: MediaItem, index: int) -> str:
        if self._expansion is not None:
            return self._expansion(item, index)
        return self.markers[item.modality] * item.num_features

    def _expanded_ids(self, item: MediaItem, index: int) -> list[int]:
        if self._expansion is None:
            return [self._token_ids[item.modality]] * item.num_features
        return self._encode(self._expansion(item, index))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)
