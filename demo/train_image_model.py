"""Trains the embedded model of the image demo: tokenizer, SigLIP-shaped tower, Qwen2-shaped decoder and model card.

All of it is made by this one command from pictures that it draws itself; nothing is downloaded, no picture is seen twice.
First the tower learns alone what each patch shows, which is cheap; then tower and decoder learn to answer together.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from checkpoint_files import export_weights, replace, train_bpe, write_json
from image_model_card import held_out_accuracy, write_model_card
from picture_chats import Turn, conversation
from pictures import COLOURS, KINDS, MOST_SHAPES, Scene, crowded_scenes, training_scenes
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaConfig, LlavaForConditionalGeneration

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]  # ids 0 to 3
END_OF_TEXT, _, IM_END, IMAGE = range(4)
VOCAB_SIZE = 384
CONTEXT = 1024  # tokens of a prompt with its answer
SIDE, PATCH = 64, 8
NUM_PATCHES = (SIDE // PATCH) ** 2
BATCH = 32  # pictures of a step
TURNS = 3  # questions about each picture
WARMUP_STEPS = 50
IGNORED = -100  # by cross entropy

MODEL = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-06,
        "vision_use_head": False,
    },
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    },
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "image_token_index": IMAGE,
    "image_seq_length": NUM_PATCHES,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GENERATION = {"bos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT, "eos_token_id": [END_OF_TEXT, IM_END]}
IMAGE_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "LlavaProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": int(Image.Resampling.BICUBIC),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "image_token": "<image>",
    "patch_size": PATCH,
    "num_additional_image_tokens": 0,
    "vision_feature_select_strategy": "full",
}
# Pictures of a message stand before its text.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {{- '<image>\\n' }}
        {%- endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {{- part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    started, cpu_started = time.monotonic(), time.process_time()
    tokenizer = train_tokenizer(arguments.seed)
    write_configuration(tokenizer, arguments.out)
    model = LlavaForConditionalGeneration(LlavaConfig(**MODEL))
    tqdm.write(f"{model.num_parameters():,} parameters")
    train_tower(model, arguments.seed, arguments.tower_steps)
    train_whole(model, tokenizer, arguments.seed, arguments.steps)
    export_weights(model, arguments.out)
    facts = {
        "num_parameters": model.num_parameters(),
        "seed": arguments.seed,
        "tower_pictures": BATCH * arguments.tower_steps,
        "pictures": BATCH * arguments.steps,
        "questions": BATCH * TURNS * arguments.steps,
        "minutes": (time.monotonic() - started) / 60,
        "cpu_minutes": (time.process_time() - cpu_started) / 60,
        "threads": arguments.threads,
        "num_pictures": arguments.exam_pictures,
        "python": platform.python_version(),
    }
    accuracy = held_out_accuracy(arguments.out, arguments.exam_pictures)
    write_model_card(arguments.out, facts, accuracy)
    for name, share in accuracy.items():
        tqdm.write(f"{name}: {share:.1%} right")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower-steps", type=int, default=2500, help="steps of the tower alone (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=1200, help=f"steps of the whole, {BATCH} pictures each (%(default)s)"
    )
    parser.add_argument("--exam-pictures", type=int, default=400, help="to measure with, three times (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; so small a model wants one (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and questions (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "image_model", help="folder (%(default)s)")
    return parser.parse_args()


def train_tokenizer(seed: int) -> Tokenizer:
    rng = random.Random(seed)
    chats = [conversation(scene, rng, TURNS) for scene in islice(training_scenes("tokenizer"), 3000)]
    texts = [text for chat in chats for turn in chat for text in turn]
    return train_bpe(texts + ["system", "user", "assistant"] * 100, VOCAB_SIZE, SPECIAL_TOKENS)


def write_configuration(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and the configuration files, which do not change while the model learns."""
    options = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "tokenizer.json", lambda path: tokenizer.save(str(path)))
    replace(folder / "chat_template.jinja", lambda path: path.write_text(CHAT_TEMPLATE))
    write_json(folder / "tokenizer_config.json", options)
    write_json(folder / "config.json", MODEL)
    write_json(folder / "generation_config.json", GENERATION)
    write_json(folder / "preprocessor_config.json", IMAGE_PROCESSOR)
    write_json(folder / "processor_config.json", PROCESSOR)


def train_tower(model: LlavaForConditionalGeneration, seed: int, num_steps: int) -> None:
    """Learns which shape each patch shows: its colour, its kind, and which one from the left it is; 0 is the ground.

    Three in four pictures are crowded. The three heads that say so are thrown away.
    """
    tower, width = model.model.vision_tower, MODEL["vision_config"]["hidden_size"]
    heads = nn.ModuleList(nn.Linear(width, 1 + count) for count in (len(COLOURS), len(KINDS), MOST_SHAPES))
    usual, crowded = training_scenes(f"tower {seed}"), crowded_scenes(seed)

    def step() -> Tensor:
        batch = [*islice(usual, BATCH // 4), *islice(crowded, BATCH - BATCH // 4)]
        targets = torch.stack([patch_targets(scene) for scene in batch])  # (BATCH, NUM_PATCHES, 3)
        with torch.autocast("cpu", torch.bfloat16):
            states = tower(pixels(batch), output_hidden_states=True).hidden_states[-1]  # (BATCH, NUM_PATCHES, width)
            logits = [head(states).float() for head in heads]
        shown = targets[:, :, 0] > 0
        of_all = F.cross_entropy(logits[0].flatten(0, 1), targets[:, :, 0].flatten())
        of_shapes = [F.cross_entropy(logits[i][shown], targets[:, :, i][shown], ignore_index=IGNORED) for i in range(3)]
        return of_all + of_shapes[0] + 3 * of_shapes[1] + of_shapes[2]  # kinds are what is hard

    optimize("tower", [(tower, 3e-3), (heads, 3e-3)], num_steps, step)


def train_whole(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, seed: int, num_steps: int) -> None:
    """Learns the answers to questions about pictures; the loss is of the answers' tokens."""
    scenes, rng = training_scenes(f"whole {seed}"), random.Random(seed)

    def step() -> Tensor:
        batch = list(islice(scenes, BATCH))
        token_ids, labels = pad([encode(tokenizer, conversation(scene, rng, TURNS)) for scene in batch])
        with torch.autocast("cpu", torch.bfloat16):
            states = model.model(input_ids=token_ids, pixel_values=pixels(batch), use_cache=False).last_hidden_state
            answers = labels[:, 1:] != IGNORED
            logits = model.lm_head(states[:, :-1][answers])  # (answers' tokens, VOCAB_SIZE)
        return F.cross_entropy(logits.float(), labels[:, 1:][answers])

    inner = model.model
    optimize(
        "whole", [(inner.vision_tower, 1e-3), (inner.multi_modal_projector, 2e-3), (inner.language_model, 2e-3)],
        num_steps, step,
    )  # fmt: skip


def optimize(
    name: str, parts: list[tuple[nn.Module, float]], num_steps: int, loss_of_step: Callable[[], Tensor]
) -> None:
    """AdamW with warm-up and a cosine to nothing; each module has its own peak of the learning rate."""
    groups = [{"params": list(part.parameters()), "lr": peak} for part, peak in parts]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / num_steps)) / 2
    )
    mean = math.nan
    bar = tqdm(range(num_steps), desc=name, unit="step", mininterval=5)
    for number in bar:
        loss = loss_of_step()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if (number + 1) % 100 == 0:
            tqdm.write(f"{name}, step {number + 1}: loss {mean:.4f}")


def pixels(scenes: list[Scene]) -> Tensor:
    """(N, 3, SIDE, SIDE) in [-1, 1]; some pictures were larger and have been made smaller, as people's will be."""
    arrays = []
    for scene in scenes:
        image = scene.draw(SIDE if scene.noise_seed % 4 else 3 * SIDE // 2)
        arrays.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def patch_targets(scene: Scene) -> Tensor:
    """(NUM_PATCHES, 3) of the shape in the middle of each patch: colour, kind, place from the left, all from 1.

    There is no place to learn in a crowd.
    """
    targets = torch.zeros(SIDE // PATCH, SIDE // PATCH, 3, dtype=torch.long)
    middles = (torch.arange(SIDE // PATCH) + 0.5) * PATCH / SIDE
    for place, shape in enumerate(scene.shapes):
        distance = torch.hypot(middles[None, :] - shape.x, middles[:, None] - shape.y)  # (rows, columns)
        reach = max(0.85 * shape.radius, 0.71 * PATCH / SIDE)
        target = [list(COLOURS).index(shape.colour) + 1, KINDS.index(shape.kind) + 1, place + 1]
        if len(scene.shapes) > MOST_SHAPES:
            target[2] = IGNORED
        targets[distance <= reach] = torch.tensor(target)
    return targets.view(NUM_PATCHES, 3)


def encode(tokenizer: Tokenizer, turns: list[Turn]) -> tuple[list[int], list[int]]:
    """Ids of a conversation as the chat template writes it, and labels: the ids of answers, the rest ignored."""
    token_ids: list[int] = []
    labels: list[int] = []
    for index, turn in enumerate(turns):
        image = "" if index else "<image>" * NUM_PATCHES + "\n"
        question = f"<|im_start|>user\n{image}{turn.question}<|im_end|>\n<|im_start|>assistant\n"
        for text, is_answer in ((question, False), (f"{turn.answer}<|im_end|>", True), ("\n", False)):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            token_ids += ids
            labels += ids if is_answer else [IGNORED] * len(ids)
    return token_ids, labels


def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(N, longest) ids and labels, filled on the right, where a causal model does not see it."""
    longest = max(len(token_ids) for token_ids, _ in rows)
    ids = [token_ids + [END_OF_TEXT] * (longest - len(token_ids)) for token_ids, _ in rows]
    labels = [labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]
    return torch.tensor(ids), torch.tensor(labels)


if __name__ == "__main__":
    main()
