"""The residual forms and position kinds that families combine, against the formulas written out in plain torch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gpu_executor.models.decoder import Decoder
from gpu_executor.models.names import required
from gpu_executor.models.rope import cos_sin_table
from gpu_executor.models.spec import (
    Alibi,
    Attention,
    DecoderSpec,
    Layer,
    Learned,
    Mlp,
    ModelSpec,
    Norm,
    Residual,
    Rope,
)
from gpu_executor.models.weights import Weights
from tests.gpu_executor.models.paged import run_in_chunks

ALIBI = Alibi(tuple(2.0 ** -(i + 1) for i in range(4)))


def spec_of(
    residual: Residual, *, positions: Rope | Alibi | None = None, norm: str = "rms", window: int | None = None
) -> ModelSpec:
    mixer = Attention(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.3, positions=positions, window=window)
    layers = (Layer(mixer, Mlp(40, "gelu_tanh"), residual),) * 3
    decoder = DecoderSpec(layers, Norm(norm, 1e-5), hidden_size=24, positions=Learned(64), tied=True)
    return ModelSpec("Test", decoder, vocab_size=67, max_model_len=64)


def model_of(spec: ModelSpec, *extras: str) -> Decoder:
    """A model with random weights of all that its spec requires, and of `extras`."""
    names = [*required(spec), *extras]
    weights = Weights(spec, names, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    for name, slot in weights.slots.items():
        slot.copy_(torch.randn(slot.shape, generator=generator) * 0.3 + ("norm" in name and name.endswith("weight")))
    return Decoder(spec, weights, torch.float32, torch.device("cpu"))


def written_out(model: Decoder, token_ids: list[int]) -> torch.Tensor:
    """Logits (T, V) by the formulas, without a cache; the model's canonical tensors are all that is taken from it."""
    w, spec = model.weights.slots, model.spec.decoder

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        if f"{name}.weight" not in w:
            return x
        weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
        if spec.norm.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, spec.norm.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.norm.eps) * weight

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def rotate(t: torch.Tensor, rope: Rope) -> torch.Tensor:
        cos, sin = cos_sin_table(rope, len(t))[:, None].chunk(2, -1)
        a, b = t[..., : rope.dim].chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, t[..., rope.dim :]), -1)

    def mix(name: str, m: Attention, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(f"{name}.{part}", x).unflatten(1, (-1, m.head_dim)) for part in "qkv")
        if isinstance(m.positions, Rope):
            q, k = rotate(q, m.positions), rotate(k, m.positions)
        k, v = (t.repeat_interleave(m.num_heads // m.num_kv_heads, 1) for t in (k, v))
        scores = torch.einsum("thk,shk->hts", q, k) * m.scale
        gap = torch.arange(len(x))[:, None] - torch.arange(len(x))  # query position - key position
        if isinstance(m.positions, Alibi):
            scores -= torch.tensor(m.positions.slopes)[:, None, None] * gap
        hidden = (gap < 0) | (gap >= (m.window or math.inf))
        attended = torch.einsum("hts,shk->thk", scores.masked_fill(hidden, -math.inf).softmax(-1), v)
        return linear(f"{name}.o", attended.flatten(1))

    def feed(name: str, m: Mlp, x: torch.Tensor) -> torch.Tensor:
        up = linear(f"{name}.up", x)
        if f"{name}.gate.weight" in w:
            return linear(f"{name}.down", F.gelu(linear(f"{name}.gate", x), approximate="tanh") * up)
        return linear(f"{name}.down", F.gelu(up, approximate="tanh"))

    x = w["embed.weight"][token_ids] + w["positions.weight"][: len(token_ids)]
    for i, layer in enumerate(spec.layers):
        n = f"layers.{i}"
        match layer.residual:
            case "sequential":
                x = x + mix(f"{n}.mixer", layer.mixer, norm(f"{n}.norm1", x))
                x = x + feed(f"{n}.mlp", layer.mlp, norm(f"{n}.norm2", x))
            case "parallel":
                first = norm(f"{n}.norm1", x)
                second = norm(f"{n}.norm2", x) if f"{n}.norm2.weight" in w else first
                x = x + mix(f"{n}.mixer", layer.mixer, first) + feed(f"{n}.mlp", layer.mlp, second)
            case "post_norm":
                x = norm(f"{n}.norm1", x + mix(f"{n}.mixer", layer.mixer, x))
                x = norm(f"{n}.norm2", x + feed(f"{n}.mlp", layer.mlp, x))
    return F.linear(norm("norm", x), w["embed.weight"], w.get("head.bias"))


SECOND_NORM = tuple(f"layers.{i}.norm2.weight" for i in range(3))
SOME_BIASES = ("layers.0.mixer.k.bias", "layers.1.mlp.gate.weight", "layers.1.mlp.up.bias", "layers.2.mlp.down.bias")
FORMS = {
    "sequential": (spec_of("sequential"), ()),
    "sequential-rope": (spec_of("sequential", positions=Rope(8, 100.0)), ()),
    "sequential-partial-rope-window": (spec_of("sequential", positions=Rope(4, 100.0), window=3), ()),
    "sequential-alibi": (spec_of("sequential", positions=ALIBI), ()),
    "sequential-alibi-window": (spec_of("sequential", positions=ALIBI, window=5), ()),
    "sequential-some-biases": (spec_of("sequential"), SOME_BIASES),
    "parallel-one-norm": (spec_of("parallel", norm="layer"), ()),
    "parallel-two-norms": (spec_of("parallel", positions=Rope(8, 100.0)), SECOND_NORM),
    "post-norm": (spec_of("post_norm", norm="layer"), ("layers.0.norm1.bias", "layers.1.norm2.bias")),
    "sequential-bias-of-a-tied-head": (spec_of("sequential"), ("head.bias",)),
    "post-norm-then-a-norm": (spec_of("post_norm"), ("norm.weight",)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [100, 4, 1])
def test_every_form_is_its_formula(form: str, size: int) -> None:
    spec, extras = FORMS[form]
    model = model_of(spec, *extras)
    token_ids = [3, 66, 0, 12, 12, 40, 5, 9, 31, 2, 7]
    torch.testing.assert_close(
        run_in_chunks(model, token_ids, size), written_out(model, token_ids), rtol=1e-4, atol=1e-4
    )


def test_parallel_layers_may_do_without_a_second_norm_and_post_norm_without_a_last() -> None:
    names = {form: required(spec_of(form)) for form in ("sequential", "parallel", "post_norm")}
    assert "layers.0.norm2.weight" in names["sequential"] and "norm.weight" in names["sequential"]
    assert "layers.0.norm2.weight" not in names["parallel"] and "norm.weight" in names["parallel"]
    assert "layers.0.norm2.weight" in names["post_norm"] and "norm.weight" not in names["post_norm"]


def test_forms_can_alternate_in_one_stack() -> None:
    spec = spec_of("sequential")
    first, second, third = spec.decoder.layers
    layers = (first, dataclasses.replace(second, residual="parallel"), third)
    spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, layers=layers))
    model = model_of(spec)
    token_ids = [1, 2, 3, 4, 5]
    torch.testing.assert_close(run_in_chunks(model, token_ids, 2), written_out(model, token_ids), rtol=1e-4, atol=1e-4)
