// One column per run, side by side; a column stays as long as its run.
import {fill, h} from "./dom.js";
import {colour} from "./theme.js";

// make(column, run) fills a new column and returns its object for the view, with an optional drop(). With a single run,
// paired columns have two figures in a row. The text of textOf(run) is beside the name of a run.
export function columns(parent, make, {paired = false} = {}) {
  const byRun = new Map();
  const root = h("div", {class: paired ? "columns paired" : "columns"});
  parent.append(root);
  return (runs, textOf = () => "") => {
    for (const [name, {element, made}] of byRun) {
      if (runs.some((run) => run.run === name)) continue;
      made.drop?.();
      element.remove();
      byRun.delete(name);
    }
    root.style.setProperty("--columns", Math.min(runs.length, 4));
    return runs.map((run, place) => {
      if (!byRun.has(run.run)) byRun.set(run.run, column(run, make));
      const {element, heading, made} = byRun.get(run.run);
      if (root.children[place] !== element) root.insertBefore(element, root.children[place] ?? null);
      const text = [textOf(run), run.live ? "training" : "finished"].filter(Boolean).join(" · ");
      fill(heading, runName(run), h("span", {class: "soft"}, text));
      return made;
    });
  };
}

export function runName(run) {
  return h(
    "span",
    {class: "run"},
    h("i", {class: "dot", style: {background: colour(run.tint)}}),
    h("b", {}, run.label),
  );
}

function column(run, make) {
  const heading = h("h2", {class: "run-heading"});
  const element = h(
    "section",
    {class: "column", "data-testid": "run-column", "aria-label": `Run ${run.label}`},
    heading,
  );
  return {element, heading, made: make(element, run)};
}
