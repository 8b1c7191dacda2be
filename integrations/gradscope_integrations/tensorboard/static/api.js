// Requests to the server; http_api.md describes every route.

const CACHED = 120;
const kinds = {float32: Float32Array, float64: Float64Array, int32: Int32Array};
const cache = new Map();

export function json(route, parameters = {}) {
  return request(route, parameters).then((response) => response.json());
}

// A binary answer: {head, arrays}. Repeated requests come from the cache as long as the stamp is the same.
export function block(route, parameters, stamp) {
  return cached(`${route} ${JSON.stringify(parameters)}`, stamp, async () => {
    const response = await request(route, parameters);
    return decode(await response.arrayBuffer());
  });
}

// JSON of one run, with the same cache.
export function stamped(route, parameters, stamp) {
  return cached(`${route} ${JSON.stringify(parameters)}`, stamp, () => json(route, parameters));
}

function cached(name, stamp, make) {
  const old = cache.get(name);
  cache.delete(name);
  const entry = old?.stamp === stamp ? old : {stamp, answer: make()};
  cache.set(name, entry);
  entry.answer.catch(() => cache.delete(name));
  if (cache.size > CACHED) cache.delete(cache.keys().next().value);
  return entry.answer;
}

async function request(route, parameters) {
  const present = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  const response = await fetch(present.length ? `${route}?${new URLSearchParams(present)}` : route);
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

// The columns of a table, with texts in place of codes.
export async function table(route, parameters, stamp) {
  const {head, arrays} = await block(route, parameters, stamp);
  const columns = {...arrays};
  for (const [name, texts] of Object.entries(head.texts))
    columns[name] = Array.from(arrays[name], (code) => texts[code]);
  return {head, columns, length: arrays.step.length};
}
