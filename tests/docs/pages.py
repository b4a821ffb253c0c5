"""The commands of the pages: what stands in code blocks, indented and fenced, and between backticks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a command begins with. A line of a code block that begins with another program of this machine is not overlooked:
# see test_no_line_of_a_code_block_is_overlooked.
PROGRAMS = (
    *("python", "make", "pip", "mlflow", "conda", "source", "unzip", "mkdir", "cp", "curl", "monailabel", "docker"),
    *("apt-get", "grep", "htpasswd", "nginx", "dask", "torchrun", "reggan", "sudo", "git", "openssl", "head", "ln"),
    *("env/bin/python", "storescu", "dicomweb_client", "hd-bet", "mri_synthstrip", "bet"),
)
# In the text only these: "`source`" or "`head`" is a word there.
INLINE = (
    *("python", "make", "pip", "mlflow", "conda", "monailabel", "unzip", "cp", "torchrun", "reggan", "dask"),
    *("apt-get", "grep"),
)


def pages() -> list[Path]:
    """All pages with commands."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*found, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "bundles").glob("*/docs/*.md"))]


@dataclass(frozen=True)
class Command:
    """A command as it stands on a page, without its comment, continued lines joined."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """As a shell splits it."""
        return shlex.split(self.text)


def blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Code blocks with the number of their first line; indented ones without their four columns."""
    fence, indented, begun = False, False, 0
    block: list[str] = []
    previous = ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if re.match(r"\s*```", line):
            if fence:
                yield begun, block
            fence, block, begun = not fence, [], number + 1
        elif fence:
            block.append(line)
        elif line.startswith("    ") and (indented or not previous.strip()):
            if not indented:
                indented, block, begun = True, [], number
            block.append(line[4:])
        elif indented and line.strip():
            yield begun, block
            indented, block = False, []
        elif indented:
            block.append("")
        previous = line
    if indented:
        yield begun, block


def without_comment(line: str) -> str:
    """What stands in front of a # that begins a word outside quotes."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip()
    return line.rstrip()


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code blocks, continued ones joined, without comments."""
    for begun, block in blocks(text):
        joined, first = "", 0
        for number, line in enumerate(block, begun):
            line = without_comment(line)
            first = first if joined else number
            joined = f"{joined} {line.strip()}" if joined else line
            if joined.endswith("\\"):
                joined = joined[:-1].rstrip()
                continue
            if joined.strip():
                yield first, joined
            joined = ""


def inline(text: str) -> Iterator[tuple[int, str]]:
    """What stands between backticks outside code blocks."""
    kept = text.splitlines()
    for begun, block in blocks(text):
        kept[begun - 1 : begun - 1 + len(block)] = [""] * len(block)
    rest = "\n".join("" if line.strip().startswith("```") else line for line in kept)
    for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", rest):
        yield rest.count("\n", 0, found.start()) + 1, " ".join(found.group(1).split())


def commands(page: Path) -> list[Command]:
    """All commands of a page; what `&&` joins stays one."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    found = [Command(name, number, line) for number, line in lines(text) if line.split()[0] in PROGRAMS]
    spans = [
        Command(name, number, span) for number, span in inline(text) if span.split(" ")[0] in INLINE and " " in span
    ]
    return sorted([*found, *spans], key=lambda command: command.line)


def all_commands() -> list[Command]:
    """Of all pages."""
    return [command for page in pages() for command in commands(page)]
