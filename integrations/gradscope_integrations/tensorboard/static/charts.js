// One figure: title, a line on how to read it, the picture, its tools, and what it leaves out.
import * as csv from "./csv.js";
import {download, fill, h, plain} from "./dom.js";
import {pagedTable} from "./table.js";
import {tones} from "./theme.js";
import {leave, stay, walkable} from "./walk.js";

const CONFIG = {displayModeBar: false, displaylogo: false, doubleClick: "reset", showTips: false, responsive: false};

let [library, wanted] = [Promise.resolve(null), null];
const resized = new ResizeObserver((entries) => {
  for (const {target, contentRect} of entries) {
    if (target.drawn && contentRect.width > 0 && Math.abs(contentRect.width - target.drawn) > 1) {
      target.drawn = contentRect.width;
      window.Plotly.Plots.resize(target);
    }
  }
});

export function loadPlotly(version) {
  if (!version || version === wanted) return;
  wanted = version;
  library = new Promise((resolve) => {
    const script = h("script", {src: `plotly.min.js?v=${encodeURIComponent(version)}`});
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => resolve(null));
    document.head.append(script);
  });
}

// A figure in its own place; with `walks`, its view handles the keyboard itself.
export function figure(parent, id, {wide = false, run, walks = false} = {}) {
  const parts = {
    title: h("h3"),
    hint: h("p", {class: "hint"}),
    plot: h("div", {class: "plot"}),
    walked: h("output", {class: "readout walked", hidden: true, "aria-live": "polite", "data-testid": `${id}-walked`}),
    say: h("p", {class: "say", hidden: true}),
    below: h("div", {class: "below"}),
    notes: h("div", {class: "notes"}),
    table: h("div"),
  };
  const file = [id, run?.label]
    .filter(Boolean)
    .join("-")
    .replace(/[^\w.-]+/g, "_");
  const it = {id, file, parts, columns: null, listeners: {}};
  it.tools = tools(it);
  const {title, hint, ...rest} = parts;
  const named = {"data-testid": `figure-${id}`, "data-state": "loading"};
  const head = h("header", {}, title, it.tools, hint);
  it.root = h("figure", {class: wide ? "figure wide" : "figure", ...named}, head, Object.values(rest));
  parent.append(it.root);
  if (!walks) walkable(it);
  return it;
}

// The buttons of a figure; the first appears while it is zoomed.
function tools(it) {
  const tool = (label, title, onclick) => {
    const marker = `${it.id}-${label.toLowerCase()}`;
    return h("button", {class: "quiet", type: "button", title, "data-testid": marker, onclick}, label);
  };
  it.zoomButton = tool("Reset zoom", "show all again", () => reset(it));
  it.zoomButton.hidden = true;
  return h(
    "div",
    {class: "tools"},
    it.zoomButton,
    tool("PNG", "save as picture", () => png(it)),
    tool("CSV", "save the numbers", () => csv.save(`${it.file}.csv`, it.columns())),
    tool("Table", "show the numbers", () => toggleTable(it)),
  );
}

export function describe(it, title, hint) {
  it.parts.title.textContent = title;
  it.parts.hint.textContent = hint;
  it.parts.plot.setAttribute("aria-label", `${title}. ${hint}`);
}

// Draw; columns is a function that returns the numbers as [{name, values}], notes are sentences.
export async function draw(it, traces, layout, columns, notes = []) {
  const Plotly = await library;
  it.columns = columns;
  if (!Plotly) return say(it, "TensorBoard's environment lacks Plotly; get it with: pip install plotly", true);
  it.parts.plot.hidden = false;
  it.parts.say.hidden = true;
  it.tools.hidden = false;
  it.ranges = Object.fromEntries(
    Object.entries(layout)
      .filter(([name]) => /^[xy]axis/.test(name))
      .map(([name, axis]) => [name, axis.range && [...axis.range]]),
  );
  await Plotly.react(it.parts.plot, traces, layout, CONFIG);
  if (!it.parts.plot.drawn) connect(it);
  it.parts.plot.drawn = it.parts.plot.clientWidth;
  stay(it);
  note(it, notes);
  if (it.open) fill(it.parts.table, pagedTable(columns(), it.parts.title.textContent));
  it.root.dataset.state = "ready";
}

export function note(it, sentences) {
  fill(
    it.parts.notes,
    sentences.map((sentence) => h("p", {}, sentence)),
  );
}

// Move lines and zoom without drawing the data again.
export async function adjust(it, layout) {
  const Plotly = await library;
  if (Plotly && it.parts.plot.drawn) await Plotly.relayout(it.parts.plot, layout);
}

// Words in place of a picture.
export function say(it, text, keepTools = false) {
  leave(it);
  it.parts.plot.hidden = true;
  it.tools.hidden = !keepTools;
  it.parts.say.hidden = false;
  it.parts.say.textContent = text;
  note(it, []);
  fill(it.parts.table);
  it.open = false;
  it.drawn = null;
  it.root.dataset.state = "empty";
}

export function forget(it) {
  resized.unobserve(it.parts.plot);
  if (it.parts.plot.drawn) window.Plotly.purge(it.parts.plot);
  it.root.remove();
}

function connect(it) {
  const {plot} = it.parts;
  resized.observe(plot);
  plot.on("plotly_click", (event) => it.listeners.click?.(event.points[0]));
  plot.on("plotly_hover", (event) => it.listeners.hover?.(event.points[0]));
  plot.on("plotly_unhover", () => it.listeners.leave?.());
  plot.on("plotly_doubleclick", () => reset(it));
  plot.on("plotly_relayout", (event) => {
    const keys = Object.keys(event);
    if (keys.some((key) => /axis\d*\.range/.test(key))) it.zoomButton.hidden = false;
    if (keys.some((key) => /axis\d*\.autorange/.test(key))) it.zoomButton.hidden = true;
    it.listeners.zoom?.(event);
  });
}

// The first ranges again.
async function reset(it) {
  if (it.listeners.reset) return it.listeners.reset();
  const {plot} = it.parts;
  const axes = Object.keys(plot.layout).filter((name) => /^[xy]axis\d*$/.test(name));
  await window.Plotly.relayout(plot, Object.assign({}, ...axes.map((name) => whole(name, it.ranges[name]))));
  it.zoomButton.hidden = true;
}

const whole = (name, range) => (range ? {[`${name}.range`]: [...range]} : {[`${name}.autorange`]: true});

async function png(it) {
  const {plot} = it.parts;
  const title = {
    text: plain(it.parts.title.textContent),
    x: 0.02,
    xanchor: "left",
    y: 0.98,
    yanchor: "top",
    font: {size: 15, color: tones().ink},
  };
  const layout = {
    ...plot.layout,
    title,
    margin: {...plot.layout.margin, t: (plot.layout.margin?.t ?? 10) + 44},
    height: plot.clientHeight + 44,
  };
  const address = await window.Plotly.toImage(
    {data: plot.data, layout, config: CONFIG},
    {format: "png", width: plot.clientWidth, height: plot.clientHeight + 44, scale: 2},
  );
  download(`${it.file}.png`, address);
}

function toggleTable(it) {
  it.open = !it.open;
  fill(it.parts.table, it.open && it.columns ? pagedTable(it.columns(), it.parts.title.textContent) : []);
}
