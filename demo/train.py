"""Trains the embedded demo model: tokenizer, Qwen2-shaped decoder and model card, from the documentation of Python.

Everything is made by this one command from text that every Python brings along; nothing is downloaded. `--minutes`
bounds the time: the learning rate then falls with the clock instead of with the steps, whichever is further.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from checkpoint_files import export_weights, replace, train_bpe, write_json
from corpus import Document, conversations, read_documents
from model_card import write_model_card
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCAB_SIZE = 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1 and 2
END_OF_TEXT, _, IM_END = range(3)
CONTEXT = 1024  # tokens of a sequence, in training and in serving
BATCH = 4  # sequences of a step
PEAK_LR, FLOOR = 3e-3, 0.05  # the learning rate falls to FLOOR * PEAK_LR
WARMUP_STEPS = 100
DROPOUT = 0.1  # on what attention and MLP add to the residual stream; the text is read many times
HELD_OUT = 50  # every 50th document is never trained on, and measures the validation loss
SAVE_STEPS = 200

MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 672,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
    "torch_dtype": "bfloat16",
}
GENERATION = {"bos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT, "eos_token_id": [END_OF_TEXT, IM_END]}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(slots=True)
class Progress:
    """What has been done so far; it goes into the checkpoint and onto the model card."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    train_loss: float = math.nan  # exponential mean over about 50 steps
    validation_loss: float = math.nan


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    documents = read_documents()
    training = [document for i, document in enumerate(documents) if i % HELD_OUT]
    tokenizer = train_tokenizer(training)
    write_configuration(tokenizer, arguments.out)
    data = TrainingData(training, tokenizer, arguments.seed)
    held_out = torch.tensor(encode(tokenizer, [document.text for document in documents[::HELD_OUT]]))
    model = Qwen2ForCausalLM(Qwen2Config(**MODEL))
    say(f"{len(documents)} documents, {sum(len(document.text) for document in documents):,} characters")
    say(f"{data.num_epoch_tokens:,} tokens in the first epoch, {data.num_chat_tokens:,} of them in chats")
    say(f"{model.num_parameters():,} parameters")

    def save(progress: Progress) -> None:
        progress.validation_loss = validation_loss(model, held_out)
        export_weights(model, arguments.out)
        facts = {
            **asdict(progress),
            "seed": arguments.seed,
            "threads": arguments.threads,
            "python": platform.python_version(),
            "num_parameters": model.num_parameters(),
            "num_characters": sum(len(document.text) for document in training),
            "num_epoch_tokens": data.num_epoch_tokens,
            "num_chat_tokens": data.num_chat_tokens,
            "num_held_out_tokens": len(held_out),
        }
        write_model_card(arguments.out, facts)

    train(model, data, arguments, save)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help=f"steps of {BATCH} x {CONTEXT} tokens (%(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop training after this time (no limit)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and questions (%(default)s)")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16 autocast")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="folder (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help=f"write this file every {SAVE_STEPS} steps; go on from it")
    return parser.parse_args()


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    chats = conversations(documents, random.Random(0))
    questions = [message["content"] for chat in chats for message in chat]
    texts = [document.text for document in documents] + questions
    tokenizer = train_bpe(texts, VOCAB_SIZE, SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokenizer_options())


def tokenizer_options() -> dict[str, object]:
    return {
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_configuration(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json and the configuration files, which do not change while the model learns."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "tokenizer.json", lambda path: tokenizer.backend_tokenizer.save(str(path)))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", **tokenizer_options()})
    write_json(folder / "config.json", MODEL)
    write_json(folder / "generation_config.json", GENERATION)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """Ids of texts, each ended by <|endoftext|>."""
    batch = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [token_id for encoding in batch for token_id in (*encoding.ids, END_OF_TEXT)]


class TrainingData:
    """Packed sequences: documents and chats, in another order and with other questions in every epoch."""

    def __init__(self, documents: list[Document], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._seed = seed
        self._epoch, self._tokens = 0, torch.empty(0)
        self._load(0)
        self.num_epoch_tokens = len(self._tokens)
        self.num_chat_tokens = len(encode(tokenizer, self._chats(random.Random(f"{seed} 0"))))
        self._steps_per_epoch = int(0.98 * self.num_epoch_tokens) // (BATCH * CONTEXT)  # epochs differ a little

    def batch(self, step: int) -> torch.Tensor:
        """(BATCH, CONTEXT) ids of a step: a function of seed and step, so that training can be taken up again."""
        epoch, position = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch:
            self._load(epoch)
        start = position * BATCH * CONTEXT
        return self._tokens[start : start + BATCH * CONTEXT].view(BATCH, CONTEXT)

    def _load(self, epoch: int) -> None:
        rng = random.Random(f"{self._seed} {epoch}")
        texts = self._chats(rng) + [document.text for document in self._documents]
        rng.shuffle(texts)
        self._epoch, self._tokens = epoch, torch.tensor(encode(self._tokenizer, texts))

    def _chats(self, rng: random.Random) -> list[str]:
        chats = conversations(self._documents, rng)
        return [self._tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def train(
    model: Qwen2ForCausalLM, data: TrainingData, arguments: argparse.Namespace, save: Callable[[Progress], None]
) -> None:
    """AdamW with warm-up and a cosine, on one sequence of steps that a checkpoint can interrupt."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), fused=True)
    for layer in model.model.layers:
        for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
            branch.register_forward_hook(lambda module, _, output: F.dropout(output, DROPOUT, module.training))
    progress = Progress()
    checkpoint = arguments.checkpoint
    if checkpoint and checkpoint.exists():
        progress = load_checkpoint(checkpoint, model, optimizer)
    started = time.monotonic() - progress.seconds
    bar = tqdm(total=arguments.steps, initial=progress.step, unit="step", mininterval=5)
    done = 0.0
    while done < 1:
        rate = learning_rate(progress.step, done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = update(model, optimizer, data.batch(progress.step), autocast=not arguments.float32)
        progress.step += 1
        progress.num_tokens += BATCH * CONTEXT
        progress.seconds = time.monotonic() - started
        progress.train_loss = loss if math.isnan(progress.train_loss) else 0.98 * progress.train_loss + 0.02 * loss
        done = max(progress.step / arguments.steps, progress.seconds / (60 * arguments.minutes))
        bar.update()
        bar.set_postfix(loss=f"{progress.train_loss:.3f}", lr=f"{rate:.1e}", refresh=False)
        if done >= 1 or progress.step % SAVE_STEPS == 0:
            save(progress)
            say(f"step {progress.step}: loss {progress.train_loss:.3f}, validation {progress.validation_loss:.3f}")
            if checkpoint:
                save_checkpoint(checkpoint, progress, model, optimizer)
    bar.close()


def update(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor, *, autocast: bool) -> float:
    """One update. The loss is of every next token, also across documents."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=batch, use_cache=False).logits  # (BATCH, CONTEXT, V)
    loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def learning_rate(step: int, done: float) -> float:
    cosine = FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2
    return PEAK_LR * cosine * min(1.0, (step + 1) / WARMUP_STEPS)


@torch.no_grad()
def validation_loss(model: Qwen2ForCausalLM, held_out: torch.Tensor) -> float:
    """Mean loss per token in float32, in sequences of CONTEXT tokens; the last one may be shorter."""
    model.eval()
    total = 0.0
    for ids in held_out.split(CONTEXT):
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total += F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
    return total / (len(held_out) - math.ceil(len(held_out) / CONTEXT))


def save_checkpoint(path: Path, progress: Progress, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    state = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> Progress:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return Progress(**state["progress"])


def say(text: str) -> None:
    tqdm.write(text)


if __name__ == "__main__":
    main()
