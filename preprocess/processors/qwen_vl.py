"""Pictures of Qwen-VL (Bai et al., 2023): squeezed to one square, and as many tokens each."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, normalization, rgb
from preprocess.processors.precomputed import embedded_item, rows_by_counts
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.tokens import token_id

_BEGIN, _PAD, _END = "<img>", "<imgpad>", "</img>"


class QwenVlProcessor:
    """A picture between its tags; in the model's own prompts `Picture 1: ` and its like stand before them."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config = model_settings(files)
        visual = config.section("visual")
        self._side, self._num_rows = visual.integer("image_size", 448), visual.integer("n_queries", 256)
        self._hidden_size = config.integer("hidden_size")
        self._runs = TokenRuns(
            files.tokenizer,
            {"image": token_id(files.tokenizer, _PAD)},
            lambda item, _: _BEGIN + _PAD * item.num_features + _END,
            markers={"image": _BEGIN + _END},
        )
        self._normalization = normalization(1 / 255, CLIP_MEAN, CLIP_STD)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (3, S, S) uint8."""
        picture = rgb(media.pixels).resize((self._side, self._side), PilImages.Resampling.BICUBIC)
        tensors = {"pixels": channels_first(picture), "normalization": self._normalization}
        return MediaItem("image", tensors, self._num_rows)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (Q, D)."""
        num_items = sum(len(value) if value.ndim == 3 else 1 for value in embeddings.values)
        rows = rows_by_counts(embeddings, self._hidden_size, [self._num_rows] * num_items)
        return [embedded_item("image", value) for value in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"Picture {index + 1}: {_BEGIN}{_END}\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)


@processor("QWenLMHeadModel")
def qwen_vl(files: ProcessorFiles) -> QwenVlProcessor | None:
    """None for Qwen without pictures."""
    return QwenVlProcessor(files) if files.config.get("visual") else None
