// The loss of every step, and which steps were recorded.
import {describe, draw, say} from "../charts.js";
import {gathered} from "../csv.js";
import {plain} from "../dom.js";
import {count, plural, rounded} from "../format.js";
import {extremes, line, median, overSteps} from "../lines.js";
import {axis, colour, layout, logAxis, tones, transparent, wholeAxis} from "../theme.js";
import {isMeasured, onlyStep} from "../words.js";

const DRAWN = 4000;
const TICK_ROW = 0.05;
const [EARLY, LATE] = [10, 100]; // steps at either end, at most

// seen: for each run its tables `steps` and `layers`. A run whose loss is not known is left out.
export function drawLoss(it, seen, context) {
  const found = context.runs.flatMap((run, place) => course(run, seen[place]) ?? []);
  it.root.hidden = !found.length;
  if (!found.length) {
    it.root.dataset.state = "empty";
    return undefined;
  }
  const lone = found.length === 1 && context.runs.length === 1;
  const few = found.every(({steps}) => steps.length < 2);
  describe(it, lone ? `Loss ${found[0].told}` : "Loss", few ? "" : hint(found));
  if (few) return say(it, onlyStep(found[0].steps[0], lone ? `loss ${found[0].told}` : found.map(named).join("; ")));
  const scale = levels(found);
  const traces = found.flatMap((each, place) => [
    ...curves(each, lone),
    ticks(each, found.length - place),
    ...marks(each, scale),
  ]);
  const numbers = () => gathered(found.flatMap(rows));
  return draw(it, traces, frame(found, scale, lone), numbers, notes(found, scale));
}

const named = ({run, told}) => `${run.label}: ${told}`;

function course(run, {steps, layers}) {
  const {step, loss, nonfinite} = steps.columns;
  const seen = [...step.keys()].filter((row) => isMeasured(loss[row], nonfinite[row]));
  const finite = seen.filter((row) => Number.isFinite(loss[row]));
  if (!finite.length) return null;
  const [at, values] = [finite.map((row) => step[row]), finite.map((row) => loss[row])];
  const width = values.length < 20 ? 1 : 2 * Math.round(Math.sqrt(values.length) / 2) + 1;
  const smooth = median(values, width);
  const told = ends(seen.map((row) => [step[row], Number.isNaN(loss[row]) ? Infinity : loss[row]]));
  const broken = seen.filter((row) => !Number.isFinite(loss[row])).map((row) => step[row]);
  const recorded = [...new Set(layers.columns.step)];
  const thinned = steps.head.rows_kept > steps.length && steps;
  return {run, steps: at, values, smooth, width, told, broken, recorded, thinned};
}

// From what to what it went, as everywhere in gradscope: the medians of the first and of the last tenth of the steps.
function ends(seen) {
  const [begin, end] = [seen[0][0], seen[seen.length - 1][0]];
  const part = (most) => Math.min(most, Math.max(1, Math.floor((end - begin + 1) / 10)));
  const first = seen.filter(([step]) => step < begin + part(EARLY));
  const last = seen.filter(([step]) => step > end - part(LATE));
  return (end > begin ? [first, last] : [first]).map((near) => middle(near.map(([, loss]) => loss))).join(" → ");
}

function middle(values) {
  const sorted = values.sort((a, b) => a - b);
  const value = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  return Number.isFinite(value) ? rounded(value) : "not finite";
}

function hint(found) {
  const smooth = found.some(({width}) => width > 1);
  const widest = Math.max(...found.map(({width}) => width));
  const lines = smooth ? `The line is the running median of ${widest} steps; faint, every step.` : "Of every step.";
  return `${lines} The ticks below are recorded steps, which the other pictures show.`;
}

// Every value, faint where there is a median to look at.
function curves({run, steps, values, smooth, width, told}, lone) {
  const tint = colour(run.place);
  const name = lone ? "loss" : named({run, told});
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

function ticks({run, recorded}, height) {
  return {
    type: "scatter",
    mode: "markers",
    name: plain(run.label),
    legendgroup: run.run,
    showlegend: false,
    x: recorded,
    y: recorded.map(() => height),
    yaxis: "y2",
    marker: {symbol: "line-ns", size: 8, line: {color: colour(run.place), width: 1}},
    hovertemplate: "step %{x}: recorded<extra></extra>",
  };
}

function marks({broken, run}, {high}) {
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

function frame(found, {low, high, logarithmic}, lone) {
  const below = TICK_ROW * found.length;
  const [from, to] = logarithmic ? [Math.log10(low), Math.log10(high)] : [low, high];
  const margin = 0.06 * (to - from);
  const range = [from - margin, to + margin];
  const steps = found.flatMap((each) => [each.steps[0], each.steps[each.steps.length - 1]]).sort((a, b) => a - b);
  const upright = {domain: [below + 0.03, 1], range};
  return layout({
    height: 220,
    margin: {l: 64, r: 16, t: lone ? 10 : 34, b: 44},
    xaxis: wholeAxis("training step", steps, {anchor: "y2"}),
    yaxis: logarithmic ? logAxis("loss", [low, high], upright) : axis("loss", upright),
    yaxis2: {domain: [0, below], range: [0.5, found.length + 0.5], visible: false, fixedrange: true},
    uirevision: "loss",
    showlegend: !lone,
  });
}

// From the smallest to the largest loss, without spikes far beyond most of them.
function levels(found) {
  const values = found.flatMap((each) => each.values).sort((a, b) => a - b);
  const rank = (share) => values[Math.round(share * (values.length - 1))];
  const medians = found.flatMap(({smooth}) => smooth).sort((a, b) => a - b);
  const [low, high] = [Math.min(rank(0.01), medians[0]), Math.max(rank(0.99), medians[medians.length - 1])];
  const room = high - low || 0.1 * Math.abs(high) || 1;
  if (low === high) return {low: low - room, high: high + room, logarithmic: false};
  const ends = {low: Math.max(rank(0), low - room), high: Math.min(rank(1), high + room)};
  return {...ends, logarithmic: rank(0) > 0 && high / low > 30};
}

function notes(found, {low, high}) {
  return found.flatMap(({run, values, broken, thinned}) => {
    const name = found.length > 1 ? `${run.label}: ` : "";
    const outside = values.filter((value) => value < low || value > high).length;
    return [
      thinned && `${name}${count(thinned.length)} of ${plural(thinned.head.rows_kept, "step")} drawn, evenly spaced.`,
      outside && `${name}${plural(outside, "value")} outside the picture.`,
      broken.length && `${name}the loss of ${plural(broken.length, "step")} was NaN or infinite: marked at the top.`,
    ].filter(Boolean);
  });
}

function rows({run, steps, values, smooth}) {
  return steps.map((step, at) => ({run: run.label, step, loss: values[at], median: smooth[at]}));
}
