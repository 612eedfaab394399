"""Owns the cases of operations on rows: norms, activations, lookups, and the choice of experts and of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import kernels.activation.reference
import kernels.embedding.reference
import kernels.layer_norm.reference
import kernels.moe_routing.reference
import kernels.rms_norm.reference
import kernels.row_groups.reference
import kernels.sampling.reference
from kernels.activation import act, act_and_mul
from kernels.embedding import embedding
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.moe_routing import route
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.row_groups import group_rows
from kernels.sampling import SampleBatch, SampleRow, sample_tokens
from kernels.verification.case import Case, Place, of_rows

ROWS_AND_SIZES = ((1, 896), (63, 333), (300, 64))


def activations(place: Place) -> Iterator[Case]:
    reference = kernels.activation.reference
    for name, bound in (("silu", None), ("gelu", None), ("gelu_tanh", None), ("relu2", None), ("fatrelu", 0.3)):
        x = place.normal(63, 2 * 333)
        yield of_rows(
            f"{name} of (63, 666), and as a gate",
            len(x),
            lambda rows, x=x, name=name, bound=bound: (act(name, x[rows], bound), act_and_mul(name, x[rows], bound)),
            lambda x=x, name=name, bound=bound: (reference.act(name, x, bound), reference.act_and_mul(name, x, bound)),
        )


def rms_norms(place: Place) -> Iterator[Case]:
    reference = kernels.rms_norm.reference
    for num_rows, size in ROWS_AND_SIZES:
        x, residual, weight = (
            place.normal(*shape, seed=seed) for seed, shape in enumerate([(num_rows, size)] * 2 + [(size,)])
        )
        for given in (weight, None):
            yield of_rows(
                f"({num_rows}, {size})" + (" without weight" if given is None else ""),
                num_rows,
                lambda rows, x=x, r=residual, w=given: (
                    rms_norm(x[rows], w, 1e-6),
                    *add_rms_norm(x[rows], r[rows].clone(), w, 1e-6),
                ),
                lambda x=x, r=residual, w=given: (
                    reference.rms_norm(x, w, 1e-6),
                    *reference.add_rms_norm(x, r.clone(), w, 1e-6),
                ),
            )


def layer_norms(place: Place) -> Iterator[Case]:
    reference = kernels.layer_norm.reference
    for num_rows, size in ROWS_AND_SIZES:
        x, residual = place.normal(num_rows, size), place.normal(num_rows, size, seed=1)
        weight, bias = place.normal(size, seed=2), place.normal(size, seed=3)
        yield of_rows(
            f"({num_rows}, {size})",
            num_rows,
            lambda rows, x=x, r=residual, p=(weight, bias, 1e-5): (
                layer_norm(x[rows], *p), *add_layer_norm(x[rows], r[rows].clone(), *p),
            ),
            lambda x=x, r=residual, p=(weight, bias, 1e-5): (
                reference.layer_norm(x, *p), *reference.add_layer_norm(x, r.clone(), *p),
            ),
        )  # fmt: skip


def lookups(place: Place) -> Iterator[Case]:
    ids, table = place.below(999, 63), place.normal(999, 96)
    yield of_rows(
        "63 of (999, 96)",
        len(ids),
        lambda rows: (embedding(ids[rows], table),),
        lambda: (kernels.embedding.reference.embedding(ids, table),),
    )


def routers(place: Place) -> Iterator[Case]:
    reference = kernels.moe_routing.reference
    options = {
        "score_bias": None,
        "renormalize": True,
        "scale": 1.0,
        "num_groups": 1,
        "topk_groups": 1,
        "group_score": "max",
    }
    grouped = options | {"num_groups": 4, "topk_groups": 2, "group_score": "top2", "scale": 2.5}
    for score, given in (("softmax", options), ("softmax_topk", options), ("sigmoid", grouped)):
        logits = place.normal(63, 40, dtype=torch.float32)
        yield of_rows(
            f"{score}, 6 of 40 for 63",
            len(logits),
            lambda rows, logits=logits, given=given | {"score": score}: route(logits[rows], 6, **given),
            lambda logits=logits, given=given | {"score": score}: reference.route(logits, 6, **given),
        )


def groups(place: Place) -> Iterator[Case]:
    """What a tile holds depends on all rows, which is what it is for: there is nothing to compute in parts."""
    of_rows_ = place.below(9, 130, dtype=torch.int32) - 1
    num_tiles = (130 + 8 * 15) // 16

    def call() -> tuple[torch.Tensor, ...]:
        found = group_rows(of_rows_, 8, 16)
        return found.order, found.ends, found.tile_groups, found.tile_starts

    yield Case(
        "130 rows of 8 groups", call, lambda: kernels.row_groups.reference.group_rows(of_rows_, 8, 16, num_tiles), call
    )


def samplers(place: Place) -> Iterator[Case]:
    logits = 3 * place.normal(40, 1999, dtype=torch.float32)
    rows = [
        SampleRow(0.5 + i % 3 / 2, (0, 5, 700)[i % 3], (1.0, 0.9)[i % 2], (0.0, 0.1)[i % 4 // 2], 7 * i, i % 2, i)
        for i in range(40)
    ]
    reference = kernels.sampling.reference

    def expected() -> tuple[torch.Tensor, ...]:
        chosen = [
            reference.sample(
                row,
                *(getattr(of, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")),
                of.sequence_index,
                of.position,
            )
            for row, of in zip(logits, rows, strict=True)
        ]
        return (torch.tensor(chosen, device=logits.device),)

    yield of_rows(
        "40 rows of 1,999, any filter",
        40,
        lambda part: (sample_tokens(logits[part], SampleBatch.of(rows[part], logits.device)),),
        expected,
    )


CASES = {
    "activation": activations,
    "embedding": lookups,
    "layer_norm": layer_norms,
    "moe_routing": routers,
    "rms_norm": rms_norms,
    "row_groups": groups,
    "sampling": samplers,
}
