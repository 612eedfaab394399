"""Measures prompts with pictures on the CPU tier: bytes that travel and CPU seconds, per request of four 720p pictures.

    python benchmarks/media.py
    python benchmarks/media.py --models llava-next --pictures 2 --size 1920x1080

Bytes are those of the serialized messages between frontend and executor, in a first request and in one that has the same
pictures again; beside them what the reference processor's float32 pixels would take. Seconds are what a request waits with
`--workers` decoders, from JPEG to message; CPU seconds those of this process and of its decoders meanwhile. Beside them those of
transformers' own image processor (PIL backend) on pictures that are decoded already, which is less work: no decoding, no
prompt, no digests.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImages
from tokenizers import Tokenizer

from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import media_pb2, prompt_pb2
from frontend.flight import Flight
from preprocess.media.limits import MediaLimits
from preprocess.media.settings import MediaSettings
from preprocess.preprocessor import Preprocessor
from preprocess.ready_prompt import ReadyPrompt

ROOT = Path(__file__).parents[1]
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def qwen2_vl() -> tuple[dict[str, Any], dict[str, Any], str]:
    """config.json, preprocessor_config.json and the text that stands for a picture, as of Qwen2-VL 2B."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 1536,
        "image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6,
        "vision_config": {"spatial_merge_size": 2, "patch_size": 14, "temporal_patch_size": 2},
    }  # fmt: skip
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, **CLIP,
    }  # fmt: skip
    return config, processor, "<|vision_start|><|image_pad|><|vision_end|>"


def llava(name: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The same as of LLaVA 1.5 or LLaVA-NeXT, with CLIP-L at 336 pixels."""
    following = name == "llava_next"
    config = {
        "architectures": ["LlavaNextForConditionalGeneration" if following else "LlavaForConditionalGeneration"],
        "model_type": name, "image_token_index": 3, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "text_config": {"model_type": "llama", "hidden_size": 4096},
        "vision_config": {
            "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24,
            "num_attention_heads": 16, "intermediate_size": 4096, "projection_dim": 768,
        },
        "image_grid_pinpoints": PINPOINTS,
    }  # fmt: skip
    processor = {
        "image_processor_type": "LlavaNextImageProcessor" if following else "CLIPImageProcessor",
        "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_resize": True, "resample": 3,
        "do_center_crop": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "image_grid_pinpoints": PINPOINTS, **CLIP,
    }  # fmt: skip
    return config, processor, "<image>"


MODELS: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Any], str]]] = {
    "qwen2-vl": qwen2_vl,
    "llava": lambda: llava("llava"),
    "llava-next": lambda: llava("llava_next"),
}
SPECIALS = ("<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PEERS = {
    "qwen2-vl": "Qwen2VLImageProcessorPil",
    "llava": "CLIPImageProcessorPil",
    "llava-next": "LlavaNextImageProcessorPil",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=4, help="of a request (default: %(default)s)")
    parser.add_argument("--size", default="1280x720", help="of each picture, in pixels (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=8, help="with other pictures each (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="decoders (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    print(f"{arguments.pictures} pictures of {width}x{height} a request, model in {arguments.dtype}\n")
    header = (
        "",
        "JPEG in",
        "float32 pixels",
        "sent",
        "ratio",
        "same again",
        "seconds",
        "CPU s",
        "transformers CPU s",
        "ratio",
    )
    print(("{:12}" + "{:>20}" * 9).format(*header))
    for name in arguments.models.split(","):
        row = measure(name, arguments.pictures, (width, height), arguments.requests, arguments.workers, arguments.dtype)
        print(("{:12}" + "{:>20}" * 9).format(name, *row), flush=True)
    return 0


def measure(
    name: str, count: int, size: tuple[int, int], num_requests: int, num_workers: int, dtype: str
) -> tuple[str, ...]:
    """A line of the table."""
    config, processor_config, marker = MODELS[name]()
    with tempfile.TemporaryDirectory(prefix="forebay-media-") as folder:
        write_folder(Path(folder), config, processor_config)
        settings = MediaSettings(MediaLimits(items={"image": count}), num_workers=num_workers)
        preprocessor = Preprocessor.load(Path(folder), media=settings)
        requests = [[jpeg(number * count + i, size) for i in range(count)] for number in range(num_requests + 1)]
        ready = encode(preprocessor, requests[0], marker, dtype)  # what is loaded or started once is not counted
        computing, waiting = [], []
        for files in requests[1:]:
            before, begun = cpu_seconds(), time.perf_counter()
            encode(preprocessor, files, marker, dtype)
            waiting.append(time.perf_counter() - begun)
            computing.append(cpu_seconds() - before)
        ours = statistics.median(computing)
        num_values, theirs = reference(PEERS[name], processor_config, requests[1:])
    first, again = sent_bytes(ready, held=False), sent_bytes(ready, held=True)
    return (
        f"{sum(map(len, requests[0])):,}", f"{4 * num_values:,}", f"{first:,}", f"{first / (4 * num_values):.3f}",
        f"{again:,}", f"{statistics.median(waiting):.3f}", f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}",
    )  # fmt: skip


def write_folder(folder: Path, config: dict[str, Any], processor_config: dict[str, Any]) -> None:
    """A model folder without weights, whose tokenizer is the demo model's with the models' special tokens at the end."""
    tokenizer = Tokenizer.from_file(str(ROOT / "demo" / "model" / "tokenizer.json"))
    tokenizer.add_special_tokens(list(SPECIALS))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    names = {
        "image_token_index": "<image>", "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    config = config | {key: ids[token] for key, token in names.items() if key in config}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_config))


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    """A picture with large and small structure, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = PilImages.fromarray(random.integers(0, 255, (9, 16, 3), np.uint8)).resize(
        size, PilImages.Resampling.BICUBIC
    )
    noise = random.normal(0, 8, (size[1], size[0], 1))
    pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PilImages.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def encode(preprocessor: Preprocessor, files: Sequence[bytes], marker: str, dtype: str) -> ReadyPrompt:
    """What a frontend does with a request, up to the messages."""
    prompt = prompt_pb2.Prompt(text=marker * len(files) + "What is it?", parse_special_tokens=True)
    for data in files:
        prompt.media.append(media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, data=data))
    return ReadyPrompt.of(preprocessor.encode_prompt(prompt), dtype)


def sent_bytes(ready: ReadyPrompt, *, held: bool) -> int:
    """Bytes of a request's messages to an executor, which holds its media or does not."""
    sampling = wire.SamplingParams(max_tokens=1)
    submit = Flight(ready.token_ids, sampling, None, media=ready.media, positions=ready.positions).submission(1)
    total = wire.SessionRequest(submit=submit).ByteSize()
    for item in {found.item.digest: found.item for found in ready.media}.values() if not held else ():
        offset = 0
        for piece in item.chunks():
            chunk = wire.TensorChunk(digest=item.digest, offset=offset, data=bytes(piece))
            total += wire.SessionRequest(chunk=chunk).ByteSize()
            offset += len(piece)
    return total


def reference(kind: str, processor_config: dict[str, Any], requests: Sequence[Sequence[bytes]]) -> tuple[int, float]:
    """How many numbers transformers' processor makes of a request, and the CPU seconds that it takes."""
    import transformers

    processor = getattr(transformers, kind).from_dict(processor_config)
    seconds, num_values = [], 0
    for files in requests:
        pictures = [PilImages.open(io.BytesIO(data)).convert("RGB") for data in files]
        before = cpu_seconds()
        num_values = processor(pictures, return_tensors="np")["pixel_values"].size
        seconds.append(cpu_seconds() - before)
    return num_values, statistics.median(seconds)


def cpu_seconds() -> float:
    """Of this process, its threads and its decoders that are running, by the kernel's account."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(map(_seconds_of, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    direct = [int(child) for task in tasks for child in task.read_text().split()]
    return direct + [grandchild for child in direct for grandchild in _children(child)]


def _seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
