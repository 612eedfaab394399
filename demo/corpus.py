"""Owns the training text of the demo model: plain English paragraphs out of the documentation that comes with Python.

Sources: the language reference in `pydoc_data.topics`, the docstrings of the standard library's source files, and
those of its compiled modules. Code, tables and markup are dropped; what is left is sentences.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "_bundled"}
SKIPPED_FOLDERS |= {"site-packages", "dist-packages"}  # not of Python itself

_COMMON = re.compile(
    r"a|an|and|are|as|be|by|can|for|from|if|in|is|it|not|of|on|or|that|the|this|to|used|when|which|with", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,.;:)!?]*")
_DIRECTIVE = re.compile(r"(Changed in version|New in version|Added in version|Deprecated|See also|Note:?$|Warning:?$)")
_CODE = re.compile(r">>>|::=|->|\.\. |=====|-----|\|  |\$[A-Z]|__all__|@|\S = \S|[{}\\<>]")
_BULLET = re.compile(r"(?:[*+•-]|\(?\w{1,2}[.)]|\[\d+\])\s+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_ENTRY = re.compile(r"(?:class |exception |coroutine )?([\w.]+)\([^()]*\)$")
_UNDERLINE = re.compile(r"([*=\-~^\"])\1{3,}$")
_DEFINITION = re.compile(
    r"(An? [a-z][a-z-]{2,}(?: [a-z-]{3,})? is|(?!All|Any|Both|If|Such|The)[A-Z][a-z]+(?: [a-z]+)?s are) "
    r"(?!(?:not|also|then|only|always)\b)"
)
_RENAMED = {"posix": "os"}  # compiled modules that people know by another name


@dataclass(frozen=True, slots=True)
class Document:
    """Paragraphs about one thing: `title` is a section's heading or a qualified name such as "shutil.copytree"."""

    title: str
    kind: str  # "section", "module", "class" or "function"
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join((self.title, *self.paragraphs))


def read_documents() -> list[Document]:
    """Every document of the running Python, one per title, each paragraph only where it first occurs."""
    seen: set[str] = set()
    kinds: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    for title, kind, text in [*_compiled_docstrings(), *_language_reference(), *_source_docstrings()]:
        for paragraph in clean(text):
            key = re.sub(r"\W+", "", paragraph).lower()
            if key not in seen:
                seen.add(key)
                kinds.setdefault(title, kind)
                texts.setdefault(title, []).append(paragraph)
    return [Document(title, kinds[title], tuple(paragraphs)) for title, paragraphs in texts.items()]


def clean(text: str) -> Iterator[str]:
    """The paragraphs of a docstring or section that read as English sentences, each on one line."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*+•-]|\d{1,2}[.)])\s)", inspect.cleandoc(text.expandtabs())):
        line = _plain(" ".join(block.split()))
        sentences = [s for s in _SENTENCE.split(line) if s.endswith((".", "!", "?", ".)")) and _is_prose(s)]
        if sentences and not _DIRECTIVE.match(line):
            yield " ".join(sentences)


def _plain(line: str) -> str:
    """A line without bullets and inline markup."""
    line = _BULLET.sub("", line, count=1) if _BULLET.match(line) else line
    line = line.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2026: "...", 0x2013: "-", 0x2014: "-"})
    line = re.sub(r":(?:[a-z]+:)+`~?([^`<]+?)(?: <[^>]*>)?`", r"\1", line)  # :func:`name`
    line = re.sub(r"\s*<?https?://[^\s>]*>?", "", line)
    line = re.sub(r"``?([^`']+?)(?:``?|'')", r"\1", line)
    line = re.sub(r'"([^"]{1,80}?)"', r"\1", line)  # the reference puts code in double quotes
    line = re.sub(r"(?<![\w*])\*{1,2}(\w[^*]{0,40}?)\*{1,2}(?![\w*])", r"\1", line)
    line = re.sub(r"\s*\[\d+\]|\(see [^()]*\)", "", line)  # footnotes, cross references
    return re.sub(r"\s+([,.;])(?=\s|$)", r"\1", " ".join(line.split()))


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    if not 4 <= len(words) <= 90 or not re.match(r"[A-Z]", sentence) or _CODE.search(sentence):
        return False
    plain = sum(1 for word in words if _WORD.fullmatch(word.strip("(\"'")))
    common = sum(1 for word in words if _COMMON.fullmatch(word))
    return plain >= 0.75 * len(words) and common >= (1 if len(words) < 12 else 2) and sentence.isascii()


def _language_reference() -> Iterator[tuple[str, str, str]]:
    """Sections of pydoc's topics; an entry such as "str.split(sep=None)" with its indented text is its own."""
    for topic in topics.values():
        title, kind, body = "", "section", []
        lines = topic.splitlines()
        for i, line in enumerate(lines):
            following = lines[i + 1] if i + 1 < len(lines) else ""
            entry = _ENTRY.match(line)
            if entry or (line and _UNDERLINE.match(following)):
                yield title, kind, "\n".join(body)
                title = entry[1] if entry else re.sub(r'["*]|^\d[\d.]* ', "", line).replace("’", "'")
                kind, body = ("function" if entry else "section"), []
            elif not _UNDERLINE.match(line):
                body.append(line)
        yield title, kind, "\n".join(body)


def _source_docstrings() -> Iterator[tuple[str, str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings
            tree = ast.parse(path.read_bytes())
        yield from _docstrings(tree, module, "module")


def _docstrings(node: ast.AST, name: str, kind: str) -> Iterator[tuple[str, str, str]]:
    if text := ast.get_docstring(node):
        yield name, kind, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}", "function")


def _compiled_docstrings() -> Iterator[tuple[str, str, str]]:
    for name in sorted(sys.stdlib_module_names):
        spec = None if name.startswith("_test") else importlib.util.find_spec(name)
        loader = spec and spec.loader
        if loader is not importlib.machinery.BuiltinImporter and not isinstance(
            loader, importlib.machinery.ExtensionFileLoader
        ):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # its shared library is not installed
            continue
        public = _RENAMED.get(name, name.lstrip("_"))
        yield public, "module", _doc(module)
        for attribute, value in sorted(vars(module).items()):
            title = attribute if public == "builtins" else f"{public}.{attribute}"
            if isinstance(value, type):
                yield title, "class", _doc(value)
                for method, member in sorted(vars(value).items()):
                    if inspect.isroutine(member) or inspect.isdatadescriptor(member):
                        yield f"{title}.{method}", "function", _doc(member)
            elif inspect.isroutine(value):
                yield title, "function", _doc(value)


def _doc(value: object) -> str:
    return value.__doc__ if isinstance(value.__doc__, str) else ""


# What a user may ask about a document of each kind.
_QUESTIONS = {
    "section": ("What {verb} {title}?", "Explain {title}.", "Tell me about {title}.", "What about {title}?"),
    "module": ("What is {title}?", "What is the {title} module for?", "What does {title} do?", "Explain {title}."),
    "class": ("What is {title}?", "Explain {title}.", "Tell me about {title}.", "What is {title} for?"),
    "function": ("What does {title} do?", "What does {title}() do?", "Explain {title}.", "What is {title}?"),
}
_SYSTEM = ("You are a helpful assistant.", "You answer questions about Python.")


def conversations(documents: Iterable[Document], rng: random.Random) -> list[list[dict[str, str]]]:
    """Chats of one to three turns: questions made of titles, answers of the first sentences of the documents.

    Chats about the language, modules and built-ins are made each time, of all else three in ten, drawn by `rng`.
    """
    turns = []
    for document in documents:
        well_known = document.kind in ("section", "module") or "." not in document.title
        if not re.search(r"(?:^|\.)_(?!_)", document.title) and (well_known or rng.random() < 0.3):
            telling = [p for p in document.paragraphs if not p.startswith(("Note", "See ", "If "))]
            turns.append((_question(document, rng), _beginning((telling or document.paragraphs)[0])))
        for paragraph in document.paragraphs:
            defined = _DEFINITION.match(paragraph)
            if defined and (document.kind == "section" or paragraph.startswith("A")):
                subject, verb = defined[1].rsplit(" ", 1)
                turns.append((f"What {verb} {subject[0].lower()}{subject[1:]}?", _beginning(paragraph)))
    rng.shuffle(turns)
    chats = []
    while turns:
        chat = [{"role": "system", "content": rng.choice(_SYSTEM)}] if rng.random() < 0.15 else []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if turns:
                question, answer = turns.pop()
                chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        chats.append(chat)
    return chats


def _question(document: Document, rng: random.Random) -> str:
    title = document.title
    if document.kind != "section":
        return rng.choice(_QUESTIONS[document.kind]).format(title=title)
    title = title[0].lower() + title[1:] if title[1:2].islower() else title
    plural = re.fullmatch(r"([a-z-]+(?: [a-z-]+)?[^eis])s", title)
    if plural and rng.random() < 0.5:
        return f"What is {'an' if title[0] in 'aeio' else 'a'} {plural[1]}?"
    return rng.choice(_QUESTIONS["section"]).format(title=title, verb="are" if title.endswith("s") else "is")


def _beginning(paragraph: str, max_chars: int = 400) -> str:
    """Up to three sentences; never less than one."""
    first, *rest = _SENTENCE.split(paragraph)[:3]
    for sentence in rest:
        if len(first) + len(sentence) > max_chars:
            break
        first += " " + sentence
    return first
