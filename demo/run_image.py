"""Shows Forebay looking at a picture: two tiers on loopback, a picture sent through them, and answers about it streamed."""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import time
from pathlib import Path

from byte_meter import ByteMeter
from pictures import NEVER_TOGETHER, unseen_scenes
from PIL import Image, UnidentifiedImageError
from servers import run_demo, say, styled

from forebay import Client, SamplingParams
from forebay.v1.media_pb2 import MEDIA_KIND_IMAGE, Media

MODEL = "demo/image_model"
QUESTIONS = ("What is in the picture?", "How many shapes are there?")
SIDE = 256  # pixels of a picture that is drawn

NEXT_STEPS = f"""
How to go on, in the virtual environment that was just made (source .venv/bin/activate):

  make demo-image SEED=7                                       # another picture; IMAGE=path takes one of yours
  python demo/pictures.py picture.png --seed 7                 # draws one into a file
  forebay serve {MODEL}                               # both tiers, on port 50051
  echo "What is on the left?" | forebay chat --image picture.png
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-image", description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a picture (default: one is drawn)")
    parser.add_argument("--seed", type=int, help="draw any shapes, by this seed (default: a red circle, a blue square)")
    parser.add_argument("--question", action="append", metavar="TEXT", help="may be repeated (default: two)")
    arguments = parser.parse_args()
    try:
        data = arguments.image.read_bytes() if arguments.image else drawn(arguments.seed)
        with Image.open(io.BytesIO(data)) as image:
            print_picture(image)
    except (OSError, UnidentifiedImageError) as error:
        print(f"make demo-image: {error}", file=sys.stderr)
        return 1
    meters: list[ByteMeter] = []

    def metered(address: str) -> str:
        meters.append(ByteMeter(address))
        return meters[-1].address

    def show(frontend: str) -> None:
        ask(metered(frontend), data, arguments.question or QUESTIONS, meters)

    status = run_demo(MODEL, show, link=metered)
    if not status:
        print(NEXT_STEPS)
    return status


def drawn(seed: int | None) -> bytes:
    """A PNG of a scene that training never draws: of things that it never has together, or of any by a seed."""
    scenes = unseen_scenes(0, *NEVER_TOGETHER) if seed is None else unseen_scenes(seed)
    file = io.BytesIO()
    next(scenes).draw(SIDE).save(file, "PNG")
    return file.getvalue()


def ask(server: str, data: bytes, questions: tuple[str, ...], meters: list[ByteMeter]) -> None:
    """One conversation about a picture, which is sent once and then named by its digest."""
    messages: list[dict[str, object]] = []
    picture = Media(kind=MEDIA_KIND_IMAGE, data=data)
    params = SamplingParams(temperature=0, max_tokens=64)
    with Client(server, timeout=60) as client:
        client.get_model()  # connects, so that the first answer is not charged with it
        for question in questions:
            content = [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": content if messages else [image_part(picture), *content]})
            print(f"{styled(1, question)}\n  ", end="", flush=True)
            before, sent, first, answer = [meter.there for meter in meters], time.monotonic(), 0.0, ""
            for delta in client.stream_chat(messages, params):
                first = first or time.monotonic()
                answer += delta.text
                print(delta.text, end="", flush=True)
            to_executor, to_frontend = (meter.there - count for meter, count in zip(meters, before, strict=True))
            print()
            say(
                f"  first token after {1e3 * (first - sent):.0f} ms; "
                f"{to_frontend:,} bytes to the frontend, {to_executor:,} from there to the executor\n"
            )
            messages.append({"role": "assistant", "content": answer})
            picture = Media(kind=MEDIA_KIND_IMAGE, digest=hashlib.sha256(data).digest())
            messages[0]["content"][0] = image_part(picture)


def image_part(picture: Media) -> dict[str, object]:
    return {"type": "image", "image": picture}


def print_picture(image: Image.Image, columns: int = 40) -> None:
    """The picture in blocks of two colours each, where the terminal has colours; its size in any case."""
    columns = min(columns, shutil.get_terminal_size().columns)
    if sys.stdout.isatty():
        print(blocks(image, columns))
    say(f"a picture of {image.width} x {image.height} pixels\n")


def blocks(image: Image.Image, columns: int) -> str:
    """Lines of half blocks in 24-bit colours: each character is two pixels, one above the other."""
    rows = 2 * max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    lines = []
    for y in range(0, rows, 2):
        cells = []
        for x in range(columns):
            upper, lower = (";".join(map(str, small.getpixel((x, y + row)))) for row in (0, 1))
            cells.append(f"\033[38;2;{upper};48;2;{lower}m▀")
        lines.append("".join(cells) + "\033[0m")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
