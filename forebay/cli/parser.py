"""Owns how a verb's flags are declared: one look of help, one line for what is wrong."""

from __future__ import annotations

import argparse
from typing import NoReturn

from forebay.cli import VERBS
from forebay.errors import EXIT_BAD_CONFIG


class VerbParser(argparse.ArgumentParser):
    """A parser whose help ends with the verb's example, and whose errors are one line that says where to look."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"forebay {verb}",
            description=description,
            epilog=f"example:\n  {VERBS[verb].example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_CONFIG, f"{self.prog}: {message}; `{self.prog} --help` lists the flags\n")
