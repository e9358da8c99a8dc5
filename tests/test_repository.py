"""The first things that a newcomer tries, the README's example and `make help`; and the numbers of decisions."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_example_of_the_readme_runs(switch: object) -> None:
    """N8: the README's program prints the output in its comment, also while a switch runs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("2 b'hello'\n", "")


def test_help_lists_every_target() -> None:
    """Every target has a line in the help."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert len(targets) > 10
    for target in targets:
        assert re.search(rf"^  {target} +\S", shown, re.MULTILINE), target


def test_decisions_have_numbers_of_their_own() -> None:
    """The first line of each, and links in documents, say the same."""
    files = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert len({file.name[:4] for file in files}) == len(files) > 20
    for file in files:
        assert file.read_text(encoding="utf-8").startswith(f"# {int(file.name[:4])}. "), file
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        text = document.read_text(encoding="utf-8")
        for said, name in re.findall(r"\[decision (\d+)\]\(\S*?([^/\s]+\.md)\)", text):
            assert ROOT / "docs/decisions" / name in files, (document, name)
            assert int(said) == int(name[:4]), (document, said)
