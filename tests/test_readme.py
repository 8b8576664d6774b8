"""The README's Python, block by block, as a reader would paste it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
CHECKS = """
assert float(returns.mean) > 200, returns.mean  # rounding differs between kinds of processors, and one seed with it
assert float(pgjax.evaluate(ppo, result.state, jax.random.key(1)).mean) > 200
"""


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_is_short_and_opens_with_two_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    commands = re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert len(commands) == 2 and commands[0].endswith("pgjax train ppo --env CartPole-v1")
    assert commands[1].endswith("pytest") and "-e '.[test]'" in commands[1]
    assert "## Design notes" in text


def test_every_block_of_the_readme_is_python():
    assert blocks()
    for block in blocks():
        compile(block, "README.md", "exec")


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path):
    """In one process without the flags of the tests: the figures are those that a reader gets, of fewer seeds."""
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    script = tmp_path / "readme.py"
    fewer = "\n".join(blocks()).replace("seeds=4", "seeds=1").replace("(0), 8)", "(0), 2)")
    script.write_text("\n".join([fewer, CHECKS]))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_notebooks_are_stored_with_small_outputs():
    """So that a page view shows their pictures."""
    for path in (README.parent / "notebooks").glob("*.ipynb"):
        outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs), path
        assert not any(output["output_type"] == "error" for output in outputs), path
        assert path.stat().st_size < 600_000, path
