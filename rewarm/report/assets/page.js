"use strict";
// Draws the curves from the page's own data, and lets tables sort and copy themselves. Whatever
// comes from a run gets into the page as textContent only.
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  function element(tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  // Data: a column is [factor, divisor, differences from one value to the next, null for none].

  const { columns, arms } = JSON.parse(one("#data").textContent);
  const decoded = [];

  function column(index) {
    if (!decoded[index]) {
      const [factor, divisor, differences] = columns[index];
      let sum = 0;
      decoded[index] = differences.map((d) => (d === null ? null : ((sum += d) * factor) / divisor));
    }
    return decoded[index];
  }

  const state = { x: "tokens", log: false, y: "loss", smooth: 0, seeds: true, hidden: new Set() };
  let zoom = null; // [from, to] in tokens or steps, or null for everything

  // What is drawn

  function measured(run, figure) {
    const { chart, set } = figure.dataset;
    const lines = chart === "set" ? run.evaluate : run.train;
    const y = chart === "set" ? lines.sets[set] : lines[chart];
    if (y === undefined) return null;
    const inWords = chart !== "lr" && state.y === "perplexity";
    const values = column(y);
    return { x: column(lines[state.x]), y: inWords ? values.map((v) => v && Math.exp(v)) : values };
  }

  function average(runs) {
    if (runs.length === 1) return runs[0];
    const rest = runs.slice(1).map(({ x, y }) => new Map(x.map((place, i) => [place, y[i]])));
    const mean = { x: [], y: [] };
    runs[0].x.forEach((place, i) => {
      const values = [runs[0].y[i], ...rest.map((known) => known.get(place))];
      if (values.includes(undefined)) return; // a seed that is not as far
      mean.x.push(place);
      mean.y.push(values.includes(null) ? null : values.reduce((a, b) => a + b) / values.length);
    });
    // The very same array says that nothing has to be joined.
    return mean.x.length === runs[0].x.length ? { x: runs[0].x, y: mean.y } : mean;
  }

  function smoothed(values) {
    let sum = 0;
    let weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = state.smooth * sum + (1 - state.smooth) * value;
      weight = state.smooth * weight + (1 - state.smooth);
      return sum / weight;
    });
  }

  function curves(figure) {
    const found = [];
    arms.forEach((arm, index) => {
      if (state.hidden.has(index)) return;
      const runs = arm.runs.map((run) => measured(run, figure)).filter((run) => run && run.x.length);
      if (!runs.length) return;
      if (figure.dataset.chart === "lr") {
        runs.sort((a, b) => b.x.length - a.x.length); // every seed has the same schedule
        found.push({ index, role: "main", ...runs[0] });
        return;
      }
      const mean = average(runs);
      const smooth = figure.dataset.chart === "loss" && state.smooth > 0;
      const each = state.seeds ? runs : [mean];
      if (smooth || each.length > 1) found.push(...each.map((run) => ({ index, role: "thin", ...run })));
      found.push({ index, role: "main", x: mean.x, y: smooth ? smoothed(mean.y) : mean.y });
    });
    return found.sort((a, b) => (a.role === "main") - (b.role === "main")); // means on top
  }

  function joined(found) {
    const tables = new Map();
    for (const { x, y } of found) tables.set(x, [...(tables.get(x) ?? [x]), y]);
    const order = [...tables.keys()].flatMap((x) => found.filter((curve) => curve.x === x));
    let data = tables.size === 1 ? [...tables.values()][0] : uPlot.join([...tables.values()]);
    if (state.log) {
      const first = data[0].findIndex((place) => place > 0);
      data = data.map((values) => values.slice(first));
    }
    return [order, data];
  }

  // How numbers are written

  const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"], [1, ""]];

  function count(value, greatest = value) {
    const [unit, suffix] = UNITS.find(([size]) => Math.abs(greatest) >= size) ?? [1, ""];
    return value === 0 ? "0" : +(value / unit).toPrecision(6) + suffix;
  }

  function rate(value) {
    if (value === 0) return "0";
    const [digits, exponent] = value.toExponential(2).split("e");
    return `${+digits}e${+exponent}`;
  }

  function loss(value) {
    return value >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 100 ? 1 : 4);
  }

  // Charts

  const DASHES = [[], [9, 3], [3, 2.5], [10, 3, 2, 3], [6, 2, 2, 2, 2, 2]];
  const PAPER = 690; // as wide as A4 and Letter can take
  const plots = new Map();
  let paper = false;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function draw() {
    for (const plot of plots.values()) plot.destroy();
    plots.clear();
    for (const figure of all("figure[data-chart]")) {
      const found = curves(figure);
      one(".none", figure).hidden = found.length > 0;
      for (const what of all(".what", figure)) what.textContent = state.y;
      for (const unit of all(".unit", figure)) unit.hidden = state.y !== "loss";
      if (found.length) plots.set(figure, plotted(figure, ...joined(found)));
    }
    show();
    for (const details of all("details.values[open]")) tabulate(details);
  }

  function plotted(figure, order, data) {
    const holder = one(".plot", figure);
    const isRate = figure.dataset.chart === "lr";
    const muted = color("--muted");
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: muted, font, labelFont: font, ticks: { stroke: color("--rule"), size: 5 }, grid: { stroke: color("--grid"), width: 1 } };
    const options = {
      width: Math.min(holder.clientWidth, paper ? PAPER : Infinity),
      height: holder.clientHeight,
      legend: { show: false },
      cursor: {
        y: false,
        points: { size: 7 },
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => zoomTo(null) },
        sync: { key: "rewarm", scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
      },
      scales: {
        x: { time: false, distr: state.log ? 3 : 1 },
        y: { range: (_, low, high) => (low === null ? [0, 1] : isRate ? [0, high * 1.08 || 1] : uPlot.rangeNum(low, high, 0.08, false)) },
      },
      axes: [
        { ...axis, label: state.x, labelSize: 18, size: 34, space: 60, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : count(tick, state.log ? tick : ticks.at(-1)))) },
        { ...axis, size: 58, space: 32, values: (_, ticks) => ticks.map((tick) => (isRate ? rate(tick) : tick >= 10000 ? count(tick) : String(+tick.toPrecision(6)))) },
      ],
      series: [{}, ...order.map(({ index, role, y }) => {
        const main = role === "main";
        const stroke = color(`--arm-${index % 7}`) + (main ? "" : "4d");
        return {
          stroke, width: main ? 2 : 1, dash: main ? DASHES[index % 5] : [],
          points: { show: main && !isRate && y.length <= 30, size: 5, stroke, fill: stroke },
        };
      })],
      hooks: {
        setCursor: [() => read(figure)],
        setSelect: [(plot) => {
          const { left, width } = plot.select;
          if (width > 4) zoomTo([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
      },
    };
    const plot = new uPlot(options, data, holder);
    plot.order = order;
    return plot;
  }

  function whole() {
    const places = [...plots.values()].map((plot) => plot.data[0]);
    const range = [Math.min(...places.map((x) => x[0])), Math.max(...places.map((x) => x.at(-1)))];
    return range[0] < range[1] ? range : [range[0] - 1, range[1] + 1];
  }

  function show() {
    if (!plots.size) return;
    const [min, max] = zoom ?? whole();
    for (const [figure, plot] of plots) {
      plot.setScale("x", { min, max });
      read(figure);
    }
    one("#reset").disabled = zoom === null;
  }

  function zoomTo(range) {
    zoom = range;
    show();
  }

  // Zooms by a factor around a place, or moves by a share of what is seen.
  function look(factor, shift = 0, around = null) {
    if (!plots.size) return;
    const [way, back] = state.log ? [Math.log, Math.exp] : [Number, Number];
    const [first, last] = whole().map(way);
    const [low, high] = (zoom ?? whole()).map(way);
    const middle = around === null ? (low + high) / 2 : way(around);
    const size = Math.min((high - low) * factor, last - first);
    const from = Math.min(Math.max(middle - (middle - low) * (size / (high - low)) + shift * size, first), last - size);
    zoomTo(size >= (last - first) * 0.9999 ? null : [back(from), back(from + size)]);
  }

  function read(figure) {
    const plot = plots.get(figure);
    const output = one(".readout", figure);
    if (!plot?.order) return;
    const there = plot.cursor.idx;
    const at = there ?? plot.data[0].length - 1;
    const place = plot.data[0][at];
    const what = state.x === "tokens" ? "tokens" : "";
    const said = there === null || there === undefined ? "at the end" : `${state.x === "step" ? "step " : ""}${count(place, Math.max(place, 1))} ${what}`;
    const parts = [element("span", said, { class: "place" })];
    plot.order.forEach(({ index, role }, series) => {
      if (role !== "main") return;
      const values = plot.data[series + 1];
      let i = at;
      while (i >= 0 && (values[i] === null || values[i] === undefined)) i -= 1;
      if (i < 0) return;
      const text = figure.dataset.chart === "lr" ? rate(values[i]) : loss(values[i]);
      const part = element("span");
      const swatch = one(`.arms [data-arm="${index}"] svg`).cloneNode(true);
      part.append(swatch, element("b", arms[index].name), ` ${text}`);
      parts.push(part);
    });
    output.replaceChildren(...parts);
  }

  function onKey(event) {
    const figure = event.target.closest("figure");
    const plot = plots.get(figure);
    if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const x = plot.data[0];
    const at = plot.cursor.idx ?? x.length - 1;
    const reach = event.shiftKey ? 10 : 1;
    const places = { ArrowLeft: at - reach, ArrowRight: at + reach, Home: 0, End: x.length - 1 };
    if (event.key in places) {
      const place = x[Math.min(Math.max(places[event.key], 0), x.length - 1)];
      plot.setCursor({ left: plot.valToPos(place, "x"), top: 10 });
    } else if (event.key === "+" || event.key === "=") look(0.5, 0, x[at]);
    else if (event.key === "-") look(2, 0, x[at]);
    else if (event.key === "Escape" || event.key === "0") zoomTo(null);
    else return;
    event.preventDefault();
  }

  // The same numbers as a table, made when it is opened.
  function tabulate(details) {
    const figure = details.closest("figure");
    const plot = plots.get(figure);
    const holder = one("div", details);
    if (!plot) return holder.replaceChildren();
    const main = plot.order.flatMap(({ role }, i) => (role === "main" ? [i] : []));
    const table = element("table");
    const head = element("tr");
    head.append(element("th", state.x, { class: "number" }), ...main.map((i) => element("th", arms[plot.order[i].index].name, { class: "number" })));
    table.createTHead().append(head);
    const body = table.createTBody();
    const rows = plot.data[0].length;
    const every = Math.ceil(rows / 200);
    for (let row = 0; row < rows; row += 1) {
      if (row % every && row !== rows - 1) continue;
      const line = element("tr");
      for (const [i, values] of [plot.data[0], ...main.map((s) => plot.data[s + 1])].entries()) {
        const value = values[row];
        const known = value !== null && value !== undefined;
        const text = !known ? "" : i === 0 ? value.toLocaleString("en") : figure.dataset.chart === "lr" ? rate(value) : loss(value);
        line.append(element("td", text, known ? { class: "number", "data-value": value } : { class: "number" }));
      }
      body.append(line);
    }
    const box = element("div", "", { class: "table" });
    const scroll = element("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values: ${one("h3", figure).textContent}` });
    scroll.append(table);
    box.append(scroll);
    holder.replaceChildren(...(every > 1 ? [element("p", `Every ${every}th of ${rows.toLocaleString("en")} places; --format csv has them all.`)] : []), box);
    equip(box);
  }

  // Tables

  function sort(header) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    const body = header.closest("table").tBodies[0];
    const key = (row) => row.cells[header.cellIndex];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x.dataset.value !== undefined && y.dataset.value !== undefined) {
        return (Number(x.dataset.value) - Number(y.dataset.value) || 0) * (up ? 1 : -1);
      }
      if (!x.textContent || !y.textContent) return !x.textContent - !y.textContent; // empty last
      return x.textContent.localeCompare(y.textContent, "en", { numeric: true }) * (up ? 1 : -1);
    });
    body.append(...rows);
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  const LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$",
    "→": "$\\to$", "—": "---", "²": "$^2$", "×": "$\\times$", "<": "$<$", ">": "$>$", "…": "\\ldots{}",
    ..."&%$#_{}".split("").reduce((known, sign) => ({ ...known, [sign]: `\\${sign}` }), {}),
  };

  const FORMATS = {
    CSV: (rows) => rows.map((row) => row.map(({ text }) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(",")).join("\n"),
    LaTeX: ([head, ...rows]) => {
      const line = (row) => `${row.map(({ text }) => text.replace(/^-(?=\d)/, "\u2212").replace(/[\\~^±→—²×<>…&%$#_{}]/g, (sign) => LATEX[sign]).replace("\u2212", "$-$")).join(" & ")} \\\\`;
      return [`\\begin{tabular}{${head.map(({ number }) => (number ? "r" : "l")).join("")}}`, "\\toprule", line(head), "\\midrule", ...rows.map(line), "\\bottomrule", "\\end{tabular}"].join("\n");
    },
    Markdown: ([head, ...rows]) => {
      const line = (row) => `| ${row.map(({ text }) => text.replace(/[\\`*_[\]|<>]/g, "\\$&").replaceAll("\n", " ")).join(" | ")} |`;
      return [line(head), `| ${head.map(({ number }) => (number ? "--:" : "---")).join(" | ")} |`, ...rows.map(line)].join("\n");
    },
  };

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  // Gives a table its buttons.
  function equip(box) {
    const table = one("table", box);
    for (const header of table.tHead.rows[0].cells) {
      const button = element("button", header.textContent, { type: "button" });
      button.addEventListener("click", () => sort(header));
      header.replaceChildren(button);
    }
    const tools = element("div", "Copy as", { class: "tools" });
    const said = element("span", "", { role: "status" });
    for (const [name, write] of Object.entries(FORMATS)) {
      const button = element("button", name, { type: "button" });
      button.addEventListener("click", async () => {
        const cells = (row) => [...row.cells].map((cell) => ({ text: cell.textContent, number: cell.classList.contains("number") }));
        await copy(write([...table.rows].map(cells)) + "\n");
        said.textContent = `${name} copied`;
        setTimeout(() => (said.textContent = ""), 3000);
      });
      tools.append(button);
    }
    tools.append(said);
    one(".scroll", box).before(tools);
  }

  // Controls

  function toggle(button) {
    const index = Number(button.dataset.arm);
    const shown = !state.hidden.delete(index);
    if (shown) state.hidden.add(index);
    button.setAttribute("aria-pressed", String(!shown));
    draw();
  }

  function control(id, name, value, redraw = draw) {
    const input = one(`#${id}`);
    input.addEventListener("input", () => {
      state[name] = value(input);
      redraw();
    });
    state[name] = value(input);
  }

  let asked = 0;
  const soon = () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(draw);
  };

  function start() {
    for (const box of all(".table")) equip(box);
    const controls = one(".controls");
    if (controls) {
      controls.hidden = false;
      for (const button of all(".arms button")) button.addEventListener("click", () => toggle(button));
      control("x", "x", (input) => input.value, () => {
        zoom = null;
        draw();
      });
      control("log", "log", (input) => input.checked, () => {
        zoom = null;
        draw();
      });
      control("y", "y", (input) => input.value);
      control("smooth", "smooth", (input) => Number(input.value), soon);
      if (one("#seeds")) control("seeds", "seeds", (input) => input.checked);
      one("#in").addEventListener("click", () => look(0.5));
      one("#out").addEventListener("click", () => look(2));
      one("#earlier").addEventListener("click", () => look(1, -0.5));
      one("#later").addEventListener("click", () => look(1, 0.5));
      one("#reset").addEventListener("click", () => zoomTo(null));
      for (const holder of all(".plot")) {
        holder.addEventListener("keydown", onKey);
        // A screen reader is told of the chart that keys are for, not of all that follow it.
        const live = (how) => () => one(".readout", holder.parentElement).setAttribute("aria-live", how);
        holder.addEventListener("focus", live("polite"));
        holder.addEventListener("blur", live("off"));
      }
      for (const details of all("details.values")) {
        details.addEventListener("toggle", () => details.open && tabulate(details));
      }
      draw();
      let width = innerWidth;
      addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), soon()));
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
      // On paper: in light colours, as wide as the paper.
      addEventListener("beforeprint", () => {
        root.dataset.theme = "light";
        paper = true;
        draw();
      });
      addEventListener("afterprint", () => {
        delete root.dataset.theme;
        paper = false;
        draw();
      });
    }
    // Behind the first frame: by then it can be seen.
    requestAnimationFrame(() => setTimeout(() => (root.dataset.drawn = String(Math.round(performance.now())))));
  }

  start();
})();
