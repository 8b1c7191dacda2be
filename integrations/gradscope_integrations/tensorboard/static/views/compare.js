// Any quantity, runs (or the layers of one run) over each other.
import * as api from "../api.js";
import {describe, draw, figure, say} from "../charts.js";
import {select} from "../controls.js";
import {gathered} from "../csv.js";
import {h, plain} from "../dom.js";
import {count, number} from "../format.js";
import {called} from "../layers.js";
import {band, extent, extremes, line, meaning, overSteps, reference} from "../lines.js";
import {change} from "../state.js";
import {axis, colour, dash, layout, logAxis, tones, wholeAxis} from "../theme.js";
import {axisTitle, capital, drawable, groupOf, isMeasured, onlyStep, quantity, rowsOf, rowTitle} from "../words.js";
import {spaced} from "./look.js";
import {described, MEASURES} from "./measures.js";

const GROUPS = {layers: "Per layer", steps: "Per optimizer step", blocks: "Recurrent weights"};
const OVER = {
  median: "median over t",
  max: "largest over t",
  min: "smallest over t",
  mean: "mean over t",
  first: "at the first t",
  last: "at the last t",
};
const MOST_LINES = 8;
const [MOST_STEPS, DRAWN] = [20_000, 4000];

export function mount(parent) {
  const measure = select("measure", "Quantity", (value) => change({measure: value, row: undefined}));
  const row = select("compare-row", "Statistic", (value) => change({row: value}));
  const over = select("over", "Over t", (value) => change({over: value}));
  const steps = figure(parent, "compare-steps", {wide: true});
  const positions = figure(parent, "compare-profile", {wide: true});
  parent.prepend(h("div", {class: "row controls"}, measure.root, row.root, over.root));
  return {
    async update(context) {
      const view = await chosen(context);
      measure.set(view.options, view.measure);
      row.show(view.curve !== null);
      over.show(view.curve !== null);
      if (view.curve) {
        row.set(
          rowsOf(view.curve).map((each) => [each, rowTitle(each)]),
          view.row,
        );
        over.set(Object.entries(OVER), view.over);
      }
      const members = lines(context, view);
      const [results, profiles] = await Promise.all([
        Promise.all(members.map((member) => series(member, view))),
        Promise.all(members.map((member) => profile(member, view, context))),
      ]);
      if (!context.current()) return;
      await Promise.all([
        drawSteps(steps, members, results, view, context),
        drawProfile(positions, members, profiles, view, context),
      ]);
    },
  };
}

async function chosen(context) {
  const curves = drawable([...new Set(context.runs.flatMap((run) => run.layers.flatMap((layer) => layer.curves)))]);
  const gates = await Promise.all(
    context.runs.map((run) => api.table("blocks", {run: run.run, points: 600}, run.stamp)),
  );
  const blocks = [
    ...new Set(
      gates.flatMap(({columns}) => columns.gate.filter((_, at) => !Number.isNaN(columns.spectral_radius[at]))),
    ),
  ];
  const tables = Object.entries(MEASURES).flatMap(([id, [title]]) => {
    const [table] = id.split("/");
    return table === "blocks"
      ? blocks.map((gate) => [`${id}/${gate}`, blocks.length > 1 ? `${title}, ${gate}` : title, GROUPS[table]])
      : [[id, title, GROUPS[table]]];
  });
  const options = [...tables, ...curves.map((curve) => [`curve/${curve}`, quantity(curve).title, groupOf(curve)])];
  const measure = options.some(([id]) => id === context.state.measure) ? context.state.measure : "layers/horizon";
  const curve = measure.startsWith("curve/") ? measure.slice(6) : null;
  const row = curve && rowsOf(curve).includes(context.state.row) ? context.state.row : curve && rowsOf(curve)[0];
  return {
    options,
    measure,
    curve,
    row,
    over: context.state.over in OVER ? context.state.over : "median",
    ...described(measure, curve),
  };
}

// The lines: the chosen layer of every run, or every layer of a single run.
function lines(context, view) {
  if (context.runs.length > 1 || view.table === "steps") {
    return context.runs
      .map((run) => ({
        run,
        key: context.layer(run)?.key,
        name: run.label,
        colour: colour(run.tint),
        dash: dash(run.tint),
      }))
      .filter((member) => !view.curve || context.has(member.run, view.curve));
  }
  const [run] = context.runs;
  const layers = run.layers.filter((layer) => !view.curve || layer.curves.includes(view.curve));
  const shown = layers.slice(0, MOST_LINES);
  const mine = context.layer(run);
  if (layers.includes(mine) && !shown.includes(mine)) shown[MOST_LINES - 1] = mine;
  return shown.map((layer) => ({
    run,
    key: layer.key,
    name: context.title(layer.key),
    colour: colour(run.layers.findIndex((each) => each.key === layer.key)),
    dash: "solid",
    of: layers.length,
  }));
}

async function series({run, key}, view) {
  if (view.curve) {
    const {arrays, head} = await api.block(
      "series",
      {run: run.run, tag: `${view.curve}/${key}`, row: view.row, over: view.over, points: 1000},
      run.stamp,
    );
    return {steps: arrays.steps, values: arrays.values, kept: head.steps_kept};
  }
  const {head, columns, length} = await api.table(
    view.table,
    {run: run.run, ...(view.table === "steps" ? {rows: MOST_STEPS} : {points: 1000})},
    run.stamp,
  );
  const values = columns[view.column];
  const wanted = {
    layers: (row) => columns.key[row] === key,
    blocks: (row) => columns.key[row] === key && columns.gate[row] === view.gate,
    steps: (row) => isMeasured(values[row], columns.nonfinite[row]),
  }[view.table];
  const rows = Array.from({length}, (_, row) => row).filter(wanted);
  const chosen = extremes(
    rows.map((row) => values[row]),
    DRAWN,
  ).map((place) => rows[place]);
  return {
    steps: chosen.map((row) => columns.step[row]),
    values: chosen.map((row) => values[row]),
    kept: view.table === "steps" ? head.rows_kept - length + rows.length : head.steps_kept,
  };
}

function profile({run, key}, view, context) {
  return view.curve
    ? api.block("profile", {run: run.run, tag: `${view.curve}/${key}`, step: context.state.step}, run.stamp)
    : null;
}

const what = (context, view) =>
  view.table === "steps"
    ? "One line per run."
    : context.runs.length > 1
      ? called(context)
      : "One line per layer; choose several runs to compare them.";

function drawSteps(it, members, results, view, context) {
  const detail = view.curve ? `, ${rowTitle(view.row)}, ${OVER[view.over]}` : "";
  describe(it, `${view.title} over training`, `${capital(view.unit)}${detail}. ${what(context, view)}`);
  const values = results.flatMap((each) => [...each.values]);
  if (!values.some(Number.isFinite))
    return say(
      it,
      view.table === "layers" && view.column === "lyapunov"
        ? 'Not recorded: attach with quantities="full".'
        : "No record of this, or no finite value.",
    );
  const steps = [...new Set(results.flatMap((each) => [...each.steps]))].sort((a, b) => a - b);
  if (steps.length < 2) return say(it, onlyStep(steps[0], lastValues(members, results)));
  const traces = members.map((member, at) => course(member, results[at].steps, results[at].values, "step", members));
  const logarithmic = view.logarithmic && extent([values]) !== null;
  const axes = {
    xaxis: wholeAxis("training step", steps),
    yaxis: logarithmic ? logAxis(view.unit, extent([values])) : axis(view.unit),
  };
  const shape = framed(view, traces, {height: 340, ...axes, uirevision: view.measure + view.row + view.over});
  const notes = [...left(members, results), ...missing(values, logarithmic)];
  return draw(it, traces, spaced(shape, traces), () => rowsOver(members, results, view, context), notes);
}

const lastValues = (members, results) =>
  members.flatMap(({name}, at) => (results[at].values.length ? `${name} ${number(results[at].values[0])}` : [])).join("; ");

// One line of a picture of several.
function course(member, x, y, over, members) {
  return (over === "step" ? overSteps : line)(member.name, x, y, member.colour, {
    line: {dash: member.dash},
    hovertemplate: `${plain(member.name)}<br>${over} %{x}: %{y:.4~g}<extra></extra>`,
    showlegend: members.length > 1,
  });
}

// A layout; if 1 is a landmark, with a line for it, and its meaning among the traces.
function framed(view, traces, more) {
  if (view.one) traces.push(meaning("1: neither grows nor shrinks", tones()));
  return layout({margin: {l: 64, r: 16, t: 10, b: 44}, shapes: view.one ? [reference(1, tones())] : [], ...more});
}

function rowsOver(members, results, view, context) {
  return gathered(
    members.flatMap((member, at) =>
      Array.from(results[at].values, (value, place) => ({
        ...whose(member, context),
        step: results[at].steps[place],
        [view.column ?? view.row]: value,
      })),
    ),
  );
}

const whose = (member, context) => ({run: member.run.label, layer: context.title(member.key)});

function left(members, results) {
  const lines = members.flatMap((member, at) =>
    results[at].values.length < results[at].kept
      ? [`${member.name}: ${count(results[at].values.length)} of ${count(results[at].kept)} steps drawn.`]
      : [],
  );
  if (members[0]?.of > members.length)
    lines.push(`${members.length} of ${members[0].of} layers drawn, the chosen one among them.`);
  return [...new Set(lines)];
}

function missing(values, logarithmic) {
  const [nan, zero] = [
    values.filter((value) => !Number.isFinite(value)).length,
    logarithmic ? values.filter((value) => value === 0).length : 0,
  ];
  return [
    nan && `${count(nan)} values are NaN or infinite: gaps.`,
    zero && `${count(zero)} values are exactly 0: a logarithmic axis cannot show them.`,
  ].filter(Boolean);
}

function drawProfile(it, members, profiles, view, context) {
  it.root.hidden = !view.curve;
  const present = profiles.filter(Boolean);
  if (!present.length) return say(it, "No records here.");
  const {axis: position, step} = present[0].head;
  describe(
    it,
    `${view.title} over ${position}, at step ${count(step)}`,
    `${capital(rowTitle(view.row))} of every ${members.length > 1 && context.runs.length > 1 ? "run" : "layer"}; bands hold the middle 80 % of the sequences. Gradient flow chooses the step.`,
  );
  const ends = extent(profiles.map((each) => each?.arrays[view.row]));
  const logarithmic = view.logarithmic && ends !== null;
  const traces = members.flatMap((member, at) => {
    const {positions, p10, p90} = profiles[at].arrays;
    const banded = p10 && members.length <= 4;
    return [
      ...(banded ? [band(positions, p10, p90, member.colour, logarithmic)] : []),
      course(member, positions, profiles[at].arrays[view.row], position, members),
    ];
  });
  const axes = {
    xaxis: axis(axisTitle(position)),
    yaxis: logarithmic ? logAxis(view.unit, ends) : axis(view.unit, {rangemode: "tozero"}),
  };
  const shape = framed(view, traces, {height: 300, ...axes, uirevision: view.measure});
  return draw(it, traces, spaced(shape, traces), () => rowsAt(members, profiles, position, view, context));
}

function rowsAt(members, profiles, position, view, context) {
  return gathered(
    members.flatMap((member, at) => {
      const {head, arrays} = profiles[at];
      return Array.from(arrays.positions, (each, place) => ({
        ...whose(member, context),
        step: head.step,
        [position]: each,
        [view.row]: arrays[view.row][place],
      }));
    }),
  );
}
