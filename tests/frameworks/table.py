"""The table in docs/integrations.md, from what the tests found: `python -m frameworks.table FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BEGIN, END = "<!-- integrations: begin -->\n", "<!-- integrations: end -->\n"


def table(folder: Path) -> str:
    """Markdown, a row for each framework."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = ["| framework | version | module | what is recorded | bit-identical |", "|---|---|---|---|---|"]
    for row in rows:
        said, version = "yes" if row["identical"] else "no", f"{row['package']} {row['version']}"
        module = f"`gradscope_integrations.{row['module']}`"
        lines.append(f"| {row['framework']} | {version} | {module} | {row['recorded']} | {said} |")
    return "\n".join(lines) + "\n"


def current() -> str:
    """What stands in the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(head + BEGIN + table(Path(sys.argv[1])) + END + rest.partition(END)[2], encoding="utf-8")
