// TensorBoard imports this module, and calls render() once, in an empty page of its own.
import {start} from "./static/app.js";

export function render() {
  start(document.body);
}
