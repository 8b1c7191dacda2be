// The choice of a layer: at most three lists for runs with the same layers, short for any number of layers.
import {select} from "./controls.js";
import {fill, h} from "./dom.js";
import {count} from "./format.js";
import {capital, layerTitle} from "./words.js";

// All layers of several runs, each once, in order of appearance.
export function union(runs) {
  const byKey = new Map();
  for (const run of runs) for (const layer of run.layers) if (!byKey.has(layer.key)) byKey.set(layer.key, layer);
  const layers = [...byKey.values()];
  const stacked = new Set(layers.filter((layer) => layer.layer > 0).map((layer) => layer.module));
  return layers.map((layer) => ({...layer, title: layerTitle(layer, stacked.has(layer.module))}));
}

// The layer of every run: the first of the chosen keys that it has; else the layer at the same place, counted from the
// input, as the first chosen key in its own run.
export function chosen(runs, known, keys = []) {
  const owner = [...runs, ...known].find((run) => own(run, keys[0])) ?? runs.find((run) => run.layers.length);
  const model = owner && (own(owner, keys[0]) ?? owner.layers[0]);
  const pick = (run) => keys.map((key) => own(run, key)).find(Boolean) ?? (model && atPlaceOf(run, owner, model));
  return new Map(runs.map((run) => [run.run, pick(run)]));
}

const own = (run, key) => run.layers.find((layer) => layer.key === key);
const stack = (run) => [...new Set(run.layers.map(id))];

function atPlaceOf(run, owner, model) {
  const places = stack(run);
  const place = Math.min(stack(owner).indexOf(id(model)), places.length - 1);
  return closest(
    run.layers.filter((layer) => id(layer) === places[place]),
    model,
  );
}

// The direction and call of a layer that are most similar to another.
function closest(layers, wanted) {
  const score = (layer) => (layer.direction === wanted.direction) * 2 + (layer.chain === wanted.chain);
  return layers.reduce((a, b) => (score(b) > score(a) ? b : a), layers[0]);
}

// The drawn layers of several runs, in words.
export function called({runs, layer, title}) {
  const names = [...new Set(runs.filter(layer).map((run) => title(layer(run).key)))];
  return `Layer${names.length > 1 ? "s" : ""} ${names.join(" and ")}, one line per run.`;
}

// The chosen keys after a choice for one run and all runs with the same layers; other runs keep theirs.
export const choose = (run, key, keys = []) => [key, ...keys.filter((each) => !own(run, each))];

// Lists for each set of runs whose layers have the same names.
export function layerPickers(onchange) {
  const root = h("div", {class: "row"});
  const pickers = new Map();
  return {
    root,
    set(runs, layers, layerOf) {
      const groups = Map.groupBy(
        runs.filter((run) => run.layers.length),
        (run) => JSON.stringify(run.layers.map(({key}) => key)),
      );
      const names = [...groups.values()].map((group) =>
        groups.size > 1 ? `Layer of ${group.map((run) => run.label).join(", ")}` : "Layer",
      );
      names.filter((name) => !pickers.has(name)).forEach((name) => pickers.set(name, layerPicker(name)));
      const roots = names.map((name) => pickers.get(name).root);
      if (roots.some((each, place) => root.children[place] !== each) || root.children.length > roots.length)
        fill(root, roots);
      [...groups.values()].forEach((group, place) => {
        const titled = group[0].layers.map(({key}) => layers.find((layer) => layer.key === key));
        pickers.get(names[place]).set(titled, layerOf(group[0]), (key) => onchange(group[0], key));
      });
    },
  };
}

// The title, with direction and chain if these distinguish layers.
export function fullTitle(layer, layers) {
  const twins = layers.filter((each) => each.title === layer.title);
  const parts = [layer.title];
  if (twins.some((each) => each.direction !== layer.direction)) parts.push(layer.direction);
  if (twins.some((each) => each.chain !== layer.chain)) parts.push(`chain ${layer.chain}`);
  return parts.join(" · ");
}

function layerPicker(label) {
  let [layers, current, onchange] = [[], null, null];
  const matches = (layer, wanted) =>
    id(layer) === id(wanted) && (!wanted.fixed || layer[wanted.fixed] === wanted[wanted.fixed]);
  const go = (wanted) =>
    onchange(
      closest(
        layers.filter((layer) => matches(layer, wanted)),
        wanted,
      ).key,
    );
  const layer = select("layer", label, (value) =>
    go({...layers.find((each) => id(each) === value), direction: current.direction, chain: current.chain}),
  );
  const direction = select("direction", "Direction", (value) => go({...current, direction: value, fixed: "direction"}));
  const chain = select("chain", "Call", (value) => go({...current, chain: Number(value), fixed: "chain"}));
  return {
    root: h("div", {class: "row"}, layer.root, direction.root, chain.root),
    set(all, now, changed) {
      [layers, current, onchange] = [all, now, changed];
      layer.set(unique(layers.map((each) => [id(each), each.title])), id(now));
      const twins = layers.filter((each) => id(each) === id(now));
      const directions = unique(twins.map((each) => [each.direction, capital(each.direction)]));
      const chains = unique(twins.map((each) => [String(each.chain), `chain ${count(each.chain)}`]));
      direction.set(directions, now.direction);
      chain.set(chains, String(now.chain));
      direction.show(directions.length > 1);
      chain.show(chains.length > 1);
    },
  };
}

const id = (layer) => JSON.stringify([layer.module, layer.layer]);
const unique = (options) => [...new Map(options).entries()];
