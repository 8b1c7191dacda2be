"""Real data that every environment of the project has: Python's own texts, and what packages bring along."""

from __future__ import annotations

import ast
import functools
import importlib.util
import random
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

MODULES = (
    "argparse ast asyncio.base_events calendar cgitb codecs collections configparser copy csv ctypes datetime "
    "decimal difflib dis doctest email.message enum fractions ftplib functools gettext heapq html.parser "
    "http.client imaplib inspect json.decoder locale logging mailbox mimetypes optparse os pathlib pdb pickle "
    "pickletools platform plistlib pprint pydoc random re sched shutil smtplib socket sqlite3 statistics string "
    "subprocess tarfile tempfile textwrap threading timeit tokenize traceback turtle typing unittest.mock "
    "urllib.request uuid warnings weakref zipfile"
)
LANGUAGES = "en de fr es it pl tr fi hu nl cs sw".split()
WORDS = 1_000


def _read(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return ""
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return ""
    return Path(found.origin).read_text(encoding="utf-8", errors="ignore")


@functools.cache
def sources() -> dict[str, str]:
    """Modules of the standard library: name -> text, without what is not ASCII."""
    texts = {name: _read(name) for name in MODULES.split()}
    return {name: re.sub(r"[^\n -~]", "", text) for name, text in texts.items() if text}


@functools.cache
def prose() -> str:
    """The reference manual as `help()` has it, in small letters, spaces made one."""
    from pydoc_data.topics import topics

    return re.sub(r"[^ -~]", "", re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)).lower()))


@functools.cache
def docstrings() -> str:
    """What the standard library says of itself, shuffled."""
    found: list[str] = []
    for text in sources().values():
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        found += [ast.get_docstring(node) or "" for node in nodes]
    random.Random(0).shuffle(found)
    return re.sub(r"\s+", " ", " ".join(found).lower())


@functools.cache
def letters(which: str) -> tuple[Tensor, int]:
    """A text as numbers of its characters, and how many there are."""
    text = prose() if which == "prose" else "\n".join(sources().values())
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([known[c] for c in text]), len(known)


@functools.cache
def words(which: str) -> tuple[Tensor, int]:
    """A text as numbers of its words: the commonest ones, and one number for all others."""
    text = {"prose": prose, "docstrings": docstrings}[which]()
    return numbered(re.findall(r"[a-z]+|[^a-z ]", text)), WORDS


def numbered(spelled: list[str]) -> Tensor:
    """Words by rank, from 1; 0 stands for rare ones."""
    known = {word: i + 1 for i, (word, _) in enumerate(Counter(spelled).most_common(WORDS - 1))}
    return torch.tensor([known.get(word, 0) for word in spelled])


@functools.cache
def names() -> tuple[list[str], Tensor]:
    """What countries and languages are called in twelve languages, and which language it is, shuffled."""
    from babel import Locale

    pairs: list[tuple[str, int]] = []
    for number, code in enumerate(LANGUAGES):
        found = Locale(code)
        spelled = [*found.territories.values(), *found.languages.values()]
        pairs += [(name.lower()[:30], number) for name in sorted(set(spelled)) if len(name) > 3]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [pairs[i][0] for i in order], torch.tensor([pairs[i][1] for i in order])


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits of scikit-learn, [N, 8, 8] between 0 and 1, and their names, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order].view(-1, 8, 8) / 16, torch.tensor(labels)[order]


@functools.cache
def membrane() -> Tensor:
    """A patch-clamp recording that matplotlib brings along, standardised, every second sample."""
    import matplotlib
    import numpy as np

    path = Path(matplotlib.get_data_path()) / "sample_data" / "membrane.dat"
    found = torch.tensor(np.fromfile(path, np.float32)[::2].copy())
    return (found - found.mean()) / found.std()
