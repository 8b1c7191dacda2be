// Where the gradient dies or blows up: training step by timestep, and the profile of one step.
import * as api from "../api.js";
import {adjust, figure, forget} from "../charts.js";
import {select, slider, nearest} from "../controls.js";
import {fill, h} from "../dom.js";
import {count, number} from "../format.js";
import {columns} from "../panels.js";
import {change, state} from "../state.js";
import {axisTitle, drawable, groupOf, quantity, rowsOf, rowTitle} from "../words.js";
import {cursor, drawHeat, scaleOf, stepAt} from "./heat.js";
import {drawProfile} from "./profile.js";
import {drawSpectra} from "./spectra.js";

export function mount(parent) {
  const curve = select("curve", "Quantity", (value) =>
    change({curve: value, row: undefined, zoom: undefined, t: undefined}),
  );
  const row = select("row", "Statistic", (value) => change({row: value}));
  const step = slider(
    "step",
    "Training step",
    (value) => change({step: value}),
    (value) => count(value),
  );
  const readout = h("output", {class: "readout", "data-testid": "readout", "aria-live": "polite"});
  parent.append(h("div", {class: "row controls"}, curve.root, row.root, step.root), readout);
  const perRun = columns(parent, (element, run) => panel(element, run));
  return {
    async update(context) {
      const view = chosen(context);
      curve.set(
        view.curves.map((each) => [each, quantity(each).title, groupOf(each)]),
        view.curve,
      );
      row.set(
        rowsOf(view.curve).map((each) => [each, rowTitle(each)]),
        view.row,
      );
      const heats = await Promise.all(context.runs.map((run) => heat(run, view, context)));
      if (!context.current()) return;
      const steps = [...new Set(heats.flatMap((each) => (each ? [...each.arrays.steps] : [])))].sort((a, b) => a - b);
      step.set(steps, context.state.step);
      view.rows = Math.max(...heats.map((each) => each?.arrays.steps.length ?? 0));
      view.step = steps[nearest(steps, context.state.step)];
      const profiles = await Promise.all(context.runs.map((run) => profile(run, view, context)));
      if (!context.current()) return;
      readOut(readout, context, view, profiles);
      await Promise.all(
        perRun(context.runs, (run) => layerOf(run, context)).map((made, place) =>
          drawPanel(made, context.runs[place], heats, profiles, place, view, context),
        ),
      );
    },
  };
}

function panel(element, run) {
  const made = {
    heat: figure(element, "heatmap", {run, walks: true}),
    profile: figure(element, "profile", {run}),
    spectra: figure(element, "spectra", {run}),
  };
  const {plot} = made.heat.parts;
  Object.entries({tabindex: "0", role: "group"}).forEach(([name, value]) => plot.setAttribute(name, value));
  plot.addEventListener("keydown", (event) => made.walk?.(event));
  made.heat.listeners.click = (point) => change({t: point.x, step: made.steps[point.y]});
  made.profile.listeners.click = (point) => change({t: point.x});
  made.heat.listeners.zoom = made.profile.listeners.zoom = (event) => zoomed(event, made);
  made.heat.listeners.reset = made.profile.listeners.reset = () => change({zoom: undefined});
  made.drop = () => [made.heat, made.profile, made.spectra].forEach(forget);
  return made;
}

// The shown layer of a run, if runs show different layers.
function layerOf(run, {runs, layer, title}) {
  const differ = new Set(runs.map((each) => layer(each)?.key)).size > 1;
  return differ && layer(run) ? title(layer(run).key) : "";
}

// The chosen curve and row, or the defaults.
function chosen(context) {
  const curves = drawable([...new Set(context.runs.flatMap((run) => context.layer(run)?.curves ?? []))]);
  const wanted = context.state.curve;
  const curve = curves.includes(wanted) ? wanted : curves.includes("grad_h") ? "grad_h" : curves[0];
  const row = rowsOf(curve).includes(context.state.row) ? context.state.row : rowsOf(curve)[0];
  return {curves, curve, row, about: quantity(curve), zoom: context.state.zoom};
}

const tagOf = (run, curve, context) => (context.has(run, curve) ? `${curve}/${context.layer(run).key}` : null);

function heat(run, {curve, row, zoom}, context) {
  const tag = tagOf(run, curve, context);
  const [t_from, t_to, from, to] = zoom ?? [];
  return tag && api.block("heatmap", {run: run.run, tag, row, t_from, t_to, from, to}, run.stamp);
}

function profile(run, {curve, step}, context) {
  const tag = tagOf(run, curve, context);
  return tag && api.block("profile", {run: run.run, tag, step}, run.stamp);
}

async function drawPanel(made, run, heats, profiles, place, view, context) {
  const [result, line] = [heats[place], profiles[place]];
  const scale = scaleOf(heats, view);
  made.steps = result ? [...result.arrays.steps] : [];
  made.walk = (event) => walk(event, made.steps, line ? [...line.arrays.positions] : [], view.step);
  await drawHeat(made.heat, run, result, scale, view, context);
  await drawProfile(made.profile, line, profiles, view, context);
  await drawSpectra(made.spectra, run, view, context);
  await adjust(made.heat, {shapes: cursor(made.steps, line?.head.step, context.state.t)});
}

// Arrow keys move through steps and timesteps.
function walk(event, steps, positions, step) {
  const move = {ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key];
  if (!move) return;
  event.preventDefault();
  const next = (values, at, by) => values[Math.min(values.length - 1, Math.max(0, at + by))];
  const {t} = state();
  if (move[0]) change({step: next(steps, nearest(steps, step), move[0])});
  else change({t: next(positions, t === undefined ? positions.length : nearest(positions, t), move[1])});
}

// A zoom in the picture requests its range from the server.
function zoomed(event, made) {
  const range = (name) =>
    event[`${name}.range[0]`] === undefined
      ? event[`${name}.range`]
      : [event[`${name}.range[0]`], event[`${name}.range[1]`]];
  const layout = made.heat.parts.plot.layout;
  const [x, y] = [range("xaxis"), range("yaxis")];
  const steps = (y ?? layout.yaxis.range).map((height) => stepAt(made.steps, height));
  if (x) change({zoom: [...x.map((t) => Number(t.toFixed(2))), ...steps]});
}

function readOut(readout, context, {curve, row}, profiles) {
  const {t} = context.state;
  const parts = context.runs.flatMap((run, place) => {
    const result = profiles[place];
    if (!result) return [];
    const {positions, ...values} = result.arrays;
    const at = t === undefined ? -1 : positions.indexOf(t);
    const name = context.runs.length > 1 ? `${run.label}: ` : "";
    const where = `${name}step ${count(result.head.step)}`;
    if (at < 0)
      return t === undefined
        ? [h("b", {}, `${where}. `)]
        : [h("span", {}, h("b", {}, `${where}: nothing at ${axisTitle(result.head.axis)} ${t}`))];
    const rows = rowsOf(curve).map((each) =>
      h(
        "span",
        {"data-row": each, class: each === row ? "strong" : ""},
        `${rowTitle(each)} `,
        h("b", {}, number(values[each][at])),
      ),
    );
    return [
      h(
        "span",
        {"data-run": run.run, "data-step": result.head.step, "data-t": t},
        h("b", {class: "name"}, `${where}, ${result.head.axis} ${t}`),
        rows,
      ),
    ];
  });
  const hint =
    t === undefined
      ? h("span", {class: "soft"}, "Click the picture, or focus it and use the arrow keys, to read values.")
      : null;
  fill(readout, hint ? h("span", {}, parts, " ", hint) : parts);
}
