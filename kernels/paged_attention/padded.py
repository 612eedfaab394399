"""Owns attention over a paged cache in torch without a loop over sequences: they are padded to the longest of a group.

Serves every attention whose cache lies in blocks: with values beside the keys, or with values that are part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kernels import batch_invariance
from kernels.paged_attention.reference import visible_keys

# Scores held at once (float32): long prompts go in slices of queries, and the earlier ones need not look at later keys.
_MAX_SCORES = 1 << 22

# From positions of queries (R, 1, n, 1) and keys (L) to which keys each head sees, bool (R, H, n, L).
Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def padded_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    causal: bool = True,
    mask: Mask | None = None,
    value_dim: int | None = None,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """q (T, H, K), k_cache (B, G, S, K), v_cache (B, G, S, Kv) -> (T, H, Kv); the rest as in paged_attention.

    A mask hides further keys. Without a v_cache the values are the first value_dim numbers of each key. Rows of one
    token and rows of several are two groups, so that a prompt does not pad the others. In the batch-invariant mode each
    row is a group of its own.
    """
    out = q.new_empty(*q.shape[:2], value_dim if v_cache is None else v_cache.shape[3])
    options = {
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "causal": causal,
        "mask": mask,
        "v_scale": v_scale,
    }
    if batch_invariance.is_on() and (causal or window is None):  # others are whole prompts, which nobody cuts
        block_table, query_start, seq_lens = batch_invariance.rows_as_sequences(
            block_table, query_start, seq_lens, len(q), causal=causal
        )
    counts = query_start.diff()
    for members in _groups(counts):
        if len(members):
            _attend_group(
                out,
                q,
                k_cache,
                v_cache,
                block_table[members],
                query_start[:-1][members].long(),
                counts[members].long(),
                seq_lens[members].long(),
                **options,
            )
    return out


def _groups(counts: torch.Tensor) -> Sequence[torch.Tensor]:
    """counts (R) of rows -> which sequences are padded to one length."""
    if batch_invariance.is_on():
        return counts.nonzero().flatten().split(1)
    return (counts == 1).nonzero().flatten(), (counts > 1).nonzero().flatten()


def _attend_group(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor,
    first_rows: torch.Tensor,
    counts: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    causal: bool,
    mask: Mask | None,
    v_scale: float,
) -> None:
    """Writes the rows of a group of R sequences, padded to its longest; first_rows, counts, seq_lens (R)."""
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    num_heads, num_seqs, value_dim = q.shape[1], len(seq_lens), out.shape[2]
    group = num_heads // num_kv_heads
    longest, most = int(seq_lens.max()), int(counts.max())
    # Entries past a sequence's end may be anything; they are masked, but must be readable.
    pages = block_table[:, : -(-longest // block_size)].long().clamp(0, num_blocks - 1)

    def gathered(cache: torch.Tensor) -> torch.Tensor:
        return cache[pages].transpose(1, 2).reshape(num_seqs, num_kv_heads, -1, cache.shape[3]).float()

    k = gathered(k_cache)  # (R, G, L, K)
    v = k[..., :value_dim] if v_cache is None else gathered(v_cache)  # (R, G, L, Kv)
    key_positions = torch.arange(k.shape[2])  # (L)
    in_sequence = key_positions < seq_lens[:, None]  # (R, L)
    readable = in_sequence
    if window is not None and causal:  # pages before the window may be freed as well
        readable = readable & (key_positions > (seq_lens - counts - window)[:, None])
    sequence_ids, key_ids = (~readable).nonzero(as_tuple=True)
    v[sequence_ids, :, key_ids] = 0  # 0 * NaN of a freed page would be NaN
    k = k.transpose(2, 3)  # (R, G, K, L)
    most_computed = int((seq_lens - counts).max())
    step = max(1, _MAX_SCORES // (num_seqs * num_heads * len(key_positions)))
    for first in range(0, most, step):
        offsets = torch.arange(first, min(most, first + step))  # (n)
        wanted = offsets < counts[:, None]  # (R, n)
        rows = (first_rows[:, None] + offsets).clamp(max=len(q) - 1)  # (R, n)
        n = len(offsets)
        num_keys = min(len(key_positions), most_computed + first + n) if causal else len(key_positions)
        keys_seen = key_positions[:num_keys]
        queries = q[rows].float().view(num_seqs, n, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        scores = (queries.reshape(num_seqs, num_kv_heads, group * n, head_dim) @ k[..., :num_keys]) * scale
        scores = scores.view(num_seqs, num_heads, n, -1)  # (R, H, n, L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query_positions = ((seq_lens - counts)[:, None] + offsets)[:, :, None]  # (R, n, 1)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.float()[:, None, None] * (keys_seen - query_positions)[:, None]
        visible = visible_keys(query_positions, keys_seen, window, causal) & in_sequence[:, None, :num_keys]
        visible = visible[:, None]  # (R, 1, n, L)
        if mask is not None:
            visible = visible & mask(query_positions[:, None], keys_seen)
        scores = scores.masked_fill(~visible, -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.float()[:, None, None].expand(num_seqs, -1, n, 1)), dim=-1)
        probabilities = scores.softmax(-1)[..., :num_keys]
        probabilities = probabilities.reshape(num_seqs, num_kv_heads, group * n, -1)
        result = (probabilities @ v[:, :, :num_keys]).view(num_seqs, num_heads, n, value_dim)
        result = result.transpose(1, 2)  # (R, n, H, Kv)
        out[rows[wanted]] = (result[wanted] * v_scale).to(out.dtype)
