// The page: controls on top, one view below, updated during a training.
import * as api from "./api.js";
import {loadPlotly} from "./charts.js";
import {codeBox} from "./controls.js";
import {fill, h} from "./dom.js";
import {choose, chosen, fullTitle, layerPickers, union} from "./layers.js";
import {runPicker} from "./picker.js";
import {change, followAddress, onChange, restoreAddress, state, VIEWS} from "./state.js";
import {COLOURS, followTheme} from "./theme.js";
import * as clipping from "./views/clipping.js";
import * as compare from "./views/compare.js";
import * as flow from "./views/flow.js";
import * as gates from "./views/gates.js";
import * as overview from "./views/overview.js";
import * as table from "./views/runs.js";
import * as timeline from "./views/timeline.js";
import {coverage} from "./words.js";

const MOUNT = {
  overview: overview.mount,
  flow: flow.mount,
  gates: gates.mount,
  clipping: clipping.mount,
  compare: compare.mount,
  runs: table.mount,
};
const TIMED = ["overview", "flow", "gates"]; // views of one step
const SIDE_BY_SIDE = 3;
const MOST_RUNS = 100; // at the start of the page
const POLL_MS = 5000;
const RECORD =
  'import gradscope\n\nscope = gradscope.attach(model, logdir="runs/exp1")\n...  # your training loop\nscope.close()';

const mounted = new Map();
let [page, known, turn] = [null, {runs: []}, 0];
let [pointed, following] = [undefined, null];

export function start(body) {
  document.head.append(
    ...["app", "figures", "runs"].map((name) => h("link", {rel: "stylesheet", href: `static/${name}.css`})),
    h("meta", {name: "viewport", content: "width=device-width"}),
  );
  document.documentElement.lang = "en";
  document.title = "Gradscope";
  page = build(body);
  followTheme(update);
  followAddress();
  onChange(update);
  new ResizeObserver(() => body.clientWidth > 0 && restoreAddress()).observe(body);
  refresh().then(update);
  setInterval(() => document.visibilityState === "visible" && body.clientWidth > 0 && poll(), POLL_MS);
}

function build(body) {
  const parts = {
    runs: runPicker((runs) => change({runs})),
    layers: layerPickers((run, key) => change({layer: choose(run, key, state().layer)})),
    coverage: h("p", {class: "coverage soft", "data-testid": "coverage"}),
    time: h("section", {class: "time", "aria-label": "Over training"}),
    main: h("main"),
    message: h("div", {class: "message", hidden: true}),
  };
  parts.tabs = Object.entries(VIEWS).map(([name, title]) =>
    h(
      "button",
      {
        role: "tab",
        type: "button",
        id: `tab-${name}`,
        "aria-controls": `view-${name}`,
        "data-testid": `tab-${name}`,
        onclick: () => change({view: name, zoom: undefined}),
      },
      title,
    ),
  );
  const tabs = h("nav", {role: "tablist", "aria-label": "Views", onkeydown: walk}, parts.tabs);
  parts.chosen = h("div", {class: "row chosen"}, parts.runs.root, parts.layers.root);
  parts.root = h(
    "div",
    {class: "page", "data-testid": "gradscope", "data-state": "loading"},
    h("div", {class: "top"}, tabs, parts.chosen, parts.coverage),
    parts.message,
    parts.time,
    parts.main,
  );
  body.append(parts.root);
  parts.timeline = timeline.mount(parts.time, point);
  return parts;
}

// Arrow keys go from tab to tab.
function walk(event) {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const place = page.tabs.indexOf(document.activeElement);
  if (!step || place < 0) return;
  const next = page.tabs[(place + step + page.tabs.length) % page.tabs.length];
  next.focus();
  next.click();
}

// Fetch the list of runs.
async function refresh() {
  try {
    known = await api.json("runs");
    known.runs.forEach((run, place) =>
      Object.assign(run, {
        place,
        tint: place,
        layers: run.layers ?? [],
        live: run.state && !run.state.closed,
        stamp: JSON.stringify(run.state),
      }),
    );
    known.failed = false;
    loadPlotly(known.plotly);
  } catch (error) {
    known.failed = `TensorBoard does not answer: ${error.message}`;
  }
}

// Fetch again; draw only new data.
async function poll() {
  const stamps = () => JSON.stringify([known.failed, known.runs.map((run) => [run.run, run.stamp])]);
  const before = stamps();
  await refresh();
  if (stamps() !== before) await update();
}

async function update() {
  const mine = (turn += 1);
  page.root.dataset.state = "loading";
  page.root.dataset.view = state().view;
  const context = contextNow(() => mine === turn);
  try {
    showControls(context);
    const above = page.time.hidden ? null : page.timeline.update(context);
    if (context.layers.length) await Promise.all([above, view(context).update(context)]);
    if (mine === turn) page.root.dataset.state = context.layers.length ? "ready" : "empty";
  } catch (error) {
    if (mine !== turn) return;
    message(h("p", {}, `The page cannot show this: ${error.message}`));
    page.root.dataset.state = "error";
  }
}

// The pointer is on a step of the time axis, or has left it: the views below follow, one drawing at a time.
function point(step) {
  pointed = step;
  following ??= follow().finally(() => (following = null));
}

async function follow() {
  let drawn = NaN;
  while (drawn !== pointed) {
    const mine = turn;
    drawn = pointed;
    const context = contextNow(() => mine === turn);
    if (TIMED.includes(context.state.view) && !context.many) await view(context).update(context);
  }
}

// The context of a view.
function contextNow(current) {
  const readable = known.runs.filter((run) => !run.error);
  const requested = readable.filter((run) => state().runs?.includes(run.run));
  const latest = [...readable].sort((a, b) => b.state.time - a.state.time).slice(0, MOST_RUNS);
  const runs = requested.length ? requested : readable.filter((run) => latest.includes(run));
  const layers = union(runs);
  const titles = new Map(layers.map((each) => [each.key, fullTitle(each, layers)]));
  tint(runs);
  const picked = chosen(runs, readable, state().layer);
  return {
    state: {...state(), step: pointed ?? state().step},
    runs,
    many: runs.length > SIDE_BY_SIDE && state().view !== "compare",
    layers,
    layer: (run) => picked.get(run.run),
    has: (run, curve) => Boolean(picked.get(run.run)?.curves.includes(curve)),
    title: (key) => titles.get(key) ?? key,
    current,
  };
}

// Colours by place; a few runs side by side have different colours.
function tint(runs) {
  const used = new Set();
  for (const run of runs) {
    const places = [run.place, ...Array(COLOURS).keys()];
    run.tint = runs.length > SIDE_BY_SIDE ? run.place : places.find((place) => !used.has(place % COLOURS));
    used.add(run.tint % COLOURS);
  }
}

function showControls({runs, many, layers, layer}) {
  page.tabs.forEach((tab, place) => {
    const selected = Object.keys(VIEWS)[place] === state().view;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
  });
  page.chosen.hidden = page.main.hidden = !layers.length;
  page.time.hidden = !layers.length || many || !TIMED.includes(state().view);
  page.runs.set(known.runs, runs);
  page.layers.set(runs, layers, layer);
  page.layers.root.hidden = many || state().view === "clipping"; // clipping concerns a model as a whole
  page.coverage.hidden = runs.length > SIDE_BY_SIDE;
  fill(
    page.coverage,
    runs.map((run) =>
      h(
        "span",
        {},
        runs.length > 1 ? `${run.label}: ` : "",
        coverage(run),
        run.live ? h("b", {class: "live"}, "live") : null,
      ),
    ),
  );
  const broken = known.runs.filter((run) => run.error);
  if (known.failed) message(h("p", {}, known.failed));
  else if (layers.length)
    message(...broken.map((run) => h("p", {}, `${run.label}: ${run.error}`)), ...runs.flatMap(failures));
  else if (runs.length) message(h("p", {}, "The training has begun; its first recorded step is not here yet."));
  else message(...empty(), ...broken.map((run) => h("p", {}, `${run.label}: ${run.error}`)));
}

const failures = (run) =>
  run.state.failures.map((reason) => h("p", {}, `${run.label}: recording failed (${reason})`));

function empty() {
  return [
    h("h2", {}, "Nothing has been recorded here yet"),
    h("p", {}, "Attach gradscope to a model with recurrent layers, and train as before:"),
    codeBox(RECORD),
    h(
      "p",
      {class: "soft"},
      "Steps appear here during the training. TensorBoard must read the same folder, or one above it.",
    ),
  ];
}

function message(...children) {
  page.message.hidden = children.length === 0;
  fill(page.message, children);
}

function view(context) {
  const name = context.many ? "runs" : context.state.view;
  if (!mounted.has(name)) {
    const section = h("section", {
      id: `view-${name}`,
      role: "tabpanel",
      class: "view",
      "aria-labelledby": `tab-${context.state.view}`,
      "data-testid": `view-${name}`,
    });
    page.main.append(section);
    mounted.set(name, {section, ...MOUNT[name](section)});
  }
  mounted.forEach(({section}, each) => (section.hidden = each !== name));
  return mounted.get(name);
}
