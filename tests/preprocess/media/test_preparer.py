"""Media -> items: counted and checked first, named when refused, and made once for the same content."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from preprocess.media.decoder import decode
from preprocess.media.limits import ALL_FRAMES, MediaLimits, parse_io, parse_items
from preprocess.media.preparer import MediaPreparer
from preprocess.tokenizer import TextTokenizer
from tests.preprocess.media.files import picture_file, pixels, reason_of, saved, sound_file
from tests.preprocess.media.tensors import to_tensor
from tests.preprocess.tokenizer_zoo import tokenizer_of
from tests.preprocess.toy_processor import TOKENS, ToyProcessor


def toy() -> ToyProcessor:
    backend = tokenizer_of("byte_level")
    backend.add_special_tokens(TOKENS)
    return ToyProcessor(
        TextTokenizer(backend, named_tokens={}, chat_template=None), {"image": "<image>", "audio": "<audio>"}
    )


def preparer(**options: Any) -> MediaPreparer:
    return MediaPreparer(toy(), options.pop("decode", decode), **{"limits": MediaLimits(), **options})


def image(data: bytes | None = None, **content: Any) -> media_pb2.Media:
    content = content or {"data": picture_file("PNG") if data is None else data}
    return media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, **content)


def audio(data: bytes) -> media_pb2.Media:
    return media_pb2.Media(kind=media_pb2.MEDIA_KIND_AUDIO, data=data)


def pictures(count: int) -> list[media_pb2.Media]:
    return [image(saved(PilImages.new("RGB", (8, 8), (index, 0, 0)), "PNG")) for index in range(count)]


def embeddings(count: int) -> media_pb2.Media:
    values = [to_tensor(np.ones((count, 2, 4), np.float32))]
    return media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, embeddings=media_pb2.Embeddings(values=values))


def placed(*media: media_pb2.Media) -> list[tuple[str, media_pb2.Media]]:
    return [(f"prompt.media[{index}]", message) for index, message in enumerate(media)]


def refused(up: MediaPreparer, *media: media_pb2.Media) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        up.prepare(placed(*media))
    return raised.value


def no_decoding(*_: Any) -> Any:
    raise AssertionError("this was to be refused before anything is decoded")


def test_every_form_gives_items_and_each_knows_how_many_there_are() -> None:
    up = preparer()
    samples = image(samples=to_tensor(pixels()))
    found = up.prepare(placed(image(), embeddings(3), audio(sound_file()), samples))
    assert [len(items) for items in found] == [1, 3, 1, 1]
    assert [count for _, count in up.processor.prepared] == [5, 1, 5]
    assert np.array_equal(found[0][0].tensors["pixels"], pixels()) and found[0][0].digest == found[3][0].digest
    assert up.processor.prepared[1][0].sample_rate == 16_000


def test_an_item_is_made_once_for_the_same_content_and_count() -> None:
    up = preparer()
    first = up.items(placed(image()))
    assert up.items(placed(image())) == first
    assert len(up.processor.prepared) == 1
    up.prepare(placed(image(), image()))
    assert len(up.processor.prepared) == 2  # as one of two, and once for both


def test_content_that_differs_in_anything_is_another_item() -> None:
    up = preparer()
    plane = np.arange(24, dtype=np.uint8)
    shapes = [(4, 6), (6, 4), (3, 8), (2, 4, 3), (4, 2, 3)]
    digests = {up.items(placed(image(samples=to_tensor(plane.reshape(shape)))))[0].digest for shape in shapes}
    assert len(digests) == len(shapes) == len(up.processor.prepared)
    sound = np.zeros(480, np.float32)
    for rate in (8_000, 16_000):
        message = media_pb2.Media(kind=media_pb2.MEDIA_KIND_AUDIO, samples=to_tensor(sound), sample_rate=rate)
        up.prepare(placed(message))
    assert len(up.processor.prepared) == len(shapes) + 2


def test_what_is_kept_has_its_budget() -> None:
    up = preparer(item_cache_bytes=pixels().nbytes - 1)
    up.prepare(placed(image()))
    up.prepare(placed(image()))
    assert len(up.processor.prepared) == 2


def test_a_file_can_be_named_by_its_digest_once_it_was_there() -> None:
    up, digest = preparer(), hashlib.sha256(picture_file("PNG")).digest()
    error = refused(up, image(digest=digest))
    assert reason_of(error) == "MEDIA_FETCH" and "no file of this digest" in error.message
    first = up.items(placed(image()))
    assert up.items(placed(image(digest=digest))) == first
    assert reason_of(refused(up, image(digest=digest[:31]))) == "MEDIA_FETCH"
    assert reason_of(refused(preparer(file_cache_bytes=10), image(digest=digest))) == "MEDIA_FETCH"


def test_a_url_is_fetched_where_that_is_allowed() -> None:
    error = refused(preparer(), image(url="https://example.com/x.png"))
    assert reason_of(error) == "MEDIA_FETCH" and "send its bytes" in error.message
    asked = []

    def fetch(url: str, max_bytes: int) -> bytes:
        asked.append((url, max_bytes))
        return picture_file("PNG")

    up = preparer(fetch=fetch, limits=MediaLimits(file_bytes=10_000))
    assert up.items(placed(image(url="https://example.com/x.png")))[0].digest == up.items(placed(image()))[0].digest
    assert asked == [("https://example.com/x.png", 10_000)]


def test_more_items_than_the_limit_are_refused_before_anything_is_decoded() -> None:
    up = preparer(decode=no_decoding, limits=MediaLimits(items=parse_items("image=3")))
    error = refused(up, image(), image(), image(), image())
    assert reason_of(error) == "MEDIA_TOO_LARGE" and error.fields[0][0] == "prompt.media[3]"
    assert error.message == "prompt.media[3]: the prompt has 4 image items; at most 3 are taken"
    assert reason_of(refused(up, embeddings(4))) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize("num_threads", [1, 2])
def test_items_are_in_order_and_the_first_refusal_is_the_one_told(num_threads: int) -> None:
    messages = pictures(6)
    found = preparer(num_threads=num_threads).items(placed(*messages))
    assert [int(item.tensors["pixels"][0, 0, 0]) for item in found] == [0, 1, 2, 3, 4, 5]
    messages[2], messages[4] = image(b"\0" * 20), image(b"")
    error = refused(preparer(num_threads=num_threads), *messages)
    assert error.fields[0][0] == "prompt.media[2]"


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_media_that_takes_more_than_the_context_is_refused_before_the_rest_is_decoded(num_threads: int) -> None:
    """An item of this processor is two tokens."""
    decoded: list[bytes] = []

    def counted(data: bytes, *rest: Any) -> Any:
        decoded.append(data)
        return decode(data, *rest)

    up = preparer(decode=counted, num_threads=num_threads)
    with pytest.raises(InvalidRequest) as raised:
        up.prepare(placed(*pictures(16)), max_tokens=5)
    error = raised.value
    assert reason_of(error) == "TOO_LONG" and error.fields[0][0] == "prompt.media[2]"
    assert error.message == "prompt.media[2]: with it, media takes 6 tokens or more; the model takes 5"
    assert 3 <= len(decoded) <= 3 + num_threads - 1
    assert len(up.items(placed(*pictures(2)), max_tokens=4)) == 2


def test_embeddings_that_take_more_than_the_context_are_refused_before_anything_is_decoded() -> None:
    up = preparer(decode=no_decoding)
    with pytest.raises(InvalidRequest, match=r"prompt.media\[1\]: with it, media takes 6 tokens or more") as raised:
        up.prepare(placed(image(), embeddings(3)), max_tokens=5)
    assert reason_of(raised.value) == "TOO_LONG"


def test_a_thousand_small_pictures_are_refused_before_anything_is_decoded() -> None:
    assert reason_of(refused(preparer(decode=no_decoding), *[image()] * 1_000)) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (media_pb2.Media(data=b"x"), "MEDIA_UNUSABLE", "kind is 0"),
        (media_pb2.Media(kind=9, data=b"x"), "MEDIA_UNUSABLE", "kind is 9"),
        (media_pb2.Media(kind=media_pb2.MEDIA_KIND_VIDEO, data=b"x"), "MEDIA_UNUSABLE", "no video items; it takes image and audio"),
        (media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE), "MEDIA_DECODE", "no content"),
        (image(b""), "MEDIA_DECODE", "empty"),
        (image(b"\0" * 2_000), "MEDIA_TOO_LARGE", "the file has 2,000 bytes; at most 1,500 are taken"),
        (image(samples=media_pb2.Tensor()), "MEDIA_UNUSABLE", "dtype is UNSPECIFIED"),
        (media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, embeddings=media_pb2.Embeddings()), "MEDIA_UNUSABLE", "no embeddings"),
    ],
    ids=["no-kind", "unknown-kind", "video", "no-content", "empty", "large", "no-tensor", "no-embeddings"],
)  # fmt: skip
def test_a_message_that_is_no_media_is_named(message: media_pb2.Media, reason: str, words: str) -> None:
    up = preparer(limits=MediaLimits(file_bytes=1_500))
    error = refused(up, image(samples=to_tensor(pixels())), message)
    assert reason_of(error) == reason and words in error.message
    assert error.message.startswith("prompt.media[1]: ") and error.fields[0][0] == "prompt.media[1]"


def test_limits_of_items_are_read() -> None:
    assert parse_items("") == {"image": 16, "video": 4, "audio": 16}
    assert parse_items("image=4, video=0") == {"image": 4, "video": 0, "audio": 16}
    for text in ("image", "image=", "image=-1", "image=x", "pictures=1", "image=1.5", "image=٣"):
        with pytest.raises(ValueError, match="is not image"):
            parse_items(text)


def test_the_number_of_frames_is_read() -> None:
    assert parse_io({}) == parse_io({"video": {}}) == MediaLimits().sampled_frames == 32
    assert parse_io({"video": {"num_frames": 40}}) == 40
    assert parse_io({"video": {"num_frames": -1}}) == ALL_FRAMES


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": {"num_frames": 1}}, "it has no 'image'; there is video"),
        ({"video": 40}, "video is 40; it must be an object"),
        ({"video": {"fps": 2}}, "video has no 'fps'; there is num_frames"),
        ({"video": {"num_frames": 0}}, "video.num_frames is 0; it must be 1 to 1,024, or -1 for all"),
        ({"video": {"num_frames": 1025}}, "video.num_frames is 1025"),
        ({"video": {"num_frames": True}}, "video.num_frames is True"),
        ({"video": {"num_frames": 4.0}}, "video.num_frames is 4.0"),
    ],
    ids=["modality", "no-object", "fps", "zero", "too-many", "truth", "fraction"],
)
def test_what_cannot_be_chosen_about_files_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_io(given)
