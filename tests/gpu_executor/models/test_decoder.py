"""Every architecture gives transformers' logits: whole, in chunks, token by token, and beside another sequence."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model
from tests.gpu_executor.models.checkpoints import (
    Case,
    all_cases,
    case_of,
    hub_tensors,
    tiny_checkpoint,
    tiny_model,
    write,
)
from tests.gpu_executor.models.paged import PagedSequences, run_in_chunks

CPU = torch.device("cpu")


def load(folder: Path, *, max_model_len: int | None = None, dtype: torch.dtype = torch.float32) -> Decoder:
    config = json.loads((folder / "config.json").read_text())
    return load_model(folder, config, dtype=dtype, device=CPU, max_model_len=max_model_len, progress=False)


def prompt_of(case: Case, seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, case.config["vocab_size"]) for _ in range(max(length, case.least_prompt))]


def logits_of(model: transformers.PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0]


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-4) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error < tolerance, f"relative error {error:.1e}"  # NaN fails too


@dataclasses.dataclass
class Pair:
    """Our model, and two prompts with transformers' logits of each."""

    model: Decoder
    prompts: tuple[list[int], list[int]]
    wanted: tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", params=all_cases(), ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    reference = tiny_checkpoint(case, folder)
    prompts = prompt_of(case, 1, 61), prompt_of(case, 2, 23)
    wanted = logits_of(reference, prompts[0]), logits_of(reference, prompts[1])
    return Pair(load(folder, max_model_len=case.max_model_len), prompts, wanted)


@pytest.mark.parametrize("size", [1000, 17, 5, 1], ids=["whole", "chunks-of-17", "chunks-of-5", "token-by-token"])
def test_logits_equal_those_of_transformers(pair: Pair, size: int) -> None:
    assert_close(run_in_chunks(pair.model, pair.prompts[0], size), pair.wanted[0])


def test_two_sequences_in_one_batch_do_not_mix(pair: Pair) -> None:
    long_from = pair.model.spec.long_from
    long = [key for key, prompt in zip("ab", pair.prompts, strict=True) if long_from and len(prompt) > long_from]
    sequences = PagedSequences(pair.model, seed=5, long=long)
    draw = random.Random(4)
    left = {"a": list(pair.prompts[0]), "b": list(pair.prompts[1])}
    got: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    while any(left.values()):
        parts = {}
        for key in draw.sample(sorted(left), 2):
            num_tokens = draw.choice([1, 1, 2, 7])
            if left[key]:
                parts[key], left[key] = left[key][:num_tokens], left[key][num_tokens:]
        for key, logits in sequences.step(parts).items():
            got[key].append(logits)
    assert_close(torch.cat(got["a"]), pair.wanted[0])
    assert_close(torch.cat(got["b"]), pair.wanted[1])


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name if name == "lm_head.weight" else prefix + name.removeprefix(prefix): t for name, t in tensors.items()}


def _without_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items()}


def _without(tensors: dict[str, torch.Tensor], gone: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if name != gone}


# How else the hub's files lay out the same model: (case, change of its tensors).
LAYOUTS = {
    "llama-without-prefix": ("llama", lambda t: _without_prefix(t, "model.")),
    "llama-with-inv-freq": ("llama", lambda t: t | {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(3)}),
    "qwen2-with-the-tied-head-stored-again": ("qwen2", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
    "gpt2-official": ("gpt2", lambda t: _without_prefix(t, "transformer.") | {
        f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(3)}),
    "gpt2-fine-tuned": ("gpt2", lambda t: _with_prefix(t, "transformer.") | {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": t["transformer.wte.weight"].clone()}),
    "gemma-with-the-tied-head-stored-again": ("gemma", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
    "stablelm-with-inv-freq": ("stablelm", lambda t: t | {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(3)}),
    "starcoder-with-masks": ("gpt-bigcode", lambda t: t | {
        "transformer.h.0.attn.bias": torch.ones(1, 8, 8, dtype=torch.bool), "lm_head.weight": t["transformer.wte.weight"] + 1}),
    "gptj-official": ("gptj", lambda t: t | {
        f"transformer.h.{i}.attn.{name}": torch.ones(1, 1, 8, 8) for i in range(3) for name in ("bias", "masked_bias")}),
    "gpt-neox-20b": ("gpt-neox", lambda t: t | {
        f"gpt_neox.layers.{i}.attention.{name}": torch.ones(8, dtype=torch.uint8) for i in range(3)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")}),
    "gpt-neox-with-another-name-of-the-head": ("gpt-neox", lambda t: _without(t, "embed_out.weight") | {
        "lm_head.weight": t["embed_out.weight"]}),
    "mamba-without-prefix": ("mamba", lambda t: _without_prefix(t, "backbone.")),
    "mamba-with-the-tied-head-stored-again": ("mamba", lambda t: t | {"lm_head.weight": t["backbone.embeddings.weight"] + 1}),
    "jamba-without-prefix": ("jamba-one-expert-tied", lambda t: _without_prefix(t, "model.")),
    "bloom-official": ("bloom", lambda t: _without_prefix(t, "transformer.")),
    "bloom-fine-tuned": ("bloom", lambda t: t | {"lm_head.weight": t["transformer.word_embeddings.weight"].clone()}),
    "falcon-with-the-head-and-inv-freq": ("falcon-7b", lambda t: t | {
        "transformer.h.0.self_attention.rotary.inv_freq": torch.zeros(6),
        "lm_head.weight": t["transformer.word_embeddings.weight"].clone()}),
    "opt-official": ("opt", lambda t: _without_prefix(t, "model.") | {
        "decoder.version": torch.tensor([3.0]),
        "lm_head.weight": t["model.decoder.embed_tokens.weight"].clone()}),
    "mixtral-without-prefix": ("mixtral", lambda t: _without_prefix(t, "model.")),
    "deepseek-v3-with-layers-that-predict-more-tokens": ("deepseek-v3", lambda t: t | {
        f"model.layers.{i}.{name}": torch.ones(2) for i in (3, 12) for name in (
            "eh_proj.weight", "enorm.weight", "input_layernorm.weight", "mlp.experts.0.up_proj.weight")}),
    "deepseek-v2-without-prefix": ("deepseek-v2", lambda t: _without_prefix(t, "model.")),
    "dbrx-without-prefix": ("dbrx", lambda t: _without_prefix(t, "transformer.")),
    "granite-moe-with-the-tied-head-stored-again": ("granite-moe-tied-biases", lambda t: t | {
        "lm_head.weight": t["model.embed_tokens.weight"] + 1}),
}  # fmt: skip


@pytest.mark.parametrize("num_shards", [1, 3], ids=["one-file", "three-shards"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_hub_is_the_same_model(tmp_path: Path, layout: str, num_shards: int) -> None:
    name, change = LAYOUTS[layout]
    case = case_of(name)
    reference = tiny_model(case)
    write(tmp_path, case, change(hub_tensors(reference, case)), num_shards=num_shards)
    model, prompt = load(tmp_path), prompt_of(case, 1, 9)
    assert_close(run_in_chunks(model, prompt, 1000), logits_of(reference, prompt))
    assert ("head.weight" in model.weights.slots) != model.spec.decoder.tied  # a tied head takes no memory of its own


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-torch-1.6"])
def test_pickled_weights_are_the_same_model(tmp_path: Path, zipped: bool) -> None:
    case = case_of("gpt2")
    reference = tiny_checkpoint(case, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(hub_tensors(reference, case), path, _use_new_zipfile_serialization=zipped)
    prompt = prompt_of(case, 1, 9)
    assert_close(run_in_chunks(load(tmp_path), prompt, 1000), logits_of(reference, prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", [
    "llama", "mistral-window", "qwen2", "gpt2", "gemma2", "cohere-norms-of-heads", "olmo2", "phi3-window", "persimmon", "gpt-neox",
    "bloom", "opt-350m", "mixtral", "qwen2-moe", "deepseek-v2-all-dense", "deepseek-v3", "minicpm3",
    "falcon-mamba", "jamba",
])  # fmt: skip
def test_half_precision_is_as_near_as_that_of_transformers(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    case = case_of(name)
    reference = tiny_checkpoint(case, tmp_path)
    prompt = prompt_of(case, 1, 40)
    exact = logits_of(reference, prompt)
    got = run_in_chunks(load(tmp_path, dtype=dtype), prompt, 1000)
    assert got.dtype == torch.float32
    theirs = logits_of(reference.to(dtype), prompt)
    # Of the median token: a tie of two experts may fall otherwise in either, and changes a whole token.
    mine, others = ((logits - exact).square().mean(-1).sqrt().median() for logits in (got, theirs))
    assert mine < 1.3 * others


def test_the_caller_may_change_the_logits(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("llama"), tmp_path)
    model = load(tmp_path)
    hidden = torch.randn(3, 48)
    first = model.logits(hidden)
    first.fill_(0)
    assert not torch.equal(model.logits(hidden), first)
    assert model.logits(hidden[:0]).shape == (0, 199)
