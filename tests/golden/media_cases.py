"""Goldens of multimodal models: their pictures and clips, and their prompts as the checkpoint's processor encodes them."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import Audio, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.processor import Processor, PromptText
from preprocess.processors.registry import load_processor
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_files import load_tokenizer
from tests.golden.materialize import read_golden, write_files

_DTYPES = {"float32": np.float32}


def media_golden(name: str) -> dict[str, Any]:
    """The multimodal golden of this name."""
    return read_golden(f"media/{name}")


def case_of(golden: dict[str, Any], name: str) -> dict[str, Any]:
    """The case whose name begins so."""
    return next(case for case in golden["cases"] if case["name"].startswith(name))


def processor_of(golden: dict[str, Any], folder: Path) -> tuple[Processor, TextTokenizer]:
    """The processor and the tokenizer of a golden's checkpoint, whose files are written into the folder without weights."""
    write_files(golden, folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    processor = load_processor(folder, tokenizer)
    assert processor is not None
    return processor, tokenizer


def images_of(case: dict[str, Any]) -> list[Image]:
    """The pictures of a case."""
    return [Image(PilImages.open(io.BytesIO(base64.b64decode(data)))) for data in case.get("images") or []]


def clips_of(case: dict[str, Any]) -> list[Audio]:
    """The clips of a case."""
    clips = []
    for data in case.get("audios") or []:
        with wave.open(io.BytesIO(base64.b64decode(data))) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
            clips.append(Audio(samples, file.getframerate()))
    return clips


def items_of(processor: Processor, case: dict[str, Any]) -> list[MediaItem]:
    """The items of a case's pictures or clips, or of its embeddings."""
    for modality in ("image", "audio"):
        if f"{modality}_embeds" in case:
            return processor.accept(embeddings_of(case, modality))
    media = images_of(case) or clips_of(case)
    return [processor.prepare(one, len(media)) for one in media]


def embeddings_of(case: dict[str, Any], modality: str = "image") -> Embeddings:
    """The precomputed embeddings of a case."""
    given = case[f"{modality}_embeds"]
    arrays = [
        np.frombuffer(base64.b64decode(one["base64"]), _DTYPES[one["dtype"]]).reshape(one["shape"])
        for one in (given if isinstance(given, list) else [given])
    ]
    extras = {name: np.array(case[name], np.int64) for name in ("image_sizes", "image_grid_thw") if name in case}
    return Embeddings(modality, tuple(arrays), extras)


def prompt_text(text: str, tokenizer: TextTokenizer, *, adds_special_tokens: bool = True) -> PromptText:
    """The text of a prompt in which control tokens are recognised."""

    def encode(part: str, add_special_tokens: bool) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=add_special_tokens)

    return PromptText(text, encode=encode, adds_special_tokens=adds_special_tokens)


def encode_case(processor: Processor, tokenizer: TextTokenizer, case: dict[str, Any]) -> EncodedPrompt:
    """A case's prompt with its items in their places."""
    return processor.expand_text(prompt_text(case["prompt"], tokenizer), items_of(processor, case))


def normalized_pixels(item: MediaItem, name: str = "pixels") -> np.ndarray:
    """The pixels of an item as floats: (..., C, H, W) float32."""
    pixels = item.tensors[name]
    if pixels.dtype != np.uint8:
        return pixels
    scale, rest = item.tensors["normalization"][0], item.tensors["normalization"][1:]
    mean, deviation = rest.reshape(2, -1, 1, 1)
    return (pixels.astype(np.float32) * scale - mean) / deviation


def check_pixels(found: np.ndarray, wanted: dict[str, Any]) -> None:
    """Compares an array with the shape, the mean, the deviation and the first values that a golden has of it."""
    assert list(found.shape) == wanted["shape"]
    if "values" in wanted:
        assert found.ravel().tolist() == np.array(wanted["values"]).ravel().tolist()
        return
    np.testing.assert_allclose(found.ravel()[: len(wanted["first"])], wanted["first"], atol=2e-5)
    np.testing.assert_allclose([found.mean(), found.std()], [wanted["mean"], wanted["std"]], atol=2e-5)


def check_ids_expand_as_text(golden: dict[str, Any], name: str, folder: Path) -> None:
    """Holds that the ids of a case's prompt become what its text becomes, and that expanded ids stay as they are."""
    processor, tokenizer = processor_of(golden, folder)
    case = case_of(golden, name)
    items = items_of(processor, case)
    wanted = processor.expand_text(prompt_text(case["prompt"], tokenizer), items)
    for token_ids in (tokenizer.encode(case["prompt"], add_special_tokens=True), case["input_ids"]):
        found = processor.expand_ids(token_ids, items)
        assert found.token_ids == case["input_ids"]
        assert [placed.spans for placed in found.media] == [placed.spans for placed in wanted.media]
        assert (found.positions is None) == (wanted.positions is None)
        assert found.positions is None or np.array_equal(found.positions, wanted.positions)
