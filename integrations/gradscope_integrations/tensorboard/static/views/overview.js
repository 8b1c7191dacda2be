// What is wrong, how far back learning reaches, and what could not be observed.
import * as api from "../api.js";
import {describe, draw, figure, say} from "../charts.js";
import {gathered} from "../csv.js";
import {h, plain} from "../dom.js";
import {number} from "../format.js";
import {band, extent, line, meaning, overSteps, reference} from "../lines.js";
import {columns} from "../panels.js";
import {axis, colour, dash, layout, logAxis, tones, wholeAxis} from "../theme.js";
import {onlyStep} from "../words.js";
import {showFindings, showNotes} from "./findings.js";
import {drawLoss} from "./loss.js";

const [FLOOR, LOWEST] = [1e-3, 1e-12];
const COLOURED = 8;
const MOST_STEPS = 20_000;

export function mount(parent) {
  const loss = figure(parent, "loss", {wide: true});
  const cards = columns(parent, (element) => {
    const made = {cards: h("div", {class: "cards", "data-testid": "findings"}), notes: h("div")};
    element.append(made.cards, made.notes);
    return made;
  });
  const charts = h("div", {class: "charts"});
  const reach = figure(charts, "reach");
  const now = figure(charts, "horizon");
  const over = figure(charts, "horizon-steps", {wide: true});
  parent.append(charts);
  return {
    async update(context) {
      const seen = await Promise.all(context.runs.map((run) => read(run)));
      if (!context.current()) return;
      await drawLoss(loss, seen, context);
      cards(context.runs).forEach((made, place) => {
        showFindings(made.cards, context.runs[place], seen[place].findings, context);
        showNotes(made.notes, seen[place].notes, context);
      });
      const bands = await Promise.all(context.runs.map((run) => spread(run, context)));
      if (!context.current()) return;
      await Promise.all([
        drawReach(reach, seen, bands, context),
        drawNow(now, seen, context),
        drawOver(over, seen, context),
      ]);
    },
  };
}

async function read(run) {
  const hasReach = run.layers.some((layer) => layer.curves.includes("reach"));
  const [steps, findings, notes, layers, latest] = await Promise.all([
    api.table("steps", {run: run.run, rows: MOST_STEPS}, run.stamp),
    api.stamped("findings", {run: run.run}, run.stamp),
    api.stamped("notes", {run: run.run}, run.stamp),
    api.table("layers", {run: run.run, points: 400}, run.stamp),
    hasReach ? api.block("latest", {run: run.run, curve: "reach"}, run.stamp) : null,
  ]);
  return {steps, findings, notes, layers, latest};
}

function spread(run, context) {
  return context.has(run, "reach")
    ? api.block("profile", {run: run.run, tag: `reach/${context.layer.key}`}, run.stamp)
    : null;
}

// Several runs: a colour each. One run: a colour for every layer, or for the chosen one of many.
function look(context, run, key) {
  const mine = key === context.layer.key;
  if (context.runs.length > 1) return {colour: colour(run.place), shown: mine, dash: dash(run.place)};
  const place = run.layers.findIndex((layer) => layer.key === key);
  if (run.layers.length <= COLOURED) return {colour: colour(place), shown: true, dash: "solid", strong: mine};
  return {colour: mine ? colour(run.place) : tones().soft, shown: true, faint: !mine, dash: "solid", strong: mine};
}

const named = (context, run, key) => (context.runs.length > 1 ? run.label : context.title(key));
const which = (context) =>
  context.runs.length > 1 ? ` Layer ${context.title(context.layer.key)}, one line per run.` : "";

function drawReach(it, seen, bands, context) {
  describe(
    it,
    "Reach by lag",
    `How much of the loss gradient is left so many steps further back, at the last recorded step. The higher, the longer the memory that can be learnt.${which(context)}`,
  );
  const traces = context.runs.flatMap((run, place) => reaches(run, seen[place].latest, bands[place], context));
  if (!traces.length) return say(it, 'No reach was recorded: leave quantities as they are, or add "reach".');
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
  const numbers = () => gathered(context.runs.flatMap((run, place) => left(run, seen[place].latest, context)));
  return draw(it, traces, spaced(shape, traces), numbers);
}

// Curves of one run, the chosen layer's with a band.
function reaches(run, latest, spread, context) {
  const layers = (latest?.head.layers ?? []).filter(({key}) => look(context, run, key).shown);
  return layers.flatMap(({key, array}) => {
    const style = look(context, run, key);
    const name = named(context, run, key);
    const hovertemplate = `${plain(name)}<br>%{x} steps back: %{y:.4~g} left<extra></extra>`;
    const curve = line(name, ...halves(latest.arrays[array]), style.colour, {...strength(style), hovertemplate});
    if (key !== context.layer.key) return [curve];
    const {positions, p10, p90} = spread.arrays;
    return [band(positions, p10, p90, style.colour, true), curve];
  });
}

function left(run, latest, context) {
  return (latest?.head.layers ?? []).flatMap(({key, step, array}) => {
    const [lags, values] = halves(latest.arrays[array]);
    return Array.from(lags, (lag, at) => ({run: run.label, layer: context.title(key), step, lag, p50: values[at]}));
  });
}

// The chosen layer stands out; of very many the others are faint.
const strength = ({strong, faint, dash}) => ({
  line: {width: strong ? 2.6 : faint ? 0.8 : 1.8, dash},
  opacity: faint ? 0.5 : 1,
  showlegend: !faint,
});

function drawNow(it, seen, context) {
  describe(
    it,
    "Horizon of every layer",
    "Steps back until a thousandth of the gradient is left, at the last recorded step. The pale bar is the length of the sequence; ≥ where it never falls so far.",
  );
  const found = seen.map(({layers}) => lastOfEach(layers));
  const rows = found.flat();
  if (!rows.length) return say(it, "No layer has been recorded yet.");
  const several = context.runs.length > 1;
  const count = new Set(rows.map((row) => row.key)).size;
  const height = Math.max(200, 90 + count * (14 + 12 * context.runs.length));
  it.parts.plot.classList.toggle("tall", height > 420);
  const shape = layout({
    height,
    barmode: "group",
    bargap: 0.35,
    xaxis: axis("steps back", {range: [0, 1.16 * Math.max(...rows.map((row) => row.timesteps))]}),
    yaxis: axis("", {autorange: "reversed", type: "category", nticks: undefined, dtick: count > 40 ? undefined : 1}),
    showlegend: several,
    uirevision: "now",
    margin: {l: 60, r: 16, t: several ? 34 : 10, b: 44},
  });
  const traces = context.runs.flatMap((run, place) => bars(run, found[place], String(place), context));
  const numbers = () =>
    gathered(context.runs.flatMap((run, place) => found[place].map((row) => now(run, row, context))));
  return draw(it, overlaid(traces), shape, numbers);
}

function now(run, {key, step, horizon, timesteps}, context) {
  return {run: run.label, layer: context.title(key), step, horizon, timesteps};
}

// The horizons of one run, on bars as long as the sequences.
function bars(run, found, offsetgroup, context) {
  const several = context.runs.length > 1;
  const width = several ? undefined : 0.5;
  const y = found.map((row) => shortened(context.title(row.key)));
  const bar = {type: "bar", orientation: "h", y, offsetgroup, width, cliponaxis: false};
  const said = ({key, horizon, horizon_censored: censored, timesteps}) =>
    `${plain(several ? run.label : context.title(key))}<br>${censored ? "at least " : ""}${number(horizon)} of ${timesteps} steps<extra></extra>`;
  const behind = {
    x: found.map((row) => row.timesteps),
    marker: {color: tones().line},
    hoverinfo: "skip",
    showlegend: false,
  };
  const before = {
    name: plain(run.label),
    x: found.map((row) => row.horizon),
    marker: {color: several ? colour(run.place) : found.map((row) => look(context, run, row.key).colour)},
    text: found.map((row) => (row.horizon_censored ? `≥ ${number(row.horizon)}` : number(row.horizon))),
    textposition: "outside",
    constraintext: "none",
    textfont: {color: tones().ink, size: 11},
    hovertemplate: found.map(said),
  };
  return [
    {...bar, ...behind},
    {...bar, ...before},
  ];
}

// Pale bars behind the bars they belong to.
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

function drawOver(it, seen, context) {
  describe(
    it,
    "Horizon over training",
    `Does learning reach further back as training goes on? The dotted line is the length of the sequences.${which(context)}`,
  );
  const traces = context.runs.flatMap((run, place) => horizons(run, seen[place].layers.columns, context));
  if (!traces.length) return say(it, "No layer has been recorded yet.");
  const steps = [...new Set(seen.flatMap(({layers}) => [...layers.columns.step]))].sort((a, b) => a - b);
  if (steps.length < 2) return say(it, `${onlyStep(steps[0])} The horizons are above.`);
  const shape = layout({
    height: 240,
    xaxis: wholeAxis("training step", ends(context.runs)),
    yaxis: axis("horizon (steps back)", {rangemode: "tozero"}),
    uirevision: "over",
    showlegend: legend(traces),
  });
  const numbers = () => gathered(context.runs.flatMap((run, place) => past(run, seen[place].layers, context)));
  return draw(it, traces, spaced(shape, traces), numbers);
}

// The horizon of every shown layer of one run, and the length of the sequences.
function horizons(run, table, context) {
  const layers = run.layers.filter(({key}) => look(context, run, key).shown && table.key.includes(key));
  return layers.flatMap(({key}) => {
    const found = places(table.key, key);
    const take = (column) => found.map((at) => table[column][at]);
    const [style, name] = [look(context, run, key), named(context, run, key)];
    const hovertemplate = `${plain(name)}<br>step %{x}: %{y:.4~g} steps back<extra></extra>`;
    const course = overSteps(name, take("step"), take("horizon"), style.colour, {...strength(style), hovertemplate});
    if (key !== context.layer.key) return [course];
    const dotted = {line: {dash: "dot", width: 1}, showlegend: false, hoverinfo: "skip"};
    return [course, line("longest", take("step"), take("timesteps"), tones().soft, dotted)];
  });
}

function past(run, {columns: {step, key, horizon, decay}}, context) {
  const row = (_, at) => ({
    run: run.label,
    step: step[at],
    layer: context.title(key[at]),
    horizon: horizon[at],
    decay: decay[at],
  });
  return Array.from(step, row);
}

// The last row of every layer of the table `layers`.
function lastOfEach({columns: table, length}) {
  const last = new Map();
  for (let row = 0; row < length; row++) last.set(table.key[row], row);
  return [...last].map(([key, row]) => ({
    key,
    step: table.step[row],
    horizon: table.horizon[row],
    horizon_censored: table.horizon_censored[row],
    timesteps: table.timesteps[row],
  }));
}

// The first and the last step of some runs, recorded or not.
const ends = (runs) => [
  Math.min(...runs.map((run) => run.state.first_step)),
  Math.max(...runs.map((run) => run.state.last_step)),
];

export function places(column, value) {
  const found = [];
  column.forEach((each, place) => each === value && found.push(place));
  return found;
}

export const legend = (traces) => traces.filter((trace) => trace.showlegend !== false).length > 1;
// Room for a legend above.
export const spaced = (shape, traces) => (legend(traces) ? {...shape, margin: {...shape.margin, t: 34}} : shape);
const halves = (array) => [array.subarray(0, array.shape[1]), array.subarray(array.shape[1])];
const shortened = (title) => plain(title.length > 34 ? `…${title.slice(-33)}` : title);
