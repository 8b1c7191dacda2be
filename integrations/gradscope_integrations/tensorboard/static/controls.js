// Controls: plain form elements, so that keyboards and screen readers work.
import {fill, h} from "./dom.js";

let serial = 0;

// A labelled select; options are [value, text] or [value, text, group].
export function select(id, label, onchange) {
  const name = `control-${(serial += 1)}`;
  const box = h("select", {id: name, "data-testid": id, onchange: () => onchange(box.value)});
  const root = h("div", {class: "control"}, h("label", {for: name}, label), box);
  let before = "";
  const set = (options, value) => {
    const now = JSON.stringify(options); // do not refill an open list
    if (now !== before) refill(options);
    before = now;
    box.value = value;
  };
  const refill = (options) => {
    const groups = new Map();
    for (const [key, text, group] of options) {
      const option = h("option", {value: key}, text);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(option);
    }
    fill(
      box,
      [...groups].map(([group, members]) => (group ? h("optgroup", {label: group}, members) : members)),
    );
  };
  return {root, box, set, show: (yes) => (root.hidden = !yes)};
}

// A slider over the places of a list.
export function slider(id, label, oninput, described) {
  const name = `control-${(serial += 1)}`;
  const box = h("input", {id: name, type: "range", min: 0, step: 1, "data-testid": id});
  const output = h("output", {for: name});
  let values = [];
  box.addEventListener("input", () => {
    tell(Number(box.value));
    oninput(values[Number(box.value)]);
  });
  const tell = (place) => {
    output.textContent = described(values[place]);
    box.setAttribute("aria-valuetext", output.textContent);
  };
  const root = h("div", {class: "control slider"}, h("label", {for: name}, label), box, output);
  const set = (list, value) => {
    values = list;
    box.max = Math.max(0, values.length - 1);
    box.disabled = values.length < 2;
    const place = nearest(values, value);
    box.value = place;
    if (values.length) tell(place);
  };
  return {root, set, show: (yes) => (root.hidden = !yes)};
}

export function nearest(values, wanted) {
  if (wanted === undefined) return values.length - 1;
  let best = 0;
  for (let place = 1; place < values.length; place++) {
    if (Math.abs(values[place] - wanted) < Math.abs(values[best] - wanted)) best = place;
  }
  return best;
}

export function copyButton(text) {
  const button = h("button", {class: "copy", type: "button", "data-testid": "copy"}, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

export function codeBox(code) {
  return h("div", {class: "code"}, h("pre", {}, h("code", {}, code)), copyButton(code));
}

// The clipboard exists on https and localhost only; the older way works everywhere.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", {class: "offscreen"});
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
