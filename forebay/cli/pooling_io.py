"""Owns what the verbs that pool share: inputs from arguments, lines or JSON lines; results to JSON lines or an .npy file."""

from __future__ import annotations

import argparse
import array
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from forebay.cli.client_flags import add_connection_flags
from forebay.client_requests import to_prompt
from forebay.errors import ForebayError, InvalidRequest
from forebay.flags import ConfigError
from forebay.outputs import PoolingResponse
from forebay.pooling_params import PoolingParams

FORMS = "a text, token ids, chat messages or an object with prompt or prompt_token_ids"


def add_pooling_flags(parser: argparse.ArgumentParser, *, activation: bool = True) -> None:
    """--input, --output and what the verbs have in common."""
    parser.add_argument(
        "--input",
        metavar="FILE",
        help=f"a text per line; of a .jsonl file each line is {FORMS} (default: standard input)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="JSON lines, or numbers alone as .npy (default: JSON lines, printed)"
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="inputs of one call (default: 256)")
    parser.add_argument(
        "--truncate-prompt-tokens",
        type=int,
        metavar="N",
        help="cut longer inputs to so many tokens; -1: to what the model takes",
    )
    if activation:
        parser.add_argument("--raw", action="store_true", help="numbers before the model's activation, such as softmax")
    parser.add_argument("--model", default="", metavar="NAME", help="served name of the model (default: the only one)")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="lower runs earlier (default: 0)")
    add_connection_flags(parser)


def params_of(arguments: argparse.Namespace, **others: Any) -> PoolingParams:
    """The parameters that the flags give."""
    if getattr(arguments, "raw", False):
        others["activation"] = False
    return PoolingParams(truncate_prompt_tokens=arguments.truncate_prompt_tokens, **others)


def read_inputs(
    arguments: argparse.Namespace, given: Sequence[str], read: Callable[[Any], Any] = to_prompt
) -> Iterator[Any]:
    """The inputs, one after the other: those given as arguments, else the lines of --input or of standard input.

    `read` makes an input of a text or of what a JSON line holds.
    """
    if given and arguments.input:
        raise ConfigError("give inputs either as arguments or with --input")
    if given:
        yield from map(read, given)
        return
    if arguments.input is None and sys.stdin.isatty():
        raise ConfigError("give inputs as arguments, with --input or on standard input")
    as_json = str(arguments.input or "").endswith(".jsonl")
    with _opened(arguments.input) as file:
        for number, line in enumerate(file, start=1):
            if not (text := line.rstrip("\n")):
                continue
            try:
                yield read(_read_json(text) if as_json else text)
            except InvalidRequest as error:
                raise ConfigError(f"line {number} of --input: {error.message}") from None


def run(
    arguments: argparse.Namespace,
    inputs: Iterable[Any],
    call: Callable[[list[Any]], PoolingResponse[Any]],
    record: Callable[[Any], dict[str, Any]],
    numbers: Callable[[Any], list[float]] | None,
) -> int:
    """Calls for batches of inputs and writes what comes; `numbers` is a result's row of an .npy file, if it has one."""
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size is {arguments.batch_size}; it must be at least 1")
    as_npy = str(arguments.output or "").endswith(".npy")
    if as_npy and numbers is None:
        raise ConfigError(f"--output {arguments.output}: rewards are tables of different lengths: write JSON lines")
    rows: list[list[float]] = []
    done = 0
    remaining = iter(inputs)
    with (
        contextlib.nullcontext(sys.stdout) if as_npy else _created(arguments.output) as file,
        tqdm(unit="input", disable=None if arguments.output else True) as bar,
    ):
        while batch := list(itertools.islice(remaining, arguments.batch_size)):
            for index, output in enumerate(_outputs(call, batch, done), start=done):
                if as_npy:
                    rows.append(numbers(output))
                else:
                    print(json.dumps({"index": index, **record(output)}, ensure_ascii=False), file=file)
            done += len(batch)
            bar.update(len(batch))
    if as_npy:
        _write_npy(Path(arguments.output), rows)
    return 0


def _outputs(call: Callable[[list[Any]], PoolingResponse[Any]], batch: list[Any], first: int) -> list[Any]:
    try:
        return call(batch).outputs
    except ForebayError as error:
        if first:  # the server counts from the beginning of the call
            error.message = f"in the call that begins with input {first}: {error.message}"
        raise


def _read_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"not JSON: {error}") from None


def _opened(path: str | None) -> contextlib.AbstractContextManager[TextIO]:
    if path is None:
        return contextlib.nullcontext(sys.stdin)
    try:
        return open(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror}") from error


def _created(path: str | None) -> contextlib.AbstractContextManager[TextIO]:
    if path is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}") from error


def _write_npy(path: Path, rows: list[list[float]]) -> None:
    """(N, columns) float32 in numpy's format 1.0, which a client without numpy can write too."""
    shape = (len(rows), len(rows[0]) if rows else 0)
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape})
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    data = array.array("f", itertools.chain.from_iterable(rows))
    if sys.byteorder == "big":
        data.byteswap()
    try:
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data.tobytes())
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}") from error
