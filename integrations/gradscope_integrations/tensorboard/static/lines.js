// Traces for several views.
import {plain} from "./dom.js";
import {transparent} from "./theme.js";

const FEW = 100;

// A line over training steps, with a marker at each if they are few.
export function overSteps(name, steps, y, colour, more = {}) {
  return line(name, steps, y, colour, y.length > 1 && y.length <= FEW ? {mode: "lines+markers", ...more} : more);
}

export function line(name, x, y, colour, more = {}) {
  return {
    type: "scatter",
    mode: y.length < 2 ? "markers" : "lines",
    name: plain(name),
    x,
    y,
    line: {color: colour, width: 1.8, ...more.line},
    marker: {color: colour, size: y.length > 1 ? 4 : 6},
    connectgaps: false,
    ...without(more, "line"),
  };
}

// A band between two curves, with gaps where either is unknown, or 0 on a logarithmic axis.
export function band(x, low, high, colour, logarithmic) {
  const known = (place) =>
    Number.isFinite(low[place]) &&
    Number.isFinite(high[place]) &&
    (!logarithmic || (low[place] > 0 && high[place] > 0));
  const outline = {x: [], y: []};
  for (let start = 0; start < x.length; start++) {
    if (!known(start)) continue;
    let end = start;
    while (end + 1 < x.length && known(end + 1)) end++;
    for (let place = start; place <= end; place++) push(outline, x[place], high[place]);
    for (let place = end; place >= start; place--) push(outline, x[place], low[place]);
    push(outline, null, null);
    start = end;
  }
  return {
    type: "scatter",
    mode: "lines",
    ...outline,
    fill: "toself",
    fillcolor: transparent(colour, 0.18),
    line: {width: 0},
    hoverinfo: "skip",
    showlegend: false,
  };
}

// A straight line behind the data, across the whole picture.
export function reference(value, tones, {axis = "y", xref = "x", yref = "y", ...line} = {}) {
  const across =
    axis === "y"
      ? {x0: 0, x1: 1, xref: `${xref} domain`, y0: value, y1: value, yref}
      : {y0: 0, y1: 1, yref: `${yref} domain`, x0: value, x1: value, xref};
  return {type: "line", layer: "below", line: {...straight(tones), ...line}, ...across};
}

// The meaning of such a line, in the legend.
export function meaning(text, tones, line = {}) {
  return {
    type: "scatter",
    mode: "lines",
    x: [null],
    y: [null],
    name: plain(text),
    line: {...straight(tones), ...line},
    hoverinfo: "skip",
    showlegend: true,
  };
}

const straight = (tones) => ({color: tones.soft, width: 1.2, dash: "dash"});

// The smallest and the largest positive finite number of several lists, or null.
export function extent(lists) {
  let [low, high] = [Infinity, 0];
  for (const list of lists) {
    for (const value of list ?? []) {
      if (value > 0 && value < low) low = value;
      if (value > high && value < Infinity) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

// The running median over a width; the window is symmetric and shorter at the beginning, and cut off at the end.
export function median(values, width) {
  const window = [];
  const place = (value) => {
    let [low, high] = [0, window.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (window[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  let [from, to] = [0, 0];
  return values.map((_, at) => {
    const half = Math.min(at, (width - 1) / 2);
    for (; to < Math.min(values.length, at + half + 1); to++) window.splice(place(values[to]), 0, values[to]);
    for (; from < at - half; from++) window.splice(place(values[from]), 1);
    return (window[(window.length - 1) >> 1] + window[window.length >> 1]) / 2;
  });
}

// The places of the smallest and the largest of every few values, in order.
export function extremes(values, limit) {
  if (values.length <= limit) return [...values.keys()];
  const every = Math.ceil((2 * values.length) / limit);
  const chosen = new Set();
  for (let start = 0; start < values.length; start += every) {
    let [low, high] = [start, start];
    for (let place = start; place < Math.min(values.length, start + every); place++) {
      if (values[place] < values[low]) low = place;
      if (values[place] > values[high]) high = place;
    }
    [Math.min(low, high), Math.max(low, high)].forEach((place) => chosen.add(place));
  }
  return [...chosen];
}

function push(outline, x, y) {
  outline.x.push(x);
  outline.y.push(y);
}

function without(object, name) {
  const {[name]: _, ...rest} = object;
  return rest;
}
