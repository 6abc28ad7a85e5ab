"use strict";
// Draws the curves from the page's own data, and adds buttons that sort and copy tables. Untrusted
// text from a run reaches the page as textContent only.
(() => {
  const root = document.documentElement;
  const query = (selector, within = document) => within.querySelector(selector);
  const queryAll = (selector, within = document) => [...within.querySelectorAll(selector)];

  function element(tag, text = "", attributes = {}) {
    const node = document.createElement(tag);
    node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  // Data: a column is [factor, divisor, differences between successive values; null where missing].

  const { columns, arms } = JSON.parse(query("#data").textContent);
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
  let zoom = null; // [from, to] in tokens or steps; null shows everything

  // Curves

  function runCurve(run, figure) {
    const { chart, set } = figure.dataset;
    const lines = { set: run.evaluate, loss: run.train, lr: run.schedule }[chart];
    const y = chart === "set" ? lines.sets[set] : lines[chart];
    if (y === undefined) return null;
    return { x: column(lines[state.x]), y: chart === "lr" ? column(y) : lossValues(y) };
  }

  function lossValues(index) {
    const values = column(index);
    return state.y === "perplexity" ? values.map((v) => v && Math.exp(v)) : values;
  }

  const isPrediction = (figure) => figure.dataset.chart === "predicted" || figure.dataset.chart === "residual";

  function predictedCurves(arm, index, { dataset: { chart, set } }) {
    const lines = arm.left_out;
    if (!lines || !(set in lines.sets)) return [];
    const { predicted, measured } = lines.sets[set];
    const x = column(lines[state.x]);
    if (chart === "residual") {
      const values = column(measured);
      return [{ index, role: "main", x, y: column(predicted).map((v, i) => v - values[i]) }];
    }
    return [{ index, role: "main", x, y: lossValues(predicted) }, { index, role: "points", x, y: lossValues(measured) }];
  }

  function average(runs) {
    if (runs.length === 1) return runs[0];
    const others = runs.slice(1).map(({ x, y }) => new Map(x.map((position, i) => [position, y[i]])));
    const mean = { x: [], y: [] };
    runs[0].x.forEach((position, i) => {
      const values = [runs[0].y[i], ...others.map((run) => run.get(position))];
      if (values.includes(undefined)) return; // a seed has not reached this position yet
      mean.x.push(position);
      mean.y.push(values.includes(null) ? null : values.reduce((a, b) => a + b) / values.length);
    });
    // An identical x array tells `joined` that these curves need no alignment.
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
    const drawn = [];
    arms.forEach((arm, index) => {
      if (state.hidden.has(index)) return;
      if (isPrediction(figure)) {
        drawn.push(...predictedCurves(arm, index, figure));
        return;
      }
      const runs = arm.runs.map((run) => runCurve(run, figure)).filter((run) => run && run.x.length);
      if (!runs.length) return;
      if (figure.dataset.chart === "lr") {
        drawn.push({ index, role: "main", ...runs[0] }); // every seed has the same schedule
        const [applied] = arm.runs.map((run) => run.applied).sort((a, b) => column(b.lr).length - column(a.lr).length);
        drawn.push({ index, role: "points", x: column(applied[state.x]), y: column(applied.lr) });
        return;
      }
      const mean = average(runs);
      const smooth = figure.dataset.chart === "loss" && state.smooth > 0;
      const each = state.seeds ? runs : [mean];
      if (smooth || each.length > 1) drawn.push(...each.map((run) => ({ index, role: "thin", ...run })));
      drawn.push({ index, role: "main", x: mean.x, y: smooth ? smoothed(mean.y) : mean.y });
    });
    return drawn.sort((a, b) => (a.role === "main") - (b.role === "main")); // means on top
  }

  // Returns the curves in the order of their columns, and the columns: x first.
  function joined(drawn) {
    const tables = new Map();
    for (const { x, y } of drawn) tables.set(x, [...(tables.get(x) ?? [x]), y]);
    const order = [...tables.keys()].flatMap((x) => drawn.filter((curve) => curve.x === x));
    let data = tables.size === 1 ? [...tables.values()][0] : uPlot.join([...tables.values()]);
    if (state.log) {
      const first = data[0].findIndex((position) => position > 0);
      data = data.map((values) => values.slice(first));
    }
    return [order, data];
  }

  // Number formats

  const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"], [1, ""]];

  function count(value, largest = value) {
    const [unit, suffix] = UNITS.find(([size]) => Math.abs(largest) >= size) ?? [1, ""];
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

  function format(value, figure) {
    if (figure.dataset.chart === "lr") return rate(value);
    return figure.dataset.chart === "residual" ? (value < 0 ? "" : "+") + value.toFixed(4) : loss(value);
  }

  // Charts

  const DASHES = [[], [9, 3], [3, 2.5], [10, 3, 2, 3], [6, 2, 2, 2, 2, 2]];
  const PAPER_WIDTH = 690; // fits both A4 and Letter
  const plots = new Map();
  let isPrinting = false;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function draw() {
    for (const plot of plots.values()) plot.destroy();
    plots.clear();
    for (const figure of queryAll("figure[data-chart]")) {
      const drawn = curves(figure);
      query(".none", figure).hidden = drawn.length > 0;
      for (const quantity of queryAll(".what", figure)) quantity.textContent = state.y;
      for (const unit of queryAll(".unit", figure)) unit.hidden = state.y !== "loss";
      if (drawn.length) plots.set(figure, newPlot(figure, ...joined(drawn)));
    }
    showRange();
    for (const details of queryAll("details.values[open]")) tabulate(details);
  }

  function newPlot(figure, order, data) {
    const holder = query(".plot", figure);
    const isRate = figure.dataset.chart === "lr";
    const hasZero = figure.dataset.chart === "residual";
    const muted = color("--muted");
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: muted, font, labelFont: font, ticks: { stroke: color("--rule"), size: 5 }, grid: { stroke: color("--grid"), width: 1 } };
    const options = {
      width: Math.min(holder.clientWidth, isPrinting ? PAPER_WIDTH : Infinity),
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
        y: { range: (_, low, high) => (low === null ? [0, 1] : isRate ? [0, high * 1.08 || 1] : uPlot.rangeNum(hasZero ? Math.min(low, 0) : low, hasZero ? Math.max(high, 0) : high, 0.08, false)) },
      },
      axes: [
        { ...axis, label: state.x, labelSize: 18, size: 34, space: 60, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : count(tick, state.log ? tick : ticks.at(-1)))) },
        { ...axis, size: 58, space: 32, values: (_, ticks) => ticks.map((tick) => (isRate ? rate(tick) : tick >= 10000 ? count(tick) : String(+tick.toPrecision(6)))) },
      ],
      series: [{}, ...order.map(({ index, role, y }) => {
        const main = role === "main";
        const stroke = color(`--arm-${index % 7}`) + (main ? "" : "4d");
        if (role === "points") {
          const opaque = stroke.slice(0, -2);
          return { stroke: opaque, paths: () => null, points: { show: true, size: 4, stroke: opaque, fill: opaque } };
        }
        return {
          stroke, width: main ? 2 : 1, dash: main ? DASHES[index % 5] : [],
          points: { show: main && !isRate && !isPrediction(figure) && y.length <= 30, size: 5, stroke, fill: stroke },
        };
      })],
      hooks: {
        setCursor: [() => updateReadout(figure)],
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

  function fullRange() {
    const columns = [...plots.values()].map((plot) => plot.data[0]);
    const range = [Math.min(...columns.map((x) => x[0])), Math.max(...columns.map((x) => x.at(-1)))];
    return range[0] < range[1] ? range : [range[0] - 1, range[1] + 1];
  }

  function showRange() {
    if (!plots.size) return;
    const [min, max] = zoom ?? fullRange();
    for (const [figure, plot] of plots) {
      plot.setScale("x", { min, max });
      updateReadout(figure);
    }
    query("#reset").disabled = zoom === null;
  }

  function zoomTo(range) {
    zoom = range;
    showRange();
  }

  // Zooms by a factor around a position, or moves by a share of the visible range.
  function changeRange(factor, shift = 0, around = null) {
    if (!plots.size) return;
    const [toScale, fromScale] = state.log ? [Math.log, Math.exp] : [Number, Number];
    const [first, last] = fullRange().map(toScale);
    const [low, high] = (zoom ?? fullRange()).map(toScale);
    const middle = around === null ? (low + high) / 2 : toScale(around);
    const size = Math.min((high - low) * factor, last - first);
    const from = Math.min(Math.max(middle - (middle - low) * (size / (high - low)) + shift * size, first), last - size);
    zoomTo(size >= (last - first) * 0.9999 ? null : [fromScale(from), fromScale(from + size)]);
  }

  function updateReadout(figure) {
    const plot = plots.get(figure);
    const output = query(".readout", figure);
    if (!plot?.order) return;
    const cursor = plot.cursor.idx;
    const at = cursor ?? plot.data[0].length - 1;
    const position = plot.data[0][at];
    const number = count(position, Math.max(position, 1));
    const label = cursor === null || cursor === undefined ? "at the end" : state.x === "step" ? `step ${number} ` : `${number} tokens`;
    const parts = [element("span", label, { class: "position" })];
    plot.order.forEach(({ index, role }, series) => {
      if (role !== "main") return;
      const values = plot.data[series + 1];
      let i = at;
      while (i >= 0 && (values[i] === null || values[i] === undefined)) i -= 1;
      if (i < 0) return;
      const part = element("span");
      const swatch = query(`.arms [data-arm="${index}"] svg`).cloneNode(true);
      part.append(swatch, element("b", arms[index].name), ` ${format(values[i], figure)}`);
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
    const distance = event.shiftKey ? 10 : 1;
    const targets = { ArrowLeft: at - distance, ArrowRight: at + distance, Home: 0, End: x.length - 1 };
    if (event.key in targets) {
      const position = x[Math.min(Math.max(targets[event.key], 0), x.length - 1)];
      plot.setCursor({ left: plot.valToPos(position, "x"), top: 10 });
    } else if (event.key === "+" || event.key === "=") changeRange(0.5, 0, x[at]);
    else if (event.key === "-") changeRange(2, 0, x[at]);
    else if (event.key === "Escape" || event.key === "0") zoomTo(null);
    else return;
    event.preventDefault();
  }

  // Fills in the table of a chart's values, when it is opened.
  function tabulate(details) {
    const figure = details.closest("figure");
    const plot = plots.get(figure);
    const holder = query("div", details);
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
        const hasValue = value !== null && value !== undefined;
        const text = !hasValue ? "" : i === 0 ? value.toLocaleString("en") : format(value, figure);
        line.append(element("td", text, hasValue ? { class: "number", "data-value": value } : { class: "number" }));
      }
      body.append(line);
    }
    const box = element("div", "", { class: "table" });
    const scroll = element("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Values: ${query("h3", figure).textContent}` });
    scroll.append(table);
    box.append(scroll);
    holder.replaceChildren(...(every > 1 ? [element("p", `Every ${every}th of ${rows.toLocaleString("en")} rows; --format csv has them all.`)] : []), box);
    addTableButtons(box);
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
    ..."&%$#_{}".split("").reduce((escapes, sign) => ({ ...escapes, [sign]: `\\${sign}` }), {}),
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

  // Adds the buttons that sort and copy a table.
  function addTableButtons(box) {
    const table = query("table", box);
    for (const header of table.tHead.rows[0].cells) {
      const button = element("button", header.textContent, { type: "button" });
      button.addEventListener("click", () => sort(header));
      header.replaceChildren(button);
    }
    const tools = element("div", "Copy as", { class: "tools" });
    const status = element("span", "", { role: "status" });
    for (const [name, write] of Object.entries(FORMATS)) {
      const button = element("button", name, { type: "button" });
      button.addEventListener("click", async () => {
        const cells = (row) => [...row.cells].map((cell) => ({ text: cell.textContent, number: cell.classList.contains("number") }));
        await copy(write([...table.rows].map(cells)) + "\n");
        status.textContent = `${name} copied`;
        setTimeout(() => (status.textContent = ""), 3000);
      });
      tools.append(button);
    }
    tools.append(status);
    query(".scroll", box).before(tools);
  }

  // Controls

  function toggle(button) {
    const index = Number(button.dataset.arm);
    const shown = !state.hidden.delete(index);
    if (shown) state.hidden.add(index);
    button.setAttribute("aria-pressed", String(!shown));
    draw();
  }

  function bindControl(id, name, value, redraw = draw) {
    const input = query(`#${id}`);
    input.addEventListener("input", () => {
      state[name] = value(input);
      redraw();
    });
    state[name] = value(input);
  }

  let frame = 0;
  const drawSoon = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };

  function start() {
    for (const box of queryAll(".table")) addTableButtons(box);
    const controls = query(".controls");
    if (controls) {
      controls.hidden = false;
      for (const button of queryAll(".arms button")) button.addEventListener("click", () => toggle(button));
      bindControl("x", "x", (input) => input.value, () => {
        zoom = null;
        draw();
      });
      bindControl("log", "log", (input) => input.checked, () => {
        zoom = null;
        draw();
      });
      bindControl("y", "y", (input) => input.value);
      bindControl("smooth", "smooth", (input) => Number(input.value), drawSoon);
      if (query("#seeds")) bindControl("seeds", "seeds", (input) => input.checked);
      query("#in").addEventListener("click", () => changeRange(0.5));
      query("#out").addEventListener("click", () => changeRange(2));
      query("#earlier").addEventListener("click", () => changeRange(1, -0.5));
      query("#later").addEventListener("click", () => changeRange(1, 0.5));
      query("#reset").addEventListener("click", () => zoomTo(null));
      for (const holder of queryAll(".plot")) {
        holder.addEventListener("keydown", onKey);
        // A screen reader announces the focused chart only, not those that move along with it.
        const live = (politeness) => () => query(".readout", holder.parentElement).setAttribute("aria-live", politeness);
        holder.addEventListener("focus", live("polite"));
        holder.addEventListener("blur", live("off"));
      }
      for (const details of queryAll("details.values")) {
        details.addEventListener("toggle", () => details.open && tabulate(details));
      }
      draw();
      let width = innerWidth;
      addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), drawSoon()));
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
      // On paper: in light colors, as wide as the paper.
      addEventListener("beforeprint", () => {
        root.dataset.theme = "light";
        isPrinting = true;
        draw();
      });
      addEventListener("afterprint", () => {
        delete root.dataset.theme;
        isPrinting = false;
        draw();
      });
    }
    // After the first frame, when the page is visible.
    requestAnimationFrame(() => setTimeout(() => (root.dataset.drawn = String(Math.round(performance.now())))));
  }

  start();
})();
