// The heatmap: one row of the picture per recorded step, one column per timestep.
import {describe, draw, say} from "../charts.js";
import {plain} from "../dom.js";
import {brief, count, power} from "../format.js";
import {extent} from "../lines.js";
import {diverging, layout, rungs, sequential, tones, wholeAxis} from "../theme.js";
import {axisTitle, capital, invalid, leftOut, rowTitle} from "../words.js";

const DECADES = 12;
const MOST_ROWS = 800;

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
    `${capital(about.unit)} by training step and ${heat?.head.axis === "lag" ? "lag" : "timestep"}. ${about.hint}`,
  );
  if (!heat) return say(it, `This run has no ${about.title.toLowerCase()} of ${context.title(context.layer.key)}.`);
  const {steps, positions, values} = heat.arrays;
  it.zoomButton.hidden = !view.zoom;
  if (!values.length) return say(it, "No recorded step lies within this zoom.", true);
  const notes = [...leftOut(run, heat.head, steps.length, Boolean(view.zoom)), ...invalid(heat.head)];
  const key = [heat, scale.low, scale.high, tones().page, about.title, row];
  if (it.drawn && it.drawn.every((each, place) => each === key[place])) return undefined;
  it.drawn = key;
  return draw(it, traces(heat, scale, view), shape(heat, view), () => long(heat, row), notes);
}

function traces({head, arrays}, scale, {about, row}) {
  const {steps, positions, values, padded} = arrays;
  const width = positions.length;
  const rows = Array.from(steps, (_, at) => values.subarray(at * width, (at + 1) * width));
  const grid = evenly(steps);
  const pick = (list) => grid.places.map((at) => list[at]);
  const colours = about.share ? rows : rows.map((each) => logarithms(each, scale));
  const text = Array.from(steps, (step) => new Array(width).fill(count(step)));
  const hover = {
    text: pick(text),
    customdata: pick(rows),
    hovertemplate: `step %{text}, ${head.axis} %{x}<br>${plain(rowTitle(row))} %{customdata:.4~g}<extra></extra>`,
  };
  const place = {type: "heatmap", x: Array.from(positions), y0: grid.first, dy: grid.gap, ...hover};
  const shown = {
    ...place,
    z: pick(colours),
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
      z: pick(bad),
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

// Plotly draws evenly spaced rows many times faster: each row of an even grid shows the last step at or before it.
function evenly(steps) {
  const first = steps[0];
  if (steps.length < 2) return {first, gap: 1, places: [0]};
  const last = steps[steps.length - 1];
  let gap = Infinity;
  for (let at = 1; at < steps.length; at++) gap = Math.min(gap, steps[at] - steps[at - 1]);
  const nearly = (last - first) / (steps.length - 1);
  if (gap > nearly / 2) return {first, gap: nearly, places: Array.from(steps, (_, at) => at)};
  gap = Math.max(gap, (last - first) / MOST_ROWS);
  const places = [];
  for (let at = 0, row = 0; first + row * gap <= last + gap / 2; row++) {
    while (at + 1 < steps.length && steps[at + 1] <= first + (row + 0.5) * gap) at++;
    places.push(at);
  }
  return {first, gap, places};
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
  const found = rungs([10 ** low, 10 ** high]).map(Math.log10);
  if (found.length > 1) return found;
  const span = high - low;
  if (span < 1.5) return [low, (low + high) / 2, high];
  const every = Math.ceil(span / 6);
  const ticks = [];
  for (let tick = Math.ceil(low / every) * every; tick <= high; tick += every) ticks.push(tick);
  return ticks;
}

function shape({head, arrays}, {zoom}) {
  const {steps, positions} = arrays;
  const ends = (values) => {
    const half = values.length > 1 ? (values[values.length - 1] - values[0]) / (values.length - 1) / 2 : 0.5;
    return [values[0] - half, values[values.length - 1] + half];
  };
  const [x, y] = zoom ? [zoom.slice(0, 2), zoom.slice(2)] : [ends(positions), ends(steps)];
  return layout({
    height: 360,
    margin: {l: 64, r: 84, t: 12, b: 42},
    xaxis: wholeAxis(axisTitle(head.axis), x, {range: x, showgrid: false, automargin: false}),
    yaxis: wholeAxis("training step", y, {range: y, showgrid: false, automargin: false}),
  });
}

// Lines through the chosen step and timestep, dark on light so that they are seen on any colour.
export function cursor(step, t) {
  const [light, dark] = [
    {color: "rgba(255,255,255,0.7)", width: 3},
    {color: "#111111", width: 1.2},
  ];
  const across = {type: "line", xref: "x domain", x0: 0, x1: 1, y0: step, y1: step};
  const down = {type: "line", yref: "y domain", y0: 0, y1: 1, x0: t, x1: t};
  const shapes = [];
  if (step !== undefined) shapes.push({...across, line: light}, {...across, line: dark});
  if (t !== undefined) shapes.push({...down, line: light}, {...down, line: {...dark, dash: "dot"}});
  return shapes;
}

function long({head, arrays}, row) {
  const {steps, positions, values, padded} = arrays;
  const found = {step: [], [head.axis]: [], [row]: []};
  steps.forEach((step, at) =>
    positions.forEach((position, column) => {
      const value = values[at * positions.length + column];
      if (Number.isNaN(value) && column >= positions.length - padded[at]) return;
      found.step.push(step);
      found[head.axis].push(position);
      found[row].push(value);
    }),
  );
  return Object.entries(found).map(([name, each]) => ({name, values: each}));
}
