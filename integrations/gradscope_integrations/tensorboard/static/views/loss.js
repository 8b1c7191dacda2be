// The loss of every step, and the recorded steps: parts of the picture over time.
import {plain} from "../dom.js";
import {count, plural, rounded} from "../format.js";
import {extremes, line, median, overSteps} from "../lines.js";
import {colour, tones, transparent} from "../theme.js";
import {isMeasured} from "../words.js";

const DRAWN = 4000;
const [EARLY, LATE] = [10, 100]; // steps at either end, at most
const RISEN = 0.1;

export const named = ({run, summary}) => `${run.label}: ${summary}`;

// The loss of a run from its table `steps`; null if unknown.
export function course(run, steps) {
  const {step, loss, nonfinite} = steps.columns;
  const measured = [...step.keys()].filter((row) => isMeasured(loss[row], nonfinite[row]));
  const finite = measured.filter((row) => Number.isFinite(loss[row]));
  if (!finite.length) return null;
  const [at, values] = [finite.map((row) => step[row]), finite.map((row) => loss[row])];
  const width = values.length < 20 ? 1 : 2 * Math.round(Math.sqrt(values.length) / 2) + 1;
  const smooth = median(values, width);
  const both = ends(measured.map((row) => [step[row], Number.isNaN(loss[row]) ? Infinity : loss[row]]));
  const broken = measured.filter((row) => !Number.isFinite(loss[row])).map((row) => step[row]);
  const thinned = steps.head.rows_kept > steps.length && steps;
  const summary = both.map(inWords).join(" → ");
  return {
    run,
    steps: at,
    values,
    smooth,
    width,
    summary,
    first: both[0],
    last: both.at(-1),
    turn: turn(at, smooth),
    broken,
    thinned,
  };
}

// The lowest point of a loss that has risen again by a tenth of its fall; else null.
function turn(steps, smooth) {
  const lowest = smooth.reduce((best, value, at) => (value < smooth[best] ? at : best), 0);
  const [first, low, last] = [smooth[0], smooth[lowest], smooth.at(-1)];
  return low < first && last - low > RISEN * (first - low) ? {step: steps[lowest], loss: low} : null;
}

// The two ends of a loss, as everywhere in gradscope: the medians of the first and of the last tenth of the steps.
function ends(measured) {
  const [begin, end] = [measured[0][0], measured[measured.length - 1][0]];
  const part = (most) => Math.min(most, Math.max(1, Math.floor((end - begin + 1) / 10)));
  const first = measured.filter(([step]) => step < begin + part(EARLY));
  const last = measured.filter(([step]) => step > end - part(LATE));
  return (end > begin ? [first, last] : [first]).map((near) => middle(near.map(([, loss]) => loss)));
}

function middle(values) {
  const sorted = values.sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

const inWords = (value) => (Number.isFinite(value) ? rounded(value) : "not finite");

// A hint on how to read the picture.
export function hint(losses) {
  const smooth = losses.some(({width}) => width > 1);
  const widest = Math.max(...losses.map(({width}) => width));
  return smooth ? `The line is the running median of ${widest} steps, the faint line every step. ` : "";
}

// Every value, faint behind a median.
export function curves({run, steps, values, smooth, width, summary}, lone) {
  const tint = colour(run.tint);
  const name = lone ? "loss" : named({run, summary});
  const hover = (what) => `${lone ? "" : `${plain(run.label)}<br>`}step %{x}: ${what} %{y:.4~g}<extra></extra>`;
  const chosen = extremes(values, DRAWN);
  const take = (list) => chosen.map((place) => list[place]);
  const raw = {hovertemplate: hover("loss"), legendgroup: run.run};
  if (width === 1) return [overSteps(name, steps, values, tint, raw)];
  return [
    line(name, take(steps), take(values), transparent(tint, 0.4), {...raw, line: {width: 1}, showlegend: false}),
    line(name, take(steps), take(smooth), tint, {...raw, hovertemplate: hover("median"), line: {width: 2.2}}),
  ];
}

// The mark at the turning point.
export function turning({run, turn}) {
  if (!turn) return [];
  const marker = {symbol: "circle-open", size: 9, color: colour(run.tint), line: {width: 2}};
  const hovertemplate = `${plain(run.label)}: lowest<extra></extra>`;
  return [
    {
      type: "scatter",
      mode: "markers",
      x: [turn.step],
      y: [turn.loss],
      marker,
      hovertemplate,
      showlegend: false,
      name: "lowest",
    },
  ];
}

export function ticks(run, recorded, height, axes) {
  return {
    type: "scatter",
    mode: "markers",
    name: plain(run.label),
    legendgroup: run.run,
    showlegend: false,
    x: recorded,
    y: recorded.map(() => height),
    ...axes,
    marker: {symbol: "line-ns", size: 6, line: {color: colour(run.tint), width: 1}},
    hoverinfo: "skip",
  };
}

export function marks({broken, run}, {high}) {
  if (!broken.length) return [];
  return [
    {
      type: "scatter",
      mode: "markers",
      name: plain(run.label),
      showlegend: false,
      x: broken,
      y: broken.map(() => high),
      marker: {symbol: "x-thin-open", color: tones().bad, size: 8, line: {width: 1.5}},
      hovertemplate: "step %{x}: not finite<extra></extra>",
    },
  ];
}

// From the smallest to the largest loss, without spikes far beyond most of them.
export function levels(losses) {
  const values = losses.flatMap((each) => each.values).sort((a, b) => a - b);
  const rank = (share) => values[Math.round(share * (values.length - 1))];
  const medians = losses.flatMap(({smooth}) => smooth).sort((a, b) => a - b);
  const [low, high] = [Math.min(rank(0.01), medians[0]), Math.max(rank(0.99), medians[medians.length - 1])];
  const room = high - low || 0.1 * Math.abs(high) || 1;
  if (low === high) return {low: low - room, high: high + room, logarithmic: false};
  const ends = {low: Math.max(rank(0), low - room), high: Math.min(rank(1), high + room)};
  return {...ends, logarithmic: rank(0) > 0 && high / low > 30};
}

export function notes(losses, {low, high}) {
  return losses.flatMap(({run, values, broken, thinned}) => {
    const name = losses.length > 1 ? `${run.label}: ` : "";
    const outside = values.filter((value) => value < low || value > high).length;
    return [
      thinned && `${name}${count(thinned.length)} of ${plural(thinned.head.rows_kept, "step")} drawn, evenly spaced.`,
      outside && `${name}${plural(outside, "value")} outside the picture.`,
      broken.length && `${name}the loss of ${plural(broken.length, "step")} was NaN or infinite: crosses at the top.`,
    ].filter(Boolean);
  });
}
