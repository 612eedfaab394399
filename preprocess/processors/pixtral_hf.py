"""Owns the prompts and pictures of Pixtral in Hugging Face's format: any size, a row of tokens for each row of patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.patch_grid import PatchGrid, row_tokens
from preprocess.processors.picture_recipe import PictureRecipe, read_resample
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, read_normalization
from preprocess.processors.precomputed import unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.settings import Settings, image_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import media_token_id, text_hidden_size


class PixtralHfProcessor:
    """Pictures of any size, shrunk to what the checkpoint takes; `[IMG]` becomes rows that end in `[IMG_BREAK]`."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        self._patch_size = config.section("vision_config").integer("patch_size", 16)
        self._grid = PatchGrid(*_read_largest(settings), self._patch_size)
        self._recipe = PictureRecipe(
            read_normalization(settings.data, CLIP_MEAN, CLIP_STD), resample=read_resample(settings)
        )
        self._resizes = settings.flag("do_resize", True)
        self._hidden_size = text_hidden_size(config)
        self._runs = TokenRuns(files.tokenizer, {"image": media_token_id(config, "image", 10)}, self._expanded)
        names = Settings(files.processor, "processor_config.json")
        self._tokens = (
            self._runs.markers["image"],
            names("image_break_token", "[IMG_BREAK]"),
            names("image_end_token", "[IMG_END]"),
        )

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        assert isinstance(media, Image)
        rows, columns = self._grid.of(*media.pixels.size)
        height, width = rows * self._patch_size, columns * self._patch_size
        if not self._resizes and media.pixels.size != (width, height):
            raise unusable(
                f"a picture of {media.pixels.width:,} x {media.pixels.height:,} pixels is not resized for this model, which "
                f"takes whole patches of {self._patch_size} up to {self._grid.most_width:,} x {self._grid.most_height:,}"
            )
        pixels = dataclasses.replace(self._recipe, size=(height, width))(media.pixels)
        return MediaItem("image", self._recipe.tensors(pixels), rows * columns, (rows, columns))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        return self._grid.embedded(embeddings, self._hidden_size)

    def chat_marker(self, modality: str, index: int) -> str:
        return self._tokens[0]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _expanded(self, item: MediaItem, index: int) -> str:
        return row_tokens(item, self._tokens)


def _read_largest(settings: Settings) -> tuple[int, int]:
    """The largest picture, (height, width)."""
    size = settings("size", {"longest_edge": 1024})
    sides = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else {}
    if sides.keys() == {"longest_edge"}:
        return sides["longest_edge"], sides["longest_edge"]
    if sides.keys() == {"height", "width"}:
        return sides["height"], sides["width"]
    raise settings.wrong("size", size, "an object with longest_edge, or with height and width")
