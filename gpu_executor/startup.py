"""Owns the way from a config to an engine that can step."""

from __future__ import annotations

import logging
import os
import time

import torch

from forebay.fingerprint import model_digest, tokenizer_digest
from forebay.hub import resolve_model
from forebay.parts import find_parts, with_parts
from gpu_executor.block_pool import BlockPool
from gpu_executor.config import ExecutorConfig
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.engine import Engine
from gpu_executor.layer_groups import group_layers
from gpu_executor.media_encoder import MediaEncoder
from gpu_executor.media_reach import CrossMediaReach, MediaReach
from gpu_executor.memory import num_kv_blocks, num_snapshot_slots
from gpu_executor.model_info import ModelInfo, eos_token_ids, first_token_id, read_model_config
from gpu_executor.model_runner import ModelRunner
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model, resolve_dtype
from gpu_executor.models.pooler import resolve_pooler
from gpu_executor.models.registry import Architecture
from gpu_executor.models.sentence_files import SentenceFiles, read_sentence_files
from gpu_executor.models.spec import ModelSpec
from gpu_executor.pooler_override import PoolerOverride
from gpu_executor.scheduler import Scheduler

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_engine(config: ExecutorConfig, *, progress: bool = True) -> tuple[Engine, ModelInfo]:
    """Loads the model and sizes the KV cache. Raises ForebayError or ValueError that says what to change."""
    started = time.monotonic()
    device = choose_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    dummy = config.load_format == "dummy"
    folder = resolve_model(
        config.model, revision=config.revision, download_dir=config.download_dir, weights=not dummy, progress=progress
    )
    model_config = read_model_config(folder, config.hf_overrides)
    parts = find_parts(model_config, download_dir=config.download_dir, weights=not dummy, progress=progress)
    model_config = with_parts(model_config, parts)
    dtype = resolve_dtype(config.dtype, model_config, device, folder=None if dummy else folder)
    reader = ConfigReader(model_config)
    override = PoolerOverride.read(config.override_pooler_config or {})
    files = read_sentence_files(folder) if config.task in ("auto", "embed") else None
    task = choose_task(config.task, registry.find(reader), files)
    model = load_model(
        folder, model_config, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed,
        max_model_len=config.max_model_len, task=task, with_head=bool(override.returned_token_ids), parts=parts,
        progress=progress,
    )  # fmt: skip
    if task != "embed":
        files = None
    pooler = None if task == "generate" else resolve_pooler(folder, reader, model.spec, task, override, files)
    max_model_len = model.spec.max_model_len
    if files is not None and files.max_tokens is not None and config.max_model_len is None:
        max_model_len = min(max_model_len, files.max_tokens)
    whole_prompts = model.spec.bidirectional
    budget = config.max_num_batched_tokens or max(
        1024 if device.type == "cpu" else 8192, config.max_num_seqs, max_model_len if whole_prompts else 0
    )
    groups = group_layers(
        model.state_layouts, dtype, model.spec.max_model_len,
        bidirectional=whole_prompts, cross=model.spec.encoder is not None, encoded=model.spec.encoded_layers,
    )  # fmt: skip
    most_blocks = None
    if whole_prompts:  # what one step takes, each sequence's last block not full
        most_blocks = -(-max(budget, max_model_len) // config.block_size) + config.max_num_seqs
    num_snapshots = num_snapshot_slots(config, groups, dtype, max_model_len, device)
    num_blocks = num_kv_blocks(
        config,
        groups,
        dtype,
        max_model_len,
        model.spec.most_encoded,
        budget,
        device,
        num_snapshots=num_snapshots or 0,
        most_blocks=most_blocks,
    )
    prefix_caching = config.enable_prefix_caching and not whole_prompts
    features = None
    if model.spec.tower is not None:
        features = EncoderCache(config.encoder_cache_size or max(8192, min(max_model_len, 32768)))
    runner = ModelRunner(
        model,
        groups,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        num_snapshots=num_snapshots or 0,
        pooler=pooler,
        features=features,
        batch_invariant=config.batch_invariant,
    )
    beside_decode = config.max_prefill_tokens_beside_decode or (128 if device.type == "cpu" else budget)
    scheduler = Scheduler(
        BlockPool(num_blocks, prefix_caching=prefix_caching),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        max_prefill_tokens_beside_decode=beside_decode,
        windows=groups.windows,
        num_snapshots=num_snapshots,
        whole_prompts=whole_prompts,
        media=None if features is None else _media_reach(model.spec, features, budget),
    )
    vocab_size = model.spec.vocab_size
    modalities = ()
    if model.spec.tower is not None:
        modalities = tuple(kind for kind in registry.find(reader).inputs if kind != "text")
    engine = Engine(
        runner,
        scheduler,
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        max_num_waiting=config.max_num_waiting,
        max_encoder_len=model.spec.max_encoder_len,
        first_token_id=first_token_id(folder, model_config) if model.spec.encoder is not None else None,
        pooler=pooler,
        spec=model.spec,
        modalities=modalities,
        encode=None if features is None else MediaEncoder(model, features, together=not config.batch_invariant),
    )
    info = ModelInfo(
        architecture=model.spec.architecture,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids(folder, model_config),
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        prefix_caching=prefix_caching,
        tasks=("generate",) if pooler is None else pooler.tasks,
        embedding_size=pooler.num_columns if task == "embed" else 0,
        num_classes=pooler.num_columns if pooler is not None and task != "embed" else 0,
        num_token_types=model.spec.decoder.num_segments,
        modalities=modalities,
        model_digest=model_digest(read_model_config(folder, None)),
        tokenizer_digest=tokenizer_digest(folder),
    )
    logger.info("loaded %s in %s on %s in %.1f s", info.architecture, info.dtype, device, time.monotonic() - started)
    return engine, info


def _media_reach(spec: ModelSpec, features: EncoderCache, budget: int) -> MediaReach:
    return CrossMediaReach(features, budget, spec.most_encoded) if spec.reads_media else MediaReach(features, budget)


def choose_task(asked: str, found: Architecture, files: SentenceFiles | None) -> str:
    """What the operator asks for. "auto" embeds where the folder says how to pool, else does what the architecture is for."""
    if asked != "auto":
        return asked
    return "embed" if files is not None and found.tasks[0] == "generate" else found.tasks[0]


def choose_device(name: str) -> torch.device:
    """The device of a flag; raises ValueError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU")
    return torch.device(name)
