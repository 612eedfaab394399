"""Owns `forebay chat`: a conversation with a running server, line by line."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence

from forebay.cli.client_flags import add_connection_flags, add_generation_flags, connect, sampling
from forebay.cli.media_flags import MediaItems, add_media_flags, parts, read_media
from forebay.cli.parser import VerbParser
from forebay.client import Client
from forebay.errors import ForebayError
from forebay.sampling_params import SamplingParams

PROMPT = "> "
HELP = "/new begins a new conversation, /quit or Ctrl-D leaves; Ctrl-C stops an answer"


def main(arguments: Sequence[str]) -> int:
    """The exit status. On a terminal an error ends a turn; from a pipe or file it ends the conversation, by raising."""
    parser = VerbParser("chat", "Talks with the model of a running server: each line is a message, the answer streams.")
    parser.add_argument("--system", metavar="TEXT", help="instructions that stand above the conversation")
    add_media_flags(parser, "the first message of each conversation")
    add_generation_flags(parser)
    add_connection_flags(parser)
    parsed = parser.parse_args(arguments)
    media = read_media(parsed)
    with connect(parsed) as client:
        options = {"model": parsed.model, "priority": parsed.priority}
        conversation = Conversation(client, parsed.system, sampling(parsed), media, **options)
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"{client.get_model(parsed.model).name}: {HELP}")
        for line in _lines(interactive):
            if line.strip() in ("/quit", "/exit"):
                break
            if line.strip() == "/new":
                conversation.begin()
            elif line.strip():
                _turn(conversation, line, interactive)
    return 0


class Conversation:
    """The messages so far; the first of the user's has the media. A turn that fails or is stopped before anything came leaves
    no trace.
    """

    def __init__(
        self, client: Client, system: str | None, params: SamplingParams, media: MediaItems, **options: object
    ) -> None:
        self._client, self._params, self._options = client, params, options
        self._media = parts(media)
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def begin(self) -> None:
        """Forgets all but the system's message."""
        self.messages = list(self._system)

    def answer(self, text: str) -> Iterator[str]:
        """The pieces of the answer to what the user says; what came of it stays in the conversation."""
        content = [{"type": "text", "text": text}]
        if self.messages == self._system:
            content = [*self._media, *content]
        messages = [*self.messages, {"role": "user", "content": content}]
        pieces: list[str] = []
        try:
            for delta in self._client.stream_chat(messages, self._params, **self._options):
                pieces.append(delta.text)
                yield delta.text
        finally:
            if any(pieces):
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]


def _turn(conversation: Conversation, text: str, interactive: bool) -> None:
    try:
        with contextlib.closing(conversation.answer(text)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        if not interactive:
            raise
    except ForebayError as error:
        if not interactive:
            raise
        print(f"\nforebay chat: {error.message}", file=sys.stderr)


def _lines(interactive: bool) -> Iterator[str]:
    """What the user types, to the end of the input; on a terminal with a prompt and line editing."""
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # input() edits lines where it is loaded
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n" + HELP)
