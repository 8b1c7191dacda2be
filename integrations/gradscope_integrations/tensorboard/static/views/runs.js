// Many runs: a row each, in any order, with a choice of a few to open side by side.
import {fill, h} from "../dom.js";
import {count, number, plural} from "../format.js";
import {runName} from "../panels.js";
import {spark} from "../sparks.js";
import {change} from "../state.js";
import {colour} from "../theme.js";
import {differing, inOrder, rowsOf, scales} from "./rows.js";

const MOST = 3;

// title, content of a cell, sort key
const COLUMNS = {
  run: ["Run", nameOf, ({run}) => run.place],
  loss: ["Loss", lossOf, ({loss}) => loss?.last],
  learns: ["Learns", ({learns}) => [learns], ({learns}) => ["yes", "–", "no", "lost it"].indexOf(learns)],
  horizon: ["Horizon", horizonOf, ({horizon}) => horizon && horizon.horizon + horizon.horizon_censored / 2],
  finding: ["Worst finding", findingOf, ({finding}) => finding?.rank],
  clipped: ["Clipped", clippedOf, ({clipped}) => clipped],
  recorded: ["Recorded", recordedOf, ({run}) => run.state.recorded],
};

export function mount(parent) {
  const chosen = new Set();
  const open = h("button", {type: "button", class: "open", "data-testid": "open", onclick: () => show([...chosen])});
  const say = h("p", {class: "soft"});
  const [head, body] = [h("tr"), h("tbody")];
  const table = h("table", {class: "runs", "data-testid": "runs-table"}, h("thead", {}, head), body);
  const scroll = h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of runs"}, table);
  parent.append(h("div", {class: "row controls"}, open, say), scroll);
  const tick = () => {
    open.disabled = !chosen.size;
    open.textContent = chosen.size > 1 ? `Open ${chosen.size} side by side` : "Open";
    for (const box of body.querySelectorAll("input")) box.disabled = !box.checked && chosen.size === MOST;
  };
  return {
    async update(context) {
      const rows = await rowsOf(context.runs);
      if (!context.current()) return;
      const scale = scales(rows);
      const settings = differing(rows);
      const columns = all(settings);
      const {sort} = context.state;
      for (const run of chosen) if (!context.runs.some((each) => each.run === run)) chosen.delete(run);
      say.textContent = `${plural(rows.length, "run")}. Tick two or three to open them side by side; a name opens its run.`;
      fill(
        head,
        h("th"),
        Object.entries(columns).map(([id, [title]]) => heading(id, title, sort)),
      );
      fill(
        body,
        sorted(rows, columns, sort).map((row) => line({...row, scale}, columns, box(row.run, chosen, tick))),
      );
      tick();
    },
  };
}

const show = (runs) => change({runs, zoom: undefined});

// The differing settings follow the name, shaded by the order of their values.
function all(settings) {
  const {run, ...rest} = COLUMNS;
  const columns = [...settings].map(([name, values]) => [
    `setting ${name}`,
    [name, (row) => [shaded(row.settings[name], values)], (row) => values.indexOf(row.settings[name])],
  ]);
  return {run, ...Object.fromEntries(columns), ...rest};
}

function shaded(value, values) {
  const share = (values.indexOf(value) + 1) / values.length;
  return h("span", {class: "setting", style: {"--share": `${Math.round(50 * share)}%`}}, value);
}

function heading(id, title, sort = "run") {
  const up = sort === id;
  const order = up ? "ascending" : sort === `-${id}` ? "descending" : "none";
  const sign = {ascending: " ▴", descending: " ▾", none: ""}[order];
  const onclick = () => change({sort: up ? `-${id}` : id});
  const button = h("button", {type: "button", class: "quiet", "data-testid": `sort-${id}`, onclick}, title, sign);
  return h("th", {scope: "col", "aria-sort": order}, button);
}

// Unknown values come last, in either order.
function sorted(rows, columns, sort = "run") {
  const [, , by] = columns[sort.replace(/^-/, "")] ?? columns.run;
  const known = (row) => by(row) !== undefined && by(row) !== null && !Number.isNaN(by(row));
  const ordered = rows.filter(known).sort((a, b) => inOrder(by(a), by(b)));
  return [...(sort.startsWith("-") ? ordered.reverse() : ordered), ...rows.filter((row) => !known(row))];
}

function line(row, columns, ticked) {
  const cells = Object.entries(columns).map(([id, [, content]]) => h("td", {"data-column": id}, content(row)));
  return h("tr", {"data-testid": "runs-row", "data-run": row.run.run}, h("td", {}, ticked), cells);
}

function box({run, label}, chosen, changed) {
  const element = h("input", {
    type: "checkbox",
    "aria-label": `Choose ${label}`,
    onchange: () => {
      if (element.checked) chosen.add(run);
      else chosen.delete(run);
      changed();
    },
  });
  element.checked = chosen.has(run);
  return element;
}

function nameOf({run}) {
  const live = run.live ? h("b", {class: "live"}, "live") : null;
  return [h("button", {type: "button", class: "name", onclick: () => show([run.run])}, runName(run)), live];
}

function picture(run, {steps, values}, scale, label) {
  if (values.length < 2) return null;
  const drawn = spark(steps, values, [run.state.first_step, run.state.last_step], scale, `${label} over training`);
  drawn.style.setProperty("color", colour(run.tint));
  return drawn;
}

function lossOf({run, loss, scale}) {
  if (!loss) return ["–"];
  return [picture(run, {...loss, values: loss.smooth}, scale.loss, "loss"), h("span", {}, loss.summary)];
}

function horizonOf({run, horizon, scale}) {
  if (!horizon) return ["–"];
  const words = `${horizon.horizon_censored ? "≥ " : ""}${number(horizon.horizon, 3)} of ${count(horizon.timesteps)}`;
  return [picture(run, horizon, scale.horizon, "horizon"), h("span", {}, words)];
}

function findingOf({finding, texts}) {
  return [finding ? h("span", {class: `badge ${finding.tone}`, title: finding.title}, texts.finding) : texts.finding];
}

function clippedOf({clipped, texts}) {
  const bar = h("i", {class: "share", style: {"--share": `${100 * clipped}%`}});
  return [Number.isFinite(clipped) ? bar : null, h("span", {}, texts.clipped)];
}

function recordedOf({run: {state}}) {
  return [`${count(state.recorded)} of ${count(state.steps)}`];
}
