/* The figures of the page on theory: what a reader sets, what is drawn, and the formulas in between.

Numbers are those of data.js, computed by experiments/theory_page.py; each formula is a function of the library, to
which tests/test_theory_page.py compares it. */
(() => {
  "use strict";
  const DATA = window.pgjaxTheory;

  /* Formulas */

  const sum = (x) => x.reduce((total, each) => total + each, 0);
  const dot = (x, y) => sum(x.map((each, i) => each * y[i]));
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const between = (low, high, n) => range(n).map((i) => low + ((high - low) * i) / (n - 1));

  /** KL(p || q) of two distributions. */
  const kl = (p, q) => sum(p.map((each, i) => (each > 0 ? each * Math.log(each / q[i]) : 0)));

  /** min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), and its derivative by the ratio. */
  function ppoClip(ratio, advantage, eps) {
    const free = ratio * advantage;
    const clipped = Math.min(Math.max(ratio, 1 - eps), 1 + eps) * advantage;
    return { objective: Math.min(free, clipped), gradient: free <= clipped ? advantage : 0 };
  }

  /** Of (e_a - pi) (G - b), the gradient of one episode by the logits: its mean and its variances. */
  function exactGradient(policy, meanReturn, meanSquaredReturn, b) {
    const mean = policy.map((p, i) => p * (meanReturn[i] - dot(policy, meanReturn)));
    const square = policy.map((p, a) => {
      const score = sum(policy.map((q, i) => ((i === a ? 1 : 0) - q) ** 2));
      return p * score * (meanSquaredReturn[a] - 2 * b * meanReturn[a] + b * b);
    });
    return { mean, variance: sum(square) - dot(mean, mean) };
  }

  /** The same from episodes, with the standard error of the mean. */
  function sampledGradient(policy, actions, returns, b) {
    const n = actions.length;
    const rows = actions.map((a, i) => policy.map((p, j) => ((j === a ? 1 : 0) - p) * (returns[i] - b)));
    const mean = policy.map((_, j) => sum(rows.map((row) => row[j])) / n);
    const variances = policy.map((_, j) => sum(rows.map((row) => (row[j] - mean[j]) ** 2)) / (n - 1));
    return { mean, error: variances.map((v) => Math.sqrt(v / n)), variance: sum(variances) };
  }

  /** pi_ref exp(r / beta) / Z over what is paid r, its E[r], KL(pi || pi_ref) and beta log Z. */
  function tilted(reference, rewards, beta) {
    const most = Math.max(...rewards);
    const weights = reference.map((p, i) => p * Math.exp((rewards[i] - most) / beta));
    const logZ = Math.log(sum(weights)) + most / beta;
    const policy = weights.map((w) => w / sum(weights));
    const reward = dot(policy, rewards);
    return { policy, reward, kl: reward / beta - logZ, objective: beta * logZ };
  }

  DATA.formulas = { kl, ppoClip, exactGradient, sampledGradient, tilted };

  /* Elements */

  const fixed = (x, digits = 2) => (Object.is(Math.round(x * 10 ** digits), -0) ? 0 : x).toFixed(digits);
  const signed = (x, digits = 2) => fixed(x, digits).replace("-", "−");
  const signed0 = (x) => signed(x, 0);
  const digits3 = (x) => (Math.abs(x) < 1e-5 ? "0" : signed(x, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x))))));

  function put(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const html = (name, attributes = {}, ...children) => put(document.createElement(name), attributes, children);
  const svg = (name, attributes = {}, ...children) =>
    put(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

  /** What all figures have: controls, panels that are drawn again when these or the width change, a summary. */
  class Figure {
    constructor(root) {
      this.name = root.dataset.figure;
      this.controls = html("div", { class: "pg-controls" });
      this.panels = html("div", { class: "pg-panels" });
      this.legend = html("ul", { class: "pg-legend", "aria-label": "Legend" });
      this.summary = html("p", { class: "pg-summary", role: "status", id: `pg-${this.name}-summary` });
      root.replaceChildren(this.controls, this.panels, this.legend, this.summary);
    }

    control(label, input, output) {
      const id = `pg-${this.name}-${this.controls.children.length}`;
      input.id = id;
      const caption = html("label", { for: id }, label);
      this.controls.append(html("div", { class: "pg-control" }, caption, ...(output ? [output] : []), input));
      input.addEventListener("input", () => this.draw());
    }

    /** A function that returns the value, and shows it beside the label as `text` says. */
    slider(label, { min, max, step = 1, value, text }) {
      const input = html("input", { type: "range", min, max, step, value });
      const output = html("span", { class: "pg-value", "aria-hidden": "true" });
      this.control(label, input, output);
      const read = () => {
        output.textContent = text(Number(input.value));
        input.setAttribute("aria-valuetext", output.textContent);
        return Number(input.value);
      };
      return Object.assign(read, { input });
    }

    /** One of `options`, by its index. */
    choice(label, options) {
      const input = html("select", {}, ...options.map((each, i) => html("option", { value: i }, each)));
      this.control(label, input);
      return () => Number(input.value);
    }

    panel(title) {
      const picture = svg("svg", { role: "img", "aria-label": title, "aria-describedby": this.summary.id });
      const panel = html("div", { class: "pg-panel" }, html("p", { class: "pg-title" }, title), picture);
      this.panels.append(panel);
      return picture;
    }

    table(caption, header, classes = "pg-panel") {
      const body = html("tbody");
      const head = html("tr", {}, ...header.map((each) => html("th", { scope: "col" }, each)));
      const table = html(
        "table",
        { class: "pg-table" },
        html("caption", {}, caption),
        html("thead", {}, head),
        body,
      );
      this.panels.append(html("div", { class: classes }, table));
      return (rows) =>
        body.replaceChildren(
          ...rows.map(([first, ...others]) =>
            html("tr", {}, html("th", { scope: "row" }, first), ...others.map((each) => html("td", {}, each))),
          ),
        );
    }

    keys(entries) {
      for (const [text, sample] of entries)
        this.legend.append(
          html("li", {}, svg("svg", { viewBox: "0 0 28 14", "aria-hidden": "true" }, ...sample), text),
        );
    }

    start(draw) {
      let width = 0;
      this.draw = draw;
      new ResizeObserver(() => {
        if (Math.abs(width - this.panels.clientWidth) < 1) return;
        width = this.panels.clientWidth;
        draw();
      }).observe(this.panels);
      draw();
    }
  }

  const MARKS = {
    circle: (x, y, r) => svg("circle", { cx: x, cy: y, r }),
    square: (x, y, r) => svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r }),
    triangle: (x, y, r) => svg("path", { d: `M${x},${y - 1.3 * r}L${x + 1.3 * r},${y + r}H${x - 1.3 * r}Z` }),
  };
  function mark(shape, x, y, classes, r = 5) {
    return put(MARKS[shape](x, y, r), { class: classes }, []);
  }
  const text = (x, y, content, attributes = {}) => svg("text", { x, y, ...attributes }, content);
  const path = (points, classes) =>
    svg("path", { d: `M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")}`, class: classes });

  const lineKey = (colour, dash = "", shape = null) => [
    svg("line", { x1: 0, x2: 28, y1: 7, y2: 7, class: `pg-line ${colour} ${dash}` }),
    ...(shape ? [mark(shape, 14, 7, `pg-mark ${colour}`, 4)] : []),
  ];
  const boxKey = (classes, opacity = 1) => [
    svg("rect", { x: 4, y: 1, width: 20, height: 12, class: classes, "fill-opacity": opacity }),
  ];
  const markKey = (shape, classes) => [mark(shape, 14, 7, classes, 4.5)];

  /** Axes in an emptied picture; what is drawn is given in their units. */
  function axes(picture, { x, y, xLabel, yLabel, xTicks, yTicks, xText = String, yText = String, ruled = true, height = 280 }) {
    const width = Math.max(picture.parentNode.clientWidth, 240);
    const [left, right, top, bottom] = [56, 10, 10, 40];
    const px = (value) => left + ((value - x[0]) / (x[1] - x[0])) * (width - left - right);
    const py = (value) => height - bottom - ((value - y[0]) / (y[1] - y[0])) * (height - top - bottom);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren();
    const add = (...elements) => picture.append(...elements);
    for (const tick of yTicks) {
      if (ruled) add(svg("line", { x1: left, x2: width - right, y1: py(tick), y2: py(tick), class: "pg-rule" }));
      add(text(left - 6, py(tick) + 4, yText(tick), { "text-anchor": "end", class: "pg-faint" }));
    }
    for (const tick of xTicks)
      add(text(px(tick), height - bottom + 16, xText(tick), { "text-anchor": "middle", class: "pg-faint" }));
    add(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "pg-axis" }));
    add(text((left + width - right) / 2, height - 6, xLabel, { "text-anchor": "middle" }));
    const middle = (top + height - bottom) / 2;
    add(text(0, 0, yLabel, { "text-anchor": "middle", transform: `translate(12 ${middle}) rotate(-90)` }));
    const points = (xs, ys) => xs.map((each, i) => [px(each), py(ys[i])]);
    const [clipLeft, clipRight] = x;
    return {
      px,
      py,
      add,
      width,
      line: (xs, ys, classes) => add(path(points(xs, ys), `pg-line ${classes}`)),
      area: (xs, lows, highs, classes, opacity) => {
        const outline = [...points(xs, highs), ...points(xs, lows).reverse()];
        add(put(path(outline, classes), { "fill-opacity": opacity }, []));
      },
      bar: (at, halfWidth, value, classes, opacity = 1) => {
        const [a, b] = [py(Math.max(value, 0)), py(Math.min(value, 0))];
        const box = { x: px(at - halfWidth), width: px(at + halfWidth) - px(at - halfWidth), y: a, height: b - a };
        add(svg("rect", { ...box, class: classes, "fill-opacity": opacity }));
      },
      upright: (at, classes) => add(path([[px(at), top], [px(at), height - bottom]], `pg-line ${classes}`)),
      level: (at, classes) => add(path([[px(clipLeft), py(at)], [px(clipRight), py(at)]], `pg-line ${classes}`)),
      mark: (shape, at, value, classes, r) => add(mark(shape, px(at), py(value), classes, r)),
    };
  }

  /** Numbers at which an axis up to `most` is ruled: about four steps of 1, 2 or 5 times a power of ten. */
  function ticksTo(most) {
    const rough = most / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
    return range(Math.floor(most / step + 1e-9) + 1).map((i) => Number((i * step).toPrecision(6)));
  }

  /* One update */

  const RULES = [
    { name: "policy gradient", colour: "pg-blue", dash: "", shape: "circle" },
    { name: "natural gradient", colour: "pg-green", dash: "pg-dotted", shape: "triangle" },
    { name: "clipped", colour: "pg-orange", dash: "pg-dashed", shape: "square" },
  ];
  const ACTIONS = ["a", "b", "c"];

  /** The part of a convex polygon in the simplex where `inside` (linear in the policy) is not negative. */
  function cut(polygon, inside) {
    return polygon.flatMap((here, i) => {
      const next = polygon[(i + 1) % polygon.length];
      const [f, g] = [inside(here), inside(next)];
      const crossing = here.map((p, j) => p + (f / (f - g)) * (next[j] - p));
      return [...(f >= 0 ? [here] : []), ...(f < 0 !== g < 0 ? [crossing] : [])];
    });
  }

  function update(figure, data) {
    const start = figure.choice("The policy before the update", data.starts);
    const size = figure.slider("Step size η", {
      min: 0,
      max: data.step_sizes.length - 1,
      value: 10,
      text: (i) => fixed(data.step_sizes[i]),
    });
    const count = figure.slider("Steps on the same batch", {
      min: 0,
      max: data.paths.clipped[0][0].length - 1,
      value: 4,
      text: String,
    });
    const simplex = figure.panel("All policies over three actions");
    const bars = figure.panel("The probabilities of the actions");
    const fill = figure.table("After the update", ["rule", "E[r]", "KL", "largest ratio"], "pg-panel pg-wide");
    const corner = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
    const names = { clipped: `clipped, ε = ${data.clip_eps}` };
    figure.keys([
      ["before", [...boxKey("pg-fill pg-grey"), ...markKey("circle", "pg-open pg-ink")]],
      ...RULES.map(({ name, colour, dash, shape }) => [names[name] ?? name, lineKey(colour, dash, shape)]),
      [`all ratios within 1 ± ${data.clip_eps}`, boxKey("pg-fill pg-orange", 0.25)],
      ["equal E[r]", [svg("line", { x1: 0, x2: 28, y1: 7, y2: 7, class: "pg-rule" })]],
    ]);

    function drawSimplex(paths, old) {
      const width = Math.max(simplex.parentNode.clientWidth, 240);
      const side = Math.min(width - 76, 300);
      const [cx, top, height] = [width / 2, 24, (side * Math.sqrt(3)) / 2];
      const at = ([a, b, c]) => [cx + ((c - b) * side) / 2, top + (1 - a) * height];
      simplex.setAttribute("viewBox", `0 0 ${width} ${height + 62}`);
      simplex.replaceChildren();
      const add = (...elements) => simplex.append(...elements);
      add(path([...corner, corner[0]].map(at), "pg-shade"));
      const [low, high] = [1 - data.clip_eps, 1 + data.clip_eps];
      const region = old.reduce(
        (polygon, p, i) => cut(cut(polygon, (x) => x[i] - low * p), (x) => high * p - x[i]),
        corner,
      );
      add(put(path([...region, region[0]].map(at), "pg-fill pg-orange"), { "fill-opacity": 0.25 }, []));
      for (const level of [0.25, 0.5, 0.75]) {
        const ends = [[level, 0, 1 - level], level < 0.5 ? [0, 2 * level, 1 - 2 * level] : [2 * level - 1, 2 - 2 * level, 0]];
        add(path(ends.map(at), "pg-rule"));
        const [x, y] = at(ends[0]);
        add(text(x + 6, y + 4, String(level), { class: "pg-faint" }));
      }
      add(path([...corner, corner[0]].map(at), "pg-rule"));
      for (const { name, colour, dash } of RULES) add(path(paths[name].map(at), `pg-line ${colour} ${dash}`));
      for (const { name, colour, shape } of RULES) {
        for (const each of paths[name].slice(1, -1)) add(mark("circle", ...at(each), `pg-fill ${colour}`, 2));
        if (paths[name].length > 1) add(mark(shape, ...at(paths[name].at(-1)), `pg-mark ${colour}`));
      }
      add(mark("circle", ...at(old), "pg-open pg-ink"));
      const labels = ACTIONS.map((name, i) => `${name} pays ${data.paid[i]}`);
      add(text(cx, top - 8, labels[0], { "text-anchor": "middle" }));
      add(text(cx - side / 2, top + height + 18, labels[1], { "text-anchor": "middle" }));
      add(text(cx + side / 2, top + height + 18, labels[2], { "text-anchor": "middle" }));
    }

    function drawBars(paths, old) {
      const plot = axes(bars, {
        x: [-0.5, 2.5],
        y: [0, 1],
        xLabel: "action",
        yLabel: "π(action)",
        xTicks: [0, 1, 2],
        yTicks: [0, 0.25, 0.5, 0.75, 1],
        xText: (i) => `${ACTIONS[i]} (pays ${data.paid[i]})`,
        height: 300,
      });
      for (const i of range(3)) {
        const shown = [[old, "pg-grey"], ...RULES.map(({ name, colour }) => [paths[name].at(-1), colour])];
        shown.forEach(([policy, colour], j) => plot.bar(i + (j - 1.5) * 0.2, 0.09, policy[i], `pg-fill ${colour}`));
      }
    }

    figure.start(() => {
      const [steps, s, k] = [count(), start(), size()];
      const paths = Object.fromEntries(RULES.map(({ name }) => [name, data.paths[name][s][k].slice(0, steps + 1)]));
      const old = data.paths.clipped[s][k][0];
      drawSimplex(paths, old);
      drawBars(paths, old);
      const row = (name, policy) => [
        name,
        fixed(dot(policy, data.paid), 3),
        fixed(kl(old, policy), 3),
        fixed(Math.max(...policy.map((p, i) => p / old[i]))),
      ];
      const rows = RULES.map(({ name }) => row(names[name] ?? name, paths[name].at(-1)));
      fill([row("before", old), ...rows]);
      const [plain, natural, clipped] = rows.map((each) => each[1]);
      figure.summary.textContent =
        `After ${steps} ${steps === 1 ? "step" : "steps"} of size ${fixed(data.step_sizes[k])}, E[r] has gone from ` +
        `${fixed(dot(old, data.paid), 3)} to ${plain} by the policy gradient, ${natural} by the natural gradient and ` +
        `${clipped} with clipping.`;
    });
  }

  /* The baseline */

  function baseline(figure, data) {
    const value = dot(data.policy, data.mean_return);
    const b = figure.slider("Baseline b", { min: -2, max: 8, step: 0.1, value: 0, text: (x) => signed(x, 1) });
    const count = figure.slider("Episodes", { min: 4, max: data.actions.length, value: data.actions.length, text: String });
    const dots = figure.panel("Returns, and the weights that b leaves");
    const parabola = figure.panel("Variance of the gradient of one episode");
    const means = figure.panel("Mean of the gradient, by the logits");
    const fill = figure.table("Variance of the whole gradient, over that without a baseline, as measured", [
      "baseline",
      ...Object.keys(data.measured),
    ]);
    const kinds = Object.keys(Object.values(data.measured)[0]);
    fill(kinds.map((kind) => [kind.replace("-", "−"), ...Object.values(data.measured).map((found) => fixed(found[kind], 3))]));
    figure.keys([
      ["weight above 0", lineKey("pg-blue", "", "circle")],
      ["weight below 0", lineKey("pg-orange", "", "triangle")],
      ["exact", lineKey("pg-ink")],
      ["from the episodes shown, ± a standard error", lineKey("pg-green", "pg-dashed", "square")],
    ]);
    const grid = between(-2, 8, 101);
    const exactMean = exactGradient(data.policy, data.mean_return, data.mean_squared_return, 0).mean;

    function drawDots(actions, returns, level) {
      const plot = axes(dots, {
        x: [-0.95, 2.5],
        y: [-2, 11],
        xLabel: "first action",
        yLabel: "return G",
        xTicks: [0, 1, 2],
        yTicks: [-2, 0, 2, 4, 6, 8, 10],
        xText: (i) => ACTIONS[i],
        yText: signed0,
      });
      const seen = [0, 0, 0];
      const of = range(3).map((a) => data.actions.filter((each) => each === a).length);
      actions.forEach((a, i) => {
        const x = a + 0.8 * ((seen[a] + 0.5) / of[a] - 0.5);
        seen[a] += 1;
        const [colour, shape] = returns[i] >= level ? ["pg-blue", "circle"] : ["pg-orange", "triangle"];
        plot.add(put(path([[plot.px(x), plot.py(level)], [plot.px(x), plot.py(returns[i])]], `pg-line ${colour}`), { "stroke-opacity": 0.6 }, []));
        plot.mark(shape, x, returns[i], `pg-mark ${colour}`, 4);
      });
      plot.level(level, "pg-ink");
      plot.add(text(plot.px(-0.95) + 3, plot.py(level) - 5, `b = ${signed(level, 1)}`, { class: "pg-halo" }));
    }

    function drawParabola(actions, returns, level) {
      const variance = (x) => exactGradient(data.policy, data.mean_return, data.mean_squared_return, x).variance;
      const sampled = (x) => sampledGradient(data.policy, actions, returns, x).variance;
      const plot = axes(parabola, {
        x: [-2, 8],
        y: [0, 30],
        xLabel: "baseline b",
        yLabel: "variance",
        xTicks: [-2, 0, 2, 4, 6, 8],
        yTicks: [0, 10, 20, 30],
        xText: signed0,
      });
      plot.upright(value, "pg-grey pg-dotted");
      plot.add(text(plot.px(value) + 5, plot.py(27), `V(s) = ${fixed(value)}`, { class: "pg-faint pg-halo" }));
      const capped = (f) => grid.map((x) => [x, f(x)]).filter(([, y]) => y <= 30);
      for (const [f, classes] of [[variance, "pg-ink"], [sampled, "pg-green pg-dashed"]]) {
        const kept = capped(f);
        plot.line(kept.map(([x]) => x), kept.map(([, y]) => y), classes);
      }
      plot.mark("circle", level, variance(level), "pg-mark pg-ink", 6);
      if (sampled(level) <= 30) plot.mark("square", level, sampled(level), "pg-mark pg-green");
    }

    function drawMeans(found) {
      const plot = axes(means, {
        x: [-0.5, 2.5],
        y: [-1.5, 1.5],
        xLabel: "logit of action",
        yLabel: "gradient",
        xTicks: [0, 1, 2],
        yTicks: [-1.5, -1, -0.5, 0, 0.5, 1, 1.5],
        xText: (i) => ACTIONS[i],
        yText: (x) => signed(x, 1),
        height: 240,
      });
      const clamp = (x) => Math.min(Math.max(x, -1.5), 1.5);
      plot.level(0, "pg-grey");
      for (const i of range(3)) {
        plot.bar(i - 0.12, 0.1, exactMean[i], "pg-fill pg-ink", 0.75);
        const ends = [found.mean[i] - found.error[i], found.mean[i] + found.error[i]].map(clamp);
        plot.line([i + 0.16, i + 0.16], ends, "pg-green");
        plot.mark("square", i + 0.16, clamp(found.mean[i]), "pg-mark pg-green");
      }
    }

    figure.start(() => {
      const [level, n] = [b(), count()];
      const [actions, returns] = [data.actions.slice(0, n), data.returns.slice(0, n)];
      const found = sampledGradient(data.policy, actions, returns, level);
      const { variance, mean } = exactGradient(data.policy, data.mean_return, data.mean_squared_return, level);
      drawDots(actions, returns, level);
      drawParabola(actions, returns, level);
      drawMeans(found);
      const above = returns.filter((each) => each >= level).length;
      figure.summary.textContent =
        `With b = ${signed(level, 1)}, ${above} of ${n} weights are positive. The variance of one episode is ` +
        `${fixed(variance)} (from these episodes ${fixed(found.variance)}), the exact mean stays ` +
        `(${mean.map((x) => signed(x)).join(", ")}).`;
    });
  }

  /* The clipped objective */

  function clip(figure) {
    const advantage = figure.slider("Advantage A", { min: -1.5, max: 1.5, step: 0.1, value: 1, text: (x) => signed(x, 1) });
    const eps = figure.slider("Clip range ε", { min: 0.05, max: 0.5, step: 0.05, value: 0.2, text: fixed });
    const ratio = figure.slider("Ratio r of the new probability to the old", { min: 0, max: 2, step: 0.05, value: 1.3, text: fixed });
    const left = figure.panel("The objective of one sample");
    const right = figure.panel("Its derivative by the ratio");
    figure.keys([
      ["clipped", lineKey("pg-orange", "", "square")],
      ["unclipped, r A", lineKey("pg-blue", "pg-dashed", "circle")],
      ["the clipped objective has a gradient", boxKey("pg-fill pg-orange", 0.15)],
    ]);

    figure.start(() => {
      const [A, e, r] = [advantage(), eps(), ratio()];
      const at = (x) => ppoClip(x, A, e);
      const flows = A === 0 ? null : A > 0 ? [0, 1 + e] : [1 - e, 2];
      const common = { x: [0, 2], xLabel: "ratio r", xTicks: [0, 0.5, 1, 1.5, 2], yText: signed0 };
      const panels = [
        axes(left, { ...common, y: [-3, 3], yLabel: "objective", yTicks: [-3, -2, -1, 0, 1, 2, 3] }),
        axes(right, { ...common, y: [-2, 2], yLabel: "derivative", yTicks: [-2, -1, 0, 1, 2] }),
      ];
      for (const plot of panels) {
        const [low, high] = plot === panels[0] ? [-3, 3] : [-2, 2];
        if (flows) plot.area(flows, [low, low], [high, high], "pg-fill pg-orange", 0.15);
        plot.upright(1 - e, "pg-grey pg-dotted");
        plot.upright(1 + e, "pg-grey pg-dotted");
        plot.add(text(plot.px(1 - e) - 4, plot.py(low) - 6, "1 − ε", { "text-anchor": "end", class: "pg-faint" }));
        plot.add(text(plot.px(1 + e) + 4, plot.py(low) - 6, "1 + ε", { class: "pg-faint" }));
      }
      const [objective, derivative] = panels;
      const bends = [0, 1 - e, 1 + e, 2];
      objective.line([0, 2], [0, 2 * A], "pg-blue pg-dashed");
      objective.line(bends, bends.map((x) => at(x).objective), "pg-orange");
      objective.mark("circle", r, r * A, "pg-mark pg-blue");
      objective.mark("square", r, at(r).objective, "pg-mark pg-orange");
      derivative.line([0, 2], [A, A], "pg-blue pg-dashed");
      const edge = A > 0 ? 1 + e : 1 - e;
      const [before, after] = A > 0 ? [A, 0] : [0, A];
      derivative.line([0, edge], [before, before], "pg-orange");
      derivative.line([edge, 2], [after, after], "pg-orange");
      derivative.mark("square", r, at(r).gradient, "pg-mark pg-orange");
      const gradient = at(r).gradient;
      figure.summary.textContent =
        `At ratio ${fixed(r)} the clipped objective is ${signed(at(r).objective)}, the unclipped ${signed(r * A)}. ` +
        (gradient === 0
          ? "No gradient: this sample moves the policy no further."
          : `The gradient is A = ${signed(A, 1)}: this sample still makes its action ${A > 0 ? "more" : "less"} probable.`);
    });
  }

  /* GAE */

  function gae(figure, data) {
    const CARTPOLE = data.values.length;
    const settings = [
      ...data.values.map((value, i) => ({
        name: `tabular MDP, V̂ is ${value}`,
        lambdas: data.lambdas,
        gammas: data.gammas,
        squaredBias: data.squared_bias[i],
        variance: data.variance[i],
      })),
      {
        name: "CartPole-v1, V̂ is a fitted network",
        lambdas: data.cartpole.lambdas,
        gammas: [1],
        squaredBias: [data.cartpole.squared_bias.map((x) => Math.max(x, 0))],
        variance: [data.cartpole.variance],
      },
    ];
    const setting = figure.choice("Problem and value", settings.map(({ name }) => name));
    const nearest = (list, i, of) => list[Math.round((i / of) * (list.length - 1))];
    const chosen = () => settings[setting()];
    const lambda = figure.slider("λ", { min: 0, max: 10, value: 9, text: (i) => String(nearest(chosen().lambdas, i, 10)) });
    const gamma = figure.slider("γ", {
      min: 0,
      max: data.gammas.length - 1,
      value: data.gammas.length - 1,
      text: (i) => String(nearest(chosen().gammas, i, data.gammas.length - 1)),
    });
    const batches = figure.slider("Batches averaged", { min: 0, max: 8, value: 4, text: (i) => String(2 ** i) });
    const left = figure.panel("Mean squared error over λ");
    const right = figure.panel("Mean squared error over λ and γ");
    figure.keys([
      ["bias²", boxKey("pg-fill pg-orange", 0.7)],
      ["variance / batches", boxKey("pg-fill pg-blue", 0.45)],
      ["here", markKey("circle", "pg-mark pg-ink")],
      ["least", markKey("triangle", "pg-open pg-green")],
      ["right: the stronger, the larger the error", boxKey("pg-fill pg-blue", 0.9)],
    ]);

    function least(errors) {
      return errors.reduce((best, error, i) => (error < errors[best] ? i : best), 0);
    }

    function drawCurve({ lambdas }, squaredBias, variance, i) {
      const errors = squaredBias.map((each, j) => each + variance[j]);
      const most = Math.max(...errors) * 1.05;
      const plot = axes(left, {
        x: [0, 1],
        y: [0, most],
        xLabel: "λ",
        yLabel: "in units of |∇J|²",
        xTicks: [0, 0.25, 0.5, 0.75, 1],
        yTicks: ticksTo(most),
      });
      plot.area(lambdas, lambdas.map(() => 0), squaredBias, "pg-fill pg-orange", 0.7);
      plot.area(lambdas, squaredBias, errors, "pg-fill pg-blue", 0.45);
      plot.line(lambdas, errors, "pg-ink");
      plot.upright(lambdas[i], "pg-grey pg-dotted");
      plot.mark("circle", lambdas[i], errors[i], "pg-mark pg-ink");
      const best = least(errors);
      plot.mark("triangle", lambdas[best], errors[best], "pg-open pg-green");
      return errors;
    }

    function drawMap({ lambdas, gammas }, errors, here) {
      const plot = axes(right, {
        x: [-0.5, lambdas.length - 0.5],
        y: [-0.5, gammas.length - 0.5],
        xLabel: "λ",
        yLabel: "γ",
        xTicks: range(lambdas.length).filter((i) => lambdas.length < 9 || i % 2 === 0),
        yTicks: range(gammas.length),
        xText: (i) => String(lambdas[i]),
        yText: (i) => String(gammas[i]),
        ruled: false,
      });
      const logs = errors.flat().map(Math.log);
      const [low, high] = [Math.min(...logs), Math.max(...logs)];
      errors.forEach((row, g) =>
        row.forEach((error, l) => {
          const [x, y] = [plot.px(l - 0.5), plot.py(g + 0.5)];
          const box = { x: x + 1, y: y + 1, width: plot.px(l + 0.5) - x - 2, height: plot.py(g - 0.5) - y - 2 };
          const opacity = 0.06 + (0.84 * (Math.log(error) - low)) / (high - low);
          plot.add(svg("rect", { ...box, class: "pg-fill pg-blue", "fill-opacity": opacity.toFixed(3) }));
          if (g === here[0] && l === here[1]) plot.add(svg("rect", { ...box, class: "pg-outline" }));
        }),
      );
      const best = least(errors.flat());
      plot.mark("triangle", best % lambdas.length, Math.floor(best / lambdas.length), "pg-open pg-green");
    }

    figure.start(() => {
      const current = chosen();
      gamma.input.disabled = setting() === CARTPOLE;
      const [l, g] = [
        current.lambdas.indexOf(nearest(current.lambdas, lambda(), 10)),
        current.gammas.indexOf(nearest(current.gammas, gamma(), data.gammas.length - 1)),
      ];
      const n = 2 ** batches();
      const variance = current.variance.map((row) => row.map((each) => each / n));
      const errors = drawCurve(current, current.squaredBias[g], variance[g], l);
      drawMap(current, variance.map((row, i) => row.map((each, j) => each + current.squaredBias[i][j])), [g, l]);
      figure.summary.textContent =
        `λ = ${current.lambdas[l]}, γ = ${current.gammas[g]}, ${n} ${n === 1 ? "batch" : "batches"}: bias² ` +
        `${digits3(current.squaredBias[g][l])} + variance ${digits3(variance[g][l])} = ${digits3(errors[l])} |∇J|². ` +
        `At this γ the error is least at λ = ${current.lambdas[least(errors)]}.`;
    });
  }

  /* The frontier */

  function frontier(figure, data) {
    const priced = (x) => Number((10 ** (x / 100)).toPrecision(2));
    const beta = figure.slider("β, the price of a nat of KL", {
      min: -100,
      max: 70,
      step: 5,
      value: 0,
      text: (x) => String(priced(x)),
    });
    const left = figure.panel("Reward against KL divergence");
    const right = figure.panel("Completions by how often they hold “a”");
    const at = (b) => tilted(data.reference, data.rewards, b);
    const curve = between(Math.log(50), Math.log(0.09), 200).map((x) => at(Math.exp(x)));
    figure.keys([
      ["best policies; no policy is above", lineKey("pg-ink")],
      ["best for this β", markKey("circle", "pg-mark pg-blue")],
      ["E[r] − β KL is the same", lineKey("pg-blue", "pg-dashed")],
      ["trained by RLHF, 8 seeds for each β", markKey("square", "pg-open pg-orange")],
      ["the reference", boxKey("pg-fill pg-grey")],
      ["π*", boxKey("pg-fill pg-blue")],
    ]);

    function drawFrontier(best, b) {
      const plot = axes(left, {
        x: [0, 10],
        y: [1, 6.2],
        xLabel: "KL divergence from the reference, in nats",
        yLabel: "E[r]",
        xTicks: [0, 2, 4, 6, 8, 10],
        yTicks: [1, 2, 3, 4, 5, 6],
        height: 300,
      });
      const [xs, ys] = [curve.map((each) => each.kl), curve.map((each) => each.reward)];
      plot.area(xs, ys, xs.map(() => 6.2), "pg-shade", 1);
      const ends = [0, 10].map((x) => {
        const y = Math.min(Math.max(best.objective + b * x, 1), 6.2);
        return [(y - best.objective) / b, y];
      });
      plot.line(ends.map(([x]) => x), ends.map(([, y]) => y), "pg-blue pg-dashed");
      plot.line(xs, ys, "pg-ink");
      data.rlhf.betas.forEach((each, i) => {
        data.rlhf.kl[i].forEach((x, seed) => plot.mark("square", x, data.rlhf.reward[i][seed], "pg-open pg-orange", 3.5));
        plot.add(text(plot.px(data.rlhf.kl[i][0]) + 9, plot.py(data.rlhf.reward[i][0]) + 14, `β = ${each}`, { class: "pg-faint pg-halo" }));
      });
      plot.mark("circle", best.kl, best.reward, "pg-mark pg-blue", 6);
    }

    function drawLevels(best) {
      const plot = axes(right, {
        x: [-0.5, 6.5],
        y: [0, 1],
        xLabel: "reward: how often “a” occurs in six words",
        yLabel: "probability",
        xTicks: data.rewards,
        yTicks: [0, 0.25, 0.5, 0.75, 1],
        height: 300,
      });
      data.rewards.forEach((reward, i) => {
        plot.bar(reward - 0.2, 0.18, data.reference[i], "pg-fill pg-grey");
        plot.bar(reward + 0.2, 0.18, best.policy[i], "pg-fill pg-blue");
      });
    }

    figure.start(() => {
      const b = priced(beta());
      const best = at(b);
      drawFrontier(best, b);
      drawLevels(best);
      const of = data.rewards.map((_, i) => (best.policy[i] / data.reference[i]) * data.completion_probabilities[i]);
      const likeliest = of.indexOf(Math.max(...of));
      figure.summary.textContent =
        `β = ${b}: E[r] = ${fixed(best.reward)} at a KL divergence of ${fixed(best.kl)}, and E[r] − β KL = ` +
        `β log Z = ${fixed(best.objective)}. The likeliest completion is “${data.completions[likeliest]}” with ` +
        `probability ${digits3(of[likeliest])} (under the reference ${digits3(data.completion_probabilities[likeliest])}).`;
    });
  }

  const FIGURES = { update, baseline, clip, gae, frontier };
  for (const root of document.querySelectorAll("[data-figure]")) FIGURES[root.dataset.figure](new Figure(root), DATA[root.dataset.figure]);
})();
