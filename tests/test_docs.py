"""The documentation: what its pages say is there, runs, and leads somewhere."""

import functools
import html.parser
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from markdown.extensions.toc import slugify

import pgjax
from pgjax import alignment
from pgjax.algorithms import _OWN, ALGORITHMS
from pgjax.commands import cli
from pgjax.docs import equations, excerpts, generated, site

ROOT = Path(__file__).parents[1]
PAGES = Path(pgjax.__file__).parent / "docs" / "pages"
EXAMPLES = PAGES.parent / "examples"
WRITTEN = sorted(path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md"))
ABOUT_PPO = {"gae_lambda": "| `0.95` | number in [0, 1], traced |", "num_envs": "| `64` | whole number in [1, inf) |"}
SECTIONS = ["Hyperparameters", "What it reaches", "What it cannot do", "The code"]

LANGUAGE_RUNS = """
import jax, jax.numpy as jnp, pgjax
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
"""
PROMPTS = """
with open("prompts.jsonl", "w") as file:
    for noun in ("dog", "cat") * 32:
        file.write('{"prompt": "a happy %s"}\\n' % noun)
"""
PREPARED = {"language-models.md": LANGUAGE_RUNS, "coming-from.md": LANGUAGE_RUNS + PROMPTS}
"""What the reader of a page has before its blocks."""
CHECKS = {"runs.md": 'assert pgjax.load("runs/short").steps < ppo.total_steps or ppo.total_steps < 100_000'}
SLOW = {"index.md", "runs.md", "sweeps.md", "start.md", "cluster.md", "language-models.md", "coming-from.md"}
SMALLER = [
    (r'tuned\("ppo", "CartPole-v1"', r"\g<0>, total_steps=16_384"),
    (r"total_steps=(\d\d_|\d\d\d_|1_0)[\d_]+", "total_steps=8_192"),
    (r"total_steps=4096", "total_steps=256"),
    (r"seeds=8", "seeds=2"),
    (r"episode_length=1000", "episode_length=20"),
    (r"split\(jax.random.key\(0\), 8\)", "split(jax.random.key(0), 2)"),
    (r"num_samples=16", "num_samples=2"),
]
"""The same code on less: what it costs is its compilation."""


def smaller(code):
    for pattern, replacement in SMALLER[1:]:
        code = re.sub(pattern, replacement, code)
    return re.sub(*SMALLER[0], code)


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@functools.cache
def made():
    return dict(generated.pages())


@pytest.fixture
def own_names():
    """Names that a program registers are gone after it."""
    before = dict(ALGORITHMS), dict(_OWN)
    yield
    for table, names in zip((ALGORITHMS, _OWN), before, strict=True):
        table.clear()
        table.update(names)


def test_every_algorithm_has_a_page_with_all_sections():
    ours = {name for name in ALGORITHMS if name not in _OWN}
    assert {path.stem for path in (PAGES / "algorithms").glob("*.md")} == {*ours, "index"}
    for name in ours:
        text = (PAGES / "algorithms" / f"{name}.md").read_text()
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == SECTIONS, name
        module = ALGORITHMS[name][0].replace(".", "/")
        for comment in (f"hyperparameters {name}", f"presets {name}", f"code {module}.py"):
            assert f"<!-- {comment} -->" in text, (name, comment)
        assert "$$" in text and "results/" in text, name


def test_every_public_name_is_in_the_reference():
    index = made()["api/index.md"]
    for name in pgjax.__all__:
        assert f"[`pgjax.{name}`]" in index, name
        entry = f"::: pgjax.{name}\n"
        assert any(entry in text for path, text in made().items() if path.startswith("api/")) or name in {
            *generated.MODULES,
            "alignment",
        }
    for name in alignment.__all__:
        assert f"::: pgjax.alignment.{name}\n" in made()["api/alignment.md"], name


def test_fields_are_described_as_they_are_declared():
    table = excerpts.hyperparameters("ppo").splitlines()
    for name, ending in ABOUT_PPO.items():
        assert any(line.startswith(f"| `{name}` |") and line.endswith(ending) for line in table)
    assert table[2].startswith("| `advantage` |")  # its own before those of its bases
    assert "required" in next(line for line in table if line.startswith("| `env` |"))
    assert len(table) == 2 + len({line.split("|")[1] for line in table[2:]})


def test_comments_are_replaced_or_refused():
    assert "class PPO(" in excerpts.with_excerpts("<!-- code algorithms/ppo.py -->")
    assert "usage: pgjax" in excerpts.with_excerpts("<!-- constant commands/cli.py USAGE -->")
    rows = excerpts.with_excerpts("<!-- result ladder: NPG; VPG -->").splitlines()
    assert len(rows) == 2 + 2 * 3 and all("NPG" in row or "VPG" in row for row in rows[2:])
    assert "has not been measured yet" in excerpts.result("nothing")
    for wrong in ("<!-- resutl ladder -->", "<!-- result ladder: DQN -->", "<!-- constant commands/cli.py NONE -->"):
        with pytest.raises(pgjax.InputError):
            excerpts.with_excerpts(wrong)


def test_equations_are_mathml():
    page = r'<span class="arithmatex">\(a &lt; \pi_\theta\)</span><div class="arithmatex">\[\frac{1}{2}\]</div>'
    drawn = equations.with_mathml(page)
    assert drawn.count("<math ") == 2 and "<mfrac>" in drawn and "<mo>&#x0003C;</mo>" in drawn
    assert "arithmatex" not in drawn


def test_messages_of_errors_are_collected():
    found = list(excerpts.messages_of(excerpts.PACKAGE / "running" / "export.py"))
    assert "export: path = … is not accepted: expected an ending of .npz or .onnx" in found
    assert "running/export.py" in excerpts.errors("")


def anchors(path):
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {slugify(re.sub(r"[`*]|\]\(.*?\)|\[", "", heading), "-") for heading in headings}


@pytest.mark.parametrize("path", ["README.md", *(f"pgjax/docs/pages/{page}" for page in WRITTEN)])
def test_links_lead_to_files_of_the_repository_or_to_generated_pages(path):
    text = re.sub(r"^```.*?^```", "", (ROOT / path).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = (ROOT / path).parent / name if name else ROOT / path
        if place.exists():
            assert not anchor or anchor in anchors(place), f"{path}: {target}"
        else:
            generated_page = place.resolve().relative_to(PAGES).as_posix()
            assert generated_page in made(), f"{path}: {target}"
            assert not anchor or f"::: {anchor}\n" in made()[generated_page], f"{path}: {target}"


WITH_BLOCKS = [page for page in WRITTEN if blocks(PAGES / page)]


@pytest.mark.filterwarnings("ignore")  # of budgets and data that are too small
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in WITH_BLOCKS]
)
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [PREPARED.get(page, ""), *blocks(PAGES / page), CHECKS.get(page, "")]
    exec(compile(smaller("\n".join(lines)), page, "exec"), {"__name__": page})


def example(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


def test_what_the_examples_bring_fits_an_iteration(monkeypatch, own_names, cartpole, tiny_algorithm):
    brought = [
        tiny_algorithm(pgjax.PPO, example("own_environment", monkeypatch).Docking()),
        *(
            tiny_algorithm(pgjax.PPO, cartpole, network)
            for module in [example("own_network", monkeypatch)]
            for network in (pgjax.Custom(module.Residual(8)), module.Trace())
        ),
        tiny_algorithm(example("own_loss", monkeypatch).Cautious, cartpole),
        tiny_algorithm(example("own_algorithm", monkeypatch).AWR, cartpole),
    ]
    for algorithm in brought:
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        assert jax.tree.structure(jax.eval_shape(algorithm.step, state)[0]) == jax.tree.structure(state)
    assert ALGORITHMS["awr"][1] == "AWR"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "steps"),
    [("own_environment", 4096), ("own_network", 8192), ("own_loss", 8192), ("own_algorithm", 2048)],
)
def test_examples_run(name, steps, tmp_path, monkeypatch, own_names):
    monkeypatch.chdir(tmp_path)
    result = example(name, monkeypatch).main(total_steps=steps)
    if isinstance(result, dict):
        assert set(result) == {"Custom", "Trace"}
    else:
        assert len(result) == len(result.settings) * len(result.seeds) and not (result.failed >= 0).any()


def test_every_example_is_shown_and_run():
    text = "".join((PAGES / page).read_text() for page in WRITTEN)
    assert set(re.findall(r"<!-- code docs/examples/(\S+) -->", text)) == {path.name for path in EXAMPLES.glob("*.py")}


def commands():
    """Every command of README and pages, without what is behind it."""
    found = set()
    for path in (ROOT / "README.md", *(PAGES / page for page in WRITTEN)):
        for block in re.findall(r"^```console\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            found |= {line.partition("#")[0][2:].strip() for line in block.splitlines() if line.startswith("$ pgjax ")}
    return sorted(found)


@pytest.mark.slow
def test_flags_of_commands_are_known(capsys):
    helps = {}
    assert len(commands()) > 40
    for command in commands():
        _, name, *arguments = re.sub(r" launch --processes \d+", "", command).split()
        subject = [argument for argument in arguments[:1] if name in ("train", "sweep")]
        parts = re.findall(r"--(?:env|data|model|reward|tokenizer|network) \S+", command)
        key = (name, *subject, *" ".join(parts).split())
        if name in ("algorithms", "envs"):
            continue
        if key not in helps:
            with pytest.raises(SystemExit):
                cli.main([*key, "--help"])
            helps[key] = capsys.readouterr().out
        for given in re.findall(r"--[a-z][\w-]*", " ".join(arguments)):
            assert given in helps[key] or given == "--help", f"{command}: {given}"


def test_docs_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    assert cli.main(["docs", "--no-serve"]) == 2
    assert "--no-serve needs --out" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("not a site")
    assert cli.main(["docs", "--out", str(tmp_path), "--no-serve"]) == 2
    assert "expected a new directory, or one with a site" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.main(["docs", "--port", str(taken.getsockname()[1])]) == 2
    assert "0 takes a free one" in capsys.readouterr().err
    monkeypatch.setattr(site, "NEEDED", ("mkdocs", "no_such_module.part"))
    assert cli.main(["docs", "--out", str(tmp_path / "new"), "--no-serve"]) == 2
    assert "pip install 'pgjax[docs]'" in capsys.readouterr().err


class Page(html.parser.HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        self.loads |= {given[name] for name in ("src", "srcset") if given.get(name)}
        if tag == "link" and "stylesheet" in given.get("rel", ""):
            self.loads.add(given["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The whole site, in a process of its own, as a user builds it."""
    out = tmp_path_factory.mktemp("docs") / "site"
    code = f"from pgjax.commands.cli import main; raise SystemExit(main(['docs', '--out', {str(out)!r}, '--no-serve']))"
    subprocess.run([sys.executable, "-c", code], check=True)
    return out


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_resolves_and_nothing_is_loaded_from_elsewhere(built):
    pages = {path: Page(path.read_text()) for path in built.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 150
    for path, page in pages.items():
        assert not [target for target in page.loads if "//" in target], path
        for target in page.links:
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            place = (path.parent / name).resolve() if name else path
            assert place.is_file(), f"{path}: {target}"
            assert not anchor or anchor == "__skip" or anchor in pages[place].ids, f"{path}: {target}"
    reference = {anchor for path, page in pages.items() if "api" in path.parts for anchor in page.ids}
    assert {f"pgjax.{name}" for name in generated.public_names()} <= reference
    index = json.loads((built / "search" / "search_index.json").read_text())
    assert not [each for each in index["docs"] if each["location"].startswith("source/")]


@pytest.mark.slow
def test_an_installed_package_without_the_repository_builds_its_site(tmp_path):
    shutil.copytree(excerpts.PACKAGE, tmp_path / "pgjax", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from pgjax.docs.site import build; build('site')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True)
    assert "in the repository, not in the package" in (tmp_path / "site/algorithms/ppo.html").read_text()
    assert not (tmp_path / "site/results/ladder.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_load_in_a_browser_without_errors_and_from_the_site_alone(built, scheme):
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with site.server(built, 0) as serving, sync_playwright() as play:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{serving.server_address[1]}"
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(color_scheme=scheme).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "algorithms/ppo", "api/algorithms", "notebooks/policy_gradients"):
            assert page.goto(f"{base}/{name}.html").ok
            page.wait_for_load_state("networkidle")
            shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (shown == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.locator("math").count() > 20
        page.locator(".md-search__input").press_sequentially("clip_eps")  # it listens to keys
        page.locator(".md-search-result__item").first.wait_for(timeout=120_000)
        browser.close()
        serving.shutdown()
    assert not said
    assert len(asked) > 10 and all(url.startswith((base, "data:", "blob:")) for url in asked)
