"""The page on theory: its numbers are what the library computes now, its formulas the library's, and it can be moved.

It is rendered by itself, as the documentation renders it inside the site.
"""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import exact_frontier
import jax
import jax.numpy as jnp
import markdown
import numpy as np
import pytest
import theory_page
from playwright.sync_api import sync_playwright
from tabular import (
    H,
    S,
    action_values,
    expected_return,
    fresh_batch,
    gradients,
    moments,
    random_logits,
    random_mdp,
    resampled,
    sample_gradients,
    tabular,
)

from pgjax.learning import losses
from pgjax.networks.distributions import Categorical

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "pgjax/docs/pages/theory"
RESULTS = ROOT / "experiments/results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TABLE = jnp.zeros((H, S))
"""Values that nothing depends on."""
FIGURES = ("update", "baseline", "clip", "gae", "frontier")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium executable is found")


@pytest.fixture(scope="module")
def data():
    text = (PAGE / "data.js").read_text()
    assert text.startswith(theory_page.ASSIGNMENT)
    return json.loads(text.removeprefix(theory_page.ASSIGNMENT).removesuffix(";\n"))


@pytest.fixture(scope="module")
def problem():
    return random_mdp(0), random_logits(1)


@jax.jit
def exact_gradient(mdp, logits):
    return jax.grad(lambda x: expected_return(mdp, x))(logits)


def same(stored, computed):
    """To rounding, which differs between processors."""
    if isinstance(computed, dict):
        assert stored.keys() == computed.keys()
        for key in computed:
            same(stored[key], computed[key])
    elif isinstance(computed, str) or (isinstance(computed, (list, tuple)) and isinstance(computed[0], str)):
        assert list(stored) == list(computed)
    else:
        np.testing.assert_allclose(stored, computed, rtol=1e-3, atol=2e-5)


def test_the_stored_numbers_are_those_of_the_library(data):
    same(data["update"], theory_page.update())
    same(data["baseline"], theory_page.baseline(RESULTS))
    same(data["frontier"], theory_page.frontier(RESULTS))


def test_one_step_of_clipping_is_a_policy_gradient_and_the_natural_gradient_is_multiplicative(data):
    found = data["update"]
    paths = {rule: np.array(path) for rule, path in found["paths"].items()}
    np.testing.assert_array_equal(paths["clipped"][:, :, 1], paths["policy gradient"][:, :, 1])
    assert np.all(paths["natural gradient"] > 0)
    steps, sizes = np.arange(paths["clipped"].shape[2]), np.array(found["step_sizes"])
    exponent = steps[:, None] * sizes[:, None, None] * np.array(found["paid"])
    tilted = np.array(list(theory_page.STARTS.values()))[:, None, None] * np.exp(exponent - exponent.max(-1)[..., None])
    np.testing.assert_allclose(paths["natural gradient"], tilted / tilted.sum(-1, keepdims=True), atol=1e-4)


def test_the_moments_of_the_return_are_those_of_all_trajectories(problem):
    mdp, logits = dataclasses.replace(problem[0], horizon=2), problem[1][:2]
    P, r, policy = np.asarray(mdp.transition), np.asarray(mdp.reward), np.asarray(jax.nn.softmax(logits))
    Q, square = theory_page.return_moments(mdp, logits)
    for s, a in itertools.product(range(4), range(3)):
        ends = [(P[s, a, -1], r[s, a])]
        ends += [(P[s, a, t] * policy[1, t, b], r[s, a] + r[t, b]) for t, b in itertools.product(range(4), range(3))]
        probability, ret = np.array(ends).T
        np.testing.assert_allclose([Q[0, s, a], square[0, s, a]], [probability @ ret, probability @ ret**2], rtol=1e-5)
    np.testing.assert_allclose(Q, action_values(mdp, logits), rtol=1e-5)


def test_the_bias_of_gae_is_the_stored_one(data, problem):
    grid = jnp.array(theory_page.GAMMAS), jnp.array(theory_page.LAMBDAS)
    computed = theory_page.exact_squared_bias(*problem, theory_page.value_tables(*problem, grid[0]), *grid)
    np.testing.assert_allclose(data["gae"]["squared_bias"], computed, rtol=1e-3, atol=1e-6)


def test_bias_and_variance_of_gae_are_found_again(data, problem):
    """Some of them, from few batches, whose debiased square of the mean's error is the exact one but for its noise."""
    found, gammas, lambdas = data["gae"], [3, 5], [0, 5, 10]
    grid = jnp.array(found["gammas"])[jnp.array(gammas)], jnp.array(found["lambdas"])[jnp.array(lambdas)]
    setting, tables = tabular(theory_page.EPISODES, *problem, TABLE), theory_page.value_tables(*problem, grid[0])
    rows = sample_gradients(setting, lambda batch: theory_page.gae_weights(setting, tables, *grid, batch), 256, seed=9)
    gradient = np.ravel(exact_gradient(*problem)).astype(float)
    few, norm = [moments(resampled(256, 0), each) for each in rows], gradient @ gradient
    variance = np.array([each.variance[0] for each in few]) / norm
    bias = np.array([each.squared_norm[0] - 2 * each.mean[0] @ gradient + norm for each in few]) / norm
    some = np.ix_([0, 1], gammas, lambdas)
    np.testing.assert_allclose(variance, np.array(found["variance"])[some].ravel(), rtol=0.15)
    np.testing.assert_allclose(bias, np.array(found["squared_bias"])[some].ravel(), atol=0.02)


def test_what_the_text_says_is_so(data):
    text = re.sub(r"\s+", " ", (PAGE / "index.md").read_text())
    found = data["gae"]
    assert f"{found['batches']:,} batches of {theory_page.EPISODES} episodes" in text
    squared_bias, variance = np.array(found["squared_bias"]), np.array(found["variance"])
    wrong, exact = squared_bias + variance
    assert wrong[-1].argmin() == exact[-1].argmin() == 0  # one batch, gamma 1: lambda 0 is best
    assert variance[0, -1, 0] > 0.85 * wrong[-1, 0]
    many = (squared_bias + variance / 256)[0]
    assert np.unravel_index(many.argmin(), many.shape) == (len(found["gammas"]) - 1, found["lambdas"].index(0.9))
    assert np.all(squared_bias[1, -1] < 1e-9)
    np.testing.assert_allclose(squared_bias[1], squared_bias[1, :, :1].repeat(11, 1), rtol=1e-3, atol=1e-9)
    kl = -np.log(data["frontier"]["completion_probabilities"][-1])
    assert f"at a divergence of {kl:.2f}" in text
    paths = data["update"]["paths"]
    worst, one = list(theory_page.STARTS).index("set on the worst action"), data["update"]["step_sizes"].index(1.0)
    assert paths["policy gradient"][worst][one][1][0] < 0.05 < 0.09 < paths["natural gradient"][worst][one][1][0]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The page by itself."""
    folder = tmp_path_factory.mktemp("theory")
    for path in PAGE.iterdir():
        shutil.copy(path, folder)
    body = markdown.markdown((PAGE / "index.md").read_text())
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>pgjax</title>'
    )
    html = (
        f'<!doctype html><html lang="en"><head>{head}</head><body><main class="md-typeset">{body}</main></body></html>'
    )
    (folder / "index.html").write_text(html)
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """Anything said on the console fails the test, and so does a request beyond the page's folder."""
    page, said, asked = browser.new_page(viewport={"width": 1000, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("[data-figure=frontier] svg path")
    yield page
    page.close()
    assert not said
    assert {Path(each).name for each in asked} == {"index.html", "theory.css", "data.js", "theory.js"}
    assert all(each.startswith(url.removesuffix("index.html")) for each in asked)


@in_browser
def test_every_figure_is_drawn(page):
    assert [each.get_attribute("data-figure") for each in page.query_selector_all("[data-figure]")] == list(FIGURES)
    for name in FIGURES:
        figure = page.locator(f"[data-figure={name}]")
        assert figure.locator("noscript").count() == 0
        assert figure.locator("svg[role=img]").count() >= 2
        assert all(svg.locator("path, rect").count() for svg in figure.locator("svg[role=img]").all())
        for svg in figure.locator("svg[role=img]").all():
            assert page.locator(f"#{svg.get_attribute('aria-describedby')}").inner_text()
        assert "NaN" not in figure.inner_html()
        assert "undefined" not in figure.inner_html()
    assert page.locator("math annotation").count() >= 10


@in_browser
def test_keys_move_every_control_and_what_is_shown(page):
    """Each by itself, from the page's first state on."""
    controls = page.locator("[data-figure] input, [data-figure] select").all()
    assert len(controls) == 13
    for control in controls:
        name = control.evaluate("each => each.closest('[data-figure]').dataset.figure")
        label = page.locator(f"label[for='{control.get_attribute('id')}']")
        assert label.inner_text()
        figure = page.locator(f"[data-figure={name}]")
        shown = figure.locator("svg[role=img]").first.inner_html(), figure.locator("[role=status]").inner_text()
        value, spoken = control.input_value(), control.get_attribute("aria-valuetext")
        last = control.evaluate("each => each.value === each.max")
        control.press("ArrowLeft" if last else "ArrowRight")
        assert control.input_value() != value
        now = figure.locator("svg[role=img]").first.inner_html(), figure.locator("[role=status]").inner_text()
        assert now[0] != shown[0]
        assert now[1] != shown[1] or label.inner_text() == "The policy before the update"
        if spoken is not None:
            assert control.get_attribute("aria-valuetext") != spoken
            assert control.evaluate("each => each.parentNode.innerText.includes(each.getAttribute('aria-valuetext'))")


@in_browser
def test_all_ends_of_all_sliders_can_be_drawn(page):
    for name in FIGURES:
        figure = page.locator(f"[data-figure={name}]")
        sliders = figure.locator("input").all()
        for keys in itertools.product(("Home", "End"), repeat=len(sliders)):
            for slider, key in zip(sliders, keys, strict=True):
                slider.press(key)
            assert not re.search("NaN|undefined|Infinity", figure.inner_html())


@in_browser
def test_cartpole_has_one_gamma(page):
    figure = page.locator("[data-figure=gae]")
    figure.locator("select").select_option("2")
    assert figure.locator("input:disabled").count() == 1
    assert "γ = 1," in figure.locator("[role=status]").inner_text()
    figure.locator("select").select_option("0")
    assert figure.locator("input:disabled").count() == 0


def formula(page, call, argument):
    return page.evaluate(f"(x) => {{ const f = pgjaxTheory.formulas; return {call}; }}", argument)


@in_browser
def test_the_clipped_objective_is_the_librarys(page):
    grid = itertools.product((0.0, 0.5, 0.77, 1.0, 1.13, 1.31, 2.0), (-1.5, -0.4, 0.9), (0.05, 0.2, 0.5))
    ratio, advantage, eps = np.array(list(grid), np.float32).T
    found = formula(page, "x.map((each) => f.ppoClip(...each))", np.stack([ratio, advantage, eps], 1).tolist())
    np.testing.assert_allclose(
        [each["objective"] for each in found], -losses.ppo_clip(ratio, advantage, eps), atol=1e-6
    )
    gradient = -jax.vmap(jax.grad(losses.ppo_clip))(ratio, advantage, eps)
    inside = ~np.isclose(np.abs(ratio - 1.0), eps)  # at an edge jax takes the mean of both sides
    np.testing.assert_allclose(np.array([each["gradient"] for each in found])[inside], gradient[inside], atol=1e-6)


@in_browser
def test_the_divergence_is_the_librarys(page):
    p, q = jax.nn.softmax(jnp.array(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32))
    expected = Categorical(jnp.log(p)).kl(Categorical(jnp.log(q)))
    assert formula(page, "f.kl(...x)", [p.tolist(), q.tolist()]) == pytest.approx(float(expected), rel=1e-5)


@in_browser
def test_the_gradients_of_the_episodes_are_the_librarys(page, data, problem):
    """With a baseline, of the logits of the first state alone: later weights are zero."""
    stored = data["baseline"]
    episodes, ret = len(stored["actions"]), jnp.array(stored["returns"])
    setting = tabular(episodes, *problem, TABLE)

    @jax.jit
    def each_episodes(b):
        batch = fresh_batch(setting, jax.random.key(0))
        weights = jnp.zeros_like(batch.reward).at[0].set(ret - b)
        return episodes * gradients(setting, batch, jnp.eye(episodes)[:, None, :] * weights)

    for b in (0.0, 3.3, 8.0):
        rows = np.asarray(each_episodes(b), float).reshape(episodes, *TABLE.shape, -1)[:, 0, 0]
        found = formula(page, "f.sampledGradient(...x)", [*(stored[k] for k in ("policy", "actions", "returns")), b])
        np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-4)
        np.testing.assert_allclose(found["error"], rows.std(0, ddof=1) / np.sqrt(episodes), rtol=1e-4)
        assert found["variance"] == pytest.approx(rows.var(0, ddof=1).sum(), rel=1e-4)


@in_browser
def test_the_exact_gradient_is_that_of_the_expected_return_whatever_the_baseline(page, data, problem):
    stored = data["baseline"]
    of_returns = [stored[name] for name in ("policy", "mean_return", "mean_squared_return")]
    expected = exact_gradient(*problem)[0, 0]
    found = {b: formula(page, "f.exactGradient(...x)", [*of_returns, b]) for b in (-2.0, 0.0, 3.35, 8.0)}
    for each in found.values():
        np.testing.assert_allclose(each["mean"], expected, atol=1e-5)
    assert found[3.35]["variance"] < 0.5 * found[0.0]["variance"]


@in_browser
def test_the_exact_gradient_is_the_sampled_one_where_the_episodes_are_all_there_is(page, data):
    """Whose policy and returns are distributed as in the sample."""
    actions, ret = (np.array(data["baseline"][name]) for name in ("actions", "returns"))
    policy = np.bincount(actions) / len(actions)
    of_returns = [[np.mean(x[actions == a]) for a in range(3)] for x in (ret, ret**2)]
    for b in (0.0, 3.0):
        exact = formula(page, "f.exactGradient(...x)", [policy.tolist(), *of_returns, b])
        found = formula(page, "f.sampledGradient(...x)", [policy.tolist(), actions.tolist(), ret.tolist(), b])
        assert exact["mean"] == pytest.approx(found["mean"])
        assert exact["variance"] == pytest.approx(found["variance"] * (1 - 1 / len(actions)))


@in_browser
def test_the_tilted_policies_are_those_of_all_completions(page, data):
    stored = data["frontier"]
    for beta in (0.1, 0.5, 1.0, 5.0):
        found = formula(page, "f.tilted(...x)", [stored["reference"], stored["rewards"], beta])
        reward, kl = exact_frontier.optimum(beta)
        assert [found["reward"], found["kl"]] == pytest.approx([reward, kl], rel=1e-4)
        assert found["objective"] == pytest.approx(beta * exact_frontier.log_z(beta), rel=1e-4)
        assert sum(found["policy"]) == pytest.approx(1.0)


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth")
    outside = """() => [...document.querySelectorAll("[data-figure] svg[role=img]")].flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((text) => {
            const { left, right, top, bottom } = text.getBoundingClientRect();
            return left < box.left - 1 || right > box.right + 1 || top < box.top - 1 || bottom > box.bottom + 1;
        }).map((text) => text.textContent);
    })"""
    page.wait_for_function(f"() => ({outside})().length === 0")


@in_browser
def test_it_is_dark_where_the_site_or_the_reader_is(page):
    ground = """() => getComputedStyle(document.querySelector("[data-figure]")).backgroundColor"""
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.evaluate("document.body.setAttribute('data-md-color-scheme', 'default')")
    assert page.evaluate(ground) == light
    page.evaluate("document.body.setAttribute('data-md-color-scheme', 'slate')")
    assert page.evaluate(ground) == dark
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ground) == light
