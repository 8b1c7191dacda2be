"""The suites nearest to torch with every torch that is promised, and the table in docs/reliability.md: `make compat`.

`python tests/compat.py [VERSION ...]` runs those of these versions of torch, and leaves the others as they were found
last. Environments stay in `build/compat`, several GB each. Pythons are looked for in the variable `PYTHONS`, on the
`PATH` as `python3.10` and so on, and among pyenv's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "compat"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- versions: begin -->\n", "<!-- versions: end -->\n"
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINNED = re.findall(r"^torch==(\S+)", CONSTRAINTS, re.MULTILINE)[0]
PAIRS = (("2.6.0", "3.10"), ("2.8.0", "3.12"), ("2.10.0", "3.13"), (PINNED, "3.11"))
SUITES = ("families", "capture", "attach", "loop", "record")
NEEDED = (".[demo,fleet,report,tensorboard]", "dask[dataframe,distributed]", "expecttest", "hypothesis", "pytest>=8")


@dataclass
class Found:
    """What the suites found in one environment: how often tests ended how, by suite, and why some were skipped."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    skips: Counter[str] = field(default_factory=Counter[str])


def pythons(version: str) -> Iterator[str]:
    """Where a Python of a version may be."""
    yield from os.environ.get("PYTHONS", "").split()
    yield from filter(None, [shutil.which(f"python{version}")])
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python")))


def python_of(version: str) -> str | None:
    """One that runs and is of this version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in pythons(version):
        run = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if run.stdout.strip() == version:
            return path
    return None


def environment(torch: str, version: str) -> Path | None:
    """The Python of an environment with this torch, made where it is not there yet; None without such a Python."""
    folder = BUILD / f"torch-{torch}-py{version}"
    found, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return found
    if (python := python_of(version)) is None:
        return None
    subprocess.run([python, "-m", "venv", folder], check=True)
    constraints = BUILD / "constraints.txt"
    constraints.write_text(re.sub(r"^torch==.*\n", "", CONSTRAINTS, flags=re.MULTILINE), encoding="utf-8")
    pip = [found, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--constraint", constraints, f"torch=={torch}"]
    subprocess.run([*pip, "--editable", *NEEDED], check=True, cwd=ROOT)
    ready.touch()
    return found


def report_of(torch: str, version: str, suite: str) -> Path:
    """Where a suite leaves what it found."""
    return BUILD / f"torch-{torch}-py{version}" / f"{suite}.xml"


def run(torch: str, version: str) -> None:
    """Run the suites in one environment."""
    if (python := environment(torch, version)) is None:
        print(f"torch {torch}: there is no Python {version} here; name one in PYTHONS")
        return
    for suite in SUITES:
        report = f"--junitxml={report_of(torch, version, suite)}"
        subprocess.run(
            [python, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", report, f"tests/{suite}"], cwd=ROOT
        )


def read(reports: Iterable[Path]) -> Found:
    """From reports in JUnit's form."""
    found = Found()
    for suite, case in ((path.stem, case) for path in reports for case in ET.parse(path).iter("testcase")):
        ends = {child.tag: child for child in case}
        end = next((tag for tag in ("failure", "error", "skipped") if tag in ends), "passed")
        found.ends[suite, end] += 1
        if end == "skipped":
            found.skips[ends[end].get("message", "")] += 1
    return found


def table(found: dict[tuple[str, str], Found]) -> str:
    """Markdown: a row for each environment, and why tests were skipped."""
    lines = [f"| torch | Python | {' | '.join(SUITES)} | failed | skipped |", "|---|---|" + "---|" * (len(SUITES) + 2)]
    for (torch, version), one in found.items():
        ran = {suite for suite, _ in one.ends}
        passed = " | ".join(str(one.ends[suite, "passed"]) if suite in ran else "not run" for suite in SUITES)
        failed = sum(count for (_, end), count in one.ends.items() if end in ("failure", "error"))
        lines.append(f"| {torch} | {version} | {passed} | {failed} | {one.skips.total()} |")
    lines += ["", "Skipped:", ""]
    for reason in sorted({reason for one in found.values() for reason in one.skips}):
        where = ", ".join(f"{n} with {torch}" for (torch, _), one in found.items() if (n := one.skips[reason]))
        lines.append(f"* {reason}: {where}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for torch, version in PAIRS:
        if torch in (sys.argv[1:] or [torch]):
            run(torch, version)
    reports = {pair: [path for suite in SUITES if (path := report_of(*pair, suite)).exists()] for pair in PAIRS}
    text = table({pair: read(paths) for pair, paths in reports.items()})
    print(text)
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(head + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
