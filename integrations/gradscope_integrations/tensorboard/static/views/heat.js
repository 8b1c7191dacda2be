// The heatmap: one row of the picture per recorded step, one column per timestep. Rows are equally high, however far
// apart the steps are: recorded steps are dense where training begins, and on an axis of steps most would be invisible.
import {describe, draw, say} from "../charts.js";
import {plain} from "../dom.js";
import {brief, count, power} from "../format.js";
import {extent} from "../lines.js";
import {axis, diverging, layout, rungs, sequential, tones, wholeAxis} from "../theme.js";
import {axisTitle, capital, invalid, leftOut, rowTitle} from "../words.js";

const DECADES = 12;
const TICKS = 10;

// One colour scale for all runs: {low, high} in log10, or of the share.
export function scaleOf(heats, {about, row}) {
  if (about.share)
    return {
      low: row === "mean" && heats.some((heat) => heat?.arrays.values.some((value) => value < 0)) ? -1 : 0,
      high: 1,
    };
  const ends = extent(heats.map((heat) => heat?.arrays.values));
  if (!ends) return {low: -1, high: 1};
  const [low, high] = ends.map(Math.log10);
  if (about.one) {
    const end = Math.min(DECADES / 2, Math.max(0.05, -low, high));
    return {low: -end, high: end, clamped: low < -end};
  }
  const floor = Math.max(low, high - DECADES);
  return {low: Math.min(floor, high - 0.1), high, clamped: floor > low};
}

export function drawHeat(it, run, heat, scale, view, context) {
  const {about, row} = view;
  describe(
    it,
    `${about.title}, ${rowTitle(row)}`,
    `${capital(about.unit)} by training step, one row per recorded step, and ${heat?.head.axis === "lag" ? "lag" : "timestep"}. ${about.hint}`,
  );
  if (!heat) return say(it, lacking(run, about, context));
  const {steps, positions, values} = heat.arrays;
  it.zoomButton.hidden = !view.zoom;
  if (!values.length) return say(it, "This zoom contains no recorded step.", true);
  const notes = [...leftOut(run, heat.head, steps.length, Boolean(view.zoom)), ...invalid(heat.head)];
  const key = [heat, scale.low, scale.high, tones().page, about.title, row, view.rows];
  if (it.drawn && it.drawn.every((each, place) => each === key[place])) return undefined;
  it.drawn = key;
  return draw(it, traces(heat, scale, view), shape(heat, view), () => long(heat, row), notes);
}

function lacking(run, {title}, context) {
  const layer = context.layer(run);
  return layer ? `${context.title(layer.key)} has no ${title.toLowerCase()}.` : "This run has no recorded step yet.";
}

function traces({head, arrays}, scale, {about, row}) {
  const {steps, positions, values, padded} = arrays;
  const width = positions.length;
  const rows = Array.from(steps, (_, at) => values.subarray(at * width, (at + 1) * width));
  const colours = about.share ? rows : rows.map((each) => logarithms(each, scale));
  const hover = {
    text: Array.from(steps, (step) => new Array(width).fill(count(step))),
    customdata: rows,
    hovertemplate: `step %{text}, ${head.axis} %{x}<br>${plain(rowTitle(row))} %{customdata:.4~g}<extra></extra>`,
  };
  const place = {type: "heatmap", x: Array.from(positions), y0: 0, dy: 1, ...hover};
  const shown = {
    ...place,
    z: colours,
    zmin: scale.low,
    zmax: scale.high,
    colorscale: about.one ? diverging() : sequential(),
    colorbar: bar(scale, about),
  };
  const bad = rows.map((each, at) =>
    each.map((value, column) => (Number.isFinite(value) || column >= width - padded[at] ? NaN : 1)),
  );
  if (!(head.nan + head.inf)) return [shown];
  return [
    shown,
    {
      ...place,
      z: bad,
      zmin: 0,
      zmax: 1,
      colorscale: [
        [0, tones().bad],
        [1, tones().bad],
      ],
      showscale: false,
    },
  ];
}

function logarithms(values, {low}) {
  return values.map((value) => (value > 0 && value < Infinity ? Math.log10(value) : value === 0 ? low - 1 : NaN));
}

// The place of a step among the rows, between two rows if it has none.
function rowAt(steps, step) {
  if (!(step >= steps[0] && step <= steps[steps.length - 1])) return undefined;
  const after = steps.findIndex((each) => each >= step);
  return steps[after] === step ? after : after - (steps[after] - step) / (steps[after] - steps[after - 1]);
}

// The step of the row at a height of the picture.
export const stepAt = (steps, height) => steps[Math.min(steps.length - 1, Math.max(0, Math.round(height)))];

// Rows with a label: every second, fourth, ... where steps are uneven, as gradscope spaces them by powers of two.
function labelled(steps) {
  const gap = steps[1] - steps[0];
  const even = steps.every((step, at) => at === 0 || step - steps[at - 1] === gap);
  const strides = Array.from({length: 30}, (_, at) => (even ? [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3) : 2 ** at));
  const stride = strides.find((each) => steps.length / each <= TICKS);
  return [...steps.keys()].filter((at) => at % stride === 0);
}

function bar(scale, about) {
  const {soft} = tones();
  const base = {thickness: 10, outlinewidth: 0, x: 1.01, xpad: 4, tickfont: {size: 11, color: soft}};
  if (about.share) return {...base, tickvals: [-1, 0, 0.5, 1], ticktext: ["−1", "0", "0.5", "1"]};
  const ticks = ticksOf(scale);
  const whole = ticks.every((tick) => Number.isInteger(tick));
  const named = ticks.map((tick) => (whole ? power(tick) : brief(10 ** tick)));
  return {
    ...base,
    tickvals: ticks,
    ticktext: named.map((text, place) => (scale.clamped && place === 0 ? `≤${text}` : text)),
  };
}

function ticksOf({low, high}) {
  const marks = rungs([10 ** low, 10 ** high]).map(Math.log10);
  if (marks.length > 1) return marks;
  const span = high - low;
  if (span < 1.5) return [low, (low + high) / 2, high];
  const every = Math.ceil(span / 6);
  const ticks = [];
  for (let tick = Math.ceil(low / every) * every; tick <= high; tick += every) ticks.push(tick);
  return ticks;
}

function shape({head, arrays}, {zoom, rows}) {
  const {steps, positions} = arrays;
  const half =
    positions.length > 1 ? (positions[positions.length - 1] - positions[0]) / (positions.length - 1) / 2 : 0.5;
  const x = zoom ? zoom.slice(0, 2) : [positions[0] - half, positions[positions.length - 1] + half];
  const labels = labelled([...steps]);
  const upright = {
    range: [-0.5, steps.length - 0.5],
    tickvals: labels,
    ticktext: labels.map((at) => count(steps[at])),
    showgrid: false,
    automargin: false,
  };
  return layout({
    height: 54 + Math.min(306, Math.max(110, 36 * rows)),
    margin: {l: 64, r: 84, t: 12, b: 42},
    xaxis: wholeAxis(axisTitle(head.axis), x, {range: x, showgrid: false, automargin: false}),
    yaxis: axis("training step", upright),
  });
}

// Lines through the chosen step and timestep, dark on light, visible on any colour.
export function cursor(steps, step, t) {
  const [light, dark] = [
    {color: "rgba(255,255,255,0.7)", width: 3},
    {color: "#111111", width: 1.2},
  ];
  const row = rowAt(steps, step);
  const across = {type: "line", xref: "x domain", x0: 0, x1: 1, y0: row, y1: row};
  const down = {type: "line", yref: "y domain", y0: 0, y1: 1, x0: t, x1: t};
  const shapes = [];
  if (row !== undefined) shapes.push({...across, line: light}, {...across, line: dark});
  if (t !== undefined) shapes.push({...down, line: light}, {...down, line: {...dark, dash: "dot"}});
  return shapes;
}

function long({head, arrays}, row) {
  const {steps, positions, values, padded} = arrays;
  const columns = {step: [], [head.axis]: [], [row]: []};
  steps.forEach((step, at) =>
    positions.forEach((position, column) => {
      const value = values[at * positions.length + column];
      if (Number.isNaN(value) && column >= positions.length - padded[at]) return;
      columns.step.push(step);
      columns[head.axis].push(position);
      columns[row].push(value);
    }),
  );
  return Object.entries(columns).map(([name, each]) => ({name, values: each}));
}
