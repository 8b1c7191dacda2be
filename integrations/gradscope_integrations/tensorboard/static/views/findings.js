// Findings as cards, and notes.
import {codeBox} from "../controls.js";
import {fill, h} from "../dom.js";
import {count, number, plural} from "../format.js";
import {choose} from "../layers.js";
import {change} from "../state.js";
import {capital} from "../words.js";

const SIGNS = {critical: "✕", warning: "!", info: "i", healthy: "✓"};
const SEE = {
  vanishing_gradient: ["flow", "Gradient flow"],
  exploding_gradient: ["flow", "Gradient flow"],
  nonfinite_gradient: ["flow", "Gradient flow"],
  detached_state: ["flow", "Gradient flow"],
  saturated_gate: ["gates", "Gates"],
  dead_units: ["gates", "Gates"],
  excessive_clipping: ["clipping", "Clipping"],
  missing_clipping: ["clipping", "Clipping"],
};

export function showFindings(parent, run, {step, findings}, context) {
  const words = waiting(run, findings);
  if (words) return fill(parent, h("p", {class: "card soft"}, words));
  const data = h("p", {class: "soft small"}, `As of step ${count(step)}`);
  fill(
    parent,
    findings.map((finding) => card(finding, run, context)),
    run.live ? data : null,
  );
}

function waiting(run, findings) {
  if (findings === null)
    return run.live
      ? "Findings appear after the first few recorded steps."
      : "This run has no diagnosis.";
  return findings.length ? "" : "No findings.";
}

function card(finding, run, context) {
  const tone = finding.code === "healthy" ? "healthy" : finding.severity;
  const head = h(
    "header",
    {},
    h("span", {class: "badge"}, h("i", {"aria-hidden": "true"}, SIGNS[tone] ?? "i"), capital(tone)),
    finding.layer ? h("span", {class: "soft"}, context.title(finding.layer.key)) : null,
  );
  const evidence = Object.entries(finding.evidence);
  return h(
    "article",
    {class: `card finding ${tone}`, "data-testid": "finding", "data-code": finding.code},
    head,
    h("h3", {}, finding.layer ? finding.title : capital(finding.title)),
    h("p", {}, finding.explanation),
    evidence.length
      ? h(
          "details",
          {},
          h("summary", {}, "Evidence"),
          h(
            "dl",
            {},
            evidence.map(([name, value]) =>
              h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, shown(value))),
            ),
          ),
        )
      : null,
    remedies(finding.remedies),
    see(finding, run, context),
  );
}

function remedies(list) {
  if (!list.length) return null;
  const [first, ...rest] = list.map((remedy) =>
    h("div", {class: "remedy"}, h("p", {}, capital(remedy.title)), codeBox(remedy.code)),
  );
  return h(
    "div",
    {class: "remedies"},
    h("h4", {}, "Remedies"),
    first,
    rest.length ? h("details", {}, h("summary", {}, `${plural(rest.length, "other thing")} to try`), rest) : null,
  );
}

function see(finding, run, context) {
  const [view, title] = SEE[finding.code] ?? [];
  if (!view) return null;
  const layer = finding.layer ? choose(run, finding.layer.key, context.state.layer) : context.state.layer;
  return h(
    "button",
    {class: "quiet link", type: "button", onclick: () => change({view, layer, zoom: undefined})},
    `See it in ${title} →`,
  );
}

function shown(value) {
  if (Array.isArray(value)) return value.map(shown).join(" – ");
  if (value !== null && typeof value === "object")
    return Object.entries(value)
      .map(([name, each]) => `${name} ${shown(each)}`)
      .join(", ");
  return typeof value === "number" ? number(value, 3) : String(value);
}

// One list for each run with notes; open lists stay open.
export function showNotes(parent, data, context) {
  const opened = new Set([...parent.querySelectorAll("details[open]")].map((each) => each.dataset.run));
  const lists = context.runs.map((run, place) => notesOf(run, data[place], opened.has(run.run), context));
  fill(parent, lists);
}

function notesOf(run, {notes, left_out: more}, open, context) {
  if (!notes.length) return null;
  const name = context.runs.length > 1 ? `${run.label}: ` : "";
  const items = notes.map((note) =>
    h("li", {}, h("b", {}, where(note, context)), ` ${note.reason} `, h("span", {class: "soft"}, span(note))),
  );
  return h(
    "details",
    {class: "card notes-list", open, "data-testid": "notes-list", "data-run": run.run},
    h("summary", {}, `${name}${plural(notes.length, "note")} on the loop, and on values that gradscope could not observe`),
    h("ul", {}, items),
    more ? h("p", {class: "soft"}, `and ${plural(more, "further note")}`) : null,
  );
}

function where(note, context) {
  if (!note.module && note.layer < 0) return "Model:";
  const layer = context.layers.find((each) =>
    ["module", "layer", "direction", "chain"].every((name) => each[name] === note[name]),
  );
  return `${layer ? context.title(layer.key) : note.module || "model"}:`;
}

function span(note) {
  return note.first_step === note.last_step
    ? `(step ${count(note.first_step)})`
    : `(${plural(note.count, "time")}, steps ${count(note.first_step)} to ${count(note.last_step)})`;
}
