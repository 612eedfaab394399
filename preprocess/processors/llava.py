"""Owns the prompts and pictures of Llava and Mantis, whose towers are CLIP's or SigLIP's; pixtral_hf.py has Pixtral's."""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import PictureRecipe, processor_type, read_clip_recipe, read_siglip_recipe
from preprocess.processors.pixtral_hf import PixtralHfProcessor
from preprocess.processors.processor import Processor, ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import media_token_id, read_vision, text_hidden_size


@processor("LlavaForConditionalGeneration")
def llava(files: ProcessorFiles) -> Processor:
    """Checkpoints of Mantis name Llava, and their own processor elsewhere."""
    if model_settings(files).section("vision_config")("model_type", None) == "pixtral":
        return PixtralHfProcessor(files)
    names = {image_settings(files)("processor_class", None), files.processor.get("processor_class")}
    return LlavaProcessor(files, numbered="MLlavaProcessor" in names)


@processor("MantisForConditionalGeneration")
def mantis(files: ProcessorFiles) -> Processor:
    return LlavaProcessor(files, numbered=True)


class LlavaProcessor:
    """Pictures of one size, whose patches stand where `<image>` is; Mantis writes their numbers around them."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles, *, numbered: bool = False) -> None:
        config = model_settings(files)
        self._vision = read_vision(config)
        self._recipe = read_recipe(image_settings(files), self._vision.image_size, is_clip=self._vision.class_token)
        self._hidden_size = text_hidden_size(config)
        self._runs = TokenRuns(
            files.tokenizer, {"image": media_token_id(config, "image", 32000)}, self._numbered if numbered else None
        )

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        assert isinstance(media, Image)
        pixels = self._vision.checked(self._recipe(media.pixels))
        return MediaItem("image", self._recipe.tensors(pixels), self._vision.num_rows)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        return self._vision.embedded(embeddings, self._hidden_size)

    def chat_marker(self, modality: str, index: int) -> str:
        return self._runs.markers[modality]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _numbered(self, item: MediaItem, index: int) -> str:
        return f"(image {index + 1}: <Image>{self._runs.markers['image'] * item.num_features}</Image>)"


def read_recipe(settings: Settings, side: int, *, is_clip: bool) -> PictureRecipe:
    """The recipe of the image processor that the settings name; that of the tower's own kind where they name none."""
    kind = processor_type(settings, "LlavaImageProcessor" if is_clip else "SiglipImageProcessor")
    if kind == "SiglipImageProcessor":
        return read_siglip_recipe(settings, side)
    if kind in ("CLIPImageProcessor", "LlavaImageProcessor"):
        return read_clip_recipe(settings, side)
    expected = "CLIPImageProcessor, LlavaImageProcessor or SiglipImageProcessor"
    raise settings.wrong("image_processor_type", kind, expected)
