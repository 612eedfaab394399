"""Settings of media are found in the files that hub checkpoints and transformers 5 write."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers

from forebay.errors import CheckpointError
from preprocess.processors.processor import ProcessorFiles
from preprocess.processors.settings import Settings, audio_settings, image_settings, model_settings, video_settings
from preprocess.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), named_tokens={}, chat_template=None)


def files(**parts: dict[str, Any]) -> ProcessorFiles:
    return ProcessorFiles(**{"config": {}, "preprocessor": {}, "processor": {}, "tokenizer": TOKENIZER, **parts})


def test_every_kind_of_media_reads_the_flat_file() -> None:
    flat = files(preprocessor={"size": 3})
    assert [read(flat).data for read in (image_settings, video_settings, audio_settings)] == [{"size": 3}] * 3


def test_sections_of_processor_config_win() -> None:
    names = {"image_processor": image_settings, "video_processor": video_settings, "feature_extractor": audio_settings}
    nested = files(preprocessor={"size": 3}, processor={name: {"size": name} for name in names})
    assert {name: read(nested).data["size"] for name, read in names.items()} == {name: name for name in names}


def test_a_processor_config_without_sections_changes_nothing() -> None:
    assert image_settings(files(preprocessor={"size": 3}, processor={"patch_size": 14})).data == {"size": 3}


def test_videos_may_have_a_file_of_their_own() -> None:
    own = files(preprocessor={"size": 3}, video_preprocessor={"size": 4})
    assert video_settings(own)("size", None) == 4
    assert image_settings(own)("size", None) == 3


def test_null_counts_as_missing() -> None:
    settings = Settings({"size": None}, "config.json")
    assert (settings.integer("size", 7), settings.flag("size", True), settings("size", "x")) == (7, True, "x")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_a_wrong_number_is_named(value: Any) -> None:
    settings = model_settings(files(config={"vision_config": {"patch_size": value}})).section("vision_config")
    with pytest.raises(CheckpointError, match=r"patch_size of vision_config of config\.json"):
        settings.integer("patch_size")


def test_a_wrong_flag_or_section_is_named() -> None:
    settings = Settings({"do_resize": 1, "size": [3]}, "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=r"do_resize of preprocessor_config\.json is 1; it must be true or false"):
        settings.flag("do_resize", True)
    with pytest.raises(CheckpointError, match=r"size of preprocessor_config\.json .* an object"):
        settings.section("size")
