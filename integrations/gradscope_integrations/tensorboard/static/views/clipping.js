// The effect of clipping, and of other thresholds.
import * as api from "../api.js";
import {figure, forget} from "../charts.js";
import {select, slider} from "../controls.js";
import {h} from "../dom.js";
import {number, percent, plural} from "../format.js";
import {columns} from "../panels.js";
import {change} from "../state.js";
import {isMeasured} from "../words.js";
import {drawCoefficients, drawNorms, drawRate, drawShare} from "./clips.js";

const MOST = 20_000;
const PLACES = 200;

export function mount(parent) {
  const call = select("call", "Clipping call", (value) => change({call: value, threshold: undefined}));
  const threshold = slider(
    "threshold",
    "Try a threshold",
    (value) => change({threshold: value}),
    (value) => number(value, 3),
  );
  const answer = h("output", {class: "readout", "data-testid": "what-if", "aria-live": "polite"});
  parent.append(h("div", {class: "row controls"}, call.root, threshold.root), answer);
  const perRun = columns(
    parent,
    (element, run) => {
      const [norms, rate, share, coefficients] = ["norms", "clip-rate", "what-if-share", "coefficients"].map((id) =>
        figure(element, id, {run}),
      );
      const made = {norms, rate, share, coefficients};
      return {...made, drop: () => Object.values(made).forEach(forget)};
    },
    {paired: true},
  );
  return {
    async update(context) {
      const tables = await Promise.all(context.runs.map((run) => read(run)));
      if (!context.current()) return;
      const calls = new Map(tables.flatMap((table) => table.calls));
      const now = calls.has(context.state.call) ? context.state.call : calls.keys().next().value;
      call.set([...calls], now ?? "");
      call.show(calls.size > 1);
      const data = tables.map((table) => series(table, table.has(now) ? now : table.calls[0]?.[0]));
      const levels = thresholds(data);
      const level =
        context.state.threshold ??
        data.find((each) => each.threshold)?.threshold ??
        levels[Math.floor(levels.length / 2)];
      threshold.set(
        [...new Set([...levels, level])].sort((a, b) => a - b),
        level,
      );
      threshold.show(levels.length > 0);
      answer.replaceChildren(
        ...data.map((each, place) => answered(each, level, context.runs[place], context.runs.length > 1)),
      );
      await Promise.all(
        perRun(context.runs).flatMap((made, place) => [
          drawNorms(made.norms, data[place]),
          drawRate(made.rate, data[place]),
          drawShare(made.share, data[place], level),
          drawCoefficients(made.coefficients, data[place]),
        ]),
      );
    },
  };
}

async function read(run) {
  const [clips, steps] = await Promise.all(
    ["clips", "steps"].map((route) => api.table(route, {run: run.run, rows: MOST}, run.stamp)),
  );
  const calls = new Map();
  limiting(clips).forEach((row) => {
    const id = callOf(clips, row);
    const {how, parameters} = clips.columns;
    if (!calls.has(id)) calls.set(id, `${how[row]} (${plural(parameters[row], "parameter")})`);
  });
  return {clips, steps, calls: [...calls], has: (call) => calls.has(call)};
}

const callOf = ({columns}, row) => `${columns.index[row]} ${columns.how[row]}`;

// The rows of calls that can clip: a call with an infinite threshold only measures the norm.
const limiting = ({columns}) => [...columns.how.keys()].filter((row) => columns.threshold[row] !== Infinity);

// The rows of the chosen call, or of the run's first call; without clipping, the gradient's norm. Leaves out steps whose
// norm nobody measured.
function series({clips, steps}, call) {
  const own = limiting(clips).filter((row) => callOf(clips, row) === call);
  const [table, rows, norm] = own.length
    ? [clips, own, clips.columns.norm_before]
    : [steps, [...steps.columns.step.keys()], steps.columns.grad_norm];
  const measured = rows.filter((row) => isMeasured(norm[row], table.columns.nonfinite[row]));
  const take = ([name, column]) => [name, measured.map((row) => column[row])];
  const columns = Object.fromEntries(Object.entries(table.columns).map(take));
  const shared = {columns, steps: columns.step, rows: table.length, kept: table.head.rows_kept};
  const unmeasured = rows.length - measured.length;
  if (!own.length) return {...shared, unmeasured, clips: false, kind: "norm", before: columns.grad_norm};
  return {
    ...shared,
    unmeasured,
    clips: true,
    kind: clips.columns.kind[own[0]],
    how: clips.columns.how[own[0]],
    before: columns.norm_before,
    after: columns.norm_after,
    threshold: clips.columns.threshold[own[own.length - 1]],
  };
}

// The places of the slider: evenly spaced in decades over the observed norms, and the thresholds in use.
function thresholds(data) {
  const usable = data.filter((each) => each.kind === "norm");
  const norms = usable.flatMap((each) => each.before).filter((norm) => norm > 0 && Number.isFinite(norm));
  if (!norms.length) return [];
  const [low, high] = norms
    .reduce(([a, b], norm) => [Math.min(a, norm), Math.max(b, norm)], [Infinity, 0])
    .map(Math.log10);
  const levels = Array.from({length: PLACES + 1}, (_, place) =>
    Number((10 ** (low - 0.1 + ((high - low + 0.2) * place) / PLACES)).toPrecision(4)),
  );
  return [...new Set([...levels, ...usable.map((each) => each.threshold).filter((each) => each > 0)])].sort(
    (a, b) => a - b,
  );
}

// The share of steps that a threshold changes: torch scales if the norm, plus 1e-6, is above it.
export function wouldClip(norms, threshold) {
  const finite = norms.filter(Number.isFinite);
  return finite.filter((norm) => threshold / (norm + 1e-6) < 1).length / finite.length;
}

function answered(data, level, run, several) {
  const name = several ? h("b", {class: "name"}, run.label) : null;
  if (!data.steps.length) return h("span", {}, name, "No norms yet.");
  if (data.kind !== "norm")
    return h("span", {}, name, "This run clips by value: norms cannot predict the effect of another limit.");
  if (!data.before.some(Number.isFinite)) return h("span", {}, name, "No norm is finite.");
  const share = data.clips ? data.columns.clipped.filter(Boolean).length / data.steps.length : 0;
  const now = data.clips
    ? [
        `; the present threshold, ${number(data.threshold, 3)}, has clipped `,
        h("b", {"data-testid": "clipped-now"}, percent(share)),
        ".",
      ]
    : ". Nothing clips in this run.";
  return h(
    "span",
    {},
    name,
    `A threshold of ${number(level, 3)} would have clipped `,
    h("b", {"data-testid": "would-clip"}, percent(wouldClip(data.before, level))),
    ` of ${plural(data.before.length, data.unmeasured ? "measured step" : "step")}`,
    now,
  );
}
