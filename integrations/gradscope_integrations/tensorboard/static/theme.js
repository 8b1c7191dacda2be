// Colours of the page and of Plotly, light or dark as TensorBoard.
import {brief} from "./format.js";

// seaborn's "colorblind" palette, and the same lighter for dark pages
const RUNS = {
  light: ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#56b4e9"],
  dark: ["#58aee6", "#f0aa3c", "#34cfa0", "#ff8f50", "#e39ad0", "#dcae88", "#a8a8a8", "#9bd4f5"],
};
const TONES = {
  light: {
    page: "#ffffff",
    ink: "#1c2024",
    soft: "#59636e",
    line: "#e6e9ec",
    mark: "#1c2024",
    bad: "#c2187a",
    middle: "#f4f4f2",
  },
  dark: {
    page: "#24272b",
    ink: "#e6e9ed",
    soft: "#a3adb8",
    line: "#3a4047",
    mark: "#ffffff",
    bad: "#ff5fb8",
    middle: "#2e3236",
  },
};
export const COLOURS = RUNS.light.length;
const DASHES = ["solid", "dash", "dot", "dashdot"];

// viridis, sampled
const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4a89",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];

function host() {
  try {
    return window.parent.document.body;
  } catch {
    return document.body;
  }
}

export const isDark = () => host().classList.contains("dark-mode");
export const tones = () => TONES[isDark() ? "dark" : "light"];
export const colour = (place) => RUNS[isDark() ? "dark" : "light"][place % COLOURS];
export const dash = (place) => DASHES[Math.floor(place / COLOURS) % DASHES.length];

// Call back when the host turns dark or light, and mark the page for the style sheet.
export function followTheme(changed) {
  const mark = () => document.documentElement.classList.toggle("dark", isDark());
  mark();
  new MutationObserver(() => {
    const before = document.documentElement.classList.contains("dark");
    mark();
    if (before !== isDark()) changed();
  }).observe(host(), {attributes: true, attributeFilter: ["class"]});
}

export function transparent(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

export const sequential = () => VIRIDIS.map((each, place) => [place / (VIRIDIS.length - 1), each]);

// Blue below the middle, orange above it.
export function diverging() {
  const low = isDark() ? ["#9bd0f5", "#3b8fc9", "#285a7d"] : ["#053f6b", "#2a7fb8", "#a9cfe6"];
  const high = isDark() ? ["#7d4a1e", "#cf7a2c", "#f8c58f"] : ["#f3c79b", "#d97718", "#7f3b08"];
  return [...low, tones().middle, ...high].map((each, place) => [place / 6, each]);
}

export function axis(title, more = {}) {
  const {line, soft} = tones();
  return {
    title: {text: title, standoff: 8, font: {size: 12, color: soft}},
    gridcolor: line,
    zeroline: false,
    linecolor: line,
    tickfont: {size: 11, color: soft},
    automargin: true,
    ticks: "outside",
    ticklen: 3,
    tickcolor: "rgba(0,0,0,0)",
    nticks: 7,
    exponentformat: "power",
    ...more,
  };
}

// A logarithmic axis for values from low to high; Plotly writes powers a quarter larger than other numbers.
export function logAxis(title, [low, high], more = {}) {
  const decades = Math.log10(high / low);
  const size = decades > 3 ? 9 : 11;
  const marks = rungs([low, high]);
  const places =
    marks.length > 1
      ? {tickvals: marks, ticktext: marks.map(brief)}
      : {dtick: decades > 1 ? Math.ceil(decades / 6) : undefined};
  return axis(title, {
    type: "log",
    ...places,
    minor: {showgrid: false},
    tickfont: {size, color: tones().soft},
    ...more,
  });
}

// Round numbers between two ends within a few decades; none if powers of ten, or plain numbers, are better.
export function rungs([low, high]) {
  const decades = Math.log10(high / low);
  if (decades > 3 || decades < 0.2) return [];
  const leading = decades > 0.9 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 3, 4, 5, 7];
  const numbers = [];
  for (let tens = Math.floor(Math.log10(low)); tens <= Math.log10(high); tens++)
    for (const each of leading) numbers.push(Number((each * 10 ** tens).toPrecision(2)));
  return numbers.filter((each) => each >= low * 0.999 && each <= high * 1.001);
}

// An axis of ascending whole numbers, such as steps: it ends a little beyond them, without ticks in between.
export function wholeAxis(title, values, more = {}) {
  const [first, last] = [values[0], values[values.length - 1]];
  const margin = 0.015 * (last - first) || 1;
  const few = last === first ? {tickvals: [first]} : last - first < 8 ? {dtick: 1} : {};
  return axis(title, {tickformat: ",d", range: [first - margin, last + margin], ...few, ...more});
}

export function layout(more = {}) {
  const {ink, page, line, soft} = tones();
  return {
    autosize: true,
    height: 280,
    margin: {l: 56, r: 16, t: 10, b: 44},
    paper_bgcolor: page,
    plot_bgcolor: page,
    font: {family: 'Roboto, system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif', size: 12, color: ink},
    hoverlabel: {bgcolor: page, bordercolor: line, font: {color: ink, size: 12}, namelength: 60},
    legend: {
      orientation: "h",
      x: 0,
      y: 1.02,
      xanchor: "left",
      yanchor: "bottom",
      font: {size: 11.5, color: soft},
      bgcolor: "rgba(0,0,0,0)",
    },
    hovermode: "closest",
    dragmode: "zoom",
    ...more,
  };
}
