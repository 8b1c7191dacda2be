// Traces that several views draw.
import {plain} from "./dom.js";
import {transparent} from "./theme.js";

export function line(name, x, y, colour, more = {}) {
  return {
    type: "scatter",
    mode: y.length < 2 ? "markers" : "lines",
    name: plain(name),
    x,
    y,
    line: {color: colour, width: 1.8, ...more.line},
    marker: {color: colour, size: 6},
    connectgaps: false,
    ...without(more, "line"),
  };
}

// A band between two curves, broken where either is not known; on a logarithmic axis 0 is not known either.
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

// A straight line behind the data, right across.
export function reference(value, tones, {axis = "y", xref = "x", yref = "y", ...line} = {}) {
  const across =
    axis === "y"
      ? {x0: 0, x1: 1, xref: `${xref} domain`, y0: value, y1: value, yref}
      : {y0: 0, y1: 1, yref: `${yref} domain`, x0: value, x1: value, xref};
  return {type: "line", layer: "below", line: {...straight(tones), ...line}, ...across};
}

// What such a line means, in the legend, where no data can run over it.
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

// The smallest and the largest positive finite of some lists of numbers, or null.
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

// Places of small pictures in a row or several: [{x: [from, to], y: [from, to]}, ...].
export function tiles(count, columns, gapX = 0.05, gapY = 0.24) {
  const rows = Math.ceil(count / columns);
  const [width, height] = [(1 - gapX * (columns - 1)) / columns, (1 - gapY * (rows - 1)) / rows];
  return Array.from({length: count}, (_, place) => {
    const [left, top] = [(place % columns) * (width + gapX), 1 - Math.floor(place / columns) * (height + gapY)];
    return {x: [left, left + width], y: [top - height, top]};
  });
}

export function tileTitle(text, tile, tones) {
  return {
    text: plain(text),
    x: tile.x[0],
    y: tile.y[1],
    xref: "paper",
    yref: "paper",
    xanchor: "left",
    yanchor: "bottom",
    showarrow: false,
    font: {size: 12, color: tones.ink},
  };
}

function push(outline, x, y) {
  outline.x.push(x);
  outline.y.push(y);
}

function without(object, name) {
  const {[name]: _, ...rest} = object;
  return rest;
}
