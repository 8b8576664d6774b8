"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const members = data.source.length, points = data.curves.points;
  const ROWS = 50, MOST_CURVES = 12;
  const COLOURS = ["#3b82d0", "#d9730d", "#2f9e5b", "#d1495b", "#9467d3", "#a07850", "#c2569b", "#7a8794", "#94941c", "#17a2b8"];
  const VIRIDIS = ["#440154", "#46317e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];

  function floats(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  const values = Object.fromEntries(Object.entries(data.curves.values).map(([name, text]) => [name, floats(text)]));
  const evaluated = data.sources.map((source) => ({ steps: source.evaluated[0], scores: floats(source.evaluated[1]) }));
  const short = (x) => (x === null || !Number.isFinite(x) ? "" : Math.abs(x) >= 1e4 && Number.isInteger(x)
    ? x.toLocaleString("en") : String(Number(x.toPrecision(5))));
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const clipped = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  // Columns of the table, the first ones being what members differ in.
  const isNumeric = (column) => column.every((x) => x === null || typeof x === "number");
  const varying = Object.entries(data.columns).map(([name, column]) => ({ name, column, numeric: isNumeric(column) }));
  const several = data.sources.length > 1;
  const columns = [
    ...(several ? [{ name: "run", column: data.source.map((i) => data.sources[i].name), numeric: false }] : []),
    ...varying,
    { name: "seed", column: data.seeds, numeric: true },
    { name: "steps", column: data.steps, numeric: true },
    { name: "score", column: data.scores, numeric: true },
    ...(data.ends.some(Boolean) ? [{ name: "end", column: data.ends, numeric: false }] : []),
  ];
  const cell = (column, i) => (column.numeric ? short(column.column[i]) : String(column.column[i]));
  const words = Array.from({ length: members }, (_, i) => columns.map((c) => cell(c, i)).join("\n").toLowerCase());

  // What is selected: members inside every brushed range that the filter finds.
  const state = { ranges: new Map(), filter: "", sort: null, page: 0, selected: [] };

  function termOf(text) {
    const found = text.match(/^(.+?)(<=|>=|=|<|>)(.*)$/);
    const column = found && columns.find((c) => c.name.toLowerCase() === found[1].toLowerCase());
    if (!column) return (i) => words[i].includes(text.toLowerCase());
    const [, , sign, wanted] = found;
    const limit = Number(wanted);
    if (sign === "=" && (!column.numeric || Number.isNaN(limit))) return (i) => cell(column, i) === wanted;
    const holds = { "<": (x) => x < limit, ">": (x) => x > limit, "<=": (x) => x <= limit, ">=": (x) => x >= limit,
      "=": (x) => x === limit }[sign];
    return (i) => column.column[i] !== null && column.column[i] !== "" && holds(Number(column.column[i]));
  }

  function select() {
    const terms = state.filter.split(/\s+/).filter(Boolean).map(termOf);
    const ranges = [...state.ranges.values()];
    state.selected = [];
    for (let i = 0; i < members; i++) {
      if (terms.every((holds) => holds(i)) && ranges.every((holds) => holds(i))) state.selected.push(i);
    }
    state.page = 0;
    sortSelected();
    drawTable();
    drawCurves();
  }

  function sortSelected() {
    if (!state.sort) return;
    const { column, sign } = state.sort;
    const x = column.column;
    const isAbsent = (i) => x[i] === null || x[i] === "";
    state.selected.sort((a, b) => {
      if (isAbsent(a) || isAbsent(b)) return isAbsent(a) - isAbsent(b) || a - b;
      return sign * (column.numeric ? x[a] - x[b] : x[a].localeCompare(x[b], "en", { numeric: true })) || a - b;
    });
  }

  function element(name, text, attributes) {
    const made = Object.assign(document.createElement(name), { textContent: text });
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    return made;
  }

  function drawHead() {
    const row = element("tr", "");
    for (const column of columns) {
      const head = element("th", "", { scope: "col", class: column.numeric ? "number" : "" });
      const button = element("button", clipped(column.name, 40), { type: "button" });
      button.addEventListener("click", () => {
        const again = state.sort && state.sort.column === column;
        state.sort = { column, sign: again ? -state.sort.sign : 1 };
        for (const other of row.children) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", state.sort.sign > 0 ? "ascending" : "descending");
        state.page = 0;
        sortSelected();
        drawTable();
      });
      head.append(button);
      row.append(head);
    }
    at("members").tHead.replaceChildren(row);
  }

  function drawTable() {
    if (!at("members")) return;
    const found = state.selected, pages = Math.max(1, Math.ceil(found.length / ROWS));
    const from = state.page * ROWS, shown = found.slice(from, from + ROWS);
    at("members").tBodies[0].replaceChildren(...shown.map((i) => {
      const row = element("tr", "");
      row.append(...columns.map((c) => element("td", cell(c, i), c.numeric ? { class: "number" } : {})));
      return row;
    }));
    at("count").textContent = `${found.length.toLocaleString("en")} of ${members.toLocaleString("en")} members selected`;
    at("page").textContent = found.length
      ? `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")}` : "none";
    at("before").disabled = state.page === 0;
    at("after").disabled = state.page >= pages - 1;
  }

  // Statistics over members, as pgjax/reporting/plotting.py has them.
  function quartiles(numbers) {
    const n = numbers.length, cut = Math.floor(n / 4);
    if (!n) return null;
    numbers.sort((a, b) => a - b);
    let sum = 0;
    for (let i = cut; i < n - cut; i++) sum += numbers[i];
    const quantile = (q) => {
      const place = q * (n - 1), low = Math.floor(place);
      return numbers[low] + (numbers[Math.min(n - 1, low + 1)] - numbers[low]) * (place - low);
    };
    return [sum / (n - 2 * cut), quantile(0.25), quantile(0.75), n];
  }

  function groupsOf(indices, name) {
    const found = new Map();
    const column = columns.find((c) => c.name === name);
    const bins = column && column.numeric && binsOf(column.column);
    const labelOf = (i) => {
      if (name === "all") return "all members";
      if (name === "setting") {
        const parts = varying.filter((c) => c.column[i] !== null && c.column[i] !== "").map((c) => `${c.name}=${cell(c, i)}`);
        return parts.join(", ") || data.sources[data.source[i]].name;
      }
      if (name === "member") return columns.slice(0, -2).map((c) => `${c.name}=${cell(c, i)}`).join(", ");
      return bins ? bins(column.column[i]) : cell(column, i);
    };
    for (const i of indices) {
      const label = labelOf(i);
      if (!found.has(label)) found.set(label, []);
      found.get(label).push(i);
    }
    const groups = [...found].map(([label, of]) => ({ label, of }));
    if (!column || !column.numeric) return { groups, ordered: false };
    groups.sort((a, b) => column.column[a.of[0]] - column.column[b.of[0]]);
    return { groups, ordered: groups.length > 2 };
  }

  function binsOf(column) {
    const distinct = [...new Set(column)].filter((x) => x !== null).sort((a, b) => a - b);
    if (distinct.length <= 8) return null;
    const ends = [0, 1, 2, 3].map((k) => distinct.slice(Math.floor(k * distinct.length / 4), Math.floor((k + 1) * distinct.length / 4)));
    return (x) => {
      const part = ends.find((each) => x !== null && x <= each[each.length - 1]);
      return part ? `${short(part[0])} to ${short(part[part.length - 1])}` : "none";
    };
  }

  function curveOf(indices, metric) {
    const found = values[metric];
    const grids = new Set(indices.map((i) => data.curves.which[i]));
    const longest = [...grids].map((g) => data.curves.steps[g]).sort((a, b) => b[b.length - 1] - a[a.length - 1])[0] || [];
    const same = grids.size === 1;
    const curve = { x: [], middle: [], low: [], high: [], n: [] };
    for (let p = 0; p < longest.length; p++) {
      const numbers = [];
      for (const i of indices) {
        const y = same ? found[i * points + p] : interpolated(data.curves.steps[data.curves.which[i]], found, i * points, longest[p]);
        if (Number.isFinite(y)) numbers.push(y);
      }
      const statistics = quartiles(numbers);
      if (!statistics) continue;
      curve.x.push(longest[p]);
      ["middle", "low", "high", "n"].forEach((name, k) => curve[name].push(statistics[k]));
    }
    return curve;
  }

  function interpolated(steps, found, offset, x) {
    let low = 0, high = steps.length - 1;
    if (high < 0 || x < steps[0] || x > steps[high]) return NaN;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= x) low = middle; else high = middle;
    }
    if (steps[high] === steps[low] || x === steps[low]) return found[offset + low];
    if (x === steps[high]) return found[offset + high];
    const share = (x - steps[low]) / (steps[high] - steps[low]);
    return found[offset + low] * (1 - share) + found[offset + high] * share;
  }

  function evaluationsOf(indices) {
    const at = new Map();
    for (const i of indices) {
      const { steps, scores } = evaluated[data.source[i]];
      steps.forEach((x, k) => {
        const y = scores[data.first[i] * steps.length + k];
        if (!Number.isFinite(y)) return;
        if (!at.has(x)) at.set(x, []);
        at.get(x).push(y);
      });
    }
    return [...at].sort((a, b) => a[0] - b[0]).map(([x, numbers]) => [x, ...quartiles(numbers)]);
  }

  // Plots. Colours are those of the style sheet, which knows light, dark and paper.
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  function layoutOf(changes) {
    const axis = { gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), automargin: true };
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") };
    const paper = onPaper() ? { autosize: false, width: changes.width || 640 } : {};
    return {
      font, paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"), margin: { l: 60, r: 20, t: 30, b: 50 },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font, namelength: 60 },
      ...changes, ...paper, xaxis: { ...axis, ...(changes.xaxis || {}) }, yaxis: { ...axis, ...(changes.yaxis || {}) },
    };
  }

  const withAlpha = (hex, alpha) => {
    const parts = hex.startsWith("#") ? [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)) : hex.match(/\d+/g);
    return `rgba(${parts.join(",")},${alpha})`;
  };

  function viridis(share) {
    const place = share * (VIRIDIS.length - 1), low = Math.min(VIRIDIS.length - 2, Math.floor(place));
    const mix = [1, 3, 5].map((k) => Math.round(parseInt(VIRIDIS[low].slice(k, k + 2), 16) * (1 - place + low)
      + parseInt(VIRIDIS[low + 1].slice(k, k + 2), 16) * (place - low)));
    return "#" + mix.map((x) => x.toString(16).padStart(2, "0")).join("");
  }

  const onPaper = () => "print" in document.documentElement.dataset;
  const isDark = () => !onPaper() && matchMedia("(prefers-color-scheme: dark)").matches;
  const shade = (share) => viridis(isDark() ? 0.25 + 0.75 * share : 0.85 * share);

  function drawCurves() {
    if (!at("metric")) return;
    const metric = at("metric").value, group = at("group").value;
    let left = 0;
    data.panels.forEach((_, panel) => {
      const here = state.selected.filter((i) => data.sources[data.source[i]].panel === panel);
      here.sort((a, b) => a - b);
      const { groups, ordered } = groupsOf(here, group);
      left = Math.max(left, groups.length - MOST_CURVES);
      const traces = [];
      groups.slice(0, MOST_CURVES).forEach((each, k) => {
        const line = ordered ? shade(k / (Math.min(groups.length, MOST_CURVES) - 1)) : COLOURS[k % COLOURS.length];
        const name = escaped(clipped(each.label, 80)), legendgroup = String(k);
        const curve = curveOf(each.of, metric);
        if (each.of.length > 1) traces.push({
          x: [...curve.x, ...curve.x.slice().reverse()], y: [...curve.high, ...curve.low.slice().reverse()], fill: "toself",
          fillcolor: withAlpha(line, 0.18), line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup, mode: "lines",
        });
        const counts = curve.n.map((n, p) => `${short(curve.low[p])} to ${short(curve.high[p])}, ${n} of ${each.of.length}`);
        traces.push({
          x: curve.x, y: curve.middle, name, legendgroup, mode: curve.x.length > 1 ? "lines" : "markers", line: { color: line, width: 2 },
          marker: { color: line }, text: counts, hovertemplate: "%{y:.5~g} (%{text})",
        });
        const marks = data.sources[data.source[each.of[0]]].score === metric ? evaluationsOf(each.of) : [];
        if (marks.length) traces.push({
          x: marks.map((m) => m[0]), y: marks.map((m) => m[1]), mode: "markers", legendgroup, showlegend: false,
          name: name + ", evaluated", marker: { color: line, symbol: "diamond", size: 9, line: { width: 1, color: colour("paper") } },
          error_y: { type: "data", symmetric: false, array: marks.map((m) => m[3] - m[1]), arrayminus: marks.map((m) => m[1] - m[2]),
            color: line, thickness: 1.2, width: 4 },
          text: marks.map((m) => `${short(m[2])} to ${short(m[3])}, ${m[4]}`), hovertemplate: "%{y:.5~g} (%{text})",
        });
      });
      const units = [...new Set(here.map((i) => data.sources[data.source[i]].unit))].join(" or ");
      const entries = traces.filter((t) => t.showlegend !== false);
      const rows = Math.ceil(entries.map((t) => t.name.length * 7 + 60).reduce((a, b) => a + b, 0) / Math.max(300, at(`curves-${panel}`).clientWidth - 80));
      at(`curves-${panel}`).style.height = `${400 + 22 * Math.min(12, rows)}px`;
      Plotly.react(`curves-${panel}`, traces, layoutOf({
        hovermode: "x unified", showlegend: entries.length > 0,
        legend: { orientation: "h", y: -0.18, yanchor: "top", x: 0, bgcolor: "rgba(0,0,0,0)" },
        xaxis: { title: { text: escaped(units) }, exponentformat: "SI", hoverformat: ",.0f" },
        yaxis: { title: { text: escaped(data.words[metric] || metric.replaceAll("_", " ")) } },
      }), CONFIG);
    });
    at("curves-note").textContent = left > 0
      ? `The first ${MOST_CURVES} curves are drawn, and ${left.toLocaleString("en")} more are not: select fewer members, or other groups.` : "";
  }

  function drawEffects() {
    data.effects.forEach((effect, k) => {
      const source = data.sources[effect.source], bins = effect.estimates, accent = colour("accent");
      const x = (place) => (effect.ticks ? escaped(clipped(effect.ticks[place], 24)) : place);
      const [xs, ys] = [bins.map((e) => x(e[0])), bins.map((e) => e[1])];
      const bar = (high) => bins.map((e) => Math.abs((high ? e[3] : e[2]) - e[1]) || 0);
      Plotly.react(`effect-${k}`, [
        { x: effect.dots.map((d) => x(d[0])), y: effect.dots.map((d) => d[1]), mode: "markers", marker: { color: colour("soft"), size: 5, opacity: 0.5 },
          hovertemplate: "%{y:.5~g}<extra>a setting</extra>" },
        { x: xs, y: ys, mode: effect.ticks ? "markers" : "lines+markers", line: { color: accent, width: 1.5 }, marker: { color: accent, size: 9 },
          error_y: { type: "data", symmetric: false, array: bar(true), arrayminus: bar(false), color: accent, thickness: 2, width: 6 },
          text: bins.map((e) => (e[2] === null ? "" : `[${short(e[2])}, ${short(e[3])}], `) + `${e[4]} members`),
          hovertemplate: "%{y:.5~g} %{text}<extra></extra>" },
      ], layoutOf({
        showlegend: false, margin: { l: 55, r: 12, t: 12, b: 50 }, ...(onPaper() ? { width: 310 } : {}),
        xaxis: { title: { text: escaped(effect.name) }, type: effect.ticks ? "category" : effect.log ? "log" : "linear",
          exponentformat: "power",
          ...(bins.length <= 8 && !effect.ticks ? { tickvals: bins.map((e) => e[0]), ticktext: bins.map((e) => short(e[0])) } : {}) },
        yaxis: { title: { text: escaped(source.score.replaceAll("_", " ")) } },
      }), CONFIG);
    });
  }

  // Parallel coordinates: every column as numbers, with what they mean as ticks.
  function dimensionOf(column) {
    const known = column.column.filter((x) => x !== null && x !== "");
    const distinct = [...new Set(known)].sort((a, b) => (column.numeric ? a - b : 0));
    if (!column.numeric) {
      const place = new Map(distinct.map((x, k) => [x, k]));
      const ticks = distinct.length <= 30 ? distinct : [];
      return scaled(column, column.column.map((x) => (place.has(x) ? place.get(x) : NaN)), ticks.map((_, k) => k), ticks.map((x) => clipped(x, 18)));
    }
    const low = distinct[0], high = distinct[distinct.length - 1];
    const log = low > 0 && high / low >= 20;
    const numbers = column.column.map((x) => (x === null ? NaN : log ? Math.log10(x) : x));
    let ticks = distinct.length <= 10 ? distinct : [0, 1, 2, 3, 4].map((k) => (log ? low * (high / low) ** (k / 4) : low + (high - low) * k / 4));
    return scaled(column, numbers, ticks.map((x) => (log ? Math.log10(x) : x)), ticks.map((x) => short(Number(x.toPrecision(3)))));
  }

  function scaled(column, numbers, tickvals, ticktext) {
    const known = numbers.filter(Number.isFinite);
    let [low, high] = known.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
    if (!known.length) [low, high] = [0, 0];
    const span = high - low || 1;
    const absent = known.length < numbers.length ? low - 0.12 * span : null; // below the others, as a value of its own
    if (absent !== null) { tickvals = [absent, ...tickvals]; ticktext = ["none", ...ticktext]; }
    return {
      column, numbers: numbers.map((x) => (Number.isFinite(x) ? x : absent)), tickvals, ticktext: ticktext.map(escaped),
      range: [absent === null ? low - (high === low ? 0.5 : 0) : absent, high + (high === low ? 0.5 : 0)],
    };
  }

  const dimensions = at("parallel") ? [...varying, ...columns.filter((c) => c.name === "score")]
    .filter((c) => new Set(c.column).size > 1).slice(0, 12).map(dimensionOf) : [];
  const brushed = dimensions.map(() => null);

  function drawParallel() {
    if (!dimensions.length) return;
    const plot = at("parallel");
    const scores = data.scores.filter((x) => x !== null);
    const [low, high] = scores.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
    const ranked = data.scores.map((x) => (x === null ? low : x));
    const least = data.sources.length && data.sources[0].least;
    const steps = [0, 0.25, 0.5, 0.75, 1];
    plot.style.minWidth = `${90 * dimensions.length + 80}px`;
    Plotly.react(plot, [{
      type: "parcoords", labelside: "top",
      line: scores.length && low < high ? { color: ranked, cmin: low, cmax: high, colorscale: steps.map((s) => [s, shade(least ? 1 - s : s)]) } : { color: colour("accent") },
      unselected: { line: { color: colour("unselected"), opacity: 0.35 } },
      labelfont: { color: colour("ink"), size: 13 }, tickfont: { color: colour("ink"), size: 12 }, rangefont: { color: "rgba(0,0,0,0)", size: 1 },
      dimensions: dimensions.map((d, k) => ({
        label: escaped(clipped(d.column.name, 20)), values: d.numbers, range: d.range, tickvals: d.tickvals, ticktext: d.ticktext,
        ...(brushed[k] ? { constraintrange: brushed[k] } : {}),
      })),
    }], layoutOf({ margin: { l: 60, r: 60, t: 50, b: 24 } }), { ...CONFIG, responsive: false, modeBarButtons: [["toImage"]] });
  }

  function readBrushes() {
    const found = at("parallel").data[0].dimensions;
    dimensions.forEach((d) => {
      const k = found.findIndex((each) => each.values === d.numbers || each.label === escaped(clipped(d.column.name, 20)));
      const range = found[k] && found[k].constraintrange;
      brushed[dimensions.indexOf(d)] = range && range.length ? range : null;
      const parts = range && range.length ? (Array.isArray(range[0]) ? range : [range]) : null;
      if (!parts) state.ranges.delete(d);
      else state.ranges.set(d, (i) => parts.some(([a, b]) => d.numbers[i] >= a && d.numbers[i] <= b));
    });
    select();
  }

  function drawAll() {
    drawCurves();
    drawEffects();
    if (!onPaper()) drawParallel(); // its lines are drawn later than paper waits: what is on the screen is made smaller
  }

  function option(text, value) { return element("option", clipped(text, 60), { value }); }

  function start() {
    if (at("metric")) {
      at("metric").append(...Object.keys(values).map((name) => option(name, name)));
      const groups = [["all", "all members together"], ...(several ? [["run", "run or sweep"]] : []), ...(varying.length ? [["setting", "setting"]] : []),
        ...varying.map((c) => [c.name, c.name]), ["seed", "seed"], ["member", "member"]];
      at("group").append(...groups.map(([value, text]) => option(text, value)));
      const swept = data.effects.length ? data.effects[0].name : "setting";
      at("group").value = several ? (varying.length && !data.effects.length ? "setting" : "run") : varying.length ? swept : "all";
      at("metric").addEventListener("change", drawCurves);
      at("group").addEventListener("change", drawCurves);
    }
    if (at("members")) {
      drawHead();
      let waiting = 0;
      at("filter").addEventListener("input", () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { state.filter = at("filter").value; select(); }, 150);
      });
      at("clear").addEventListener("click", () => {
        at("filter").value = state.filter = "";
        state.ranges.clear();
        brushed.fill(null);
        select();
        drawParallel();
      });
      for (const [id, by] of [["before", -1], ["after", 1]]) {
        at(id).addEventListener("click", () => { state.page += by; drawTable(); });
      }
    }
    select();
    setTimeout(drawEffects);
    if (dimensions.length) setTimeout(() => { // after what is read first: ten thousand lines take a second
      drawParallel();
      at("parallel").on("plotly_restyle", readBrushes);
    });
    const canvas = document.createElement("canvas");
    if (dimensions.length && !canvas.getContext("webgl")) {
      at("parallel-note").textContent = "This browser has no WebGL, which draws the lines: use the filter of the table.";
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => { if (at("parallel")?.data && !onPaper()) Plotly.Plots.resize("parallel"); });
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    drawAll();
    if (dimensions.length) at("parallel").style.setProperty("--smaller", Math.min(1, 640 / at("parallel").clientWidth));
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    drawAll();
  });
  start();
})();
