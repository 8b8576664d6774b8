"""The README's Python, block by block, as a reader would paste it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PREPARED = {
    "pgjax.load": "import numpy as np\nobservation = np.zeros(4)",
    "log_uniform": 'ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=16_384)',
    "alignment.language_model": """
from pgjax import alignment
words = alignment.TOKENIZERS.make("grammar")
small = alignment.Transformer(width=8, layers=1, num_heads=2, num_groups=1, mlp_width=8, context=128, vocab=words.vocab)
texts = alignment.TEXTS.make("grammar", examples=64, length=16)
pgjax.run(alignment.LM(texts, words, small, total_steps=1024), directory="runs/lm", progress=False)
start = alignment.language_model("runs/lm")
sft = alignment.SFT(start, alignment.COMPLETIONS.make("grammar", examples=64), total_steps=64)
pgjax.run(sft, directory="runs/sft", progress=False)
alignment.save_pretrained("SmolLM2-135M", start.network, start.params)
prompts, key = jnp.ones((2, 3), int), jax.random.key(0)
""",
    "pgjax.Custom": """
import flax.linen
import flax.nnx
env = pgjax.make("CartPole-v1")
class MyLinenModule(flax.linen.Module):
    width: int
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.tanh(flax.linen.Dense(self.width)(x))
class MyNnxModule(flax.nnx.Linear):
    def __init__(self, inputs, width, rngs):
        super().__init__(inputs, width, rngs=rngs)
""",
}
"""What a reader has before a block that names this."""
CHECKS = {
    "pgjax.tuned": """
assert float(returns.mean) > 200, returns.mean  # rounding differs between kinds of processors, and one seed with it
assert float(pgjax.evaluate(ppo, result.state, jax.random.key(1)).mean) > 200
""",
    "progress.steps": 'assert pgjax.load("runs/short").steps < ppo.total_steps',
}


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_every_block_of_the_readme_is_python():
    assert len(blocks()) >= 6
    for block in blocks():
        compile(block, "README.md", "exec")
    for name in PREPARED | CHECKS:
        assert any(name in block for block in blocks()), name


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path):
    """In one process without the flags of the tests: the figures are those that a reader gets."""
    lines = []
    for block in blocks():
        before = [text for name, text in PREPARED.items() if name in block]
        after = [text for name, text in CHECKS.items() if name in block]
        lines += [*before, block, *after]
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    script = tmp_path / "readme.py"
    script.write_text("\n".join(lines))
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
