// Saturation of the gates over training, and unit by unit at one step.
import * as api from "../api.js";
import {describe, draw, figure, say} from "../charts.js";
import {nearest, slider} from "../controls.js";
import {gathered} from "../csv.js";
import {h, plain} from "../dom.js";
import {count} from "../format.js";
import {overSteps, reference} from "../lines.js";
import {change} from "../state.js";
import {axis, colour, tones, wholeAxis} from "../theme.js";
import {axes, frame, inTile} from "../tiles.js";
import {onlyStep} from "../words.js";
import {legend} from "./look.js";
import {drawRadius, drawUpdate} from "./weights.js";

const LIMITS =
  "A sigmoid gate is at its limits below 0.1 (closed) and above 0.9 (open), a tanh below −0.9 and above 0.9, a ReLU where it is 0.";

export function mount(parent) {
  const over = figure(parent, "saturation", {wide: true});
  const step = slider(
    "unit-step",
    "Training step",
    (value) => change({step: value}),
    (value) => count(value),
  );
  parent.append(h("div", {class: "row controls"}, step.root));
  const units = figure(parent, "units", {wide: true});
  const weights = h("div", {class: "charts even"});
  const [radius, update] = ["radius", "update"].map((id) => figure(weights, id));
  parent.append(weights);
  over.listeners.click = (point) => change({step: point.x});
  return {
    async update(context) {
      const [tables, clouds] = await Promise.all([
        Promise.all(context.runs.map((run) => table(run, context))),
        Promise.all(context.runs.map((run) => cloud(run, context))),
      ]);
      if (!context.current()) return;
      const steps = [...new Set(clouds.flatMap((each) => each?.head.steps ?? []))].sort((a, b) => a - b);
      step.set(steps, context.state.step);
      step.show(steps.length > 0);
      const now = steps[nearest(steps, context.state.step)];
      await Promise.all([
        drawOver(over, tables, now, context),
        drawUnits(units, clouds, context),
        drawRadius(radius, tables, context),
        drawUpdate(update, tables, context),
      ]);
    },
  };
}

const table = (run, context) =>
  api.table("blocks", {run: run.run, key: context.layer(run)?.key, points: 600}, run.stamp);

function cloud(run, context) {
  const layer = context.layer(run);
  if (!layer?.curves.some((curve) => curve.startsWith("units/"))) return null;
  return api.block("units", {run: run.run, key: layer.key, step: context.state.step}, run.stamp);
}

// One run: a colour for each limit. Several: a colour for each run, dashes for the lower limit.
function styles(context, run) {
  if (context.runs.length > 1)
    return [
      ["low", `${run.label}, low`, colour(run.tint), "dot"],
      ["high", `${run.label}, high`, colour(run.tint), "solid"],
    ];
  return [
    ["low", "at the lower limit", colour(0), "solid"],
    ["high", "at the upper limit", colour(1), "solid"],
  ];
}

function drawOver(it, tables, now, context) {
  describe(
    it,
    "Saturation over training",
    `Share of a gate's units and timesteps at its limits, where gradients hardly pass. ${LIMITS} Click to choose a step.`,
  );
  const known = ({columns}) => columns.gate.filter((_, row) => !Number.isNaN(columns.low[row]));
  const gates = [...new Set(tables.flatMap(known))];
  if (!gates.length) return say(it, "This layer has no records of gates.");
  const steps = [...new Set(tables.flatMap(({columns}) => [...columns.step]))].sort((a, b) => a - b);
  if (steps.length < 2) return say(it, `${onlyStep(steps[0])} The units are below.`);
  const top = ceiling(tables.flatMap(({columns}) => [...columns.low, ...columns.high]));
  const share = {range: [-0.02 * top, 1.02 * top], tickvals: [0, top / 2, top], tickformat: ".0%"};
  const upright = (first) => axis(first ? "share saturated" : "", share);
  const grid = frame(it, gates, {side: 190, top: 58}, upright, () => wholeAxis("training step", steps, {nticks: 4}));
  grid.hovermode = "x";
  if (now !== undefined) grid.shapes = gates.map((_, place) => chosenStep(now, place));
  const traces = context.runs.flatMap((run, at) => courses(run, tables[at].columns, gates, context));
  return draw(it, traces, grid, () => gathered(context.runs.flatMap((run, at) => shares(run, tables[at]))));
}

function chosenStep(step, place) {
  const [x, y] = axes(place);
  return reference(step, tones(), {axis: "x", xref: x.short, yref: y.short, color: tones().mark, dash: "dot"});
}

// Lines of one run: for each of its gates one for the lower limit, and one for the upper.
function courses(run, columns, gates, context) {
  const own = gates.filter((gate) => columns.gate.includes(gate));
  return own.flatMap((gate) => {
    const places = [...columns.gate.keys()].filter((row) => columns.gate[row] === gate);
    const take = (name) => places.map((row) => columns[name][row]);
    return styles(context, run).map(([side, name, tint, dash]) =>
      overSteps(name, take("step"), take(side), tint, {
        ...inTile(gates.indexOf(gate)),
        legendgroup: name,
        showlegend: gate === own[0],
        line: {dash, width: 1.6},
        hovertemplate: `${plain(gate)}, ${plain(name)}<br>step %{x}: %{y:.4~g}<extra></extra>`,
      }),
    );
  });
}

function shares(run, {columns: {step, gate, low, high}}) {
  const known = [...gate.keys()].filter((row) => !Number.isNaN(low[row]));
  return known.map((row) => ({run: run.label, step: step[row], gate: gate[row], low: low[row], high: high[row]}));
}

function drawUnits(it, clouds, context) {
  const steps = new Set(clouds.filter(Boolean).map(({head}) => head.step));
  describe(
    it,
    `How often each unit is saturated, at step ${[...steps].map(count).join(" and ")}`,
    "Each dot is a unit: to the right, more often at its lower limit; higher up, more often at its upper one. Near the origin a unit works in its linear range, on the dashed line it is always saturated (after Karpathy et al. 2015).",
  );
  const gates = [...new Set(clouds.flatMap((each) => each?.head.gates ?? []))];
  if (!gates.length) return say(it, "This layer has no records of units.");
  const several = context.runs.length > 1;
  const share = {range: [-0.04, 1.04], tickvals: [0, 0.5, 1], tickformat: ".0%"};
  const upright = (first) => axis(first ? "share at upper limit" : "", share);
  const grid = frame(it, gates, {side: 230, top: several ? 58 : 28}, upright, () =>
    axis("share at lower limit", share),
  );
  const always = {
    type: "line",
    layer: "below",
    x0: 0,
    y0: 1,
    x1: 1,
    y1: 0,
    line: {color: tones().soft, width: 1, dash: "dash"},
  };
  grid.shapes = gates.map((_, place) => ({...always, xref: axes(place)[0].short, yref: axes(place)[1].short}));
  const traces = context.runs.flatMap((run, at) => (clouds[at] ? dots(run, clouds[at], gates) : []));
  const numbers = () => gathered(context.runs.flatMap((run, at) => (clouds[at] ? each(run, clouds[at]) : [])));
  return draw(it, traces, {...grid, showlegend: several && legend(traces)}, numbers);
}

// The units of one run, gate by gate.
function dots(run, {head, arrays}, gates) {
  return head.gates.map((gate, at) => ({
    type: "scatter",
    mode: "markers",
    name: plain(run.label),
    legendgroup: run.run,
    showlegend: at === 0,
    x: arrays[`${gate}/low`],
    y: arrays[`${gate}/high`],
    customdata: arrays[`${gate}/positions`],
    ...inTile(gates.indexOf(gate)),
    marker: {color: colour(run.tint), size: 7, opacity: 0.55, line: {width: 0.5, color: tones().page}},
    hovertemplate: `${plain(gate)}, unit %{customdata}<br>lower %{x:.4~g}, upper %{y:.4~g}<extra></extra>`,
  }));
}

function each(run, {head, arrays}) {
  return head.gates.flatMap((gate) => {
    const [unit, low, high] = ["positions", "low", "high"].map((name) => arrays[`${gate}/${name}`]);
    return Array.from(unit, (_, at) => ({
      run: run.label,
      step: head.step,
      gate,
      unit: unit[at],
      low: low[at],
      high: high[at],
    }));
  });
}

// The end of an axis of shares: 1, or less if that shows more.
const ceiling = (shares) => [0.1, 0.25, 0.5].find((end) => shares.every((share) => !(share > end))) ?? 1;
