"""Owns the cases of operations on sequences: rotation with the cache write, attention of each kind, and recurrences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import kernels.block_sparse_attention.reference
import kernels.causal_conv.reference
import kernels.mla_attention.reference
import kernels.paged_attention.reference
import kernels.rope_kv_write.reference
import kernels.rope_latent_write.reference
import kernels.selective_scan.reference
from kernels.block_sparse_attention import block_sparse_attention
from kernels.causal_conv import causal_conv
from kernels.mla_attention import mla_attention
from kernels.paged_attention import paged_attention
from kernels.rope_kv_write import rope_kv_write
from kernels.rope_latent_write import rope_latent_write
from kernels.selective_scan import selective_scan
from kernels.verification.case import Case, Outputs, Place, concatenated

# (rows in the call, length) of each sequence: tokens that decode, whole prompts, and parts of prompts.
BATCH = ((1, 1), (1, 300), (63, 63), (130, 130), (33, 97), (2, 256))
BLOCK_SIZE = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Ragged:
    """A batch of sequences, or one part of a sequence; rows are where its rows lie in the batch."""

    rows: slice
    sequences: slice
    query_start: torch.Tensor
    seq_lens: torch.Tensor


def whole(place: Place) -> Ragged:
    counts, lengths = zip(*BATCH, strict=True)
    starts = [sum(counts[:r]) for r in range(len(BATCH) + 1)]
    return Ragged(slice(0, starts[-1]), slice(None), place.integers(starts), place.integers(lengths))


def parts(place: Place, *, cut: bool = True) -> Iterator[Ragged]:
    """Each sequence by itself, its rows in chunks of a third or so where they may be cut."""
    start = 0
    for r, (count, length) in enumerate(BATCH):
        first, step = 0, max(1, count // 3) if cut else count
        while first < count:
            last = min(count, first + step)
            yield Ragged(
                slice(start + first, start + last),
                slice(r, r + 1),
                place.integers([0, last - first]),
                place.integers([length - count + last]),
            )
            first = last
        start += count


def attended(
    place: Place,
    shape: str,
    call: Callable[[Ragged], torch.Tensor],
    expected: Callable[[Ragged], torch.Tensor],
    *,
    cut: bool = True,
) -> Case:
    return Case(
        shape,
        lambda: (call(whole(place)),),
        lambda: (expected(whole(place)),),
        lambda: concatenated((call(part),) for part in parts(place, cut=cut)),
    )


def block_table(place: Place) -> tuple[torch.Tensor, int]:
    """Of shuffled blocks, and how many there are."""
    width = max(-(-length // BLOCK_SIZE) for _, length in BATCH)
    num_blocks = width * len(BATCH)
    return place.shuffled(num_blocks, torch.int32).view(len(BATCH), width), num_blocks


def paged(place: Place) -> Iterator[Case]:
    table, num_blocks = block_table(place)
    variants: tuple[tuple[str, tuple[int, int, int], dict[str, Any]], ...] = (
        ("", (14, 2, 64), {}),
        (", window and softcap", (4, 1, 128), {"window": 40, "softcap": 20.0}),
        (", ALiBi", (3, 3, 80), {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1], device=place.device)}),
        (", sinks, odd heads", (4, 2, 36), {"sinks": place.normal(4, seed=9, dtype=torch.float32)}),
        (", to all tokens", (4, 4, 64), {"causal": False}),
    )
    for name, (num_heads, num_kv_heads, head_dim), options in variants:
        q = 2 * place.normal(whole(place).rows.stop, num_heads, head_dim)
        k, v = (place.normal(num_blocks, num_kv_heads, BLOCK_SIZE, head_dim, seed=seed) for seed in (1, 2))
        given = options | {"scale": head_dim**-0.5}
        yield attended(
            place,
            f"{num_heads} heads of {head_dim} on {num_kv_heads}{name}",
            lambda p, q=q, k=k, v=v, given=given: paged_attention(
                q[p.rows], k, v, table[p.sequences], p.query_start, p.seq_lens, **given
            ),
            lambda p, q=q, k=k, v=v, given=given: kernels.paged_attention.reference.paged_attention(
                q, k, v, table, p.query_start, p.seq_lens, **given
            ),
            cut=given.get("causal", True),
        )


def latent(place: Place) -> Iterator[Case]:
    table, num_blocks = block_table(place)
    q, cache = place.normal(whole(place).rows.stop, 5, 80), place.normal(num_blocks, BLOCK_SIZE, 80, seed=1)
    given = {"kv_rank": 64, "scale": 80**-0.5}
    yield attended(
        place,
        "5 heads, rank 64 and 16",
        lambda p: mla_attention(q[p.rows], cache, table[p.sequences], p.query_start, p.seq_lens, **given),
        lambda p: kernels.mla_attention.reference.mla_attention(q, cache, table, p.query_start, p.seq_lens, **given),
    )


def block_sparse(place: Place) -> Iterator[Case]:
    table, num_blocks = block_table(place)
    q = place.normal(whole(place).rows.stop, 4, 64)
    k, v = (place.normal(num_blocks, 2, BLOCK_SIZE, 64, seed=seed) for seed in (1, 2))
    given = {"scale": 0.125, "sparse_block_size": 16, "num_local_blocks": 2, "stride": 3, "head_step": 1}
    reference = kernels.block_sparse_attention.reference
    yield attended(
        place,
        "4 heads of 64 on 2, each third block",
        lambda p: block_sparse_attention(q[p.rows], k, v, table[p.sequences], p.query_start, p.seq_lens, **given),
        lambda p: reference.block_sparse_attention(q, k, v, table, p.query_start, p.seq_lens, **given),
    )


def remembered(
    shape: str,
    place: Place,
    states: torch.Tensor,
    call: Callable[[Ragged, torch.Tensor, torch.Tensor], torch.Tensor],
    expected: Callable[[Ragged, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Case:
    """A recurrence: `call` of a part takes the states, which it moves on, and the slots of the part's sequences."""
    slots = place.shuffled(len(states))[: len(BATCH)]

    def run(function: Callable[..., torch.Tensor], found: Iterator[Ragged]) -> Outputs:
        moved = states.clone()
        out = torch.cat([function(part, moved, slots[part.sequences]) for part in found])
        return out, moved[slots]

    return Case(
        shape,
        lambda: run(call, iter([whole(place)])),
        lambda: run(expected, iter([whole(place)])),
        lambda: run(call, parts(place)),
    )


def convolutions(place: Place) -> Iterator[Case]:
    for channels, taps in ((96, 4), (33, 3)):
        x, weight, bias = (
            place.normal(whole(place).rows.stop, channels),
            place.normal(channels, taps, seed=1),
            place.normal(channels, seed=2),
        )
        yield remembered(
            f"{channels} channels, {taps} taps",
            place,
            place.normal(len(BATCH) + 2, taps - 1, channels, seed=3),
            lambda p, window, slots, x=x, w=weight, b=bias: causal_conv(
                x[p.rows], w, b, window, p.query_start, p.seq_lens, slots
            ),
            lambda p, window, slots, x=x, w=weight, b=bias: kernels.causal_conv.reference.causal_conv(
                x, w, b, window, p.query_start, p.seq_lens, slots
            ),
        )


def scans(place: Place) -> Iterator[Case]:
    for channels, states in ((48, 16), (33, 5)):
        num_rows = whole(place).rows.stop
        x, dt, z = (place.normal(num_rows, channels, seed=seed) for seed in range(3))
        b, c = (place.normal(num_rows, states, seed=seed) for seed in (3, 4))
        a = -place.normal(channels, states, seed=5, dtype=torch.float32).exp()
        d, dt_bias = (place.normal(channels, seed=seed, dtype=torch.float32) for seed in (6, 7))

        def call(
            p: Ragged,
            state: torch.Tensor,
            slots: torch.Tensor,
            rows=(x, dt, b, c, z),
            fixed=(a, d, dt_bias),
            scan=selective_scan,
        ) -> torch.Tensor:
            x, dt, b, c, z = (t[p.rows] for t in rows)
            a, d, dt_bias = fixed
            return scan(x, dt, a, b, c, d, z, dt_bias, state, p.query_start, p.seq_lens, slots)

        yield remembered(
            f"{channels} channels, {states} states",
            place,
            place.normal(len(BATCH) + 2, states, channels, seed=8, dtype=torch.float32),
            call,
            lambda *given, call=call: call(*given, scan=kernels.selective_scan.reference.selective_scan),
        )


def _angles(place: Place, rope_dim: int) -> torch.Tensor:
    angles = torch.arange(300)[:, None] * 10000.0 ** (-torch.arange(0, rope_dim, 2) / rope_dim)
    return torch.cat((angles.cos(), angles.sin()), 1).to(place.device)


def written(
    shape: str,
    caches: tuple[torch.Tensor, ...],
    num_rows: int,
    call: Callable[..., torch.Tensor],
    expected: Callable[..., torch.Tensor],
) -> Case:
    """What rotates rows and writes them to caches, which are compared too."""

    def run(function: Callable[..., torch.Tensor], cuts: tuple[int, ...]) -> Outputs:
        mine = tuple(cache.clone() for cache in caches)
        rotated = [function(slice(*ends), *mine) for ends in itertools.pairwise(cuts)]
        return torch.cat(rotated), *mine

    return Case(
        shape,
        lambda: run(call, (0, num_rows)),
        lambda: run(expected, (0, num_rows)),
        lambda: run(call, (0, 1, 4, num_rows // 2, num_rows)),
    )


def rotations(place: Place) -> Iterator[Case]:
    for num_heads, num_kv_heads, head_dim, rope_dim in ((14, 2, 64, 64), (5, 1, 96, 32)):
        q, k, v = (
            place.normal(63, heads, head_dim, seed=seed)
            for seed, heads in enumerate((num_heads, num_kv_heads, num_kv_heads))
        )
        positions, slots, table = place.below(300, 63), place.shuffled(8 * BLOCK_SIZE)[:63], _angles(place, rope_dim)

        def call(
            rows: slice,
            *caches: torch.Tensor,
            write=rope_kv_write,
            qkv=(q, k, v),
            where=(positions, slots),
            table=table,
        ) -> torch.Tensor:
            positions, slots = (t[rows] for t in where)
            return write(*(t[rows] for t in qkv), table, positions, *caches, slots)

        yield written(
            f"{num_heads} heads of {head_dim} on {num_kv_heads}, {rope_dim} rotated",
            tuple(place.normal(8, num_kv_heads, BLOCK_SIZE, head_dim, seed=seed) for seed in (5, 6)),
            63,
            call,
            lambda *given, call=call: call(*given, write=kernels.rope_kv_write.reference.rope_kv_write),
        )


def latent_rotations(place: Place) -> Iterator[Case]:
    q, k, latents = place.normal(63, 5, 16), place.normal(63, 16, seed=1), place.normal(63, 48, seed=2)
    positions, slots, table = place.below(300, 63), place.shuffled(8 * BLOCK_SIZE)[:63], _angles(place, 16)

    def call(rows: slice, cache: torch.Tensor, write=rope_latent_write) -> torch.Tensor:
        return write(q[rows], k[rows], latents[rows], table, positions[rows], cache, slots[rows])

    yield written(
        "5 heads, rank 48 and 16",
        (place.normal(8, BLOCK_SIZE, 64, seed=5),),
        63,
        call,
        lambda *given: call(*given, write=kernels.rope_latent_write.reference.rope_latent_write),
    )


CASES = {
    "block_sparse_attention": block_sparse,
    "causal_conv": convolutions,
    "mla_attention": latent,
    "paged_attention": paged,
    "rope_kv_write": rotations,
    "rope_latent_write": latent_rotations,
    "selective_scan": scans,
}
