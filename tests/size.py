"""Print the size of the house: lines of Python by folder, and how many rooms import how many others.

python tests/size.py
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "scripts", "tests", "transforms")


def sources() -> list[Path]:
    """All files of Python, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def room(path: Path) -> str:
    """The folder that a file is counted in."""
    if path.parts[0] != "pipeline":
        return path.parts[0]
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else "pipeline/*.py"


def pairs() -> set[tuple[str, str]]:
    """Rooms of the pipeline, as modules: who imports whom."""
    found = set()
    for path in (path for path in sources() if path.parts[0] == "pipeline"):
        own = ".".join(path.with_suffix("").parts[:2])
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
                found.add((own, ".".join(str(node.module).split(".")[:2])))
    return {(own, other) for own, other in found if own != other}


def main() -> None:
    """Print the table."""
    lines: Counter[str] = Counter()
    for path in sources():
        lines[room(path)] += len((ROOT / path).read_text(encoding="utf-8").splitlines())
    for name in sorted(lines):
        print(f"| `{name}` | {lines[name]} |")
    print(f"without the tests: {sum(lines.values()) - lines['tests']} lines; {len(pairs())} pairs of rooms")


if __name__ == "__main__":
    main()
