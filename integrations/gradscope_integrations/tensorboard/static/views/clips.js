// The pictures of the clipping view.
import {describe, draw, say} from "../charts.js";
import {listed} from "../csv.js";
import {count, number, percent, plural} from "../format.js";
import {extent, extremes, line, meaning, overSteps, reference} from "../lines.js";
import {axis, colour, layout, logAxis, tones, wholeAxis} from "../theme.js";
import {onlyStep} from "../words.js";

const RECENT = 100;
const BINS = 40;
const DRAWN = 4000;

export function drawNorms(it, data) {
  describe(
    it,
    data.clips ? "Gradient norm before and after clipping" : "Gradient norm (nothing clips)",
    data.clips
      ? `Where the lines part, ${data.how} shortened the gradient.`
      : "The norm of the recurrent layers' gradients at the optimizer.",
  );
  const usable = data.before.filter((norm) => norm > 0 && Number.isFinite(norm));
  if (!usable.length)
    return say(it, data.steps.length ? "No norm is positive and finite." : "No norms yet.");
  if (data.steps.length < 2) {
    const after = data.clips ? ` before, ${number(data.after[0])} after` : "";
    return say(it, onlyStep(data.steps[0], `norm ${number(usable[0])}${after}`));
  }
  const chosen = extremes(data.before, DRAWN);
  const limit = threshold(data, chosen);
  const broken = data.before.flatMap((norm, place) => (Number.isFinite(norm) ? [] : [data.steps[place]]));
  const traces = [...courses(data, chosen), ...limit.traces, ...(broken.length ? [marks(broken, usable)] : [])];
  const shape = layout({
    height: 290,
    margin: {l: 64, r: 16, t: 34, b: 44},
    shapes: limit.shapes,
    xaxis: wholeAxis("training step", data.steps),
    yaxis: logAxis("gradient norm", extent([usable, data.clips ? data.after : []])),
    uirevision: "norms",
  });
  return draw(it, traces, shape, () => listed(data.columns), leftOut(data, chosen, broken));
}

const select = (chosen, values) => chosen.map((place) => values[place]);
const hover = (name) => ({hovertemplate: `step %{x}: ${name} %{y:.4~g}<extra></extra>`});

// The norm before and, with clipping, after.
function courses(data, chosen) {
  const course = (name, label, values, tint) =>
    overSteps(label, select(chosen, data.steps), select(chosen, values), tint, {...hover(name), line: {width: 1.3}});
  const before = course("before", data.clips ? "before" : "norm", data.before, colour(0));
  return data.clips ? [before, course("after", "after", data.after, colour(1))] : [before];
}

// A straight line for a constant threshold, else a curve; limits on values are not norms.
function threshold(data, chosen) {
  const limits = data.kind === "norm" && data.clips ? data.columns.threshold : [];
  if (!limits.length) return {traces: [], shapes: []};
  if (new Set(limits).size === 1) {
    const text = `threshold ${number(data.threshold, 3)}`;
    return {traces: [meaning(text, tones())], shapes: [reference(data.threshold, tones())]};
  }
  const look = {line: {width: 1, dash: "dash"}, ...hover("threshold")};
  const course = line("threshold", select(chosen, data.steps), select(chosen, limits), tones().soft, look);
  return {traces: [course], shapes: []};
}

function marks(broken, usable) {
  return {
    type: "scatter",
    mode: "markers",
    name: "NaN or infinite",
    x: broken,
    y: broken.map(() => Math.max(...usable)),
    marker: {symbol: "x-thin-open", color: tones().bad, size: 8, line: {width: 1.5}},
    hovertemplate: "step %{x}: not finite<extra></extra>",
  };
}

function leftOut(data, chosen, broken) {
  return [
    data.rows < data.kept && `${plural(data.rows, "row")} of ${plural(data.kept, "row")} shown, evenly spaced.`,
    chosen.length < data.before.length &&
      `The lines show the smallest and the largest of every few of ${plural(data.before.length, "step")}.`,
    data.unmeasured &&
      `Measured at ${count(data.before.length)} of ${plural(data.before.length + data.unmeasured, "step")}.`,
    broken.length && `${plural(broken.length, "step")} with a norm that is NaN or infinite: crosses at the top.`,
  ].filter(Boolean);
}

function recentSteps({steps, unmeasured}, recent) {
  const word = unmeasured ? "measured steps" : "steps";
  return steps.length > recent ? `the last ${recent} ${word}` : `the ${word} so far`;
}

export function drawRate(it, data) {
  const recent = Math.min(RECENT, Math.max(10, Math.round(data.steps.length / 5)));
  describe(
    it,
    "Clip rate",
    `Share of ${recentSteps(data, recent)} that were clipped. A brake for rare spikes stays low; near 100 % the threshold sets the length of a step.`,
  );
  it.root.hidden = !data.clips;
  if (!data.clips) return say(it, "Nothing clips in this run.");
  if (!data.steps.length) return say(it, "No norms yet.");
  if (data.steps.length < 2)
    return say(it, onlyStep(data.steps[0], data.columns.clipped[0] ? "clipped" : "not clipped"));
  const rate = [];
  let sum = 0;
  data.columns.clipped.forEach((clipped, place) => {
    sum += clipped - (place >= recent ? data.columns.clipped[place - recent] : 0);
    rate.push(sum / Math.min(place + 1, recent));
  });
  const traces = [
    overSteps("clip rate", data.steps, rate, colour(2), {
      fill: "tozeroy",
      fillcolor: "rgba(2,158,115,0.12)",
      hovertemplate: "step %{x}: %{y:.1%} clipped<extra></extra>",
    }),
  ];
  const shape = layout({
    height: 210,
    margin: {l: 64, r: 16, t: 10, b: 44},
    xaxis: wholeAxis("training step", data.steps),
    yaxis: axis("share clipped", {range: [-0.02, 1.02], tickformat: ".0%", tickvals: [0, 0.5, 1]}),
    uirevision: "rate",
  });
  return draw(it, traces, shape, () => listed({step: data.steps, clipped: data.columns.clipped, rate}));
}

export function drawCoefficients(it, data) {
  describe(
    it,
    "How much clipping shortened",
    "Factors by which gradients were multiplied, of the steps that were clipped.",
  );
  it.root.hidden = !data.clips;
  if (!data.clips) return say(it, "Nothing clips in this run.");
  const {coefficient, clipped, step} = data.columns;
  const factors = coefficient.filter((factor, place) => clipped[place] && factor > 0 && Number.isFinite(factor));
  if (!step.length) return say(it, "No norms yet.");
  if (!factors.length)
    return say(
      it,
      step.length > 1 ? `None of ${plural(step.length, "step")} was clipped.` : "The only step was not clipped.",
    );
  describe(
    it,
    it.parts.title.textContent,
    `Clipping's factors on the gradients; ${percent(1 - factors.length / step.length)} of the steps were not clipped.`,
  );
  const low = Math.min(0, Math.floor(Math.log10(Math.min(...factors)) * 2) / 2) || -0.5;
  const edges = Array.from({length: BINS + 1}, (_, place) => low - (low * place) / BINS);
  const counts = Array(BINS).fill(0);
  for (const factor of factors)
    counts[Math.min(BINS - 1, Math.max(0, Math.floor(((Math.log10(factor) - low) / -low) * BINS)))]++;
  const shares = counts.map((count) => count / coefficient.length);
  const range = counts.map((_, bin) => `${number(10 ** edges[bin], 2)} to ${number(10 ** edges[bin + 1], 2)}`);
  const trace = {
    type: "bar",
    x: counts.map((_, bin) => (10 ** edges[bin] + 10 ** edges[bin + 1]) / 2),
    width: counts.map((_, bin) => 0.94 * (10 ** edges[bin + 1] - 10 ** edges[bin])),
    y: shares,
    customdata: range,
    marker: {color: colour(1)},
    hovertemplate: "factor %{customdata}<br>%{y:.2%} of the steps<extra></extra>",
  };
  const shape = layout({
    height: 210,
    margin: {l: 64, r: 16, t: 10, b: 44},
    xaxis: logAxis("factor on the gradient", [10 ** low, 1], {range: [low, 0.01]}),
    yaxis: axis("share of steps", {tickformat: ".2~%", rangemode: "tozero"}),
    uirevision: "coefficients",
  });
  return draw(it, [trace], shape, () => listed({step, coefficient, clipped}));
}

export function drawShare(it, data, level) {
  describe(
    it,
    "Share clipped by any threshold",
    "The share of these steps whose norm is above a threshold. The slider above reads it.",
  );
  const norms = data.before.filter((norm) => norm > 0 && Number.isFinite(norm)).sort((a, b) => a - b);
  it.root.hidden = data.kind !== "norm";
  if (data.kind !== "norm") return say(it, "Norms cannot predict the effect of another limit on values.");
  if (!norms.length) return say(it, "No norm is positive and finite.");
  const every = Math.max(1, Math.ceil(norms.length / DRAWN));
  const at = [...norms.keys()].filter((place) => place % every === 0 || place === norms.length - 1);
  const x = [norms[0] * 0.8, ...at.map((place) => norms[place])];
  const y = [1, ...at.map((place) => (norms.length - 1 - place) / norms.length)];
  const ends = extent([x, [level, data.threshold]]);
  const traces = [
    line("share", x, y, colour(0), {
      line: {shape: "hv", width: 1.8},
      hovertemplate: "threshold %{x:.4~g}: %{y:.1%} clipped<extra></extra>",
    }),
  ];
  const chosen = {color: tones().mark, dash: "solid"};
  const shapes = [reference(level, tones(), {axis: "x", ...chosen})];
  traces.push(meaning(`chosen: ${number(level, 3)}`, tones(), chosen));
  if (data.threshold > 0) {
    shapes.push(reference(data.threshold, tones(), {axis: "x"}));
    traces.push(meaning(`in use: ${number(data.threshold, 3)}`, tones()));
  }
  const shape = layout({
    height: 230,
    margin: {l: 64, r: 16, t: 34, b: 44},
    shapes,
    xaxis: logAxis("threshold (max_norm)", ends, {range: [Math.log10(ends[0]), Math.log10(ends[1]) + 0.03]}),
    yaxis: axis("share clipped", {range: [-0.02, 1.02], tickformat: ".0%", tickvals: [0, 0.5, 1]}),
    uirevision: "share",
  });
  return draw(it, traces, shape, () => listed({threshold: x, share: y}));
}
