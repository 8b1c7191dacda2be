// The numbers of a picture as a table, a page at a time.
import {fill, h} from "./dom.js";
import {count, number} from "./format.js";

const PAGE = 100;

export function pagedTable(columns, name) {
  const rows = columns[0]?.values.length ?? 0;
  const body = h("tbody");
  const where = h("span", {class: "soft"});
  let from = 0;
  const show = (start) => {
    from = Math.min(Math.max(0, start), Math.max(0, Math.ceil(rows / PAGE) - 1) * PAGE);
    const end = Math.min(rows, from + PAGE);
    fill(
      body,
      Array.from({length: end - from}, (_, place) =>
        h(
          "tr",
          {},
          columns.map((column) => cell(column, from + place)),
        ),
      ),
    );
    where.textContent = rows ? `rows ${count(from + 1)}–${count(end)} of ${count(rows)}` : "no rows";
    before.disabled = from === 0;
    after.disabled = end >= rows;
  };
  const before = h("button", {class: "quiet", type: "button", onclick: () => show(from - PAGE)}, "‹ before");
  const after = h(
    "button",
    {class: "quiet", type: "button", onclick: () => show(from + PAGE), "data-testid": "table-next"},
    "next ›",
  );
  show(0);
  const head = h(
    "tr",
    {},
    columns.map((column) => h("th", {scope: "col"}, column.name)),
  );
  const scroll = h(
    "div",
    {class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${name}`},
    h("table", {}, h("thead", {}, head), body),
  );
  return h(
    "div",
    {class: "table", "data-testid": "table"},
    scroll,
    rows > PAGE ? h("div", {class: "pages"}, before, where, after) : h("div", {class: "pages"}, where),
  );
}

function cell(column, row) {
  const value = column.values[row];
  return h("td", {}, typeof value === "number" ? number(value, 5) : String(value ?? ""));
}
