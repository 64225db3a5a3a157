"""Read the README: its quick start's commands and its Python blocks.

As a program it prints one of the commands, for CI: `python tests/support/readme.py test`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["python_blocks", "quick_start"]

README = Path(__file__).resolve().parents[2] / "README.md"


def sections(text: str) -> dict[str, str]:
    """Return each `## ` section's body under its heading."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def quick_start(text: str) -> list[str]:
    """Return the commands of the quick start: its indented lines and those of its fenced shell blocks."""
    body = sections(text)["Quick start"]
    fenced = [
        line
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    indented = re.findall(r"^ {4}(.+)$", body, flags=re.MULTILINE)
    return [line.strip() for line in [*indented, *fenced] if line.strip()]


def python_blocks(text: str) -> list[str]:
    """Return the fenced Python blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    train, test = quick_start(README.read_text())
    print({"train": train, "test": test}[sys.argv[1]])
