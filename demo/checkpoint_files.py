"""Owns how what the training scripts have made becomes the files of a checkpoint, as the Hugging Face hub lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# How Qwen2 cuts text into words before it merges bytes.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """A byte-level BPE built as Qwen2's, which readers may build again from its parts: any NFC text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def export_weights(model: torch.nn.Module, folder: Path) -> None:
    """model.safetensors in bfloat16; the head is the embedding, and is not stored twice."""
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("lm_head.weight")
    }
    replace(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def write_json(path: Path, content: dict[str, object]) -> None:
    replace(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the file, then renames: a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.new")
    write(temporary)
    temporary.chmod(0o644)
    temporary.replace(path)
