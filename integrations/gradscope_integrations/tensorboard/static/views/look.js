// Colours and dashes of runs and layers.
import {plain} from "../dom.js";
import {called} from "../layers.js";
import {colour, dash, tones} from "../theme.js";

const COLOURED = 8;

// Several runs: a colour per run. One run: a colour per layer, or of many layers for the chosen one.
export function look(context, run, key) {
  const mine = key === context.layer(run)?.key;
  if (context.runs.length > 1) return {colour: colour(run.tint), shown: mine, dash: dash(run.tint)};
  const place = run.layers.findIndex((layer) => layer.key === key);
  if (run.layers.length <= COLOURED) return {colour: colour(place), shown: true, dash: "solid", strong: mine};
  return {colour: mine ? colour(run.tint) : tones().soft, shown: true, faint: !mine, dash: "solid", strong: mine};
}

export const named = (context, run, key) => (context.runs.length > 1 ? run.label : context.title(key));
export const which = (context) => (context.runs.length > 1 ? ` ${called(context)}` : "");

// The chosen layer stands out; if there are very many, the others are faint.
export const strength = ({strong, faint, dash}) => ({
  line: {width: strong ? 2.6 : faint ? 0.8 : 1.8, dash},
  opacity: faint ? 0.5 : 1,
  showlegend: !faint,
  zorder: strong ? 1 : 0,
});

export const legend = (traces) => traces.filter((trace) => trace.showlegend !== false).length > 1;
// Room for a legend above.
export const spaced = (shape, traces) => (legend(traces) ? {...shape, margin: {...shape.margin, t: 34}} : shape);
export const shortened = (title) => plain(title.length > 34 ? `…${title.slice(-33)}` : title);
