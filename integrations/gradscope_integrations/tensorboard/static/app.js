// The page: what can be chosen on top, one view below, looked after while training runs.
import * as api from "./api.js";
import {loadPlotly} from "./charts.js";
import {codeBox} from "./controls.js";
import {fill, h} from "./dom.js";
import {chosen, fullTitle, layerPicker, union} from "./layers.js";
import {runPicker} from "./picker.js";
import {change, followAddress, onChange, restoreAddress, state, VIEWS} from "./state.js";
import {followTheme} from "./theme.js";
import * as clipping from "./views/clipping.js";
import * as compare from "./views/compare.js";
import * as flow from "./views/flow.js";
import * as gates from "./views/gates.js";
import * as overview from "./views/overview.js";
import {coverage} from "./words.js";

const MOUNT = {
  overview: overview.mount,
  flow: flow.mount,
  gates: gates.mount,
  clipping: clipping.mount,
  compare: compare.mount,
};
const SIDE_BY_SIDE = 3;
const POLL_MS = 5000;
const RECORD =
  'import gradscope\n\nscope = gradscope.attach(model, logdir="runs/exp1")\n...  # your training loop, as it is\nscope.close()';

const mounted = new Map();
let [page, known, turn] = [null, {runs: []}, 0];

export function start(body) {
  document.head.append(
    ...["app", "figures"].map((name) => h("link", {rel: "stylesheet", href: `static/${name}.css`})),
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
  setInterval(() => document.visibilityState === "visible" && body.clientWidth > 0 && look(), POLL_MS);
}

function build(body) {
  const parts = {
    runs: runPicker((runs) => change({runs})),
    layers: layerPicker((layer) => change({layer})),
    coverage: h("p", {class: "coverage soft", "data-testid": "coverage"}),
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
    parts.main,
  );
  body.append(parts.root);
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

// Ask what there is.
async function refresh() {
  try {
    known = await api.json("runs");
    known.runs.forEach((run, place) =>
      Object.assign(run, {
        place,
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

// Look again; draw only if there is something new.
async function look() {
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
    tell(context);
    if (context.layer) await view(context).update(context);
    if (mine === turn) page.root.dataset.state = context.layer ? "ready" : "empty";
  } catch (error) {
    if (mine !== turn) return;
    message(h("p", {}, `This could not be shown: ${error.message}`));
    page.root.dataset.state = "error";
  }
}

// Everything a view needs to know.
function contextNow(current) {
  const readable = known.runs.filter((run) => !run.error);
  const asked = readable.filter((run) => state().runs?.includes(run.run));
  const latest = [...readable].sort((a, b) => b.state.time - a.state.time).slice(0, SIDE_BY_SIDE);
  const runs = asked.length ? asked : readable.filter((run) => latest.includes(run));
  const layers = union(runs);
  const layer = chosen(layers, state().layer);
  const has = (run, curve) => run.layers.some((each) => each.key === layer.key && each.curves.includes(curve));
  const titles = new Map(layers.map((each) => [each.key, fullTitle(each, layers)]));
  return {state: state(), runs, layers, layer, has, title: (key) => titles.get(key) ?? key, current};
}

function tell({runs, layers, layer}) {
  page.tabs.forEach((tab, place) => {
    const selected = Object.keys(VIEWS)[place] === state().view;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
  });
  page.chosen.hidden = page.main.hidden = !layer;
  page.runs.set(known.runs, runs);
  if (layer) page.layers.set(layers, layer);
  page.layers.root.hidden = state().view === "clipping"; // a model is clipped as a whole
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
  else if (layer) message(...broken.map((run) => h("p", {}, `${run.label}: ${run.error}`)), ...runs.flatMap(failures));
  else if (runs.length) message(h("p", {}, "Training has begun; the first recorded step is not here yet."));
  else message(...empty(), ...broken.map((run) => h("p", {}, `${run.label}: ${run.error}`)));
}

const failures = (run) =>
  run.state.failures.map((reason) => h("p", {}, `${run.label}: something could not be recorded (${reason})`));

function empty() {
  return [
    h("h2", {}, "Nothing has been recorded here yet"),
    h("p", {}, "Attach gradscope to a model with recurrent layers in it, and train as before:"),
    codeBox(RECORD),
    h(
      "p",
      {class: "soft"},
      "Steps appear here while training runs. TensorBoard must look at the same folder, or one above it.",
    ),
  ];
}

function message(...children) {
  page.message.hidden = children.length === 0;
  fill(page.message, children);
}

function view(context) {
  const name = context.state.view;
  if (!mounted.has(name)) {
    const section = h("section", {
      id: `view-${name}`,
      role: "tabpanel",
      class: "view",
      "aria-labelledby": `tab-${name}`,
      "data-testid": `view-${name}`,
    });
    page.main.append(section);
    mounted.set(name, {section, ...MOUNT[name](section)});
  }
  mounted.forEach(({section}, each) => (section.hidden = each !== name));
  return mounted.get(name);
}
