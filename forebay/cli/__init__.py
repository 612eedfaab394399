"""Owns the command line: the verbs, and how a verb that cannot go on says so. A verb's own module is loaded when it runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from forebay.errors import EXIT_BAD_CONFIG, ForebayError

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Verb(NamedTuple):
    """A verb: the module whose `main(arguments)` runs it, what it does, an example, and the extra that it needs."""

    module: str
    help: str
    example: str
    extra: str = ""


VERBS = {
    "serve": Verb(
        "forebay.cli.serve", "serve a model: both tiers on this machine",
        "forebay serve Qwen/Qwen2-0.5B-Instruct --port 50051", "all",
    ),
    "executor": Verb(
        "gpu_executor.main", "the GPU tier: hold the weights and generate for frontends",
        "forebay executor Qwen/Qwen2-0.5B-Instruct --listen 0.0.0.0:50061", "executor",
    ),
    "frontend": Verb(
        "frontend.main", "the CPU tier: take text and chat, and have executors generate",
        "forebay frontend Qwen/Qwen2-0.5B-Instruct --executors executor-a:50061,executor-b:50061", "frontend",
    ),
    "preprocess": Verb(
        "forebay.cli.preprocess", "the optional tier: make tensors of images, videos and sound for frontends",
        "forebay preprocess Qwen/Qwen2-VL-2B-Instruct --listen 0.0.0.0:50071", "frontend",
    ),
    "generate": Verb(
        "forebay.cli.generate", "continue a prompt on a running server",
        'forebay generate "Once upon a time" --max-tokens 64',
    ),
    "chat": Verb(
        "forebay.cli.chat", "talk with the model of a running server",
        'forebay chat --system "Answer in one sentence."',
    ),
    "embed": Verb(
        "forebay.cli.embed", "turn texts into vectors on a running server",
        "forebay embed --input texts.txt --output vectors.npy",
    ),
    "classify": Verb(
        "forebay.cli.classify", "tell classes of texts apart on a running server",
        'forebay classify "I like it" "I do not"',
    ),
    "score": Verb(
        "forebay.cli.score", "tell how well documents answer a query",
        'forebay score "What is a forebay?" --input documents.txt',
    ),
    "reward": Verb(
        "forebay.cli.reward", "rate texts and chats, token by token or step by step",
        "forebay reward --input chats.jsonl --output rewards.jsonl",
    ),
    "models": Verb(
        "forebay.cli.models", "list the architectures that can be served",
        "forebay models", "executor",
    ),
    "describe": Verb(
        "forebay.cli.describe", "show what a checkpoint becomes: spec, weights, memory",
        "forebay describe Qwen/Qwen2-0.5B-Instruct --load-format dummy", "executor",
    ),
    "verify": Verb(
        "forebay.cli.verify", "check the kernels on this machine's device; needs no model",
        "forebay verify --device cpu --dtype bfloat16", "executor",
    ),
    "health": Verb(
        "forebay.cli.health", "ask a server whether it serves; the exit status says it too",
        "forebay health --server localhost:50051",
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb. The exit status is 0, 78 for settings or files that cannot work, 1 for anything else that went wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(_help())
        return 0
    if first in ("-V", "--version"):
        from forebay import __version__

        print(f"forebay {__version__}")
        return 0
    if first not in VERBS:
        nearest = difflib.get_close_matches(first, VERBS, n=1)
        hint = f"did you mean `forebay {nearest[0]}`?" if nearest else "`forebay --help` lists the verbs"
        return _fail("forebay", f"there is no verb {first!r}; {hint}", EXIT_BAD_CONFIG)
    return _run(first, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    from forebay.flags import ConfigError

    verb, program = VERBS[name], f"forebay {name}"
    try:
        status = importlib.import_module(verb.module).main(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as exit:  # of argparse: 0 after --help, 2 for flags that cannot be
        return EXIT_BAD_CONFIG if exit.code == 2 else int(exit.code or 0)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("forebay", "frontend", "preprocess", "gpu_executor", "kernels"):
            raise  # a defect of ours
        needs = f"forebay[{verb.extra}]" if verb.extra else "forebay"
        return _fail(program, f"{error.name} is not installed: pip install '{needs}'", EXIT_BAD_CONFIG)
    except ConfigError as error:
        return _fail(program, str(error), EXIT_BAD_CONFIG)
    except ForebayError as error:
        return _fail(program, _advice(error), EXIT_BAD_CONFIG if error.code in _OF_THE_CONFIG else 1)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _fail(program, str(error), 1)


# Errors of what was asked for or of the checkpoint, not of the moment.
_OF_THE_CONFIG = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION")


def _advice(error: ForebayError) -> str:
    if error.retry_after_ms is not None:
        return f"{error.message} (try again in {error.retry_after_ms / 1000:.1f} s)"
    return error.message


def _fail(program: str, message: str, status: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, VERBS))
    lines = ["usage: forebay VERB [ARGUMENTS]", "", "Serves language models over gRPC.", ""]
    for name, verb in VERBS.items():
        lines += [f"  {name:{width}}  {verb.help}", f"  {'':{width}}    {verb.example}"]
    lines += ["", "`forebay VERB --help` lists a verb's flags; `forebay --version` prints the version."]
    return "\n".join(lines)
