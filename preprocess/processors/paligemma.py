"""Owns the prompts and pictures of PaliGemma: pictures first, then <s>, the text and the end of its line."""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import read_siglip_recipe
from preprocess.processors.placeholders import check_counts, is_expanded, place
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import image_settings, model_settings
from preprocess.processors.tokens import token_id, token_text
from preprocess.processors.vision_section import media_token_id, read_vision, text_hidden_size


@processor("PaliGemmaForConditionalGeneration")
class PaliGemmaProcessor:
    """Prompts may say where pictures are, or not: then they come before everything."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config = model_settings(files)
        self._vision = read_vision(config, strategy="full", default_type="siglip_vision_model")
        self._recipe = read_siglip_recipe(image_settings(files), self._vision.image_size)
        self._hidden_size = text_hidden_size(config)
        self._image_id = media_token_id(config, "image", 256000)
        self._image = token_text(files.tokenizer, self._image_id, "an image")
        self._bos = files.tokenizer.named_tokens.get("bos_token", "<bos>")
        self._bos_id = token_id(files.tokenizer, self._bos)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        assert isinstance(media, Image)
        pixels = self._vision.checked(self._recipe(media.pixels))
        return MediaItem("image", self._recipe.tensors(pixels), self._vision.num_rows)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        return self._vision.embedded(embeddings, self._hidden_size)

    def chat_marker(self, modality: str, index: int) -> str:
        return self._image

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        marker = prompt.write(self._image)
        pieces = prompt.text.split(marker)
        if len(pieces) == 1:
            if not items:
                return EncodedPrompt(prompt.encode(prompt.text))
            pieces = [""] * len(items) + pieces
        check_counts({"image": len(pieces) - 1}, items)
        text = prompt.write(self._image * self._vision.num_rows).join([*pieces[:-1], ""])
        token_ids = prompt.encode(f"{text}{prompt.write(self._bos)}{pieces[-1]}\n", add_special_tokens=False)
        return self._placed(token_ids, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """Without a picture's token, pictures and <s> come before everything; a <s> that is there stays the only one."""
        token_ids = list(token_ids)
        if items and not is_expanded(token_ids, items, {"image": (self._image_id,)}):
            if self._image_id not in token_ids:
                first = [] if token_ids[:1] == [self._bos_id] else [self._bos_id]
                token_ids = [self._image_id] * len(items) + first + token_ids
            check_counts({"image": token_ids.count(self._image_id)}, items)
            runs = ([found] * (self._vision.num_rows if found == self._image_id else 1) for found in token_ids)
            token_ids = [found for run in runs for found in run]
        return self._placed(token_ids, items)

    def _placed(self, token_ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return EncodedPrompt(token_ids, place(token_ids, items, {"image": (self._image_id,)}))
