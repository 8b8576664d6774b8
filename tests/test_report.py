"""The page about runs and sweeps: what it says, what it escapes, how large it gets, and that it works in a browser."""

import base64
import dataclasses
import importlib
import itertools
import json
import re
import shlex
import shutil
from html import unescape

import numpy as np
import pytest
from test_plotting import fake_run, fake_sweep

import pgjax
from pgjax.commands import cli
from pgjax.commands.flags import flag, parse, subject
from pgjax.reporting.again import again
from pgjax.reporting.contents import read_source
from pgjax.running.config import to_config
from pgjax.sweeping.plan import make_plan
from pgjax.sweeping.search import Search

plotly = importlib.import_module("plotly.offline")
INJECTION = "</script><img src=x onerror=alert(1)>\"'&"
CHROMIUM = shutil.which("chromium")


def keep_sweep(directory, result, base):
    """What a finished sweep leaves in its directory, besides its checkpoints."""
    directory.mkdir()
    config = {
        "base": base,
        "axes": {name: list(values) for name, values in result.axes.items()},
        "search": None,
        "arguments": {"seeds": len(result.seeds), "mode": "grid", "num_samples": None, "seed": 0, "points": 100},
        "kept": {"episodes": 128, "members_at_once": None, "checkpoint_every": None},
        "members": len(result),
        "devices": 1,
        "versions": {"pgjax": "0.1.0", "jax": "0.10.2"},
    }
    (directory / "sweep.json").write_text(json.dumps(config))
    (directory / "status.json").write_text('{"status": "finished"}')
    result.to_csv(directory / "members.csv")
    result.save_curves(directory / "curves.npz")
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = json.loads((fake_run(tmp_path_factory.mktemp("base") / "run", 0) / "config.json").read_text())
    return {name: config[name] for name in ("algorithm", "parts", "hyperparameters", "unit", "score")}


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def without_scripts(page):
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_a_page_says_what_runs_and_sweeps_hold(tmp_path, base):
    runs = [fake_run(tmp_path / f"run-{gamma}", 0, gamma, seeds=3) for gamma in (0.9, 0.5)]
    row = {"iteration": 3, "steps": 96, "return_mean": [7.0, 8.0, None]}
    (runs[0] / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    sweep = keep_sweep(tmp_path / "sweep", fake_sweep(learning_rate=[1e-3, 3e-3], clip_eps=[0.1, 0.2]), base)
    page = pgjax.report(*runs, sweep, out=tmp_path / "report.html").read_text()
    data, text = data_of(page), unescape(without_scripts(page))
    assert data["members"] == len(data["seeds"]) == 3 + 3 + 16
    assert list(data["columns"]) == ["learning_rate", "clip_eps", "gamma"]
    assert data["columns"]["gamma"] == [0.9] * 3 + [0.5] * 3 + [0.99] * 16
    assert data["columns"]["clip_eps"] == [None] * 6 + ([0.1] * 4 + [0.2] * 4) * 2
    assert data["scores"][:3] == [7.0, 8.0, None]
    assert data["ends"][6:] == ["", "failed", *[""] * 10, *["pruned"] * 4]
    curves = floats(data["curves"]["values"]["return_mean"]).reshape(22, data["curves"]["points"])
    np.testing.assert_array_equal(curves[1, :5], [np.nan, 3, 4, 5, 6])
    np.testing.assert_array_equal(curves[6, :12], [np.nan, np.nan, *range(2, 12)])
    assert data["curves"]["steps"][data["curves"]["which"][6]] == [1000.0 * k for k in range(1, 13)]
    effect = data["effects"][1]
    assert effect["name"] == "clip_eps"
    strata = [np.array(x) ** 2.0 for x in ([0, 2, 3], range(8, 12))]
    expected = pgjax.reporting.statistics.interquartile_mean(*strata)
    np.testing.assert_allclose(effect["estimates"][0], [0.1, *expected, 7])
    for words in ("Where they differ", "learning_rate=0.003, clip_eps=0.1", "gamma", "finished", "interrupted"):
        assert words in text
    assert "7.5 (7 to 8)" in text


def test_what_files_say_stays_text(tmp_path, base):
    run = fake_run(tmp_path / "run", 0, env=INJECTION)
    config = json.loads((run / "config.json").read_text())
    config["hyperparameters"][INJECTION] = INJECTION
    config["versions"] = {INJECTION: INJECTION}
    config["score"][0], config["unit"] = INJECTION, INJECTION
    (run / "config.json").write_text(json.dumps(config))
    rows = [{"iteration": i, "steps": i, INJECTION: i} for i in (1, 2)]
    for name in ("metrics", "evaluations"):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "status.json").write_text(json.dumps({"status": INJECTION}))
    sweep = keep_sweep(tmp_path / "sweep", fake_sweep(**{INJECTION: [INJECTION, "b"]}), base)
    page = pgjax.report(run, sweep, out=tmp_path / "report.html", examples={INJECTION: [INJECTION]}).read_text()
    page = page.replace(plotly.get_plotlyjs(), "")
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 3
    assert without_scripts(page).count("&lt;img src=x onerror=alert(1)&gt;") > 10
    assert INJECTION in data_of(page)["columns"]


def test_what_is_damaged_is_shown_as_that_and_the_others_as_they_are(tmp_path, base):
    runs = {name: fake_run(tmp_path / name, 0) for name in ("whole", "no_json", "line", "ragged", "text", "many")}
    (runs["no_json"] / "config.json").write_text("{")
    with (runs["line"] / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    (runs["ragged"] / "metrics.jsonl").write_text('{"iteration": 1, "steps": 1, "return_mean": [1, 2]}\n')
    (runs["text"] / "metrics.jsonl").write_text('{"iteration": 1, "steps": 1, "return_mean": "much"}\n')
    config = json.loads((runs["many"] / "config.json").read_text())
    (runs["many"] / "config.json").write_text(json.dumps(config | {"seeds": 10**12}))
    sweeps = {name: keep_sweep(tmp_path / name, fake_sweep(gamma=[0.9, 0.5]), base) for name in ("short", "packed")}
    lines = (sweeps["short"] / "members.csv").read_text().splitlines()
    (sweeps["short"] / "members.csv").write_text("\n".join(lines[:-1]))
    np.savez_compressed(sweeps["packed"] / "curves.npz", steps=np.zeros((8, 10)))
    damaged = {
        "no_json": "is damaged",
        "line": "cannot be read",
        "ragged": "damaged: ValueError",
        "text": "damaged: TypeError",
        "many": "seeds is 1000000000000",
        "short": "it has 7 members, not 8",
        "packed": "its arrays are compressed",
    }
    for name, reason in damaged.items():
        assert reason in read_source(tmp_path / name).damage
    page = pgjax.report(tmp_path, out=tmp_path / "report.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", without_scripts(page).partition("</table>")[0])[1:]
    assert [re.findall("<th.*?>(.*?)</th>", row)[0].rpartition("/")[2] for row in rows] == sorted([*damaged, "whole"])
    assert ["damaged: " in row for row in rows] == [name != "whole" for name in sorted([*damaged, "whole"])]


def test_what_there_is_not_is_refused(tmp_path):
    with pytest.raises(pgjax.InputError, match="report needs at least one directory"):
        pgjax.report()
    with pytest.raises(pgjax.InputError, match="holds no run: it has neither"):
        pgjax.report(tmp_path)


@pytest.fixture(scope="module")
def many(tmp_path_factory, base):
    """Ten thousand members of 15 metrics with two axes, a seed each failing."""
    rates, clips = np.geomspace(1e-4, 1e-2, 50).tolist(), np.linspace(0.05, 0.4, 50).tolist()
    result = fake_sweep(points=100, learning_rate=rates, clip_eps=clips)
    result.curves.update({f"metric_{k}": result.curves["return_mean"] + k for k in range(14)})
    return keep_sweep(tmp_path_factory.mktemp("many") / "sweep", result, base)


def test_ten_thousand_members_are_a_small_page(many, tmp_path):
    page = pgjax.report(many, out=tmp_path / "report.html").read_text()
    data = data_of(page)
    assert len(data["scores"]) == 10_000
    assert len(page) - len(plotly.get_plotlyjs()) < 5_000_000
    assert data["curves"]["points"] * len(data["curves"]["values"]) * 10_000 <= 500_000
    assert "return_mean" in data["curves"]["values"]
    assert max(len(effect["dots"]) for effect in data["effects"]) <= 500


def test_a_million_rows_are_a_small_page_and_little_is_read_of_them(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "run", 0)
    rows = range(1, 1_000_001)
    (run / "metrics.jsonl").write_text(
        "".join(f'{{"iteration": {i}, "steps": {32 * i}, "return_mean": {i}.0, "loss": {-i}.5}}\n' for i in rows)
    )
    directory = importlib.import_module("pgjax.running.directory")
    parsed, row_of = [], directory.row_of
    monkeypatch.setattr(directory, "row_of", lambda line: (parsed.append(len(line)), row_of(line))[1])
    page = pgjax.report(run, out=tmp_path / "report.html").read_text()
    assert sum(parsed) < 4_000_000
    assert len(page) - len(plotly.get_plotlyjs()) < 100_000
    curves = data_of(page)["curves"]
    assert len(curves["steps"][0]) == 200
    np.testing.assert_allclose(floats(curves["values"]["return_mean"]) * 32, curves["steps"][0], rtol=1e-5)


RUNS = [
    ("ppo", ["--env", "CartPole-v1"]),
    ("ppo", ["--env", "Pendulum-v1", "--network", "gru", "--no-normalize-obs", "--env-params", "g=9.0"]),
    ("sac", ["--env", "Pendulum-v1", "--hidden", "8", "--critic-hidden", "4", "4", "--target-entropy", "-2.0"]),
]


@pytest.mark.parametrize(("name", "arguments"), RUNS)
def test_the_command_makes_the_config_again(name, arguments):
    def config_of(words):
        what, rest = subject("train", words)
        kept = [flag(key, int, "", 0) for key in ("devices", "seed", "seeds")]
        flags = parse("", rest, [*what.part_flags(), *what.option_flags(), *kept])
        return to_config(what.build(vars(flags) | cli._params(what, flags)))

    config = config_of([name, *arguments])
    kept = {"seed": 1, "seeds": 2, "checkpoint_every": None, "keep": 2, "episodes": 128, "sinks": [], "devices": 1}
    command, *words = shlex.split(again(json.loads(json.dumps(config | kept)), "run"))
    assert command == "pgjax"
    assert words[0] == "train"
    assert config_of(words[1:]) == config


@pytest.mark.parametrize(
    ("search", "axes"),
    [
        (None, {"network": ["mlp", "gru"], "clip_value": [True, False], "hidden": [(8,), (4, 4)]}),
        (pgjax.PBT(every=2), {"learning_rate": [1e-3, 2e-3], "gamma": pgjax.uniform(0.9, 0.99)}),
    ],
)
def test_the_command_of_a_sweep_makes_its_plan_again(tiny_ppo, cartpole, monkeypatch, search, axes):
    def plan_of(algorithm, seeds, mode, num_samples, seed, search, points, axes, **_):
        return make_plan(algorithm, seeds, mode, num_samples, seed, search or Search(), points, axes)

    samples = 3 if search else None
    config = plan_of(tiny_ppo(cartpole), 2, "grid", samples, 0, search, 6, axes).config
    kept = {"episodes": 128, "members_at_once": None, "checkpoint_every": None}
    command = again(json.loads(json.dumps(config | {"kept": kept, "devices": 1})), "sweep")
    found = []

    def sweep(algorithm, seeds, search, directory, devices, **given):
        names = ("mode", "num_samples", "seed", "points", *kept)
        arguments = {name: given.pop(name) for name in names}
        found.append(plan_of(algorithm, seeds, search=search, axes=given, **arguments))

    monkeypatch.setattr("pgjax.sweeping.shell.sweep", sweep)
    monkeypatch.setattr(cli, "_report_sweep", lambda *_: None)
    assert cli.main([*shlex.split(command)[1:], "--no-cache"]) == 0
    assert found[0].config["axes"] == config["axes"]
    assert found[0].config["search"] == config["search"]
    plan = plan_of(tiny_ppo(cartpole), 2, "grid", samples, 0, search, 6, axes)
    assert len(found[0].algorithms) == len(plan.algorithms)
    assert all(to_config(a) in [to_config(b) for b in plan.algorithms] for a in found[0].algorithms)


def test_what_no_flag_says_is_python_and_code_of_ones_own_is_named(tiny, tmp_path):
    stuck = pgjax.wrappers.StickyActions(tiny.env, 0.1)
    kept = {"seed": 1, "seeds": 2, "checkpoint_every": None, "keep": 2, "episodes": 128, "sinks": [], "devices": 1}
    config = to_config(dataclasses.replace(tiny, env=stuck)) | kept
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = []
    namespace = {}
    text = again(config, str(tmp_path)).replace("pgjax.run(", "made(")
    exec(text, namespace | {"made": lambda algorithm, **how: made.append((algorithm, how))})
    assert to_config(made[0][0]) == to_config(dataclasses.replace(tiny, env=stuck))
    assert made[0][1]["seeds"] == 2
    with pytest.raises(pgjax.InputError, match="made with code of its own, which no command names: Mine"):
        again(config | {"parts": config["parts"] | {"env": {"name": "x", "own": "Mine"}}}, "run")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """path -> the page, of which nothing may go wrong and nothing be asked from a network."""
    said, asked, pages = [], [], []

    def open_page(path, **how):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **how)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(120_000)
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelector('#members tbody tr')")
        pages.append(page)
        return page

    open_page.said = said
    yield open_page
    for page in pages:
        page.close()
    assert not said
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(pages)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, base):
    directory = tmp_path_factory.mktemp("swept")
    sweep = keep_sweep(directory / "sweep", fake_sweep(learning_rate=[1e-3, 3e-3], clip_eps=[0.1, 0.2, 0.3]), base)
    return pgjax.report(sweep, out=directory / "report.html")


def column(page, number):
    return page.locator(f"#members tbody td:nth-child({number})").all_inner_texts()


def curve(page, label):
    """(steps, values) of a line that is drawn."""
    found = page.evaluate("document.getElementById('curves-0').data.filter(t => t.name).map(t => [t.name, t.x, t.y])")
    return next((np.array(x), np.array(y)) for name, x, y in found if name == label)


def test_the_table_is_sorted_and_filtered_and_the_curves_follow(opened, swept):
    page = opened(swept)
    scores = sorted(float(x) for x in column(page, 5) if x)
    head = page.get_by_role("columnheader", name="score")
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 5) == [f"{x:g}" for x in scores] + [""] * 5
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 5)[0] == f"{scores[-1]:g}"

    levels = np.arange(8, 12) ** 2.0
    page.get_by_label("Filter").fill("learning_rate=0.001 clip_eps>0.25")
    page.get_by_text("4 of 24 members selected", exact=True).wait_for()
    assert sorted(map(float, column(page, 5))) == levels.tolist()
    steps, values = curve(page, "0.001")
    np.testing.assert_array_equal(steps, 1000 * np.arange(3, 13))
    np.testing.assert_allclose(values, levels[1:3].mean() + np.arange(2, 12))
    page.get_by_label("Filter").fill("nothing")
    page.get_by_text("0 of 24 members selected", exact=True).wait_for()
    page.get_by_role("button", name="Select all").click()
    page.get_by_text("24 of 24 members selected").wait_for()


def test_a_range_of_the_parallel_coordinates_selects_members(opened, swept):
    page = opened(swept)
    page.wait_for_function("document.querySelector('#parallel .axis-brush')")
    axis = page.locator("#parallel .y-axis", has_text="clip_eps").locator(".axis-brush .background")
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] * 0.2, steps=5)
    page.mouse.up()
    page.get_by_text("8 of 24 members selected", exact=True).wait_for()
    assert set(column(page, 2)) == {"0.3"}
    np.testing.assert_allclose(curve(page, "0.001")[1], (81 + 100) / 2 + np.arange(2, 12))
    page.get_by_role("button", name="Select all").click()
    page.get_by_text("24 of 24 members selected").wait_for()


def test_curves_are_read_by_hovering_and_chosen_by_metric_and_group(opened, swept):
    page = opened(swept)
    page.get_by_label("A curve for each").select_option("clip_eps")
    assert curve(page, "0.2")
    plot = page.locator("#curves-0 .nsewdrag")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    for k in range(20):
        page.mouse.move(box["x"] + box["width"] / 2 + k, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        if page.locator("#curves-0 .hoverlayer .legendtext").count():
            break
    hovered = page.locator("#curves-0 .hoverlayer").text_content()
    assert re.search(r"0\.1 : [\d.]+ \([\d.]+ to [\d.]+, \d of 8\)", hovered), hovered


def test_a_page_is_printed_light_with_its_tables_and_plots(opened, swept, tmp_path):
    page = opened(swept, color_scheme="dark")
    assert page.evaluate("document.getElementById('curves-0')._fullLayout.paper_bgcolor") == "#14171c"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.getElementById('curves-0')._fullLayout.paper_bgcolor") == "#ffffff"
    assert not page.get_by_label("Filter").is_visible()
    assert page.locator("#members").is_visible()
    assert page.locator("#curves-0 .main-svg").first.bounding_box()["width"] == 640
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.getElementById('curves-0')._fullLayout.paper_bgcolor") == "#14171c"


def test_an_injection_runs_nothing(opened, tmp_path, base):
    run = fake_run(tmp_path / "run", 0, env=INJECTION)
    sweep = keep_sweep(tmp_path / "sweep", fake_sweep(**{INJECTION: [INJECTION, "b"]}), base)
    page = opened(pgjax.report(run, sweep, out=tmp_path / "report.html"))
    page.get_by_label("A curve for each").select_option(INJECTION)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert INJECTION in page.locator("#members tbody").inner_text()
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b id=b onclick=\"window.ran=1\">b</b>')")
    page.locator("#b").click()
    assert page.evaluate("window.ran") is None
    assert "Content Security Policy" in opened.said.pop()


@pytest.mark.slow
def test_ten_thousand_members_can_be_worked_with(opened, many, tmp_path):
    page = opened(pgjax.report(many, out=tmp_path / "report.html"))
    assert page.locator("#members tbody tr").count() == 50
    page.get_by_role("button", name="Next").click()
    assert page.locator("#page").inner_text() == "51 to 100"
    page.get_by_label("Filter").fill("score>=99000000")
    page.get_by_text("of 10,000 members selected").wait_for()
    page.get_by_text(re.compile("^4[0-9] of 10,000")).wait_for()


HEADINGS = """
() => [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])
"""
UNNAMED = """
() => [...document.querySelectorAll('button, select, input')].filter(e => e.closest('section'))
  .filter(e => !(e.textContent.trim() || (e.labels && e.labels.length) || e.getAttribute('aria-label')
                 || e.getAttribute('data-title'))).map(e => e.outerHTML)
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_made_for_everybody(opened, swept, scheme):
    page = opened(swept, color_scheme=scheme)
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.evaluate(UNNAMED) == []
    assert page.locator("table").count() == page.locator("table > caption").count()
    assert page.locator("th:not([scope])").count() == 0
    colours = {
        name: page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        for name in ("paper", "panel", "ink", "soft", "accent")
    }
    for text, ground in itertools.product(("ink", "soft", "accent"), ("paper", "panel")):
        assert contrast(colours[text], colours[ground]) >= 4.5
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth == 390")


def contrast(a, b):
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour):
        x = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
