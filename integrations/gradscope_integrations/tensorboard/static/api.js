// Talks to the server; http_api.md describes every route.

const KEPT = 120;
const kinds = {float32: Float32Array, float64: Float64Array, int32: Int32Array};
const kept = new Map();

export function json(route, parameters = {}) {
  return ask(route, parameters).then((response) => response.json());
}

// A binary answer: {head, arrays}. What was asked before is not asked again as long as the stamp is the same.
export function block(route, parameters, stamp) {
  return remembered(`${route} ${JSON.stringify(parameters)}`, stamp, async () => {
    const response = await ask(route, parameters);
    return decode(await response.arrayBuffer());
  });
}

// JSON of one run, remembered in the same way.
export function stamped(route, parameters, stamp) {
  return remembered(`${route} ${JSON.stringify(parameters)}`, stamp, () => json(route, parameters));
}

function remembered(name, stamp, make) {
  const old = kept.get(name);
  kept.delete(name);
  const entry = old?.stamp === stamp ? old : {stamp, answer: make()};
  kept.set(name, entry);
  entry.answer.catch(() => kept.delete(name));
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return entry.answer;
}

async function ask(route, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  const response = await fetch(given.length ? `${route}?${new URLSearchParams(given)}` : route);
  if (!response.ok) throw new Error(await response.text());
  return response;
}

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(4, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const arrays = {};
  for (const {name, dtype, shape, offset} of head.arrays) {
    const size = shape.reduce((a, b) => a * b, 1);
    arrays[name] = Object.assign(new kinds[dtype](buffer, 8 + length + offset, size), {shape});
  }
  return {head, arrays};
}

// A table's columns, text in place of codes.
export async function table(route, parameters, stamp) {
  const {head, arrays} = await block(route, parameters, stamp);
  const columns = {...arrays};
  for (const [name, texts] of Object.entries(head.texts))
    columns[name] = Array.from(arrays[name], (code) => texts[code]);
  return {head, columns, length: arrays.step.length};
}
