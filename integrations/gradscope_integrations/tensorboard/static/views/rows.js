// The content of the table of runs.
import * as api from "../api.js";
import {percent} from "../format.js";
import {isMeasured} from "../words.js";
import {verdictOf} from "./headline.js";
import {lastOfEach, rowsOfLayer} from "./horizons.js";
import {course} from "./loss.js";

const MOST_STEPS = 20_000;
const MOST_SETTINGS = 4;
const IN_NAME = /([A-Za-z_][\w.-]*)=([^,/\\]+)/g;
const CELLS = {"gates/forget": "LSTM", "gates/reset": "GRU"};
const LEARNS = {learns: "yes", stalls: "no", lost: "lost it"};
const RANKS = ["critical", "warning", "info", "healthy"];

const cache = new Map();

// One row for each run, read again only if the run has new data.
export const rowsOf = (runs) => Promise.all(runs.map((run) => rowOf(run)));

async function rowOf(run) {
  if (cache.get(run.run)?.stamp !== run.stamp) cache.set(run.run, {stamp: run.stamp, row: read(run)});
  const {row} = cache.get(run.run);
  row.catch(() => cache.delete(run.run));
  return {...(await row), run};
}

async function read(run) {
  const query = {run: run.run, rows: MOST_STEPS};
  const [steps, clips, layers, {findings}] = await Promise.all([
    api.table("steps", query, run.stamp),
    api.table("clips", query, run.stamp),
    api.table("layers", {run: run.run, points: 400}, run.stamp),
    api.stamped("findings", {run: run.run}, run.stamp),
  ]);
  const finding = worst(findings ?? []);
  const clipped = clipShare(steps, clips);
  return {
    settings: settingsOf(run),
    loss: course(run, steps),
    learns: LEARNS[verdictOf(findings)?.learning] ?? "–",
    horizon: soonest(layers),
    finding,
    clipped,
    texts: {clipped: percent(clipped), finding: finding?.code ?? "–"},
  };
}

// Settings in a run's name, as lr=0.1, and its layers.
function settingsOf(run) {
  const cells = new Set(run.layers.map(({curves}) => CELLS[curves.find((curve) => curve in CELLS)] ?? "RNN"));
  return {
    ...Object.fromEntries([...run.label.matchAll(IN_NAME)].map(([, name, value]) => [name, value])),
    cell: [...cells].join(", "),
    layers: String(run.layers.length),
  };
}

// The settings that all runs have and that differ, with their values in order.
export function differing(rows) {
  const names = Object.keys(rows[0]?.settings ?? {}).filter((name) => rows.every(({settings}) => name in settings));
  const values = (name) => [...new Set(rows.map(({settings}) => settings[name]))].sort(inOrder);
  const differ = names.map((name) => [name, values(name)]).filter(([, list]) => list.length > 1);
  return new Map(differ.slice(0, MOST_SETTINGS));
}

// The lowest and the highest of the losses, and of the horizons from 0 on: pictures of all runs have one scale.
export function scales(rows) {
  const all = (values) => rows.flatMap(values).filter(Number.isFinite);
  const ends = (list) => [Math.min(...list), Math.max(...list)];
  return {
    loss: ends(all(({loss}) => loss?.smooth ?? [])),
    horizon: ends([0, ...all(({horizon}) => horizon?.values ?? [])]),
  };
}

export function inOrder(a, b) {
  return Number(a) - Number(b) || String(a).localeCompare(String(b), "en", {numeric: true});
}

// The last horizon of the layer with the shortest one, and its curve.
function soonest(layers) {
  const [shortest] = lastOfEach(layers).sort(
    (a, b) => a.horizon_censored - b.horizon_censored || a.horizon - b.horizon || (Number.isNaN(a.horizon) ? 1 : -1),
  );
  if (!shortest || !Number.isFinite(shortest.horizon)) return null;
  const rows = rowsOfLayer(layers.columns, shortest.key);
  const take = (name) => rows.map((row) => layers.columns[name][row]);
  return {...shortest, steps: take("step"), values: take("horizon")};
}

const tone = ({code, severity}) => (code === "healthy" ? "healthy" : severity);

function worst(findings) {
  const [first] = [...findings].sort((a, b) => RANKS.indexOf(tone(a)) - RANKS.indexOf(tone(b)));
  return first && {...first, tone: tone(first), rank: RANKS.indexOf(tone(first))};
}

// The share of clipped steps among the steps of which this is known. Scaling by hand is not clipping, and a call with an
// infinite threshold only measures.
function clipShare(steps, clips) {
  const {step, kind, how, threshold, clipped, norm_before: norm, nonfinite} = clips.columns;
  const limits = (row) => threshold[row] !== Infinity && (kind[row] !== "modified" || how[row] === "clamped");
  const calls = [...step.keys()].filter(limits);
  const unknown = new Set(calls.filter((row) => !isMeasured(norm[row], nonfinite[row])).map((row) => step[row]));
  const changed = new Set(calls.filter((row) => clipped[row] && !unknown.has(step[row])).map((row) => step[row]));
  const byHand = calls.every((row) => kind[row] === "modified");
  const {step: every, grad_norm: seen, nonfinite: bad} = steps.columns;
  const counted = new Set(every.filter((_, row) => !byHand || isMeasured(seen[row], bad[row]))).size;
  return changed.size / (counted - (byHand ? 0 : unknown.size));
}
