// Names of quantities, and how to read them.
import {count, plural} from "./format.js";

// title, unit, how to read it, whether 1 means neither growing nor shrinking
const KNOWN = {
  grad_h: [
    "Total gradient of the state",
    "‖dL/dhₜ‖",
    "How much the loss depends on the state at each timestep. Even colours along a row: learning reaches all of the sequence.",
  ],
  grad_h_direct: [
    "Gradient that enters from above",
    "direct ‖dL/dhₜ‖",
    "The gradient that the state receives from the output alone, before the recurrence carries it back.",
  ],
  grad_c: ["Total gradient of the cell", "‖dL/dcₜ‖", "How much the loss depends on the memory cell at each timestep."],
  weight_grad: [
    "Contribution to the weight gradient",
    "‖dL/dW_hh‖ from t",
    "How much each timestep adds to the gradient of the recurrent weights.",
  ],
  jacobian: [
    "State Jacobian",
    "size of dsₜ/dsₜ₋₁",
    "Below 1 (blue) one step back shrinks gradients, above 1 (orange) it makes them grow.",
    true,
  ],
  jacobian_h: [
    "Jacobian of h alone",
    "size of dhₜ/dhₜ₋₁",
    "The path through the hidden state; below 1 it shrinks gradients.",
    true,
  ],
  jacobian_c: [
    "Jacobian along the cell",
    "size of dcₜ/dcₜ₋₁",
    "The path through the memory cell: near 1 the forget gate is open, and gradients pass.",
    true,
  ],
  jacobian_max: [
    "Largest singular value of the Jacobian",
    "σ₁ of dsₜ/dsₜ₋₁",
    "The largest factor by which one step back can make a gradient grow.",
    true,
  ],
  gain: [
    "Gain to the last timestep",
    "size of ds_T/dsₜ",
    "The share of a gradient that is left after the way from the end of the sequence back to t.",
    true,
  ],
  state: ["Hidden state", "rms of hₜ", "How large the state's units are; a tanh state near 1 is saturated."],
  cell: [
    "Cell state",
    "rms of cₜ",
    "How large the memory's units are; steady growth over t means that the network forgets nothing.",
  ],
  reach: [
    "Reach by lag",
    "gradient left",
    "The share of the loss gradient that is left at each lag, relative to where it entered.",
  ],
};
const ROWS = {
  p50: "median",
  p10: "10th percentile",
  p90: "90th percentile",
  mean: "mean",
  low: "at the lower limit",
  high: "at the upper limit",
  nonfinite: "sequences left out",
};
const AXES = {t: "timestep t", lag: "lag (steps back)", unit: "unit", index: "index"};

export function quantity(curve) {
  const [family, gate] = [curve.split("/")[0], curve.slice(curve.indexOf("/") + 1)];
  if (family === "gates") {
    return {
      title: `${capital(gate)} gate`,
      unit: "share of units",
      hint: "Share of the gate's units at its limit at each timestep: dark is free, bright is stuck.",
      share: true,
    };
  }
  const [title, unit, hint, one] = KNOWN[curve] ?? [curve, curve, ""];
  return {title, unit, hint, one: Boolean(one), share: false};
}

export function groupOf(curve) {
  if (curve.startsWith("gates/")) return "Gate saturation";
  if (curve.startsWith("jacobian") || curve === "gain") return "Jacobians";
  if (curve === "state" || curve === "cell") return "States";
  return KNOWN[curve] ? "Gradients" : "Other";
}

// Curves over a position, in the order of the list.
export function drawable(curves) {
  const order = Object.keys(KNOWN);
  const place = (curve) =>
    order.includes(curve) ? order.indexOf(curve) : order.length + (curve.startsWith("gates/") ? 0 : 1);
  return curves.filter((curve) => !/^(units|spectra)\//.test(curve)).sort((a, b) => place(a) - place(b));
}

export const rowTitle = (row) => ROWS[row] ?? row;
export const axisTitle = (axis) => AXES[axis] ?? axis;
export const rowsOf = (curve) => (curve.startsWith("gates/") ? ["high", "low", "mean"] : ["p50", "p10", "p90", "mean"]);
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function layerTitle(layer, long) {
  const module = layer.module || "model";
  return long && layer.layer >= 0 ? `${module} · layer ${layer.layer}` : module;
}

// One line on a run: the amount of its data.
export function coverage({state}) {
  const parts = [`${count(state.recorded)} recorded of ${plural(state.steps, "step")}`];
  if (state.written < state.recorded)
    parts.push(
      `the event file keeps ${count(state.written)} of them${state.stride > 1 ? `, now every ${ordinal(state.stride)}` : ""}`,
    );
  if (state.lost > 0) parts.push(`${plural(state.lost, "step")} lost in writing`);
  if (state.chains_left_out > 0) parts.push(`${plural(state.chains_left_out, "further chain")} of a layer not shown`);
  return parts.join(" · ");
}

// Sentences on what a picture leaves out.
export function leftOut({state}, head, shown, zoomed) {
  const lines = [];
  if (!zoomed && head.steps_kept < 0.95 * state.written - 5) {
    lines.push(
      `${count(head.steps_kept)} of ${count(state.written)} recorded steps are here: TensorBoard's --samples_per_plugin leaves out the others, or the training began again before them.`,
    );
  }
  if (shown < head.steps_kept)
    lines.push(`${count(shown)} of ${count(head.steps_kept)} steps drawn, evenly spaced; zoom in to see all.`);
  return lines;
}

export function invalid(head) {
  const parts = [
    head.nan > 0 && `${plural(head.nan, "value")} NaN`,
    head.inf > 0 && `${plural(head.inf, "value")} infinite`,
  ].filter(Boolean);
  const lines = parts.length
    ? [`${parts.join(", ")}: magenta in the picture. The notes of Overview give the reasons.`]
    : [];
  if (head.left_out > 0)
    lines.push(
      `At ${plural(head.left_out, "point")} the statistics leave out sequences that are not finite.`,
    );
  return lines;
}

function ordinal(value) {
  const last = value % 100 > 10 && value % 100 < 14 ? 0 : value % 10;
  return `${count(value)}${["th", "st", "nd", "rd"][last] ?? "th"}`;
}

// The text in place of a curve over training with a single step, with its numbers if known.
export const onlyStep = (step, numbers = "") =>
  `One step so far, step ${count(step)}${numbers && `: ${numbers}`}. A curve over training needs a second.`;

// NaN without any non-finite gradient means that nobody measured the number at that step.
export const isMeasured = (value, nonfinite) => !Number.isNaN(value) || nonfinite > 0;
