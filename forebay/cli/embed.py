"""Owns `forebay embed`: texts to a running server, their vectors to a file or the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.cli.client_flags import connect
from forebay.cli.media_flags import add_media_flags, beside, read_media
from forebay.cli.parser import VerbParser
from forebay.cli.pooling_io import add_pooling_flags, params_of, read_inputs, run
from forebay.client_pooling import FORMATS
from forebay.client_requests import to_prompt
from forebay.flags import ConfigError


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError."""
    parser = VerbParser("embed", "Turns texts into vectors, whose directions tell how alike the texts are.")
    parser.add_argument("text", nargs="*", help="texts to embed (default: the lines of --input)")
    parser.add_argument("--dimensions", type=int, metavar="N", help="numbers to keep of each vector (default: all)")
    parser.add_argument("--normalize", dest="normalize", action="store_true", default=None, help="vectors of length 1")
    parser.add_argument(
        "--no-normalize", dest="normalize", action="store_false", help="vectors as the model gives them"
    )
    parser.add_argument("--prompt-name", default="", metavar="NAME", help="the checkpoint's prompt to put before texts")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="float32", help="how numbers travel (default: float32)"
    )
    add_media_flags(parser, "the one text, which has the model's own placeholder, such as <image>, for each")
    add_pooling_flags(parser, activation=False)
    parsed = parser.parse_args(arguments)
    media = read_media(parsed)
    if media and (len(parsed.text) != 1 or parsed.input):
        raise ConfigError(f"give one text with --{media[0][0]}; media of many inputs goes into several calls")
    inputs = [to_prompt({"prompt": parsed.text[0], **beside(media)})] if media else read_inputs(parsed, parsed.text)
    params = params_of(parsed, dimensions=parsed.dimensions, normalize=parsed.normalize)
    options = {name: getattr(parsed, name) for name in ("prompt_name", "format", "model", "priority")}
    with connect(parsed) as client:
        return run(
            parsed,
            inputs,
            lambda batch: client.embed(batch, params, **options),
            record=lambda output: {"embedding": output.embedding},
            numbers=lambda output: output.embedding,
        )
