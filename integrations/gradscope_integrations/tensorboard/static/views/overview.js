// Findings, the reach at a step, and notes.
import * as api from "../api.js";
import {describe, draw, figure, say} from "../charts.js";
import {gathered} from "../csv.js";
import {h, plain} from "../dom.js";
import {count, number} from "../format.js";
import {band, extent, line, meaning, reference} from "../lines.js";
import {columns} from "../panels.js";
import {axis, colour, layout, logAxis, tones} from "../theme.js";
import {showFindings, showNotes} from "./findings.js";
import {lastOfEach} from "./horizons.js";
import {look, named, shortened, spaced, strength, which} from "./look.js";

const [FLOOR, LOWEST] = [1e-3, 1e-12];

export function mount(parent) {
  const cards = columns(parent, (element) => {
    const made = {cards: h("div", {class: "cards", "data-testid": "findings"})};
    element.append(made.cards);
    return made;
  });
  const charts = h("div", {class: "charts"});
  const reach = figure(charts, "reach");
  const now = figure(charts, "horizon");
  parent.append(charts);
  const notes = h("div", {class: "cards"});
  parent.append(notes);
  return {
    async update(context) {
      const data = await Promise.all(context.runs.map((run) => read(run, context)));
      if (!context.current()) return;
      cards(context.runs).forEach((made, place) => tell(made, context.runs[place], data[place], context));
      await Promise.all([drawReach(reach, data, context), drawNow(now, data, context)]);
      showNotes(
        notes,
        data.map((each) => each.notes),
        context,
      );
    },
  };
}

// Cards stay as they are, open or not, until their content changes.
function tell(made, run, {findings}, context) {
  const content = JSON.stringify([findings, run.live, context.state.layer, context.runs.map((each) => each.run)]);
  if (content !== made.content) showFindings(made.cards, run, findings, context);
  made.content = content;
}

async function read(run, context) {
  const {step} = context.state;
  const query = {run: run.run, step};
  const hasReach = run.layers.some((layer) => layer.curves.includes("reach"));
  const [findings, notes, layers, curves, spread] = await Promise.all([
    api.stamped("findings", {run: run.run}, run.stamp),
    api.stamped("notes", {run: run.run}, run.stamp),
    api.table("layers", {run: run.run, points: 400}, run.stamp),
    hasReach ? api.block("curves", {...query, curve: "reach"}, run.stamp) : null,
    context.has(run, "reach")
      ? api.block("profile", {...query, tag: `reach/${context.layer(run).key}`}, run.stamp)
      : null,
  ]);
  return {findings, notes, curves, spread, now: lastOfEach(layers, step)};
}

function drawReach(it, data, context) {
  describe(
    it,
    `Reach by lag${at(data.flatMap(({curves}) => curves?.head.layers ?? []))}`,
    `The share of the loss gradient at each lag. The higher the curve, the longer the memory that the network can learn.${which(context)}`,
  );
  const traces = context.runs.flatMap((run, place) => reaches(run, data[place], context));
  if (!traces.length) return say(it, 'No records of reach: add "reach" to quantities.');
  const [low, high] = extent([[FLOOR, 1], ...traces.map((trace) => trace.y)]);
  const ends = [Math.max(low, high * LOWEST), high];
  traces.push(meaning("a thousandth left: the horizon", tones()));
  const shape = layout({
    height: 320,
    xaxis: axis("lag (steps back)", {rangemode: "tozero"}),
    yaxis: logAxis("gradient left", ends, {range: [Math.log10(ends[0]) - 0.3, Math.log10(high) + 0.3]}),
    shapes: [reference(FLOOR, tones())],
    uirevision: "reach",
    showlegend: true,
  });
  const numbers = () => gathered(context.runs.flatMap((run, place) => left(run, data[place].curves, context)));
  return draw(it, traces, spaced(shape, traces), numbers);
}

// Curves of one run, the chosen layer's with a band.
function reaches(run, {curves, spread}, context) {
  const layers = (curves?.head.layers ?? []).filter(({key}) => look(context, run, key).shown);
  return layers.flatMap(({key, array}) => {
    const style = look(context, run, key);
    const name = named(context, run, key);
    const hovertemplate = `${plain(name)}<br>%{x} steps back: %{y:.4~g} left<extra></extra>`;
    const curve = line(name, ...halves(curves.arrays[array]), style.colour, {...strength(style), hovertemplate});
    if (key !== context.layer(run).key) return [curve];
    const {positions, p10, p90} = spread.arrays;
    return [band(positions, p10, p90, style.colour, true), curve];
  });
}

function left(run, curves, context) {
  return (curves?.head.layers ?? []).flatMap(({key, step, array}) => {
    const [lags, values] = halves(curves.arrays[array]);
    return Array.from(lags, (lag, at) => ({run: run.label, layer: context.title(key), step, lag, p50: values[at]}));
  });
}

function drawNow(it, data, context) {
  const nearest = data.map(({now}) => now);
  const rows = nearest.flat();
  describe(
    it,
    `Horizon of every layer${at(rows)}`,
    "Steps back until a thousandth of the gradient is left. The pale bar is the length of the sequence; ≥ means that the gradient never falls so far.",
  );
  if (!rows.length) return say(it, "No records of layers yet.");
  const several = context.runs.length > 1;
  const layers = new Set(rows.map((row) => row.key)).size;
  const height = Math.max(200, 90 + layers * (14 + 12 * context.runs.length));
  it.parts.plot.classList.toggle("tall", height > 420);
  const shape = layout({
    height,
    barmode: "group",
    bargap: 0.35,
    xaxis: axis("steps back", {range: [0, 1.16 * Math.max(...rows.map((row) => row.timesteps))]}),
    yaxis: axis("", {autorange: "reversed", type: "category", nticks: undefined, dtick: layers > 40 ? undefined : 1}),
    showlegend: several,
    uirevision: "now",
    margin: {l: 60, r: 16, t: several ? 34 : 10, b: 44},
  });
  const traces = context.runs.flatMap((run, place) => bars(run, nearest[place], String(place), context));
  const numbers = () =>
    gathered(context.runs.flatMap((run, place) => nearest[place].map((row) => now(run, row, context))));
  return draw(it, overlaid(traces), shape, numbers);
}

function now(run, {key, step, horizon, timesteps}, context) {
  return {run: run.label, layer: context.title(key), step, horizon, timesteps};
}

// The horizons of one run, on bars as long as the sequences.
function bars(run, nearest, offsetgroup, context) {
  const several = context.runs.length > 1;
  const width = several ? undefined : 0.5;
  const y = nearest.map((row) => shortened(context.title(row.key)));
  const bar = {type: "bar", orientation: "h", y, offsetgroup, width, cliponaxis: false};
  const hover = ({key, horizon, horizon_censored: censored, timesteps}) =>
    `${plain(several ? run.label : context.title(key))}<br>${censored ? "at least " : ""}${number(horizon)} of ${timesteps} steps<extra></extra>`;
  const behind = {
    x: nearest.map((row) => row.timesteps),
    marker: {color: tones().line},
    hoverinfo: "skip",
    showlegend: false,
  };
  const before = {
    name: plain(run.label),
    x: nearest.map((row) => row.horizon),
    marker: {color: several ? colour(run.tint) : nearest.map((row) => look(context, run, row.key).colour)},
    text: nearest.map((row) => (row.horizon_censored ? `≥ ${number(row.horizon)}` : number(row.horizon))),
    textposition: "outside",
    constraintext: "none",
    textfont: {color: tones().ink, size: 11},
    hovertemplate: nearest.map(hover),
  };
  return [
    {...bar, ...behind},
    {...bar, ...before},
  ];
}

// Pale bars behind their bars.
function overlaid(traces) {
  return traces.map((trace, place) => ({
    ...trace,
    xaxis: "x",
    yaxis: "y",
    alignmentgroup: "a",
    offsetgroup: trace.offsetgroup,
    base: 0,
    zorder: place % 2,
  }));
}

// The steps of rows, for a title.
const at = (rows) => {
  const steps = [...new Set(rows.map(({step}) => step))];
  return steps.length ? `, at step ${steps.map(count).join(" and ")}` : "";
};
const halves = (array) => [array.subarray(0, array.shape[1]), array.subarray(array.shape[1])];
