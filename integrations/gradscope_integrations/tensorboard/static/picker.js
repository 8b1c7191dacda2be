// The choice of runs: a button that opens a list with check boxes.
import {fill, h} from "./dom.js";
import {plural} from "./format.js";
import {runName} from "./panels.js";

export function runPicker(onchange) {
  const summary = h("summary", {"data-testid": "runs"});
  const filter = h("input", {
    type: "search",
    placeholder: "Filter runs",
    "aria-label": "Filter runs",
    oninput: () => show(),
  });
  const list = h("div", {class: "choices", role: "group", "aria-label": "Runs"});
  const buttons = h(
    "div",
    {class: "row"},
    quiet("All", () => choose(shown().map((run) => run.run))),
    quiet("Only the newest", () => choose([newest(shown())])),
  );
  const details = h("details", {class: "picker"}, summary, h("div", {class: "panel"}, filter, list, buttons));
  const root = h("div", {class: "control"}, h("span", {class: "label", id: "runs-label"}, "Runs"), details);
  summary.setAttribute("aria-describedby", "runs-label");
  let [runs, chosen] = [[], new Set()];

  const shown = () => runs.filter((run) => run.label.toLowerCase().includes(filter.value.trim().toLowerCase()));
  const choose = (names) => names.length && onchange(names);
  const toggle = (name) => choose(runs.map((run) => run.run).filter((each) => (each === name) !== chosen.has(each)));
  const show = () =>
    fill(
      list,
      shown().map((run) =>
        h("label", {}, tick(run), runName(run), run.error ? h("span", {class: "soft"}, run.error) : null),
      ),
    );
  const tick = (run) => {
    const box = h("input", {type: "checkbox", onchange: () => toggle(run.run), disabled: Boolean(run.error)});
    box.checked = chosen.has(run.run);
    return box;
  };

  document.addEventListener("click", (event) => details.contains(event.target) || details.removeAttribute("open"));
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    details.removeAttribute("open");
    summary.focus();
  });
  return {
    root,
    set(all, selected) {
      [runs, chosen] = [all, new Set(selected.map((run) => run.run))];
      filter.hidden = buttons.hidden = all.length < 6;
      fill(
        summary,
        selected.length <= 3 ? selected.map(runName) : `${plural(selected.length, "run")} of ${all.length}`,
      );
      if (!details.open || list.contains(document.activeElement) === false) show();
      else list.querySelectorAll("input").forEach((box, place) => (box.checked = chosen.has(shown()[place].run)));
    },
  };
}

function newest(runs) {
  return runs.reduce((a, b) => (time(b) > time(a) ? b : a), runs[0])?.run;
}

const time = (run) => run.state?.time ?? 0;
const quiet = (text, onclick) => h("button", {class: "quiet", type: "button", onclick}, text);
