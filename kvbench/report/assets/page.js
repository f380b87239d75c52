"use strict";
// tables that sort and filter, and charts drawn from the rows in the page; nothing is loaded

const SVG = "http://www.w3.org/2000/svg";
const element = (name, attributes = {}, text) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const shape = (name, attributes = {}, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const known = (value) => typeof value === "number" && Number.isFinite(value);
const shown = (value) => {
  if (value === null || value === undefined || value === "") return "-";
  if (!known(value)) return String(value);
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 1000 ? 6 : 3 });
};
const distinct = (rows, column) => [...new Set(rows.map((row) => row[column]).filter((v) => v !== null && v !== undefined))];
const byValue = (a, b) => {
  const [x, y] = [a, b].map((v) => (known(v) ? v : parseFloat(v)));
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return (Number.isNaN(x) ? 0 : x - y) || String(a).localeCompare(String(b));
};

// ---- tables
const leading = (text) => {
  const match = text.replace(/[≤≥,$+\s]/g, "").match(/^-?\d*\.?\d+(e-?\d+)?/i);
  return match ? Number(match[0]) : NaN;
};
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = element("button", { type: "button", title: "sort" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const order = button.dataset.order === "up" ? "down" : "up";
      for (const other of heads) {
        delete other.firstChild.dataset.order;
        other.removeAttribute("aria-sort");
      }
      button.dataset.order = order;
      head.setAttribute("aria-sort", order === "up" ? "ascending" : "descending");
      const text = (row) => (row.cells[index] ? row.cells[index].textContent.trim() : "");
      const sign = order === "up" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [leading(text(a)), leading(text(b))];
        // what is not a number stays last in both orders
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
        return sign * (Number.isNaN(x) ? text(a).localeCompare(text(b)) : x - y);
      });
      body.replaceChildren(...rows);
    });
  });
  if (body.rows.length < 9 || table.dataset.filter === "no") return;
  const input = element("input", { type: "search", placeholder: "filter rows", "aria-label": "filter rows" });
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  const tools = element("div", { class: "tools" });
  tools.append(input);
  table.closest(".wide").before(tools);
}

// ---- charts
const MARKS = {
  o: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  s: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  "^": (r) => `M0,${-1.2 * r}L${1.15 * r},${r}H${-1.15 * r}z`,
  v: (r) => `M0,${1.2 * r}L${1.15 * r},${-r}H${-1.15 * r}z`,
  "<": (r) => `M${-1.2 * r},0L${r},${-1.15 * r}V${1.15 * r}z`,
  ">": (r) => `M${1.2 * r},0L${-r},${-1.15 * r}V${1.15 * r}z`,
  D: (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  P: (r) => `M${-r / 2},${-r}h${r}v${r / 2}h${r / 2}v${r}h${-r / 2}v${r / 2}h${-r}v${-r / 2}h${-r / 2}v${-r}h${r / 2}z`,
  h: (r) => `M0,${-1.2 * r}l${r},${0.6 * r}v${1.2 * r}l${-r},${0.6 * r}l${-r},${-0.6 * r}v${-1.2 * r}z`,
  "*": (r) => `M${[...Array(10).keys()].map((i) => {
    const [d, a] = [i % 2 ? 0.6 * r : 1.4 * r, (i * Math.PI) / 5];
    return `${(d * Math.sin(a)).toFixed(2)},${(-d * Math.cos(a)).toFixed(2)}`;
  }).join("L")}z`,
  X: (r) => `M${-r},${-r}l${r},${r * 0.6}l${r},${-r * 0.6}l${-r * 0.6},${r}l${r * 0.6},${r}l${-r},${-r * 0.6}l${-r},${r * 0.6}l${r * 0.6},${-r}z`,
};
const DASHES = { "-": "", "--": "6 3", "-.": "6 3 1.5 3", ":": "1.5 3" };
const mark = (look) => (MARKS[look.marker] || MARKS.o)(4);

function scale(values, log, low, high, pad) {
  let [from, to] = [Math.min(...values), Math.max(...values)];
  const f = log ? Math.log10 : (v) => v;
  if (from === to) [from, to] = log ? [from / 2, to * 2] : [from - 0.5, to + 0.5];
  const extra = pad * (f(to) - f(from));
  const [a, b] = [f(from) - extra, f(to) + extra];
  const place = (v) => low + ((f(v) - a) / (b - a)) * (high - low);
  const ticks = [];
  if (log) {
    const wide = b - a > 2.2;
    for (let e = Math.floor(a); e <= Math.ceil(b); e++)
      for (const m of wide ? [1] : b - a < 0.7 ? [1, 1.5, 2, 3, 5, 7] : [1, 2, 5]) ticks.push(m * 10 ** e);
  } else {
    const raw = (b - a) / 4;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * ([1, 2, 5, 10].find((m) => m * unit >= raw) || 10);
    for (let t = Math.ceil(a / step) * step; t <= b + 1e-12; t += step) ticks.push(Number(t.toPrecision(12)));
  }
  return { place, ticks: ticks.filter((t) => f(t) >= a - 1e-9 && f(t) <= b + 1e-9) };
}

function panel(spec, state, title, rows) {
  const { x, y } = state;
  const [lowKey, highKey] = spec.intervals[y] || [];
  const floor = spec.columns[y].log ? spec.columns[y].floor || 1e-6 : -Infinity;
  const clip = (v) => Math.max(v, floor);
  const drawn = rows.filter((row) => known(row[x]) && known(row[y]) && (!spec.columns[x].log || row[x] > 0));
  const [width, height, left, right, top, bottom] = [420, 300, 52, 14, 30, 46];
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  svg.append(shape("text", { x: left, y: 18 }, title));
  if (!drawn.length) {
    svg.append(shape("text", { x: left, y: height / 2, class: "soft" }, "nothing to draw here"));
    return svg;
  }
  const ends = drawn.flatMap((row) => [row[y], row[lowKey], row[highKey]].filter(known).map(clip));
  const bounds = spec.columns[y].range || [];
  const xs = scale(drawn.map((row) => row[x]), spec.columns[x].log, left, width - right, 0.06);
  const ys = scale([...ends, ...bounds], spec.columns[y].log, height - bottom, top, 0.05);
  for (const tick of xs.ticks) {
    svg.append(shape("line", { class: "grid", x1: xs.place(tick), x2: xs.place(tick), y1: top, y2: height - bottom }));
    svg.append(shape("text", { class: "soft", x: xs.place(tick), y: height - bottom + 15, "text-anchor": "middle" }, shown(tick)));
  }
  for (const tick of ys.ticks) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: ys.place(tick), y2: ys.place(tick) }));
    svg.append(shape("text", { class: "soft", x: left - 6, y: ys.place(tick) + 4, "text-anchor": "end" }, shown(tick)));
  }
  svg.append(shape("text", { class: "soft", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, spec.columns[x].label));
  const label = shape("text", { class: "soft", transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.columns[y].label);
  svg.append(label);
  for (const row of drawn.filter((one) => one.reference)) {
    const at = ys.place(clip(row[y]));
    if (known(row[lowKey]) && known(row[highKey])) {
      const [a, b] = [ys.place(clip(row[highKey])), ys.place(clip(row[lowKey]))];
      svg.append(shape("rect", { class: "band", x: left, y: a, width: width - right - left, height: Math.max(b - a, 0) }));
    }
    if (row[y] > floor) svg.append(shape("line", { class: "dense", x1: left, x2: width - right, y1: at, y2: at }));
  }
  const hits = [];
  for (const name of spec.order) {
    const points = drawn.filter((row) => row[spec.series] === name).sort((a, b) => a[x] - b[x]);
    if (!points.length || state.hidden.has(name)) continue;
    const look = spec.styles[name] || { colour: "#888888", marker: "o", line: "-" };
    const colour = points[0].reference ? "var(--dense)" : look.colour;
    const at = points.map((row) => [xs.place(row[x]), ys.place(clip(row[y]))]);
    const line = shape("path", { d: `M${at.map((p) => p.join(",")).join("L")}`, fill: "none", "stroke-width": 1.5, "stroke-dasharray": DASHES[look.line] || "" });
    line.style.stroke = colour;
    if (points.length > 1 && state.lines) svg.append(line);
    points.forEach((row, index) => {
      const [px, py] = at[index];
      if (known(row[lowKey]) && known(row[highKey]) && !row.reference) {
        const whisker = shape("line", { x1: px, x2: px, y1: ys.place(clip(row[lowKey])), y2: ys.place(clip(row[highKey])), opacity: 0.45 });
        whisker.style.stroke = colour;
        svg.append(whisker);
      }
      const dot = shape("path", { d: mark(look), transform: `translate(${px} ${py})` });
      dot.style.fill = colour;
      svg.append(dot);
      const hit = shape("circle", { class: "hit", cx: px, cy: py, r: 9, tabindex: 0, "aria-label": tip(spec, row) });
      hit.addEventListener("pointerenter", () => show(hit, tip(spec, row)));
      hit.addEventListener("pointerleave", hide);
      hit.addEventListener("focus", () => show(hit, tip(spec, row)));
      hit.addEventListener("blur", hide);
      hits.push(hit);
    });
  }
  svg.append(...hits);
  return svg;
}

const tip = (spec, row) => spec.hover.filter((key) => row[key] !== null && row[key] !== undefined && row[key] !== "")
  .map((key) => `${spec.columns[key].label}: ${value(spec, row, key)}`).join("\n");
const value = (spec, row, key) => {
  const [low, high] = (spec.intervals[key] || []).map((bound) => row[bound]);
  return known(low) && known(high) ? `${shown(row[key])} [${shown(low)}, ${shown(high)}]` : shown(row[key]);
};
const bubble = document.getElementById("tip");
function show(target, text) {
  bubble.textContent = text;
  bubble.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.min(box.right + 6, document.documentElement.clientWidth - bubble.offsetWidth - 8);
  bubble.style.left = `${Math.max(left, 4) + scrollX}px`;
  bubble.style.top = `${Math.max(box.top - bubble.offsetHeight - 6, 4) + scrollY}px`;
}
function hide() {
  bubble.hidden = true;
}

function explore(root) {
  const spec = JSON.parse(root.querySelector("script").textContent);
  const state = { x: spec.x[0], y: spec.y[0], filters: {}, hidden: new Set(), lines: spec.lines };
  const charts = spec.y.length && !spec.pivot.length;
  spec.order = distinct(spec.rows, spec.series);
  const [tools, panels, legend, grid] = ["tools", "panels", "legend", "wide"].map((name) => element("div", { class: name }));
  const choose = (label, options, current, change) => {
    const box = element("label", {}, label);
    const select = element("select", { "aria-label": label });
    for (const [key, text] of options) select.append(element("option", { value: String(key) }, text));
    select.value = String(current);
    select.addEventListener("change", () => { change(select.value); draw(); });
    box.append(select);
    tools.append(box);
  };
  const axis = (key) => [key, spec.columns[key].label];
  if (spec.y.length > 1) choose(charts ? "up" : "what", spec.y.map(axis), state.y, (key) => { state.y = key; });
  if (charts && spec.x.length > 1) choose("across", spec.x.map(axis), state.x, (key) => { state.x = key; });
  for (const key of spec.filters) {
    const values = distinct(spec.rows, key).sort(byValue);
    if (values.length < 2) continue;
    const options = [["", "all"], ...values.map((v) => [v, shown(v)])];
    const first = spec.chosen[key] ?? "";
    state.filters[key] = String(first);
    choose(spec.columns[key].label, options, first, (chosen) => { state.filters[key] = chosen; });
  }
  root.append(tools, ...(charts ? [panels, legend] : []), grid);
  for (const name of spec.order) {
    const look = spec.styles[name] || { colour: "#888888", marker: "o" };
    const button = element("button", { type: "button", "aria-pressed": "true", title: "click: hide or show; double click: alone" });
    const icon = shape("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12" });
    const dot = shape("path", { d: mark(look) });
    dot.style.fill = spec.rows.some((row) => row.reference && row[spec.series] === name) ? "var(--dense)" : look.colour;
    icon.append(dot);
    button.append(icon, name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      draw();
    });
    button.addEventListener("dblclick", () => {
      state.hidden = new Set(spec.order.filter((other) => other !== name));
      draw();
    });
    legend.append(button);
  }
  function draw() {
    hide();
    const chosen = Object.entries(state.filters).filter(([, wanted]) => wanted !== "");
    // the reference has no budget and belongs to every choice of one
    const rows = spec.rows.filter((row) => chosen.every(([key, wanted]) => String(row[key]) === wanted
      || (row.reference && spec.loose.includes(key))));
    const groups = new Map();
    for (const row of rows) {
      const name = title(row, spec.panel);
      groups.set(name, [...(groups.get(name) || []), row]);
    }
    if (charts) panels.replaceChildren(...[...groups].map(([name, group]) => panel(spec, state, name, group)));
    [...legend.children].forEach((button, index) => {
      button.setAttribute("aria-pressed", String(!state.hidden.has(spec.order[index])));
      button.hidden = !rows.some((row) => row[spec.series] === spec.order[index]);
    });
    (spec.pivot.length ? pivot : tabulate)(rows.filter((row) => !state.hidden.has(row[spec.series])));
  }
  const title = (row, keys) => keys.map((key) => `${spec.columns[key].prefix || ""}${shown(row[key])}${spec.columns[key].suffix || ""}`).join(", ");
  function fill(heads, lines) {
    const line = element("tr");
    line.append(...heads.map(([text, kind]) => element("th", { scope: "col", class: kind }, text)));
    table.createTHead().replaceChildren(line);
    const body = element("tbody");
    for (const cells of lines) {
      const one = element("tr");
      one.append(...cells.map(([text, kind]) => element("td", { class: kind }, text)));
      body.append(one);
    }
    if (table.tBodies.length) table.tBodies[0].replaceWith(body);
    else table.append(body);
    sortable(table);
  }
  // a row per series and a column per combination; of several values of one place their mean, best rows first
  function pivot(rows) {
    const places = [...new Set(rows.map((row) => title(row, spec.pivot)))].sort();
    const mean = (some) => some.reduce((sum, row) => sum + row[state.y], 0) / some.length;
    const lines = spec.order.map((name) => {
      const own = rows.filter((row) => row[spec.series] === name && known(row[state.y]));
      const of = (place) => own.filter((row) => title(row, spec.pivot) === place);
      const means = places.map((place) => of(place)).filter((some) => some.length).map(mean);
      const cells = places.map((place) => {
        const some = of(place);
        if (some.length === 1) return [value(spec, some[0], state.y), `number ${some[0][spec.marks[state.y]] || ""}`.trim()];
        return [some.length ? `${shown(mean(some))} (${some.length})` : "-", "number"];
      });
      const average = means.length === places.length ? means.reduce((a, b) => a + b, 0) / means.length : NaN;
      return { name, average, cells, empty: !own.length };
    });
    const sign = spec.columns[state.y].log ? 1 : -1;
    const order = (line) => (known(line.average) ? sign * line.average : Infinity);
    lines.sort((a, b) => order(a) - order(b));
    fill([["method", ""], ["mean of the columns", "number"], ...places.map((place) => [place, "number"])],
      lines.filter((line) => !line.empty).map((line) => [[line.name, ""], [shown(known(line.average) ? line.average : null), "number"], ...line.cells]));
  }
  const folds = spec.folded.length > 0;
  const table = element("table", { class: folds ? "sortable folded" : "sortable", "data-filter": "no" });
  if (folds) {
    const more = element("button", { type: "button" }, "more columns");
    more.addEventListener("click", () => {
      more.textContent = table.classList.toggle("folded") ? "more columns" : "fewer columns";
    });
    tools.append(more);
  }
  grid.append(table);
  function tabulate(rows) {
    const number = (key) => spec.rows.every((row) => row[key] === null || row[key] === undefined || known(row[key]));
    const kinds = spec.table.map((key) => [number(key) ? "number" : spec.columns[key].text ? "text" : "", spec.folded.includes(key) ? "fold" : ""].join(" ").trim());
    const marked = (row, key) => (spec.marks[key] && row[spec.marks[key]]) || "";
    fill(spec.table.map((key, index) => [spec.columns[key].label, kinds[index]]),
      rows.map((row) => spec.table.map((key, index) => [value(spec, row, key), `${kinds[index]} ${marked(row, key)}`.trim()])));
  }
  draw();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".explorer").forEach(explore);
