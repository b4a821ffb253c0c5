"""A report's parts, and how they become a Markdown page and a single HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.reporting.tables import markdown_table


@dataclass(frozen=True)
class Table:
    """Rows of text, header first, all of one length.

    Attributes:
        caption: what the table shows.
        rows: the cells.
        words: whether the cells hold words rather than numbers.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG of the report's folder.

    Attributes:
        file: its name in that folder.
        alt: what it shows, for those who do not see it.
        caption: the line below it.
    """

    file: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A headline and what stands below it: paragraphs, a list, pictures, tables, in this order."""

    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = field(default_factory=tuple)

    def __bool__(self) -> bool:
        return bool(self.text or self.points or self.pictures or self.tables)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown; pictures are links to files beside it.

    Args:
        title: of the page.
        sections: empty ones are left out.
    """
    parts = [f"# {_plain(title)}"]
    for section in filter(None, sections):
        parts.append(f"## {_plain(section.title)}")
        parts += [_plain(text) for text in section.text]
        if section.points:
            parts.append("\n".join(f"- {_plain(point)}" for point in section.points))
        for picture in section.pictures:
            parts.append(f"![{_plain(picture.alt)}]({picture.file})\n\n{_plain(picture.caption)}")
        for table in section.tables:
            rows = [[_plain(cell) for cell in row] for row in table.rows]
            parts += [f"**{_plain(table.caption)}**", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def as_html(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The report as one HTML file that needs nothing else: the pictures are inside, there is no script.

    Args:
        title: of the page.
        sections: empty ones are left out.
        folder: where the pictures lie.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.studies.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [section for section in sections if section]
    data = {
        picture.file: base64.b64encode((folder / picture.file).read_bytes()).decode("ascii")
        for section in shown
        for picture in section.pictures
    }
    return environment.get_template("report.html").render(title=title, sections=shown, data=data)


def _plain(text: str) -> str:
    """On one line, and without anything that Markdown would take for HTML."""
    return html.escape(" ".join(text.split()), quote=False)
