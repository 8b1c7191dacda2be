// One step: the chosen quantity over t, median and band, on the axis of the heatmap above.
import {describe, draw, say} from "../charts.js";
import {count, plural} from "../format.js";
import {band, extent, line, meaning, reference} from "../lines.js";
import {axis, colour, layout, logAxis, tones, wholeAxis} from "../theme.js";
import {axisTitle, rowTitle} from "../words.js";

export function drawProfile(it, result, profiles, view, context) {
  const {about} = view;
  const hint = about.share
    ? "Shares of units at the limits, and the mean activation."
    : "Median over the analysed sequences; the band holds the middle 80 % of them.";
  const where = result ? ` over ${result.head.axis}, at step ${count(result.head.step)}` : "";
  describe(it, `${about.title}${where}`, hint);
  if (!result) return say(it, "No records here.");
  const {positions, ...values} = result.arrays;
  const range = about.share
    ? [profiles.some((each) => each?.arrays.mean.some((value) => value < 0)) ? -1.05 : -0.03, 1.03]
    : together(profiles);
  if (!range) return say(it, "All of this step is zero or not finite.");
  const left = [...(values.nonfinite ?? [])].filter((each) => each > 0).length;
  const zeros = about.share ? 0 : [...values.p50].filter((each) => each === 0).length;
  const notes = [
    left && `At ${plural(left, "timestep")} the statistics leave out sequences that are not finite.`,
    zeros && `The median is exactly 0 at ${plural(zeros, "timestep")}: a logarithmic axis cannot show it.`,
  ].filter(Boolean);
  const traces = about.share ? shares(positions, values) : spread(positions, values);
  if (about.one) traces.push(meaning("1: passes unchanged", tones()));
  const names = Object.keys(values);
  return draw(
    it,
    traces,
    shape(result, range, view, context),
    () => [
      {name: "step", values: Array(positions.length).fill(result.head.step)},
      {name: result.head.axis, values: [...positions]},
      ...names.map((name) => ({name, values: [...values[name]]})),
    ],
    notes,
  );
}

const hover = (name) => ({hovertemplate: `%{x}: ${name} %{y:.4~g}<extra></extra>`});

function spread(positions, {p10, p50, p90, mean}) {
  const tint = colour(0);
  const lone = p50.some((value, at) => Number.isFinite(value) && value > 0 && !(p50[at - 1] > 0) && !(p50[at + 1] > 0));
  return [
    band(positions, p10, p90, tint, true),
    line("median", positions, p50, tint, {mode: lone ? "lines+markers" : "lines", ...hover("median")}),
    line("mean", positions, mean, tones().soft, {line: {width: 1, dash: "dot"}, ...hover("mean")}),
  ];
}

function shares(positions, {low, high, mean}) {
  return [
    line(rowTitle("low"), positions, low, colour(0), hover("low")),
    line(rowTitle("high"), positions, high, colour(1), hover("high")),
    line("mean activation", positions, mean, tones().soft, {line: {width: 1, dash: "dot"}, ...hover("mean")}),
  ];
}

// The same range for all runs, for comparison.
function together(profiles) {
  const ends = extent(
    profiles.flatMap((profile) => ["p10", "p50", "p90", "mean"].map((name) => profile?.arrays[name])),
  );
  if (!ends) return null;
  const [from, to] = ends.map(Math.log10);
  const margin = Math.max(0.05, (to - from) * 0.06);
  return [from - margin, to + margin];
}

function shape({head, arrays}, range, {about, zoom}, context) {
  const {positions} = arrays;
  const half =
    positions.length > 1 ? (positions[positions.length - 1] - positions[0]) / (positions.length - 1) / 2 : 0.5;
  const x = zoom ? zoom.slice(0, 2) : [positions[0] - half, positions[positions.length - 1] + half];
  const mark = {
    type: "line",
    yref: "y domain",
    y0: 0,
    y1: 1,
    x0: context.state.t,
    x1: context.state.t,
    line: {color: tones().mark, width: 1, dash: "dot"},
  };
  const shapes = context.state.t === undefined ? [] : [mark];
  if (about.one) shapes.push(reference(1, tones()));
  const levels = about.one ? [Math.min(range[0], -0.05), Math.max(range[1], 0.05)] : range;
  const fixed = {range: levels, automargin: false, fixedrange: true};
  return layout({
    height: 250,
    margin: {l: 64, r: 84, t: 30, b: 42},
    shapes,
    hovermode: "x",
    xaxis: wholeAxis(axisTitle(head.axis), x, {range: x, automargin: false}),
    yaxis: about.share
      ? axis("share of units", fixed)
      : logAxis(
          about.unit,
          levels.map((level) => 10 ** level),
          fixed,
        ),
  });
}
