// Loss, horizon and findings over one axis of steps, on top of the views of one step: the pointer on it moves them.
import * as api from "../api.js";
import {adjust, describe, draw, figure, say} from "../charts.js";
import {nearest} from "../controls.js";
import {gathered} from "../csv.js";
import {fill, h, plain} from "../dom.js";
import {count} from "../format.js";
import {runName} from "../panels.js";
import {change, state} from "../state.js";
import {axis, colour, layout, logAxis, tones, wholeAxis} from "../theme.js";
import {onlyStep} from "../words.js";
import {headline} from "./headline.js";
import {horizons, rowsOfLayer} from "./horizons.js";
import {legend, which} from "./look.js";
import {course, curves, hint, levels, marks, named, notes, ticks, turning} from "./loss.js";

const MOST_STEPS = 20_000;
const MOST_FINDINGS = 4; // of a run
const TICKS = 3;
const POINTS = 65; // hover points on the line of a finding
const HIGH = {loss: 124, horizon: 84, finding: 21, tick: 8, gap: 12};
const LOW = {...HIGH, loss: 72, horizon: 52}; // above the pictures of a view

// Calls point(step) with the step under the pointer, and point(undefined) when the pointer leaves.
export function mount(parent, point) {
  const words = h("div", {class: "headlines", "data-testid": "headline"});
  parent.append(words);
  const it = figure(parent, "timeline", {wide: true});
  const back = h(
    "button",
    {class: "quiet", type: "button", onclick: () => change({step: undefined})},
    "Back to the last step",
  );
  it.parts.below.append(back);
  let recorded = [];
  const snapped = (step) => recorded[nearest(recorded, step)];
  it.listeners.click = ({x}) => change({step: snapped(x)});
  it.listeners.hover = ({x}) => point(snapped(x));
  it.listeners.leave = () => point(undefined);
  return {
    async update(context) {
      const data = await Promise.all(context.runs.map((run) => read(run)));
      if (!context.current()) return;
      recorded = [...new Set(data.flatMap((each) => each.recorded))].sort((a, b) => a - b);
      const {step} = state();
      back.hidden = step === undefined;
      parent.classList.toggle("compact", compact(context));
      fill(
        words,
        data.map((each) => sentence(each, context)),
      );
      await drawTimeline(it, data, context);
      await adjust(it, {shapes: step === undefined ? [] : [stay(snapped(step))]});
    },
  };
}

const compact = ({state: {view}}) => view !== "overview";

async function read(run) {
  const [steps, layers, {findings}] = await Promise.all([
    api.table("steps", {run: run.run, rows: MOST_STEPS}, run.stamp),
    api.table("layers", {run: run.run, points: 400}, run.stamp),
    api.stamped("findings", {run: run.run}, run.stamp),
  ]);
  const recorded = [...new Set(layers.columns.step)];
  return {run, layers: layers.columns, findings, recorded, loss: course(run, steps)};
}

function sentence(each, {runs}) {
  return h("p", {}, runs.length > 1 ? runName(each.run) : null, h("span", {}, headline(each)));
}

const stay = (step) => ({
  ...{type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1},
  line: {color: tones().mark, width: 1},
});

function drawTimeline(it, data, context) {
  const losses = data.flatMap(({loss}) => loss ?? []);
  const lone = context.runs.length === 1;
  const title = lone && losses.length ? `Loss ${losses[0].summary}, and horizon` : "Loss and horizon over training";
  const steps = [...new Set(data.flatMap(({loss, recorded}) => [...(loss?.steps ?? []), ...recorded]))];
  describe(it, losses.length ? title : "Horizon over training", steps.length > 1 ? how(losses, context) : "");
  if (steps.length < 2)
    return say(it, onlyStep(steps[0] ?? 0, losses.map(lone ? ({summary}) => `loss ${summary}` : named).join("; ")));
  const strips = stacked(data, losses, compact(context) ? LOW : HIGH);
  const scale = losses.length ? levels(losses) : null;
  const traces = [
    ...losses.flatMap((each) => [...curves(each, lone), ...turning(each), ...marks(each, scale)]),
    ...data.flatMap(({run, layers}) => backwards(run, layers, context)),
    ...data.map(({run, recorded}, place) => ticks(run, recorded, data.length - place, {yaxis: "y2"})),
    ...spans(data),
  ];
  const numbers = () => gathered(data.flatMap((each) => rows(each, context)));
  return draw(it, traces, frame(traces, strips, scale, context), numbers, losses.length ? notes(losses, scale) : []);
}

function how(losses, context) {
  const moves = "Move along it, and the pictures below follow; a click stays at a step.";
  return `${hint(losses)}The ticks are recorded steps. ${moves}${which(context)}`;
}

// With several runs the line of a loss names the run already.
function backwards(run, layers, context) {
  const lines = horizons(run, layers, context, {yaxis: "y3"});
  return context.runs.length > 1 ? lines.map((each) => ({...each, showlegend: false, legendgroup: run.run})) : lines;
}

const faults = ({findings}) =>
  (findings ?? []).filter(({code, evidence}) => code !== "healthy" && evidence.steps?.length);

// The steps of each finding, a strip for each.
function spans(data) {
  const shown = data.flatMap((each) =>
    faults(each)
      .slice(0, MOST_FINDINGS)
      .map((finding) => [each.run, finding]),
  );
  return shown.map(([run, {code, severity, title, evidence}], place) => {
    const [from, to] = [evidence.steps[0], evidence.steps.at(-1)];
    const tint = getComputedStyle(document.documentElement).getPropertyValue(`--${severity}`);
    const x = Array.from({length: POINTS}, (_, at) => from + ((to - from) * at) / (POINTS - 1));
    return {
      ...{type: "scatter", mode: "lines+markers+text", yaxis: "y4", showlegend: false, name: plain(run.label)},
      ...{x, y: x.map(() => shown.length - place), line: {color: tint, width: 3}},
      marker: {color: tint, size: x.map((_, at) => (at % (POINTS - 1) ? 0 : 6)), opacity: 1},
      ...{text: [plain(code.replaceAll("_", " "))], textposition: "top right", textfont: {size: 11, color: tint}},
      cliponaxis: false,
      hovertemplate: `${data.length > 1 ? `${plain(run.label)}: ` : ""}${plain(title)}<br>steps ${count(from)} to ${count(to)}<extra></extra>`,
    };
  });
}

// The heights of the parts, from the top.
function stacked(data, losses, high) {
  const findings = data.reduce((sum, each) => sum + Math.min(MOST_FINDINGS, faults(each).length), 0);
  const horizon = data.some(({recorded}) => recorded.length) ? high.horizon : 0;
  const parts = [
    ["yaxis", losses.length ? high.loss : 0],
    ["yaxis3", horizon],
    ["yaxis4", findings * high.finding],
  ];
  return [...parts, ["yaxis2", data.length * high.tick]].filter(([, height]) => height);
}

function frame(traces, strips, scale, context) {
  const height = strips.reduce((sum, [, each]) => sum + each + HIGH.gap, -HIGH.gap);
  const top = legend(traces) ? 34 : 10;
  const places = {};
  let from = height;
  for (const [name, each] of strips) {
    places[name] = [(from - each) / height, from / height];
    from -= each + HIGH.gap;
  }
  const strip = (domain, rows) => ({domain, range: [0.4, rows + 0.6], visible: false, fixedrange: true});
  return layout({
    height: height + top + 44,
    margin: {l: 64, r: 16, t: top, b: 44},
    ...{hovermode: "x", hoversubplots: "axis", hoverdistance: 40, showlegend: legend(traces), uirevision: "timeline"},
    xaxis: wholeAxis("training step", ends(context.runs), {anchor: "y2", ...cursor()}),
    yaxis: places.yaxis ? upright(scale, places.yaxis) : {visible: false},
    yaxis2: strip(places.yaxis2, context.runs.length),
    yaxis3: axis("horizon", {domain: places.yaxis3, rangemode: "tozero", nticks: 4}),
    yaxis4: places.yaxis4
      ? strip(places.yaxis4, Math.round(strips.find(([name]) => name === "yaxis4")[1] / HIGH.finding))
      : {visible: false},
  });
}

function upright({low, high, logarithmic}, domain) {
  const [from, to] = logarithmic ? [Math.log10(low), Math.log10(high)] : [low, high];
  const margin = 0.06 * (to - from);
  const more = {domain, range: [from - margin, to + margin], nticks: 5};
  return logarithmic ? sparse(logAxis("loss", [low, high], more)) : axis("loss", more);
}

// Few ticks on a low axis.
function sparse({tickvals = [], ticktext = [], ...rest}) {
  const every = Math.ceil(tickvals.length / TICKS);
  const few = (list) => list.filter((_, at) => at % every === 0);
  return tickvals.length ? {...rest, tickvals: few(tickvals), ticktext: few(ticktext)} : rest;
}

// The line under the pointer, through all parts.
const cursor = () => ({
  ...{showspikes: true, spikemode: "across", spikesnap: "hovered data", spikedash: "dot"},
  ...{spikethickness: 1, spikecolor: tones().mark},
});

// The first and the last step of some runs, recorded or not.
const ends = (runs) => [
  Math.min(...runs.map((run) => run.state.first_step)),
  Math.max(...runs.map((run) => run.state.last_step)),
];

function rows({run, loss, layers}, context) {
  const key = context.layer(run)?.key;
  const horizon = new Map(rowsOfLayer(layers, key).map((row) => [layers.step[row], layers.horizon[row]]));
  const at = new Map((loss?.steps ?? []).map((step, place) => [step, place]));
  const steps = [...new Set([...at.keys(), ...horizon.keys()])].sort((a, b) => a - b);
  return steps.map((step) => ({
    ...{run: run.label, step, loss: loss?.values[at.get(step)], median: loss?.smooth[at.get(step)]},
    horizon: horizon.get(step),
  }));
}
