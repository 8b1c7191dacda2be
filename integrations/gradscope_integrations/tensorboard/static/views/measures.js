// The quantities of Compare besides curves: columns of tables.
import {quantity} from "../words.js";

// table, column -> title, unit, true for a logarithmic axis, true if 1 is a landmark
export const MEASURES = {
  "layers/horizon": ["Horizon", "steps back"],
  "layers/decay": ["Decay of reach", "log10 per step back"],
  "layers/lyapunov": ["Lyapunov exponent", "per timestep"],
  "layers/residual": ["Residual of the certificate", "relative difference", true],
  "steps/loss": ["Loss", "loss"],
  "steps/grad_norm": ["Gradient norm of recurrent layers", "norm", true],
  "steps/step_s": ["Time per step", "seconds", true],
  "steps/overhead_s": ["Time spent by gradscope", "seconds", true],
  "blocks/spectral_radius": ["Spectral radius", "largest |eigenvalue|", false, true],
  "blocks/spectral_norm": ["Spectral norm", "largest singular value", false, true],
  "blocks/update": ["Change by a step", "‖change‖ / ‖U‖", true],
  "blocks/orthogonality": ["Distance from orthogonal", "‖UᵀU − I‖ / √n"],
};

export function described(measure, curve) {
  if (curve) {
    const about = quantity(curve);
    return {title: about.title, unit: about.unit, logarithmic: !about.share, one: about.one};
  }
  const [table, column, ...gate] = measure.split("/");
  const [title, unit, logarithmic = false, one = false] = MEASURES[`${table}/${column}`];
  return {
    title: gate.length ? `${title}, ${gate.join("/")}` : title,
    unit,
    logarithmic,
    one,
    table,
    column,
    gate: gate.join("/"),
  };
}
