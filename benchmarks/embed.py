"""Measures embeddings: texts per second of a BERT-shaped encoder on texts of ragged lengths, beside other engines.

    python benchmarks/embed.py
    python benchmarks/embed.py --peers transformers,vllm --peer-python /path/to/vllm-venv/bin/python

Every engine gets the same random checkpoint and the same token ids, in a process of its own. transformers pads batches of
16, sorted by length; sentence-transformers batches of 32, its own default, and tokenizes too; Forebay and vLLM pad nothing.
Mean pooling, normalized.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm-l6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
COMMON = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522, "hidden_act": "gelu",
    "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip
PADDED_BATCH = 16

Embed = Callable[[list[list[int]]], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="bert-base", choices=SHAPES, help="shape of the model (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16,float32", help="number formats (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=64, help="texts in a call (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text on average (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="calls; medians are printed (default: %(default)s)")
    parser.add_argument(
        "--peers",
        default="transformers",
        help="any of transformers, sentence-transformers, vllm (default: %(default)s)",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="Python of vLLM's virtual environment")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)  # a child of this command
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        print(json.dumps(measure(arguments)))
        return 0
    peers = [peer for peer in arguments.peers.split(",") if peer]
    with tempfile.TemporaryDirectory(prefix="forebay-embed-") as folder:
        write_checkpoint(Path(folder), arguments.shape)
        for dtype in arguments.dtype.split(","):
            rates = {engine: run_child(arguments, engine, folder, dtype) for engine in ("forebay", *peers)}
            print(f"\n{arguments.shape}, {dtype}: {arguments.texts} texts of about {arguments.tokens} tokens")
            for engine, rate in rates.items():
                ratio = "" if engine == "forebay" else f"   Forebay's is {rates['forebay'] / rate:.2f} times this"
                print(f"  {engine:22}{rate:8.1f} texts/s{ratio}")
    return 0


def write_checkpoint(folder: Path, shape: str) -> None:
    """A random checkpoint with mean pooling, in the layout of sentence-transformers."""
    from transformers import BertConfig, BertModel

    config = COMMON | SHAPES[shape]
    BertModel(BertConfig.from_dict(config)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, config["vocab_size"]))]
    (folder / "vocab.txt").write_text("\n".join(words))  # vLLM does not pool without a tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def run_child(arguments: argparse.Namespace, engine: str, model: str, dtype: str) -> float:
    python = arguments.peer_python if engine == "vllm" else sys.executable
    command = [
        python, __file__, "--engine", engine, "--model", model, "--dtype", dtype, "--texts", str(arguments.texts),
        "--tokens", str(arguments.tokens), "--repeats", str(arguments.repeats),
    ]  # fmt: skip
    print(f"measuring {engine} in {dtype} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"measuring {engine} failed with exit status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(arguments: argparse.Namespace) -> float:
    """Texts per second of one engine; the first call warms up."""
    embed = ENGINES[arguments.engine](arguments.model, arguments.dtype)
    rates = []
    for call in range(arguments.repeats + 1):
        draw = random.Random(call)
        lengths = [draw.randint(arguments.tokens // 2, arguments.tokens * 3 // 2) for _ in range(arguments.texts)]
        texts = [[draw.randrange(1000, 30000) for _ in range(length)] for length in lengths]
        started = time.perf_counter()
        embed(texts)
        rates.append(len(texts) / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def forebay_engine(model: str, dtype: str) -> Embed:
    from forebay import LLM

    llm = LLM(model, task="embed", dtype=dtype, enable_prefix_caching=False, disable_tqdm=True)
    return lambda texts: llm.embed([{"prompt_token_ids": ids} for ids in texts], use_tqdm=False)


def transformers_engine(model: str, dtype: str) -> Embed:
    import torch
    from transformers import BertModel

    bert = BertModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def embed(texts: list[list[int]]) -> list[torch.Tensor]:
        texts, vectors = sorted(texts, key=len, reverse=True), []
        for first in range(0, len(texts), PADDED_BATCH):
            rows = [torch.tensor(ids) for ids in texts[first : first + PADDED_BATCH]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            hidden = bert(ids, attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors.append(torch.nn.functional.normalize(mean, dim=-1))
        return vectors

    return embed


def sentence_transformers_engine(model: str, dtype: str) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    def embed(texts: list[list[int]]) -> object:
        words = [" ".join(f"w{token_id}" for token_id in ids) for ids in texts]  # which have these ids, and two more
        return encoder.encode(words, batch_size=2 * PADDED_BATCH, show_progress_bar=False)

    return embed


def vllm_engine(model: str, dtype: str) -> Embed:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{len(os.sched_getaffinity(0)) - 1}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    llm = LLM(model=model, runner="pooling", dtype=dtype, enforce_eager=True)
    return lambda texts: llm.embed([{"prompt_token_ids": ids} for ids in texts], use_tqdm=False)


ENGINES: dict[str, Callable[[str, str], Embed]] = {
    "forebay": forebay_engine,
    "transformers": transformers_engine,
    "sentence-transformers": sentence_transformers_engine,
    "vllm": vllm_engine,
}

if __name__ == "__main__":
    sys.exit(main())
