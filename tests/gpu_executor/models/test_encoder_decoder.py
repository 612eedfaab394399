"""Encoder-decoders generate what transformers generates, from encoder inputs and decoder prompts of any length.

Alone, in a mixed batch, in chunks, after preemption, with a warm prefix cache, and several sequences at once.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from forebay.errors import CheckpointError, InvalidRequest
from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.model_info import first_token_id
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import Case, hub_tensors, tiny_model, write

NUM_TOKENS = 8
START, FIRST = 2, 0  # decoder_start_token_id, forced_bos_token_id
# Tokens of the encoder's input and of the decoder's prompt.
LENGTHS = ((1, 1), (16, 1), (90, 1), (33, 1), (2, 5), (3, 40), (17, 16), (64, 17), (7, 33), (15, 2), (128, 1), (50, 90))

BART: dict[str, Any] = {
    "model_type": "bart", "vocab_size": 199, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
    "activation_function": "gelu", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": START,
    "forced_bos_token_id": FIRST, "is_encoder_decoder": True,
}  # fmt: skip
CASES = [
    Case("bart", "BartForConditionalGeneration", BART),
    Case("bart-scaled-unlike-sides", "BartForConditionalGeneration", BART | {
        "scale_embedding": True, "encoder_attention_heads": 3, "decoder_layers": 1, "activation_function": "relu",
        "forced_bos_token_id": None}),
]  # fmt: skip


def bart_of(case: Case) -> transformers.BartForConditionalGeneration:
    """A random model in which positions and attention weigh so much that it does not repeat one token for ever."""
    model = tiny_model(case)
    model.final_logits_bias.copy_(torch.randn(1, 199) * 0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                parameter.mul_(3)
            elif "_attn." in name:
                parameter.mul_(1.5)
        model.model.decoder.layers[-1].final_layer_norm.bias.zero_()
    return model


@dataclasses.dataclass
class Reference:
    """A checkpoint folder, inputs (encoder, decoder prompt), and what transformers generates from them."""

    folder: Path
    inputs: list[tuple[list[int], list[int]]]
    token_ids: list[list[int]]
    logprobs: list[list[float]]


@pytest.fixture(scope="module", params=CASES, ids=str)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    model = bart_of(case)
    write(folder, case, hub_tensors(model, case))
    draw = random.Random(3)
    inputs, token_ids, logprobs = [], [], []
    for num_encoder, num_decoder in LENGTHS:
        encoder = [draw.randrange(3, 199) for _ in range(num_encoder)]
        decoder = [START, *(draw.randrange(3, 199) for _ in range(num_decoder - 1))]
        with torch.no_grad():
            out = model.generate(
                torch.tensor([encoder]), attention_mask=torch.ones(1, num_encoder, dtype=torch.int64),
                decoder_input_ids=torch.tensor([decoder]), max_new_tokens=NUM_TOKENS, do_sample=False, num_beams=1,
                eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=case.config["forced_bos_token_id"],
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        ids = out.sequences[0, num_decoder:].tolist()
        steps = torch.stack(out.logits)[:, 0].log_softmax(-1)
        best = steps.topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-4, "a tie: the test would compare noise"
        inputs.append((encoder, decoder))
        token_ids.append(ids)
        logprobs.append(steps[range(len(ids)), ids].tolist())
    assert len({tuple(ids) for ids in token_ids}) >= 8
    return Reference(folder, inputs, token_ids, logprobs)


def engine_of(reference: Reference, **options: Any) -> Engine:
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "max_num_seqs": 40, "num_threads": 1}
    return build_engine(ExecutorConfig(model=str(reference.folder), **(settings | options)), progress=False)[0]


def token_bytes(engine: Engine) -> int:
    return sum(layout.bytes_per_token(torch.float32) for layout in engine.runner.model.state_layouts)


def request_of(key: object, inputs: tuple[list[int], list[int]], **sampling: Any) -> Request:
    params = Sampling(**({"max_tokens": NUM_TOKENS, "logprobs": 0} | sampling))
    return Request(key, list(inputs[1]), params, encoder_token_ids=list(inputs[0]))


Results = dict[tuple[object, int], tuple[list[int], list[float]]]


def run(engine: Engine, *, preempt_every: int = 0) -> Results:
    """(ids, log-probabilities) by (request key, sequence index). What nobody holds or can find is NaN from then on."""
    results: Results = {}
    for step in range(2000):
        if not engine.has_work:
            return results
        if preempt_every and step % preempt_every == preempt_every - 1:
            engine.scheduler.preempt_all()
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            ids, logprobs = results.setdefault((token.sequence.request.key, token.sequence.index), ([], []))
            ids.append(token.token_id)
            logprobs.append(token.logprobs.logprob)
        engine.scheduler.check()
        _poison_free_blocks(engine)
    raise AssertionError("no end")


def _poison_free_blocks(engine: Engine) -> None:
    pool = engine.scheduler.pool
    held = {block for sequence in engine.scheduler.running for block in sequence.held_blocks}
    cache = pool.prefix_cache
    free = [b for b in range(pool.num_blocks) if b not in held and not (cache is not None and cache.knows(b))]
    for state in engine.runner.states:
        for tensor in state.tensors:
            tensor[free] = torch.nan


def check(reference: Reference, results: Results) -> None:
    """Keys are the inputs' numbers, or (number, anything)."""
    assert results
    for (key, _), (ids, logprobs) in results.items():
        number = key[0] if isinstance(key, tuple) else key
        assert ids == reference.token_ids[number], f"of {LENGTHS[number]} tokens"
        assert logprobs == pytest.approx(reference.logprobs[number], abs=1e-3)


def run_all(reference: Reference, engine: Engine, **options: Any) -> None:
    for number, inputs in enumerate(reference.inputs):
        engine.add(request_of(number, inputs))
    results = run(engine, **options)
    assert len(results) == len(reference.inputs)
    check(reference, results)
    assert engine.scheduler.pool.num_used == 0


def test_alone(reference: Reference) -> None:
    engine = engine_of(reference)
    for number, inputs in enumerate(reference.inputs):
        engine.add(request_of(number, inputs))
        check(reference, run(engine))


def test_in_a_mixed_batch_of_36(reference: Reference) -> None:
    engine = engine_of(reference, enable_prefix_caching=False)
    order = [(number, copy) for copy in range(3) for number in range(len(LENGTHS))]
    random.Random(0).shuffle(order)
    for key in order:
        engine.add(request_of(key, reference.inputs[key[0]]))
    check(reference, run(engine))


@pytest.mark.parametrize(("budget", "block_size"), [(40, 16), (41, 7), (57, 1)])
def test_decoder_prompts_in_chunks_beside_encoders_larger_than_the_budget(
    reference: Reference, budget: int, block_size: int
) -> None:
    engine = engine_of(
        reference, max_num_batched_tokens=budget, max_prefill_tokens_beside_decode=budget // 5, block_size=block_size
    )
    run_all(reference, engine)


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_after_forced_preemption(reference: Reference, caching: bool) -> None:
    engine = engine_of(reference, enable_prefix_caching=caching, max_num_batched_tokens=256)
    run_all(reference, engine, preempt_every=5)
    assert engine.scheduler.ledger.num_preemptions > 10


def test_when_memory_runs_out(reference: Reference) -> None:
    engine = engine_of(reference, block_size=4, kv_cache_memory_bytes=64 * 4 * token_bytes(engine_of(reference)))
    assert engine.scheduler.pool.num_blocks == engine.scheduler.most_blocks(128, 128 // 4) == 64
    run_all(reference, engine)
    assert engine.scheduler.ledger.num_preemptions > 0


def test_with_a_warm_prefix_cache(reference: Reference) -> None:
    engine = engine_of(reference)
    run_all(reference, engine)
    run_all(reference, engine)
    assert engine.scheduler.pool.prefix_cache.num_hit_tokens > 100


def test_equal_decoder_prompts_behind_other_encoder_inputs_share_nothing(reference: Reference) -> None:
    engine = engine_of(reference)
    number = LENGTHS.index((50, 90))
    encoder, decoder = reference.inputs[number]
    engine.add(request_of("other", (encoder[:-1], decoder)))
    run(engine)
    request = request_of(number, (encoder, decoder))
    engine.add(request)
    check(reference, run(engine))
    assert request.num_cached_tokens == 0


@pytest.mark.parametrize("number", range(len(LENGTHS)), ids=str)
def test_sequences_of_a_request_share_one_run_of_the_encoder(reference: Reference, number: int) -> None:
    engine = engine_of(reference, enable_prefix_caching=False)
    engine.add(request_of(number, reference.inputs[number], n=3))
    sequences = engine.requests[number].sequences
    engine.step()
    assert [sequence.is_encoded for sequence in sequences] == [True, False, False]
    plan = engine.scheduler.schedule()
    assert not any(part.encodes for part in plan)
    assert len({tuple(sequence.encoder_blocks) for sequence in sequences if sequence.slot >= 0}) == 1


def test_sequences_of_a_request_go_on_when_the_one_that_encoded_is_aborted(reference: Reference) -> None:
    engine = engine_of(reference, enable_prefix_caching=False)
    number = LENGTHS.index((64, 17))
    engine.add(request_of(number, reference.inputs[number], n=4))
    first = engine.step().tokens
    engine.step()
    assert engine.abort(number, 0)
    _poison_free_blocks(engine)
    sequences = engine.requests[number].sequences[1:]
    run(engine)
    assert len(first) == 1
    assert [s.output_token_ids for s in sequences] == [reference.token_ids[number]] * 3
    assert engine.scheduler.pool.num_used == 0


def test_what_the_encoder_cannot_take_is_refused(reference: Reference) -> None:
    engine = engine_of(reference)
    for encoder, message in (
        ([], "no tokens"),
        ([5] * 129, "has 129 tokens; the model takes 128"),
        ([199], "token id 199"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            engine.add(request_of("x", (encoder, [START])))
    with pytest.raises(InvalidRequest, match="has no tokens"):
        engine.add(request_of("x", ([5], [])))
    with pytest.raises(InvalidRequest, match="the model takes 128"):
        engine.add(request_of("x", ([5], [START] * 121)))
    assert not engine.has_work


def test_the_cache_must_hold_an_encoder_input_beside_the_longest_sequence(reference: Reference) -> None:
    block_bytes = 16 * token_bytes(engine_of(reference))
    assert engine_of(reference, kv_cache_memory_bytes=16 * block_bytes).scheduler.pool.num_blocks == 16
    with pytest.raises(ValueError, match="kv-cache-memory-bytes"):
        engine_of(reference, kv_cache_memory_bytes=15 * block_bytes)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {"forced_bos_token_id": 4}, 4),
        (None, {}, None),
        (None, {"force_bos_token_to_be_generated": True, "bos_token_id": 3}, 3),
        ({"forced_bos_token_id": 5}, {"forced_bos_token_id": 4}, 5),
        ({"bos_token_id": 0}, {"forced_bos_token_id": 4}, None),
        ({"forced_bos_token_id": None}, {"forced_bos_token_id": 4}, None),
    ],
    ids=str,
)
def test_the_first_token_is_that_of_transformers(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: int | None
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(BART | {"forced_bos_token_id": None} | config))
    assert first_token_id(tmp_path, {"forced_bos_token_id": None} | config) == expected
    name = "config.json" if generation is None else "generation_config.json"
    options = {"config_file_name": name, "_from_model_config": generation is None}  # as their models read it
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path, **options)
    assert theirs.forced_bos_token_id == expected


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As bart-base's file has them: a bare BartModel, the shared embedding three times, no bias of logits."""
    bare = {name.removeprefix("model."): t for name, t in tensors.items() if name != "final_logits_bias"}
    return bare | {f"{side}.embed_tokens.weight": bare["shared.weight"].clone() for side in ("encoder", "decoder")}


LAYOUTS = {
    "bare-model": ("BartModel", _renamed),
    "tied-head-and-embeddings-again": ("BartForConditionalGeneration", lambda t: t | {
        name: t["model.shared.weight"].clone()
        for name in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_hub_is_the_same_model(tmp_path: Path, layout: str) -> None:
    architecture, change = LAYOUTS[layout]
    model = bart_of(CASES[0])
    tensors = change(hub_tensors(model, CASES[0]))
    if "final_logits_bias" not in tensors:
        model.final_logits_bias.zero_()
    write(tmp_path, dataclasses.replace(CASES[0], architecture=architecture), tensors)
    encoder = list(range(3, 23))
    out = model.generate(torch.tensor([encoder]), max_new_tokens=6, do_sample=False, eos_token_id=None, forced_eos_token_id=None,
                         forced_bos_token_id=FIRST)  # fmt: skip
    engine = engine_of(Reference(tmp_path, [], [], []))
    engine.add(request_of("x", (encoder, [START]), max_tokens=6))
    assert run(engine)["x", 0][0] == out[0, 1:].tolist()
    assert out[0, 1] == FIRST and "head.weight" not in engine.runner.model.weights.slots


@pytest.mark.parametrize("name", [
    "model.encoder.layers.1.fc1.bias", "model.decoder.layers.2.encoder_attn.k_proj.weight",
    "model.encoder.layernorm_embedding.bias", "model.decoder.layers.0.encoder_attn_layer_norm.bias"])  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = hub_tensors(bart_of(CASES[0]), CASES[0])
    del tensors[name]
    write(tmp_path, CASES[0], tensors)
    side = "encoder." if "encoder." in name else ""
    part = {"fc1": "layers.1.mlp.up.bias", "k_proj": "layers.2.cross.k.weight", "layernorm_embedding": "embed_norm.bias",
            "encoder_attn_layer_norm": "layers.0.cross_norm.bias"}[name.split(".")[-2]]  # fmt: skip
    with pytest.raises(CheckpointError, match=f"no tensor for {side}{part}"):
        engine_of(Reference(tmp_path, [], [], []))


# Keys that concern the maths have the released values; those of 2019 that nobody reads stand for all of their kind.
RELEASED = {
    "bart-base": {
        "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": False, "architectures": ["BartModel"],
        "bos_token_id": 0, "d_model": 768, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072, "decoder_layers": 6,
        "decoder_start_token_id": 2, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layers": 6,
        "eos_token_id": 2, "forced_eos_token_id": 2, "is_encoder_decoder": True, "max_position_embeddings": 1024,
        "model_type": "bart", "normalize_before": False, "normalize_embedding": True, "pad_token_id": 1,
        "scale_embedding": False, "vocab_size": 50265},
    "bart-large-cnn": {
        "activation_function": "gelu", "architectures": ["BartForConditionalGeneration"], "bos_token_id": 0, "d_model": 1024,
        "decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "decoder_layers": 12, "decoder_start_token_id": 2,
        "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layers": 12, "eos_token_id": 2,
        "forced_bos_token_id": 0, "is_encoder_decoder": True, "max_position_embeddings": 1024, "model_type": "bart",
        "no_repeat_ngram_size": 3, "pad_token_id": 1, "scale_embedding": False, "vocab_size": 50264},
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_and_what_transformers_saves_of_them_are_the_same_model(tmp_path: Path, name: str) -> None:
    config = RELEASED[name]
    spec = registry.resolve(ConfigReader(config)).spec
    transformers.BartConfig.from_dict(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"architectures": config["architectures"]}
    assert registry.resolve(ConfigReader(saved)).spec == spec
    for stack in (spec.decoder, spec.encoder):
        assert stack.positions.num_positions == spec.max_model_len == spec.max_encoder_len == 1024
        assert stack.tied and stack.embed_scale == 1.0 and len(stack.layers) == config["decoder_layers"]
        assert {layer.mixer.head_dim for layer in stack.layers} == {64}
        assert all(
            (layer.mixer.causal, layer.cross is not None) == (stack is spec.decoder,) * 2 for layer in stack.layers
        )
