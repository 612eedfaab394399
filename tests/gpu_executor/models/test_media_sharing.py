"""What requests with media share and what they must not: KV of equal prompts, features of equal items, failures of bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from gpu_executor.engine import Engine
from gpu_executor.media import MediaInput
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.request import Request, Sampling
from preprocess.media.decoded import Image
from preprocess.media_item import EncodedPrompt
from preprocess.processors.processor import Processor
from preprocess.tokenizer import TextTokenizer
from tests.golden.materialize import materialize
from tests.golden.media_cases import media_golden, processor_of, prompt_text
from tests.gpu_executor.models.media_engine import engine_of, generate, media_of

TEXT = "<|im_start|>user\n<image>\nwhat is it?<|im_end|><|im_start|>assistant\n"


class Model:
    """A golden's checkpoint with its processor."""

    def __init__(self, folder: Path) -> None:
        golden = media_golden("InternVLChatModel")
        self.folder = materialize(golden, folder)
        self.processor: Processor
        self.tokenizer: TextTokenizer
        self.processor, self.tokenizer = processor_of(golden, folder)

    def prompt(self, *seeds: int, text: str = TEXT) -> EncodedPrompt:
        """The same text about pictures of one size, other ones for other seeds."""
        items = [self.processor.prepare(Image(picture(seed)), len(seeds)) for seed in seeds]
        return self.processor.expand_text(prompt_text(text, self.tokenizer), items)


def picture(seed: int) -> PilImages.Image:
    return PilImages.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[int, list[int]]:
    """What follows the prompt about each picture, each from an engine of its own."""
    return {seed: generate(engine_of(model.folder), [model.prompt(seed)])[0].token_ids for seed in range(4)}


def counted(engine: Engine) -> list[list[TowerInput]]:
    """The calls of the engine's tower from now on."""
    calls: list[list[TowerInput]] = []
    tower = engine.runner.model.tower

    def call(items: Sequence[TowerInput], embed: Any) -> list[torch.Tensor]:
        calls.append(list(items))
        return tower(items, embed)

    engine.runner.model.tower = call
    return calls


def test_equal_text_about_other_pictures_shares_nothing_wrongly(model: Model, alone: dict[int, list[int]]) -> None:
    assert len({tuple(ids) for ids in alone.values()}) == len(alone), "the pictures make no difference"
    engine = engine_of(model.folder, block_size=4)
    for _ in range(2):
        for seed, wanted in alone.items():
            assert generate(engine, [model.prompt(seed)])[0].token_ids == wanted
    together = generate(engine, [model.prompt(seed) for seed in (3, 1, 1, 0, 2)])
    assert [found.token_ids for found in together] == [alone[seed] for seed in (3, 1, 1, 0, 2)]


def test_equal_prompts_share_their_blocks_and_their_features(model: Model, alone: dict[int, list[int]]) -> None:
    engine = engine_of(model.folder, block_size=4)
    calls = counted(engine)
    cache = engine.scheduler.pool.prefix_cache
    for number in range(3):
        assert generate(engine, [model.prompt(1)])[0].token_ids == alone[1]
        hits = (len(model.prompt(1).token_ids) - 1) // 4 * 4
        assert cache.num_hit_tokens == number * hits
    assert [len(items) for items in calls] == [1]


def test_a_picture_that_comes_twice_is_encoded_once(model: Model) -> None:
    text = TEXT.replace("<image>", "<image> and <image> and <image>")
    wanted = generate(engine_of(model.folder, enable_prefix_caching=False), [model.prompt(1, 2, 1, text=text)])
    engine = engine_of(model.folder)
    calls = counted(engine)
    assert generate(engine, [model.prompt(1, 2, 1, text=text)])[0].token_ids == wanted[0].token_ids
    assert sum(len(items) for items in calls) == 2


def test_preemption_and_a_small_encoder_cache_change_nothing(model: Model, alone: dict[int, list[int]]) -> None:
    num_features = model.prompt(0).media[0].item.num_features
    engine = engine_of(
        model.folder,
        encoder_cache_size=num_features,
        max_num_batched_tokens=24,
        block_size=4,
        enable_prefix_caching=False,
    )
    found = generate(engine, [model.prompt(seed) for seed in alone], preempt_every=7)
    assert [one.token_ids for one in found] == list(alone.values())
    assert engine.scheduler.ledger.num_preemptions > 0
    assert engine.scheduler.media.cache.num_rows <= num_features
    engine.scheduler.check()


def test_sequences_of_one_request_share_the_features(model: Model) -> None:
    engine = engine_of(model.folder)
    calls = counted(engine)
    prompt = model.prompt(1)
    sampling = Sampling(max_tokens=4, n=3, temperature=1.0, seed=5)
    engine.add(Request(0, list(prompt.token_ids), sampling, **media_of(prompt)))
    while engine.has_work:
        engine.step()
    assert sum(len(items) for items in calls) == 1
    engine.scheduler.check()


def test_an_item_that_the_tower_cannot_read_ends_its_request_alone(model: Model, alone: dict[int, list[int]]) -> None:
    engine = engine_of(model.folder)
    good, bad = model.prompt(1), model.prompt(2)
    broken = media_of(bad)
    (item,) = broken["media"]
    tensors = item.tensors | {"pixels": item.tensors["pixels"][..., :5]}
    broken["media"] = [MediaInput(item.modality, b"\1" * 32, item.spans, tensors)]
    sampling = Sampling(max_tokens=8)
    engine.add(Request("good", list(good.token_ids), sampling, **media_of(good)))
    engine.add(Request("bad", list(bad.token_ids), sampling, **broken))
    failed, tokens = [], []
    while engine.has_work:
        output = engine.step()
        failed += output.failed
        tokens += [token.token_id for token in output.tokens]
    assert tokens == alone[1]
    ((request, error),) = failed
    assert request.key == "bad"
    assert isinstance(error, InvalidRequest)
    assert error.reason_name == "MEDIA_UNUSABLE"
    engine.scheduler.check()


def test_an_item_larger_than_the_encoder_cache_is_refused_by_its_size(model: Model) -> None:
    engine = engine_of(model.folder, encoder_cache_size=3)
    prompt = model.prompt(1)
    with pytest.raises(InvalidRequest, match="encoder-cache-size") as caught:
        engine.add(Request(0, list(prompt.token_ids), Sampling(max_tokens=1), **media_of(prompt)))
    assert caught.value.reason_name == "MEDIA_TOO_LARGE"
    assert not engine.has_work
