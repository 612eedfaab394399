"""Owns how much memory the KV cache gets, and how many blocks that is."""

from __future__ import annotations

import logging
import os

import torch

from gpu_executor.block_reach import BlockReach
from gpu_executor.config import ExecutorConfig
from gpu_executor.layer_groups import LayerGroups

logger = logging.getLogger(__name__)

_CPU_SHARE = 0.25  # of the memory that is free: a CPU machine does other things too
_SNAPSHOT_SHARE = 0.25  # of what would else be blocks, where some layers keep states and others KV
_MOST_EMPTY_BLOCKS = 1 << 18


def num_kv_blocks(
    config: ExecutorConfig,
    groups: LayerGroups,
    dtype: torch.dtype,
    max_model_len: int,
    max_encoder_len: int,
    max_num_batched_tokens: int,
    device: torch.device,
    *,
    num_snapshots: int = 0,
    most_blocks: int | None = None,
) -> int:
    """Blocks of the KV cache for all groups of layers, after what max_num_seqs sequences, and as many snapshots, keep beside.

    Not more than max_num_seqs sequences of max_model_len tokens could use, nor than `most_blocks`. Raises ValueError,
    saying what to change, if not even one sequence of max_model_len tokens fits.
    """
    block_bytes = groups.block_bytes(config.block_size, dtype)
    fixed_bytes = (config.max_num_seqs + num_snapshots) * groups.bytes_per_sequence(dtype)
    reach = BlockReach(config.block_size, groups.windows)
    needed = reach.most_held(max_model_len, max_num_batched_tokens) + reach.num_blocks(max_encoder_len)
    budget = config.kv_cache_memory_bytes or _free_bytes(config, device)
    if fixed_bytes > budget:
        raise ValueError(
            f"the state of {config.max_num_seqs:,} sequences needs {fixed_bytes / 2**20:,.0f} MiB and there are "
            f"{budget / 2**20:,.0f}: lower --max-num-seqs or raise --kv-cache-memory-bytes"
        )
    num_blocks = needed * config.max_num_seqs
    if most_blocks is not None:
        num_blocks = min(num_blocks, most_blocks)
    if block_bytes:
        num_blocks = min((budget - fixed_bytes) // block_bytes, num_blocks)
    else:  # no layer keeps anything for a token: blocks are nothing but entries in the books
        num_blocks = max(needed, min(num_blocks, _MOST_EMPTY_BLOCKS))
    if num_blocks < needed:
        raise ValueError(
            f"the KV cache has {(budget - fixed_bytes) / 2**20:,.0f} MiB, which is {num_blocks:,} blocks of {config.block_size} "
            f"tokens; one sequence of max_model_len {max_model_len:,} needs {needed:,}, {needed * block_bytes / 2**20:,.0f} MiB: "
            f"lower --max-model-len{' or --max-num-batched-tokens' if reach.slides else ''} or raise --kv-cache-memory-bytes"
        )
    logger.info(
        "KV cache: %s blocks of %d tokens, for %d group%s of layers, %.0f MiB",
        f"{num_blocks:,}",
        config.block_size,
        reach.num_groups,
        "s" if reach.num_groups > 1 else "",
        (num_blocks * block_bytes + fixed_bytes) / 2**20,
    )
    return num_blocks


def num_snapshot_slots(
    config: ExecutorConfig, groups: LayerGroups, dtype: torch.dtype, max_model_len: int, device: torch.device
) -> int | None:
    """Slots for states of prefixes, two for each sequence that runs if memory allows; None if no layer keeps state in slots."""
    slot_bytes = groups.bytes_per_sequence(dtype)
    if not slot_bytes:
        return None
    if not config.enable_prefix_caching:
        return 0
    token_bytes = groups.block_bytes(1, dtype)
    budget = config.kv_cache_memory_bytes or _free_bytes(config, device)
    left = budget - config.max_num_seqs * slot_bytes - (max_model_len + config.block_size) * token_bytes
    share = _SNAPSHOT_SHARE if token_bytes else 1
    return max(0, min(2 * config.max_num_seqs, int(left * share) // slot_bytes))


def _free_bytes(config: ExecutorConfig, device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(total * config.gpu_memory_utilization) - (total - free))
    return int(_available_host_bytes() * _CPU_SHARE)


def _available_host_bytes() -> int:
    """Memory that can be had without swapping: the machine's, or less where a control group says so."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
        with (
            open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit,
            open("/sys/fs/cgroup/memory.current", encoding="ascii") as used,
        ):
            if (text := limit.read().strip()) != "max":
                available = min(available, int(text) - int(used.read()))
    except (OSError, KeyError, ValueError):
        pass  # not Linux, or no control group: the coarser figure stands
    return available
