"""Rows of attention: decode and prompts over the paged cache, over latents, and over some blocks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernel_rows import Place, Row
from kernels.block_sparse_attention import block_sparse_attention
from kernels.mla_attention import mla_attention
from kernels.paged_attention import paged_attention

PAGE = 16


class PagedCase:
    """B sequences of which n rows each attend to L keys; the same keys and values dense, for rivals."""

    def __init__(self, place: Place, num_seqs: int, n: int, length: int, heads: int, kv_heads: int, dim: int) -> None:
        length = -(-length // PAGE) * PAGE
        pages = length // PAGE
        self.q = place.normal(num_seqs * n, heads, dim)
        caches = place.normal(2, num_seqs * pages, kv_heads, PAGE, dim)
        table = torch.randperm(num_seqs * pages, device=place.device).int().view(num_seqs, pages)
        self.starts = torch.arange(num_seqs + 1, device=place.device, dtype=torch.int32) * n
        self.args = (*caches, table, self.starts, place.integers(*[length] * num_seqs))
        gathered = (cache[table.long()].transpose(2, 3).flatten(1, 2).transpose(1, 2) for cache in caches)
        self.k, self.v = (dense.contiguous() for dense in gathered)  # (B, G, L, K)
        self.dense_q = self.q.view(num_seqs, n, heads, dim).transpose(1, 2)  # (B, H, n, K)
        self.length, self.scale, self.kv_bytes = length, dim**-0.5, caches.numel() * caches.element_size()
        self.io_bytes = 2 * self.q.numel() * self.q.element_size()

    def rows_of(self, dense: torch.Tensor) -> torch.Tensor:
        """(B, H, n, K) -> (T, H, K), as the kernels give it."""
        return dense.transpose(1, 2).flatten(0, 1)

    def sdpa(self, **options: object) -> Callable[[], torch.Tensor]:
        return lambda: self.rows_of(
            F.scaled_dot_product_attention(self.dense_q, self.k, self.v, scale=self.scale, enable_gqa=True, **options)
        )

    def flex(self, mask: Callable[..., torch.Tensor], num_heads: int | None = None) -> Callable[[], torch.Tensor]:
        """mask (b, h, query row, key)."""
        blocks = create_block_mask(mask, None, num_heads, self.dense_q.shape[2], self.length, device=str(self.q.device))
        return lambda: self.rows_of(
            flex_attention(self.dense_q, self.k, self.v, block_mask=blocks, scale=self.scale, enable_gqa=True)
        )


def paged_decode(place: Place) -> Iterator[Row]:
    for num_seqs, length, heads, kv_heads, dim in (
        (64, 4096, 32, 8, 128), (128, 1024, 32, 8, 128), (1, 8192, 32, 8, 128), (1, 65536, 32, 8, 128),
        (64, 4096, 14, 2, 64), (16, 4096, 16, 8, 256),
    ):  # fmt: skip
        case = PagedCase(place, place.scaled(num_seqs), 1, place.scaled(length, 48), heads, kv_heads, dim)
        flops = 4 * len(case.q) * heads * case.length * dim
        yield Row(
            f"paged decode B={num_seqs} L={length} H={heads} G={kv_heads} K={dim}",
            lambda case=case: paged_attention(case.q, *case.args, scale=case.scale),
            case.kv_bytes + case.io_bytes,
            flops,
            {"SDPA, dense": case.sdpa()},
        )
        if dim == 128 and num_seqs == 64:
            k, v, *where = case.args
            codes = [cache.to(torch.float8_e4m3fn) for cache in (k, v)]
            yield Row(
                f"paged decode fp8 B={num_seqs} L={length} H={heads} G={kv_heads} K={dim}",
                lambda case=case, codes=codes, where=where: paged_attention(case.q, *codes, *where, scale=case.scale),
                sum(cache.numel() for cache in codes) + case.io_bytes,
                flops,
            )


def paged_window_decode(place: Place) -> Iterator[Row]:
    case, window = PagedCase(place, place.scaled(64), 1, place.scaled(4096, 48), 64, 8, 64), place.scaled(128, 16)
    seen = range(case.length - window, case.length)
    k, v = (dense[:, :, seen.start : seen.stop].contiguous() for dense in (case.k, case.v))
    yield Row(
        "paged decode B=64 L=4096 H=64 G=8 K=64 window 128",
        lambda: paged_attention(case.q, *case.args, scale=case.scale, window=window),
        case.kv_bytes * window // case.length + case.io_bytes,
        4 * len(case.q) * 64 * window * 64,
        {"SDPA, dense, of the window alone": lambda: case.rows_of(
            F.scaled_dot_product_attention(case.dense_q, k, v, scale=case.scale, enable_gqa=True)
        )},
    )  # fmt: skip


def paged_prompt(place: Place) -> Iterator[Row]:
    for num_seqs, computed, new, heads, kv_heads, dim in (
        (1, 0, 2048, 32, 8, 128), (1, 0, 16384, 32, 8, 128), (16, 0, 512, 32, 8, 128), (1, 8192, 512, 32, 8, 128),
        (1, 0, 2048, 32, 8, 64), (1, 0, 2048, 16, 8, 256),
    ):  # fmt: skip
        n = place.scaled(new, PAGE) // PAGE * PAGE
        before = place.scaled(computed, PAGE) // PAGE * PAGE if computed else 0
        case = PagedCase(place, place.scaled(num_seqs), n, before + n, heads, kv_heads, dim)
        bias = causal_lower_right(n, case.length) if before else None
        yield Row(
            f"paged prompt B={num_seqs} L={computed}+{new} H={heads} G={kv_heads} K={dim}",
            lambda case=case: paged_attention(case.q, *case.args, scale=case.scale),
            case.kv_bytes + case.io_bytes,
            4 * len(case.q) * heads * dim * (2 * before + n + 1) // 2,
            {"SDPA, dense": case.sdpa(attn_mask=bias) if before else case.sdpa(is_causal=True)},
            {"FlexAttention, dense": case.flex(lambda b, h, row, key, before=before: row + before >= key)},
        )


def mla(place: Place) -> Iterator[Row]:
    for num_seqs, n, length, heads in ((64, 1, 4096, 16), (16, 1, 4096, 128), (1, 1, 32768, 128), (1, 2048, 2048, 16)):
        n, rank, size = place.scaled(n), 512, 576
        case = PagedCase(place, place.scaled(num_seqs), n, max(place.scaled(length, 48), n), heads, 1, size)
        cache, _, *where = case.args
        sequences = len(case.q) // n
        hidden = (
            torch.arange(case.length, device=place.device)
            > torch.arange(case.length - n, case.length, device=place.device).repeat_interleave(heads)[:, None]
        )  # (n H, L)

        def products(case: PagedCase = case, hidden: torch.Tensor = hidden, shape: tuple = (sequences, -1, size)):
            keys = case.k[:, 0]  # (B, L, C + P)
            scores = case.q.view(shape) @ keys.mT * case.scale  # (B, n H, L)
            probabilities = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(keys.dtype)
            return (probabilities @ keys[..., :512]).view(len(case.q), -1, 512)

        yield Row(
            f"latent attention B={num_seqs} n={n} L={length} H={heads}",
            lambda case=case, cache=cache, where=where: mla_attention(
                case.q, cache[:, 0], *where, kv_rank=512, scale=case.scale
            ),
            case.kv_bytes // 2 + case.q.numel() * case.q.element_size() * (size + rank) // size,
            2 * len(case.q) * heads * (size + rank) * (2 * case.length - n + 1) // 2,
            {"cuBLAS, dense": products},
            {"torch.compile, dense": products},
        )


def block_sparse(place: Place) -> Iterator[Row]:
    pattern = {"sparse_block_size": 64, "num_local_blocks": 16, "stride": 8, "head_step": 1}
    if place.size < 1:
        pattern |= {"sparse_block_size": 8, "num_local_blocks": 2}
    for num_seqs, n, length in ((1, 8192, 8192), (32, 1, 8192)):
        n, length = place.scaled(n), place.scaled(length, 96)
        case = PagedCase(place, place.scaled(num_seqs), min(n, length), length, 32, 8, 128)
        n = len(case.q) // (len(case.starts) - 1)

        def mask(b, h, row, key, before: int = case.length - n):
            row = row + before
            near = (
                row // pattern["sparse_block_size"] - key // pattern["sparse_block_size"] < pattern["num_local_blocks"]
            )
            column = key // pattern["sparse_block_size"] + h * pattern["head_step"] + 1
            return (row >= key) & (near | (column % pattern["stride"] == 0))

        rows = torch.arange(n, device=place.device)[:, None]
        keys = torch.arange(case.length, device=place.device)[None]
        pairs = sum(int(mask(0, head, rows, keys).sum()) for head in range(32)) * len(case.q) // n
        seen = sum(int(mask(0, head, rows, keys).any(0).sum()) for head in range(0, 32, 4)) * len(case.q) // n
        yield Row(
            f"block-sparse B={num_seqs} n={n} L={length} H=32 G=8 K=128",
            lambda case=case: block_sparse_attention(case.q, *case.args, scale=case.scale, **pattern),
            2 * seen * 128 * case.q.element_size() + case.io_bytes,
            4 * pairs * 128,
            compiled={"FlexAttention, dense": case.flex(mask, 32)},
        )


ROWS = (paged_decode, paged_window_decode, paged_prompt, mla, block_sparse)
