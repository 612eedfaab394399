"""Owns the prompts and media of LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: pictures in tiles, and frames of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings, Image, Video
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors import fixed_point
from preprocess.processors.anyres import AnyRes, read_resolutions
from preprocess.processors.picture_recipe import PictureRecipe, read_clip_recipe, read_siglip_recipe
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, rgb
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import Processor, ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings, video_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import VisionSection, media_token_id, read_vision, text_hidden_size

_RESOLUTIONS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

# Frames in a video -> its features.
CountFeatures = Callable[[int], int]


@processor("LlavaNextForConditionalGeneration")
def llava_next(files: ProcessorFiles) -> Processor:
    config, settings = model_settings(files), image_settings(files)
    vision = read_vision(config)
    return TiledProcessor(
        files,
        vision,
        _anyres(config, settings, vision, _RESOLUTIONS),
        read_clip_recipe(settings, vision.image_size),
        {"image": media_token_id(config, "image", 32000)},
    )


@processor("LlavaNextVideoForConditionalGeneration")
def llava_next_video(files: ProcessorFiles) -> Processor:
    config, settings = model_settings(files), image_settings(files)
    vision = read_vision(config)
    side = vision.side // config.integer("spatial_pool_stride", 2)
    return TiledProcessor(
        files,
        vision,
        _anyres(config, settings, vision, _RESOLUTIONS),
        read_clip_recipe(settings, vision.image_size),
        {"image": media_token_id(config, "image", 32001), "video": media_token_id(config, "video", 32000)},
        frames=_of_videos(files, read_clip_recipe(video_settings(files), vision.image_size)),
        video_features=lambda num_frames: num_frames * side**2,
    )


@processor("LlavaOnevisionForConditionalGeneration")
def llava_onevision(files: ProcessorFiles) -> Processor:
    config, settings = model_settings(files), image_settings(files)
    vision = read_vision(config, strategy="full", default_type="siglip_vision_model")
    lengths = range(vision.image_size, 6 * vision.image_size + 1, vision.image_size)
    resolutions = tuple((height, width) for height in lengths for width in lengths)
    side = -(-vision.side // 2)
    return TiledProcessor(
        files,
        vision,
        _anyres(config, settings, vision, resolutions, _max_tiles(config, files)),
        read_siglip_recipe(settings, vision.image_size, CLIP_MEAN, CLIP_STD),
        {"image": media_token_id(config, "image", 151646), "video": media_token_id(config, "video", 151647)},
        frames=_of_videos(files, read_siglip_recipe(video_settings(files), vision.image_size, CLIP_MEAN, CLIP_STD)),
        video_features=lambda num_frames: num_frames * side**2 + 1,  # and one row at the end of all
    )


class TiledProcessor:
    """Pictures as one squeezed tile and the tiles of a resolution that suits them; each frame of a video as one tile."""

    sample_rate = None

    def __init__(
        self,
        files: ProcessorFiles,
        vision: VisionSection,
        anyres: AnyRes,
        recipe: PictureRecipe,
        token_ids: dict[str, int],
        *,
        frames: PictureRecipe | None = None,
        video_features: CountFeatures | None = None,
    ) -> None:
        """`recipe` finishes a tile, `frames` makes one of a frame."""
        self.modalities = tuple(token_ids)
        self._vision, self._anyres, self._recipe = vision, anyres, recipe
        self._frames, self._video_features = frames, video_features
        self._hidden_size = text_hidden_size(model_settings(files))
        self._runs = TokenRuns(files.tokenizer, token_ids)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        match media:
            case Image(image):
                return self._picture(rgb(image))
            case Video(frames):
                return self._video(frames)
        raise unusable(f"this model takes no {media.modality} items")

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        rows = rows_per_item(embeddings, self._hidden_size)
        return [embedded_item(embeddings.modality, item) for item in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return self._runs.markers[modality]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _picture(self, image: PilImages.Image) -> MediaItem:
        layout = self._anyres.layout(*image.size)
        tiles = self._anyres.tiles(image, self._recipe.resample)
        pixels = np.stack([self._vision.checked(self._recipe(tile)) for tile in tiles])
        tensors = self._recipe.tensors(pixels) | {"layout": layout.as_tensor()}
        return MediaItem("image", tensors, self._vision.num_rows + layout.num_rows)

    def _video(self, frames: np.ndarray) -> MediaItem:
        assert self._frames is not None and self._video_features is not None
        pixels = np.stack([self._vision.checked(self._frames.frame(frame)) for frame in frames])
        return MediaItem("video", self._frames.tensors(pixels), self._video_features(len(frames)))


def _of_videos(files: ProcessorFiles, recipe: PictureRecipe) -> PictureRecipe:
    if recipe.resample not in fixed_point.RESAMPLINGS:
        raise video_settings(files).wrong("resample", recipe.resample, "2 or 3 (bilinear or bicubic) for videos")
    return recipe


def _anyres(
    config: Settings,
    settings: Settings,
    vision: VisionSection,
    default: Sequence[Sequence[int]],
    max_tiles: int | None = None,
) -> AnyRes:
    """The image processor's resolutions, or else the model's; the one and the other are the same in released checkpoints."""
    source = settings if "image_grid_pinpoints" in settings.data else config
    pinpoints = source("image_grid_pinpoints", default)
    if any(length % vision.image_size for resolution in pinpoints for length in resolution):
        raise source.wrong(
            "image_grid_pinpoints", pinpoints, f"pairs of multiples of {vision.image_size}, the tower's size"
        )
    if vision.num_rows != vision.side**2:
        problem = "full where there is no class token, default where there is one"
        raise config.wrong("vision_feature_select_strategy", config("vision_feature_select_strategy", None), problem)
    return AnyRes(read_resolutions(pinpoints), vision.image_size, vision.side, max_tiles)


def _max_tiles(config: Settings, files: ProcessorFiles) -> int:
    """The number in the `vision_aspect_ratio` anyres_max_9."""
    names = Settings(files.processor, "processor_config.json")
    ratio = config("vision_aspect_ratio", names("vision_aspect_ratio", "anyres_max_9"))
    number = str(ratio).removeprefix("anyres_max_")
    if not number.isdecimal() or not int(number):
        raise config.wrong("vision_aspect_ratio", ratio, "anyres_max_ with a number above 0")
    return int(number)
