// Small pictures in a grid, one per gate.
import {plain} from "./dom.js";
import {layout, tones} from "./theme.js";
import {capital} from "./words.js";

const BETWEEN = 66; // pixels from row to row: ticks and title of one, title of the next

// Plotly's names of the axes of small picture number `place`.
export function axes(place) {
  const number = place ? String(place + 1) : "";
  return ["x", "y"].map((letter) => ({short: `${letter}${number}`, long: `${letter}axis${number}`}));
}

export function inTile(place) {
  const [x, y] = axes(place);
  return {xaxis: x.short, yaxis: y.short};
}

// The places of small pictures in rows: [{x: [from, to], y: [from, to]}, ...].
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

// A layout of small pictures, one per gate; two functions return the axes.
export function frame(it, gates, {side, top, narrowest = 210}, yaxis, xaxis) {
  const width = it.root.clientWidth || 900;
  const across = Math.max(1, Math.min(gates.length, Math.floor(width / narrowest)));
  const rows = Math.ceil(gates.length / across);
  const area = rows * side + (rows - 1) * BETWEEN;
  const places = tiles(gates.length, across, 0.04, BETWEEN / area);
  const shape = layout({
    height: area + top + 42,
    margin: {l: 68, r: 12, t: top, b: 42},
    shapes: [],
    annotations: [],
    uirevision: it.id,
  });
  shape.legend.y = 1 + 20 / area;
  gates.forEach((gate, place) => {
    const [x, y] = axes(place);
    shape[x.long] = {...xaxis(), domain: places[place].x, anchor: y.short, automargin: false};
    shape[y.long] = {
      ...yaxis(place % across === 0),
      domain: places[place].y,
      anchor: x.short,
      automargin: false,
      showticklabels: place % across === 0,
    };
    shape.annotations.push(tileTitle(capital(gate), places[place], tones()));
  });
  return shape;
}
