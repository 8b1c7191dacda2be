// The blocks of the recurrent weights over training: their spectral radius, and their change per step.
import {describe, draw, say} from "../charts.js";
import {gathered} from "../csv.js";
import {plain} from "../dom.js";
import {number} from "../format.js";
import {extent, overSteps, reference} from "../lines.js";
import {axis, colour, logAxis, tones, wholeAxis} from "../theme.js";
import {axes, frame, inTile} from "../tiles.js";
import {onlyStep} from "../words.js";

const RADIUS = {
  column: "spectral_radius",
  title: "Spectral radius of the recurrent weights",
  hint: "Largest |eigenvalue| of each block. Far below 1, memory fades from step to step; above it, states and gradients can grow.",
  unit: "largest |eigenvalue|",
};
const UPDATE = {
  column: "update",
  title: "Change of the recurrent weights by a step",
  hint: "The norm of the optimizer's change in a recorded step, over the norm of the block. About a thousandth is common.",
  unit: "relative change",
  logarithmic: true,
};

export const drawRadius = (it, tables, context) => drawBlocks(it, RADIUS, tables, context);
export const drawUpdate = (it, tables, context) => drawBlocks(it, UPDATE, tables, context);

function drawBlocks(it, about, tables, context) {
  const {column} = about;
  const known = ({columns}) => columns.gate.filter((_, row) => Number.isFinite(columns[column][row]));
  const gates = [...new Set(tables.flatMap(known))];
  it.root.hidden = !gates.length;
  if (!gates.length) {
    it.root.dataset.state = "empty";
    return undefined;
  }
  describe(it, about.title, about.hint);
  const series = context.runs.map((run, place) => rows(run, tables[place].columns, column));
  const all = series.flat();
  const steps = [...new Set(all.map(({step}) => step))].sort((a, b) => a - b);
  if (steps.length < 2) return say(it, onlyStep(steps[0], inWords(all, column, context)));
  const grid = frame(
    it,
    gates,
    {side: 150, top: context.runs.length > 1 ? 58 : 28, narrowest: 150},
    upright(about, all),
    () => wholeAxis("training step", steps, {nticks: 3}),
  );
  grid.showlegend = context.runs.length > 1;
  if (!about.logarithmic) grid.shapes = gates.map((_, place) => one(place));
  const traces = context.runs.flatMap((run, place) => courses(run, series[place], gates, column));
  return draw(it, traces, grid, () => gathered(all));
}

function rows(run, {step, gate, ...columns}, column) {
  const known = [...gate.keys()].filter((row) => Number.isFinite(columns[column][row]));
  return known.map((row) => ({run: run.label, step: step[row], gate: gate[row], [column]: columns[column][row]}));
}

function inWords(all, column, context) {
  const whose = (row) => (context.runs.length > 1 ? `${row.run}, ${row.gate}` : row.gate);
  return all.map((row) => `${whose(row)} ${number(row[column], 3)}`).join("; ");
}

// One axis for all blocks, for comparison.
function upright({column, unit, logarithmic}, all) {
  const values = all.map((row) => row[column]);
  if (logarithmic) {
    const ends = extent([values]) ?? [1e-4, 1e-2];
    const range = [Math.log10(ends[0]) - 0.15, Math.log10(ends[1]) + 0.15];
    return (first) =>
      logAxis(
        first ? unit : "",
        range.map((end) => 10 ** end),
        {range},
      );
  }
  const range = [Math.min(0.9, ...values) - 0.05, Math.max(1.1, ...values) + 0.05];
  return (first) => axis(first ? unit : "", {range, nticks: 5});
}

function one(place) {
  const [x, y] = axes(place);
  return reference(1, tones(), {xref: x.short, yref: y.short});
}

function courses(run, series, gates, column) {
  const own = gates.filter((gate) => series.some((row) => row.gate === gate));
  return own.map((gate) => {
    const mine = series.filter((row) => row.gate === gate);
    const [steps, values] = [mine.map(({step}) => step), mine.map((row) => row[column])];
    return overSteps(run.label, steps, values, colour(run.tint), {
      ...inTile(gates.indexOf(gate)),
      legendgroup: run.run,
      showlegend: gate === own[0],
      hovertemplate: `${plain(gate)}, ${plain(run.label)}<br>step %{x}: %{y:.4~g}<extra></extra>`,
    });
  });
}
