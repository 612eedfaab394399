"""Llama 3.2 Vision generates what transformers generates, whatever a prompt's pictures are and wherever they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from forebay.errors import InvalidRequest
from gpu_executor.engine import Engine
from gpu_executor.media import MediaInput
from gpu_executor.request import Request, Sampling
from preprocess.media.decoded import Image
from preprocess.media_item import EncodedPrompt, PlacedItem
from tests.gpu_executor.models.media_cases.mllama import IMAGE, MLLAMA
from tests.gpu_executor.models.media_checkpoints import (
    NUM_TOKENS,
    check_tokens,
    generate,
    picture,
    prompt_text,
    reference_tokens,
)
from tests.gpu_executor.models.media_engine import engine_of, media_of
from tests.gpu_executor.models.test_encoder_decoder import run

References = list[tuple[EncodedPrompt, tuple[list[int], list[float]]]]
TILE = np.zeros((1, 3, 16, 16), np.uint8)
ITEM_ROWS = 20  # four tiles of four patches, and one for each tile's class

# Texts, and the sizes of their pictures: tiles are 16 wide, up to four. Those that say where they begin get no <s> in front.
PROMPTS = [
    (f"{IMAGE}<s>What is it?", [(16, 16)]),
    (f"{IMAGE}{IMAGE}<s>Are they alike?", [(40, 20), (9, 30)]),
    (f"Before, {IMAGE}after, {IMAGE}{IMAGE}and then {IMAGE}", [(90, 10), (16, 16), (33, 31), (20, 60)]),
    (f"<s>a long text in front of it, {IMAGE}", [(30, 30)]),
    ("No picture at all.", []),
    (f"{IMAGE}<s>one{IMAGE}two", [(5, 7), (64, 64)]),
    (f"{IMAGE}as people write it", [(50, 50)]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mllama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> References:
    model = MLLAMA.write(folder)
    ours, tokenizer = MLLAMA.processor(folder)
    theirs = AutoProcessor.from_pretrained(folder)
    found = []
    for text, sizes in PROMPTS:
        pictures = [picture(*size, seed=index) for index, size in enumerate(sizes)]
        special = "<s>" not in text
        options = {"add_special_tokens": special, "return_tensors": "pt"}
        # Without pictures, theirs would put two <s> in front of the text.
        inputs = dict(theirs(images=pictures, text=text, **options) if pictures else theirs.tokenizer(text, **options))
        items = [ours.prepare(Image(pixels), len(pictures)) for pixels in pictures]
        given = prompt_text(text, tokenizer)
        given.adds_special_tokens = special
        prompt = ours.expand_text(given, items)
        assert prompt.token_ids == inputs["input_ids"][0].tolist()
        found.append((prompt, reference_tokens(model, inputs)))
    return found


def test_all_at_once(folder: Path, reference: References) -> None:
    prompts, wanted = zip(*reference, strict=True)
    check_tokens(generate(folder, prompts), wanted)


def test_one_by_one(folder: Path, reference: References) -> None:
    for prompt, wanted in reference:
        check_tokens(generate(folder, [prompt]), [wanted])


def test_in_chunks(folder: Path, reference: References) -> None:
    prompts, wanted = zip(*reference, strict=True)
    options = {"max_num_batched_tokens": 11, "max_prefill_tokens_beside_decode": 5, "block_size": 4}
    check_tokens(generate(folder, prompts, **options), wanted)


def run_all(engine: Engine, reference: References, *, n: int = 1, **options: int) -> None:
    """All prompts at once; what nobody holds is NaN after each step."""
    for key, (prompt, _) in enumerate(reference):
        sampling = Sampling(max_tokens=NUM_TOKENS, logprobs=0, n=n)
        engine.add(Request(key, list(prompt.token_ids), sampling, **media_of(prompt)))
    results = run(engine, **options)
    assert len(results) == n * len(reference)
    for (key, _), found in results.items():
        check_tokens([found], [reference[key][1]])
    assert engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_after_forced_preemption(folder: Path, reference: References, caching: bool) -> None:
    engine = engine_of(folder, enable_prefix_caching=caching, block_size=4)
    run_all(engine, reference, preempt_every=3)
    assert engine.scheduler.ledger.num_preemptions > 10


def test_several_sequences_read_one_copy(folder: Path, reference: References) -> None:
    engine = engine_of(folder, block_size=4)
    prompt, _ = reference[2]
    request = Request("one", list(prompt.token_ids), Sampling(max_tokens=2, n=3, logprobs=0), **media_of(prompt))
    engine.add(request)
    held = []
    while engine.has_work:
        held.append({tuple(sequence.encoder_blocks) for sequence in engine.scheduler.running})
        engine.step()
    assert [len(blocks) for blocks in held].count(1) > 1 and max(map(len, held)) == 1
    run_all(engine, reference, n=3)


def test_a_warm_cache_knows_prompts_by_their_pictures(folder: Path, reference: References) -> None:
    """Text in front of a picture reads of it, and so does the picture's own token."""
    engine = engine_of(folder, block_size=4)
    run_all(engine, reference)
    hits = engine.scheduler.pool.prefix_cache.num_hit_tokens
    run_all(engine, reference)
    again = engine.scheduler.pool.prefix_cache.num_hit_tokens
    assert again - hits == sum((len(prompt.token_ids) - 1) // 4 * 4 for prompt, _ in reference)
    ours, _ = MLLAMA.processor(folder)
    other = ours.prepare(Image(picture(30, 30, seed=99)), 1)
    for prompt, _ in reference:
        media = tuple(PlacedItem(other, placed.spans) for placed in prompt.media)
        if media:
            changed = EncodedPrompt(prompt.token_ids, media)
            engine.add(
                Request("other", list(prompt.token_ids), Sampling(max_tokens=1, logprobs=0), **media_of(changed))
            )
            run(engine)
    assert engine.scheduler.pool.prefix_cache.num_hit_tokens == again


def test_a_picture_in_front_is_known_by_itself(folder: Path, reference: References) -> None:
    """What begins with pictures reads of nothing that follows."""
    engine = engine_of(folder, block_size=2)
    long, _ = reference[5]
    first = EncodedPrompt(long.token_ids[:6], long.media[:1])
    for prompt in (long, first):
        engine.add(Request("key", list(prompt.token_ids), Sampling(max_tokens=1, logprobs=0), **media_of(prompt)))
        run(engine)
    assert len(first.token_ids) < long.media[1].spans[0][0] + 2
    assert engine.scheduler.pool.prefix_cache.num_hit_tokens == 4


def test_a_prompt_waits_for_room_for_its_features(folder: Path, reference: References) -> None:
    most = ITEM_ROWS * max(len(prompt.media) for prompt, _ in reference)
    run_all(engine_of(folder, encoder_cache_size=most, block_size=4, max_num_batched_tokens=32), reference)


def test_a_prompt_whose_features_never_fit_is_refused(folder: Path, reference: References) -> None:
    engine = engine_of(folder, encoder_cache_size=3 * ITEM_ROWS)
    prompt = reference[2][0]
    with pytest.raises(InvalidRequest, match="4 items have 80 features; at most 60 are held"):
        engine.add(Request(0, list(prompt.token_ids), Sampling(max_tokens=1, logprobs=0), **media_of(prompt)))


@pytest.mark.parametrize(
    ("tensors", "spans", "problem"),
    [
        (
            {"pixels": np.repeat(TILE, 5, 0), "aspect_ratio_id": np.array([1])},
            ((1, 1),),
            "no tensors that this model's tower takes",
        ),
        (
            {"pixels": TILE[:, :, 1:], "aspect_ratio_id": np.array([1])},
            ((1, 1),),
            "no tensors that this model's tower takes",
        ),
        ({"pixels": TILE}, ((1, 1),), "no tensors that this model's tower takes"),
        ({"pixels": TILE, "aspect_ratio_id": np.array([9])}, ((1, 1),), "no tensors that this model's tower takes"),
        ({"pixels": TILE[0], "aspect_ratio_id": np.array([1])}, ((1, 1),), "no tensors that this model's tower takes"),
        ({"embeddings": np.zeros((2, 48), np.float32)}, ((1, 2),), "stands for 2 tokens"),
        ({"embeddings": np.zeros((1, 48), np.float32)}, ((1, 1),), "no tensors that this model's tower takes"),
    ],
    ids=[
        "too many tiles",
        "another size",
        "no arrangement",
        "no such arrangement",
        "no tiles",
        "several tokens",
        "embeddings",
    ],
)
def test_items_that_the_tower_cannot_read_are_refused(
    folder: Path, reference: References, tensors: Any, spans: Any, problem: str
) -> None:
    item = MediaInput.of_arrays("image", b"0" * 32, spans, tensors)
    with pytest.raises(InvalidRequest, match=problem):
        engine_of(folder).add(Request(0, [1, 9, 9, 9], Sampling(max_tokens=1), media=[item]))


def test_the_layout_of_newer_checkpoints_is_the_same_model(folder: Path, reference: References, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    assert "language_model.lm_head.weight" in tensors
    renamed = {
        re.sub("^(?=vision_model|multi_modal)", "model.", re.sub(r"^language_model\.model", "model.language_model", name)
        .removeprefix("language_model.") if name.startswith("language_model") else name): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert {
        "lm_head.weight",
        "model.language_model.norm.weight",
        "model.vision_model.class_embedding",
    } <= renamed.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    prompts, wanted = zip(*reference, strict=True)
    check_tokens(generate(tmp_path, prompts), wanted)
