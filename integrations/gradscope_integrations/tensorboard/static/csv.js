// Saves columns, [{name, values}], as a file.
import {download} from "./dom.js";

// Columns from rows, objects with the same names.
export function gathered(rows) {
  const columns = {};
  for (const row of rows) for (const [name, value] of Object.entries(row)) (columns[name] ??= []).push(value);
  return listed(columns);
}

export const listed = (columns) => Object.entries(columns).map(([name, values]) => ({name, values}));

export function text(columns) {
  const rows = columns[0]?.values.length ?? 0;
  const lines = [columns.map((column) => cell(column.name)).join(",")];
  for (let row = 0; row < rows; row++) lines.push(columns.map((column) => cell(column.values[row])).join(","));
  return `${lines.join("\r\n")}\r\n`;
}

export function save(name, columns) {
  const address = URL.createObjectURL(new Blob([text(columns)], {type: "text/csv"}));
  download(name, address);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function cell(value) {
  if (typeof value === "number")
    return Number.isNaN(value) ? "nan" : Number.isFinite(value) ? String(value) : value > 0 ? "inf" : "-inf";
  let words = String(value ?? "");
  if (/^[=+\-@\t]/.test(words)) words = `'${words}`; // a spreadsheet would run it
  return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
}
