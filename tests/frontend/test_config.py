"""Every setting has a help text and bounds; a value that cannot be is refused with the flag's name."""

from __future__ import annotations

import dataclasses

import pytest

from frontend.config import FrontendConfig
from preprocess.media.flags import media_settings


def config_of(**settings: object) -> FrontendConfig:
    return FrontendConfig(**{"model": "tiny", "executors": "localhost:1", **settings})


def test_defaults_are_valid_and_every_setting_says_what_it_is() -> None:
    config_of()
    for field in dataclasses.fields(FrontendConfig):
        help_text = field.metadata["help"]
        assert help_text and not help_text.endswith("."), field.name


BOUNDS = {
    "port": (0, 65535),
    "max_concurrent_requests": (1, None),
    "max_queue_size": (0, None),
    "max_concurrent_streams": (1, None),
    "max_message_bytes": (1024, None),
    "max_unsent_bytes": (1, None),
    "preprocess_threads": (1, None),
    "media_workers": (1, None),
    "media_cache_bytes": (0, None),
    "max_concurrent_encodes": (1, None),
    "preprocess_timeout_s": (0.001, None),
    "default_timeout_s": (0.001, None),
    "drain_grace_s": (0, None),
    "executor_connect_timeout_s": (0.001, None),
    "executor_wait_s": (0, None),
    "executor_stall_s": (0, None),
    "dns_refresh_s": (0.001, None),
}


def test_every_number_has_bounds() -> None:
    numbers = {f.name for f in dataclasses.fields(FrontendConfig) if type(f.default) in (int, float)}
    assert numbers == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_number_is_held_to_its_bounds(name: str) -> None:
    least, most = BOUNDS[name]
    assert getattr(config_of(**{name: least}), name) == least
    step = 1 if isinstance(least, int) else 0.001
    impossible = [least - step, float("nan"), float("inf") if most is None else most + 1]
    for value in impossible:
        with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is {value}; "):
            config_of(**{name: value})


@pytest.mark.parametrize("name", ["llama", "org/model-7b", "a" * 256, "model:v2@main_1.0"])
def test_served_name_can_be(name: str) -> None:
    assert config_of(served_model_name=("other", name)).served_model_name == ("other", name)


@pytest.mark.parametrize(
    "name", ["", "a b", "a" * 257, "naïve", "a\n"], ids=["empty", "space", "long", "letter", "line"]
)
def test_served_name_cannot_be(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--served-model-name .*: letters, digits and \. _ / : @ - only, at most 256$"
    ):
        config_of(served_model_name=(name,))


def test_executors_are_checked_at_the_start() -> None:
    with pytest.raises(ValueError, match="'nonsense' is not host:port"):
        config_of(executors="nonsense")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_mm_per_prompt", "image=-1"),
        ("limit_mm_per_prompt", "picture=1"),
        ("limit_mm_per_prompt", "image"),
        ("allowed_media_domains", ("10.0.0.1",)),
        ("allowed_media_domains", ("https://example.com",)),
        ("allowed_media_domains", ("localhost",)),
        ("allowed_media_domains", ("*",)),
        ("media_io_kwargs", {"video": {"num_frames": 0}}),
        ("media_io_kwargs", {"audio": {}}),
    ],
)
def test_a_setting_of_media_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: "):
        config_of(**{name: value})


def test_frames_of_videos_are_chosen_as_json() -> None:
    config = config_of(media_io_kwargs={"video": {"num_frames": 8}})
    assert media_settings(config).limits.sampled_frames == 8
    assert media_settings(config_of()).limits.sampled_frames == 32
