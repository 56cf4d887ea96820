"""The pages that people read, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ASSIGNED = re.compile(r"[A-Z_]+=.*")


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language; with none given those of a shell, and what is indented."""
    fenced = [body for name, body in FENCED.findall(text) if name in ((language,) if language else ("", "bash", "sh"))]
    indented = re.findall(r"(?:^(?: {4}|\t).+\n)+", FENCED.sub("", text), re.MULTILINE)
    return fenced if language else fenced + indented


def commands(text: str, programs: tuple[str, ...]) -> Iterator[list[str]]:
    """Each call of a program in a page's blocks and inline code, as words; comments and what stands in a second column are left out."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in INLINE.findall(FENCED.sub("", text))]
    for line in [*lines, *spans]:
        for part in re.split(r"&&|;| \| ", re.split(r" {2,}(?=\S)|#", line.strip())[0]):
            words = shlex.split(part) if part.count("'") % 2 == 0 and part.count('"') % 2 == 0 else part.split()
            while words and ASSIGNED.fullmatch(words[0]):
                words = words[1:]
            if words and words[0] in programs:
                yield words
