// Eigenvalues of the recurrent weights against the unit circle.
import * as api from "../api.js";
import {describe, draw} from "../charts.js";
import {plain} from "../dom.js";
import {count} from "../format.js";
import {tiles, tileTitle} from "../lines.js";
import {axis, colour, layout, tones} from "../theme.js";
import {capital} from "../words.js";

export async function drawSpectra(it, run, {key, step}, context) {
  const recorded = run.layers.some(
    (layer) => layer.key === key && layer.curves.some((curve) => curve.startsWith("spectra/")),
  );
  it.root.hidden = !recorded;
  if (!recorded) {
    it.root.dataset.state = "empty";
    return;
  }
  const found = await api.block("spectra", {run: run.run, key, step}, run.stamp);
  if (!context.current()) return;
  describe(
    it,
    `Eigenvalues of the recurrent weights, at step ${count(found.head.step)}`,
    "Inside the circle a direction fades from step to step, outside it grows; on it, memory lasts.",
  );
  const {gates} = found.head;
  const across = Math.max(1, Math.min(gates.length, Math.floor((it.root.clientWidth || 600) / 145)));
  const limit =
    1.1 *
    Math.max(
      1,
      ...gates
        .flatMap((gate) => [...found.arrays[`${gate}/real`], ...found.arrays[`${gate}/imag`]])
        .map(Math.abs)
        .filter(Number.isFinite),
    );
  const side = Math.min(260, Math.max(110, (it.root.clientWidth || 600) / across - 30));
  const places = squares(tiles(gates.length, across, 0.06, 0.2), (side + 34) / ((it.root.clientWidth || 600) / across));
  const shape = layout({
    height: Math.ceil(gates.length / across) * (side + 34) + 40,
    margin: {l: 44, r: 10, t: 24, b: 40},
    showlegend: false,
    shapes: [],
    annotations: [],
  });
  const traces = gates.map((gate, place) => {
    const [x, y] = axes(place);
    const end = {range: [-limit, limit], nticks: 5, automargin: false, zeroline: true, zerolinecolor: tones().line};
    shape[x.long] = axis(place >= gates.length - across ? "real" : "", {
      ...end,
      domain: places[place].x,
      anchor: y.short,
    });
    shape[y.long] = axis(place % across ? "" : "imaginary", {
      ...end,
      domain: places[place].y,
      anchor: x.short,
      scaleanchor: x.short,
      showticklabels: place % across === 0,
    });
    shape.shapes.push({
      type: "circle",
      layer: "below",
      xref: x.short,
      yref: y.short,
      x0: -1,
      x1: 1,
      y0: -1,
      y1: 1,
      line: {color: tones().soft, width: 1.2, dash: "dash"},
    });
    shape.annotations.push(tileTitle(capital(gate), places[place], tones()));
    return {
      type: "scatter",
      mode: "markers",
      x: found.arrays[`${gate}/real`],
      y: found.arrays[`${gate}/imag`],
      xaxis: x.short,
      yaxis: y.short,
      name: plain(gate),
      marker: {color: colour(0), size: 5, opacity: 0.75},
      hovertemplate: `${plain(gate)}<br>%{x:.4~g} + %{y:.4~g} i<extra></extra>`,
    };
  });
  const list = {gate: [], index: [], real: [], imag: []};
  gates.forEach((gate) =>
    found.arrays[`${gate}/positions`].forEach((index, at) =>
      [gate, index, found.arrays[`${gate}/real`][at], found.arrays[`${gate}/imag`][at]].forEach((value, column) =>
        Object.values(list)[column].push(value),
      ),
    ),
  );
  await draw(it, traces, shape, () => Object.entries(list).map(([name, values]) => ({name, values})));
}

// Small pictures no wider than they are high, one beside the other from the left.
function squares(places, share) {
  if (share >= 1) return places;
  return places.map(({x, y}) => ({x: x.map((end) => end * share), y}));
}

// Plotly's names of the axes of small picture number `place`.
export function axes(place) {
  const number = place ? String(place + 1) : "";
  return ["x", "y"].map((letter) => ({short: `${letter}${number}`, long: `${letter}axis${number}`}));
}
