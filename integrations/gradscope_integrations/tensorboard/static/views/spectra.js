// Eigenvalues of the recurrent weights against the unit circle.
import * as api from "../api.js";
import {describe, draw} from "../charts.js";
import {gathered} from "../csv.js";
import {plain} from "../dom.js";
import {count} from "../format.js";
import {axis, colour, layout, tones} from "../theme.js";
import {axes, tiles, tileTitle} from "../tiles.js";
import {capital} from "../words.js";

const CIRCLE = {type: "circle", layer: "below", x0: -1, x1: 1, y0: -1, y1: 1};

export async function drawSpectra(it, run, {step}, context) {
  const layer = context.layer(run);
  it.root.hidden = !layer?.curves.some((curve) => curve.startsWith("spectra/"));
  if (it.root.hidden) {
    it.root.dataset.state = "empty";
    return;
  }
  const result = await api.block("spectra", {run: run.run, key: layer.key, step}, run.stamp);
  if (!context.current()) return;
  describe(
    it,
    `Eigenvalues of the recurrent weights, at step ${count(result.head.step)}`,
    "A direction inside the circle fades from step to step, one outside grows; on the circle, memory lasts.",
  );
  const blocks = result.head.gates.map((gate) => ({
    gate,
    index: result.arrays[`${gate}/positions`],
    real: result.arrays[`${gate}/real`],
    imag: result.arrays[`${gate}/imag`],
  }));
  await draw(it, blocks.map(dots), frame(it, blocks), () => gathered(blocks.flatMap(numbers)));
}

function numbers({gate, index, real, imag}) {
  return Array.from(index, (each, at) => ({gate, index: each, real: real[at], imag: imag[at]}));
}

function dots({gate, real, imag}, place) {
  const [x, y] = axes(place);
  return {
    type: "scatter",
    mode: "markers",
    x: real,
    y: imag,
    xaxis: x.short,
    yaxis: y.short,
    name: plain(gate),
    marker: {color: colour(0), size: 5, opacity: 0.75},
    hovertemplate: `${plain(gate)}<br>%{x:.4~g} + %{y:.4~g} i<extra></extra>`,
  };
}

// A square and a unit circle for each block.
function frame(it, blocks) {
  const width = it.root.clientWidth || 600;
  const across = Math.max(1, Math.min(blocks.length, Math.floor(width / 145)));
  const side = Math.min(260, Math.max(110, width / across - 30));
  const places = squares(tiles(blocks.length, across, 0.06, 0.2), (side + 34) / (width / across));
  const height = Math.ceil(blocks.length / across) * (side + 34) + 40;
  const shape = layout({height, margin: {l: 44, r: 10, t: 24, b: 40}, showlegend: false});
  const limit = 1.1 * largest(blocks);
  const end = {range: [-limit, limit], nticks: 5, automargin: false, zeroline: true, zerolinecolor: tones().line};
  const line = {color: tones().soft, width: 1.2, dash: "dash"};
  blocks.forEach((_, place) => {
    const [x, y] = axes(place);
    const [first, last] = [place % across === 0, place >= blocks.length - across];
    const upright = {...end, domain: places[place].y, anchor: x.short, scaleanchor: x.short, showticklabels: first};
    shape[x.long] = axis(last ? "real" : "", {...end, domain: places[place].x, anchor: y.short});
    shape[y.long] = axis(first ? "imaginary" : "", upright);
  });
  shape.shapes = blocks.map((_, place) => ({...CIRCLE, xref: axes(place)[0].short, yref: axes(place)[1].short, line}));
  shape.annotations = blocks.map(({gate}, place) => tileTitle(capital(gate), places[place], tones()));
  return shape;
}

// The largest coordinate, 1 at least.
function largest(blocks) {
  const sizes = blocks.flatMap(({real, imag}) => [...real, ...imag]).map(Math.abs);
  return Math.max(1, ...sizes.filter(Number.isFinite));
}

// Small pictures no wider than they are high, one beside the other from the left.
function squares(places, share) {
  if (share >= 1) return places;
  return places.map(({x, y}) => ({x: x.map((end) => end * share), y}));
}
