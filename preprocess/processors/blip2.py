"""BLIP-2 (Li et al., 2023): one picture, squeezed to a square, in front of the text."""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import read_siglip_recipe
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.prefix import with_prefix
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import image_settings, model_settings
from preprocess.processors.tokens import feature_token

_OPT_HIDDEN_SIZE = 768  # where the text's section does not say


class Blip2Processor:
    """A picture is as many tokens as the model has queries, before the text and its </s>."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        side = config.section("vision_config").integer("image_size", 224)
        self._hidden_size = config.section("text_config").integer("hidden_size", _OPT_HIDDEN_SIZE)
        self._num_queries = config.integer("num_query_tokens", 32)
        self._recipe = read_siglip_recipe(settings, 384, CLIP_MEAN, CLIP_STD)
        if self._recipe.size != (side, side):
            raise settings.wrong("size", self._recipe.size, f"{side} x {side}, as the tower of config.json takes it")
        self._token_id = feature_token(files.tokenizer, "<image>", config("image_token_index", None))

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        if not isinstance(media, Image):
            raise unusable(f"this model takes no {media.modality} items")
        return MediaItem("image", self._recipe.tensors(self._recipe(media.pixels)), self._num_queries)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if embeddings.modality != "image":
            raise unusable(f"this model takes no {embeddings.modality} items")
        rows = rows_per_item(embeddings, self._hidden_size)
        for of_item in rows:
            if len(of_item) != self._num_queries:
                raise unusable(f"image embeddings have {len(of_item):,} rows; a picture has {self._num_queries}")
        return [embedded_item("image", of_item) for of_item in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return ""

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return with_prefix(prompt.encode(prompt.text), items, self._token_id)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return with_prefix(list(token_ids), items, self._token_id)


@processor("Blip2ForConditionalGeneration")
def blip2(files: ProcessorFiles) -> Blip2Processor:
    return Blip2Processor(files)
