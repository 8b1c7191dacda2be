// Which layer: three lists at most, which stay small however many layers there are.
import {select} from "./controls.js";
import {h} from "./dom.js";
import {count} from "./format.js";
import {capital, layerTitle} from "./words.js";

// All layers of some runs, each once, in the order in which they appeared.
export function union(runs) {
  const found = new Map();
  for (const run of runs) for (const layer of run.layers) if (!found.has(layer.key)) found.set(layer.key, layer);
  const layers = [...found.values()];
  const stacked = new Set(layers.filter((layer) => layer.layer > 0).map((layer) => layer.module));
  return layers.map((layer) => ({...layer, title: layerTitle(layer, stacked.has(layer.module))}));
}

// The one asked for, or the first.
export function chosen(layers, key) {
  return layers.find((layer) => layer.key === key) ?? layers[0];
}

// Title with direction and chain where that is needed to tell layers apart.
export function fullTitle(layer, layers) {
  const twins = layers.filter((each) => each.title === layer.title);
  const parts = [layer.title];
  if (twins.some((each) => each.direction !== layer.direction)) parts.push(layer.direction);
  if (twins.some((each) => each.chain !== layer.chain)) parts.push(`chain ${layer.chain}`);
  return parts.join(" · ");
}

export function layerPicker(onchange) {
  let [layers, current] = [[], null];
  const best = (wanted) => {
    const score = (layer) => (layer.direction === wanted.direction) * 2 + (layer.chain === wanted.chain);
    const fitting = layers.filter((layer) => matches(layer, wanted));
    return fitting.reduce((a, b) => (score(b) > score(a) ? b : a), fitting[0]);
  };
  const matches = (layer, wanted) =>
    id(layer) === id(wanted) && (!wanted.fixed || layer[wanted.fixed] === wanted[wanted.fixed]);
  const go = (wanted) => onchange(best(wanted).key);
  const layer = select("layer", "Layer", (value) =>
    go({...layers.find((each) => id(each) === value), direction: current.direction, chain: current.chain}),
  );
  const direction = select("direction", "Direction", (value) => go({...current, direction: value, fixed: "direction"}));
  const chain = select("chain", "Call", (value) => go({...current, chain: Number(value), fixed: "chain"}));
  return {
    root: h("div", {class: "row"}, layer.root, direction.root, chain.root),
    set(all, now) {
      [layers, current] = [all, now];
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
