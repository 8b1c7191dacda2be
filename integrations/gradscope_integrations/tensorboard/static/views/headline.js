// The headline of a run: whether it learns, and the most probable cause.
import {count, rounded} from "../format.js";
import {capital} from "../words.js";

const VERDICTS = {
  learns: "The training learns",
  stalls: "The training does not learn",
  lost: "The training has lost what it learnt",
};
const GUESSED = {
  learns: "By the loss gradient the training seems to learn",
  stalls: "By the loss gradient the training may stall",
};
const STANDS = 0.9; // a loss below this share of its beginning has fallen

// The verdict of the findings on the training; undefined without one.
export const verdictOf = (findings) => findings?.find(({evidence}) => evidence.learning)?.evidence;

export function headline({findings, loss}) {
  const sentence = `${verdict(loss, verdictOf(findings))}.`;
  if (!findings?.length) return sentence;
  const [{layer, title}] = findings;
  return `${sentence} ${layer ? title : capital(title)}.`; // the name of a layer stays as it is
}

function verdict(loss, evidence) {
  if (loss && !Number.isFinite(loss.last)) return `The training diverges: loss ${rounded(loss.first)} → not finite`;
  const known = evidence && (evidence.loss ? VERDICTS : GUESSED)[evidence.learning];
  if (!loss) return known ?? "Whether the training learns is not known yet";
  if (!known) return `The loss ${loss.summary.includes("→") ? "goes" : "is"} ${loss.summary}`;
  const stopped = evidence.learning === "stalls" && loss.last < STANDS * loss.first;
  const lowest = loss.turn ? `, lowest ${rounded(loss.turn.loss)} at step ${count(loss.turn.step)}` : "";
  return `${stopped ? "The loss has stopped falling" : known}: loss ${loss.summary}${lowest}`;
}
