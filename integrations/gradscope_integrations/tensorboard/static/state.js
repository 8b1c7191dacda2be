// The state of the view, in the address of TensorBoard's page, for reloading and sharing.

const PREFIX = "p.gradscope.";
export const VIEWS = {
  overview: "Overview",
  flow: "Gradient flow",
  gates: "Gates",
  clipping: "Clipping",
  compare: "Compare",
};
const TEXTS = ["view", "curve", "row", "measure", "over", "call", "sort"];
const LISTS = ["runs", "layer"];
const NUMBERS = ["step", "t", "threshold"];

const listeners = new Set();
let current = read();

export const state = () => current;
export const onChange = (listener) => listeners.add(listener);

// Change parts of the state; undefined restores a default.
export function change(some) {
  current = {...current, ...some};
  write();
  listeners.forEach((listener) => listener(current));
}

// Follow an address that the user types or goes back to.
export function followAddress() {
  const page = hostWindow();
  page?.addEventListener("hashchange", () => {
    if (!page.location.hash.startsWith("#gradscope") || page.location.hash === hash()) return;
    current = read();
    listeners.forEach((listener) => listener(current));
  });
}

function hostWindow() {
  try {
    return window.parent.location.hash === undefined ? null : window.parent;
  } catch {
    return null;
  }
}

function read() {
  const words = new Map(
    (hostWindow()?.location.hash ?? "")
      .slice(1)
      .split("&")
      .map((each) => each.split("=").map(decoded)),
  );
  const text = (name) => words.get(PREFIX + name);
  const values = {};
  for (const name of TEXTS) values[name] = text(name);
  for (const name of NUMBERS) values[name] = finite(text(name));
  for (const name of LISTS) values[name] = text(name)?.split(",").map(decoded);
  const zoom = text("zoom")?.split(",").map(Number);
  values.zoom = zoom?.length === 4 && zoom.every(Number.isFinite) ? zoom : undefined;
  if (!(values.view in VIEWS)) values.view = "overview";
  return values;
}

function hash() {
  const words = {...current, zoom: current.zoom?.join(",")};
  for (const name of LISTS) words[name] = current[name]?.map(separable).join(",");
  if (words.view === "overview") words.view = undefined;
  const parts = Object.entries(words).filter(([, value]) => value !== undefined);
  return [
    "#gradscope",
    ...parts.map(([name, value]) => `${encodeURIComponent(PREFIX + name)}=${encodeURIComponent(value)}`),
  ].join("&");
}

function write() {
  const page = hostWindow();
  if (page && page.location.hash.startsWith("#gradscope")) page.history.replaceState(page.history.state, "", hash());
}

// TensorBoard clears the address on a change of tab; restore ours when this tab appears again.
export const restoreAddress = write;

// Escape a name for a list.
const separable = (name) => name.replace(/[%,]/g, encodeURIComponent);

function finite(text) {
  return text === undefined || text === "" || !Number.isFinite(Number(text)) ? undefined : Number(text);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
