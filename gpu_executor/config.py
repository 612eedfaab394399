"""Owns the executor's settings: what is served, in which dtype, and how much runs at once."""

from __future__ import annotations

import dataclasses
from typing import Any

from forebay.flags import setting
from gpu_executor.pooler_override import PoolerOverride

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "dummy")
TASKS = ("auto", "generate", "embed", "classify", "score", "reward")
DEVICES = ("auto", "cpu", "cuda")


@dataclasses.dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Settings of one executor; each is a flag, an environment variable and a YAML key (see forebay.flags)."""

    model: str = setting(help="model folder, Hugging Face hub id, or ModelScope id", positional=True, metavar="MODEL")
    listen: str = setting(
        "127.0.0.1:50061", help="host:port to serve frontends on; port 0 takes a free one", metavar="HOST:PORT"
    )
    revision: str | None = setting(None, help="branch, tag or commit of the hub repository")
    download_dir: str | None = setting(
        None, help="where to keep files from the hub (default: the hub's own cache)", metavar="DIR"
    )
    hf_overrides: dict[str, Any] | None = setting(None, help="changes to config.json, as JSON")
    task: str = setting(
        "auto", help="what the model does; auto follows the checkpoint: its architecture and its pooling", choices=TASKS
    )
    override_pooler_config: dict[str, Any] | None = setting(
        None,
        help="how hidden states are pooled, as JSON: pooling_type (CLS, LAST, MEAN, ALL, STEP), normalize, softmax, step_tag_id, "
        "returned_token_ids",
    )
    device: str = setting("auto", help="where to run; auto takes a GPU if there is one", choices=DEVICES)
    dtype: str = setting(
        "auto", help="number format of weights and activations; auto follows the checkpoint", choices=DTYPES
    )
    load_format: str = setting("auto", help="dummy draws random weights from the config alone", choices=LOAD_FORMATS)
    max_model_len: int | None = setting(
        None, help="longest prompt and output together, in tokens (default: what the model takes)"
    )
    max_num_seqs: int = setting(256, help="sequences that run at once at most")
    max_num_batched_tokens: int | None = setting(
        None, help="tokens per engine step at most (default: 1024 on a CPU, 8192 on a GPU)"
    )
    max_prefill_tokens_beside_decode: int | None = setting(
        None,
        help="prompt tokens per engine step at most while other sequences decode, which bounds the time between their "
        "tokens (default: 128 on a CPU, max_num_batched_tokens on a GPU)",
    )
    max_num_waiting: int = setting(8192, help="sequences that wait at most; more are refused")
    block_size: int = setting(16, help="tokens per block of the KV cache")
    kv_cache_memory_bytes: int | None = setting(
        None, help="memory of the KV cache (default: from what is free)", metavar="BYTES"
    )
    gpu_memory_utilization: float = setting(0.9, help="share of a GPU's memory to use")
    enable_prefix_caching: bool = setting(True, help="share KV blocks between requests with equal beginnings")
    encoder_cache_size: int | None = setting(
        None,
        help="features of media, in tokens, that are kept for prompts to come (default: max_model_len, within 8192 to 32768)",
        metavar="TOKENS",
    )
    media_window_bytes: int = setting(
        1 << 30, help="tensors of media that one frontend's requests may have here at once", metavar="BYTES"
    )
    batch_invariant: bool = setting(
        False,
        help="keep the bits of a request's log-probabilities independent of what else runs, of how its prompt is cut, of "
        "preemption and of prefix hits; slower, and shown on CPUs alone so far",
    )
    num_threads: int | None = setting(None, help="CPU threads of the model (default: one per core)")
    seed: int = setting(0, help="seed of dummy weights")
    drain_grace_s: float = setting(30.0, help="seconds that running requests get to finish after SIGTERM")
    lease_ms: int = setting(
        10_000, help="milliseconds after which requests of a silent frontend are ended", metavar="MS"
    )
    max_message_bytes: int = setting(16 * 1024 * 1024, help="largest message taken from a frontend", metavar="BYTES")
    log_level: str = setting("info", help="how much to log", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_waiting",
            "block_size",
            "media_window_bytes",
            "lease_ms",
            "max_message_bytes",
        ):
            _at_least(name, getattr(self, name), 1)
        optional = (
            "max_model_len", "max_num_batched_tokens", "max_prefill_tokens_beside_decode", "encoder_cache_size", "num_threads",
        )  # fmt: skip
        for name in optional:
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.drain_grace_s < 0:
            raise ValueError(f"drain_grace_s is {self.drain_grace_s}; it must not be negative")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be in (0, 1]")
        if self.kv_cache_memory_bytes is not None:
            _at_least("kv_cache_memory_bytes", self.kv_cache_memory_bytes, 1)
        PoolerOverride.read(self.override_pooler_config or {})
        if ":" not in self.listen:
            raise ValueError(f"listen is {self.listen!r}; expected host:port")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
