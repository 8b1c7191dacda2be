// Curves of the size of a word.

const SPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, EDGE] = [96, 24, 2];
const POINTS = 200;
const DECADES = 30; // a larger ratio of levels needs a logarithmic scale

// A line over steps, with gaps at non-finite values; two ends bound steps and levels.
export function spark(steps, values, [first, last], [low, high], label) {
  const logarithmic = low > 0 && high / low > DECADES;
  const [bottom, top] = logarithmic ? [Math.log(low), Math.log(high)] : [low, high];
  const x = (step) => EDGE + ((step - first) / (last - first || 1)) * (WIDTH - 2 * EDGE);
  const y = (value) =>
    HEIGHT - EDGE - (((logarithmic ? Math.log(value) : value) - bottom) / (top - bottom || 1)) * (HEIGHT - 2 * EDGE);
  const every = Math.ceil(steps.length / POINTS);
  const places = [...steps.keys()].filter((at) => at % every === 0 || at === steps.length - 1);
  const path = places.map((at, place) => {
    if (!Number.isFinite(values[at])) return "";
    const joined = place > 0 && Number.isFinite(values[places[place - 1]]);
    return `${joined ? "L" : "M"}${x(steps[at]).toFixed(1)} ${y(values[at]).toFixed(1)}`;
  });
  return svg({class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label}, path.join(""));
}

function svg(properties, path) {
  const root = document.createElementNS(SPACE, "svg");
  for (const [name, value] of Object.entries(properties)) root.setAttribute(name, value);
  const line = document.createElementNS(SPACE, "path");
  line.setAttribute("d", path);
  root.append(line);
  return root;
}
