// Formats numbers and counts for readers.

const RAISED = {"-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹"};

// A number with significant digits: 0.03214, 3.214e-7, NaN.
export function number(value, digits = 4) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 1);
  return text.replace("e+", "e");
}

// Three digits, for comparisons: 2.30, 1.39.
export const rounded = (value) => {
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e3 ? value.toPrecision(3) : number(value, 3);
};

// For ticks: 0.2, 5e-19.
export const brief = (value) => String(Number(value.toPrecision(2)));

export function count(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "–";
}

export function plural(value, word) {
  return `${count(value)} ${word}${value === 1 ? "" : "s"}`;
}

export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const hundred = 100 * share;
  return `${hundred > 0 && hundred < 1 ? hundred.toPrecision(1) : hundred > 99 && hundred < 100 ? hundred.toFixed(1) : Math.round(hundred)} %`;
}

export function power(exponent) {
  if (exponent === 0) return "1";
  return `10${[...String(exponent)].map((digit) => RAISED[digit]).join("")}`;
}
