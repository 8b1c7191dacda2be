// The keyboard in a picture: arrow keys go from point to point, and the page reads out the hover text.
import {unescaped} from "./dom.js";
import {number, percent} from "./format.js";

const MOVES = {
  ArrowRight: (at) => at + 1,
  ArrowLeft: (at) => at - 1,
  Home: () => 0,
  End: (_, last) => last,
};
const MOST = 12;

export function walkable(it) {
  const {plot} = it.parts;
  plot.setAttribute("tabindex", "0");
  plot.setAttribute("role", "group");
  plot.addEventListener("keydown", (event) => pressed(it, event));
  plot.addEventListener("blur", () => leave(it));
}

// After a new drawing: return to the same place in the new data, if the keyboard is in use.
export function stay(it) {
  if (it.at === undefined) return;
  const stops = stopsOf(it.parts.plot.data);
  const place = placeOf(stops, it.at);
  if (place < 0) leave(it);
  else show(it, stops[place]);
}

function pressed(it, event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !it.parts.plot.drawn) return;
  if (event.key === "Escape") leave(it);
  else if (event.key === "Enter") choose(it);
  else if (MOVES[event.key]) {
    event.preventDefault();
    move(it, event.key);
  }
}

function move(it, key) {
  const stops = stopsOf(it.parts.plot.data);
  if (!stops.length) return;
  const last = stops.length - 1;
  const from = placeOf(stops, it.at);
  const at = from < 0 && key === "ArrowLeft" ? stops.length : from;
  const stop = stops[Math.min(last, Math.max(0, MOVES[key](at, last)))];
  it.at = stop.key;
  show(it, stop);
}

// Enter acts as a click there.
function choose(it) {
  const {data} = it.parts.plot;
  const stop = stopsOf(data).find(({key}) => key === it.at);
  if (!stop) return;
  it.listeners.click?.(pointAt(data, stop.points[0]));
}

const pointAt = (data, {curveNumber, pointNumber}) => ({
  x: data[curveNumber].x[pointNumber],
  y: data[curveNumber].y[pointNumber],
});

export function leave(it) {
  if (it.at !== undefined) it.listeners.leave?.();
  it.at = undefined;
  it.parts.walked.hidden = true;
  it.parts.walked.textContent = "";
  if (it.parts.plot.drawn) window.Plotly.Fx.unhover(it.parts.plot);
}

function show(it, {points}) {
  const {plot, walked} = it.parts;
  const subplots = new Set(points.map(({curveNumber}) => subplot(plot.data[curveNumber])));
  window.Plotly.Fx.hover(plot, points, [...subplots]);
  const sentences = points.slice(0, MOST).map((point) => sentence(plot.data[point.curveNumber], point.pointNumber));
  if (points.length > MOST) sentences.push(`and ${points.length - MOST} more`);
  it.listeners.hover?.(pointAt(plot.data, points[0]));
  walked.textContent = sentences.join("; ");
  walked.hidden = false;
}

const subplot = ({xaxis = "x", yaxis = "y"}) => `${xaxis}${yaxis}`;

// The stops: every x of lines and columns, every row of bars, every single dot of a cloud.
function stopsOf(data) {
  const stops = new Map();
  data.forEach((trace, curveNumber) => {
    if (trace.hoverinfo === "skip" || trace.visible === "legendonly" || trace.visible === false) return;
    const key = keyOf(trace, curveNumber);
    for (let pointNumber = 0; pointNumber < (trace.x?.length ?? 0); pointNumber++) {
      if (!drawn(trace.x[pointNumber]) || !drawn(trace.y[pointNumber])) continue;
      const at = key(pointNumber);
      if (!stops.has(at)) stops.set(at, {key: at, points: []});
      stops.get(at).points.push({curveNumber, pointNumber});
    }
  });
  const list = [...stops.values()];
  return list.every(({key}) => typeof key === "number") ? list.sort((a, b) => a.key - b.key) : list;
}

const drawn = (value) => typeof value === "string" || Number.isFinite(value);

function keyOf({x, y, orientation}, curveNumber) {
  if (orientation === "h") return (place) => y[place];
  const ordered = [...(x ?? [])].every((value, place) => place === 0 || value === null || !(value < x[place - 1]));
  return ordered ? (place) => x[place] : (place) => `${curveNumber}/${place}`;
}

// The place of a key's stop, or of the nearest if keys are numbers; -1 for none.
function placeOf(stops, key) {
  if (key === undefined) return -1;
  const same = stops.findIndex((stop) => stop.key === key);
  if (same >= 0 || typeof key !== "number" || typeof stops[0]?.key !== "number") return same;
  return stops.reduce(
    (best, {key: each}, place) => (Math.abs(each - key) < Math.abs(stops[best].key - key) ? place : best),
    0,
  );
}

// The hover label as a sentence.
function sentence(trace, place) {
  const template = one(trace.hovertemplate, place) ?? "%{x}: %{y:.4~g}";
  const filled = template
    .replace(/<extra>.*?<\/extra>/g, "")
    .replace(/<br>/g, ", ")
    .replace(/%\{(\w+)(?::([^}]*))?\}/g, (_, name, format) => formatted(one(trace[name], place), format));
  return unescaped(filled);
}

const one = (values, place) => (typeof values === "string" || !values ? values : values[place]);

function formatted(value, format = "") {
  if (typeof value !== "number") return value ?? "";
  return format.endsWith("%") ? percent(value) : number(value, format ? 4 : 12);
}
