// The horizon of layers over training.
import {plain} from "../dom.js";
import {line, overSteps} from "../lines.js";
import {tones} from "../theme.js";
import {look, named, strength} from "./look.js";

// The row of every layer in the table `layers` nearest to a step; by default the last.
export function lastOfEach({columns: table, length}, step = Infinity) {
  const rows = new Map();
  const far = (row) => Math.abs(table.step[row] - step);
  for (let row = 0; row < length; row++) {
    const key = table.key[row];
    if (!rows.has(key) || step === Infinity || far(row) < far(rows.get(key))) rows.set(key, row);
  }
  return [...rows].map(([key, row]) => ({
    key,
    step: table.step[row],
    horizon: table.horizon[row],
    horizon_censored: table.horizon_censored[row],
    timesteps: table.timesteps[row],
  }));
}

export const rowsOfLayer = ({key}, wanted) => [...key.keys()].filter((row) => key[row] === wanted);

// The horizon of every shown layer of one run, and the length of the sequences.
export function horizons(run, table, context, axes) {
  const layers = run.layers.filter(({key}) => look(context, run, key).shown && table.key.includes(key));
  return layers.flatMap(({key}) => {
    const rows = rowsOfLayer(table, key);
    const take = (column) => rows.map((at) => table[column][at]);
    const [style, name] = [look(context, run, key), named(context, run, key)];
    const mine = key === context.layer(run).key;
    const hover = style.faint
      ? {hoverinfo: "skip"}
      : {hovertemplate: `step %{x}: ${plain(name)}, %{y:.4~g} steps back<extra></extra>`};
    const course = overSteps(name, take("step"), take("horizon"), style.colour, {
      ...strength(style),
      ...hover,
      ...axes,
    });
    const dotted = {line: {dash: "dot", width: 1}, showlegend: false, hoverinfo: "skip", ...axes};
    return mine ? [course, line("longest", take("step"), take("timesteps"), tones().soft, dotted)] : [course];
  });
}
