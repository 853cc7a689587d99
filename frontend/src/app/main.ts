/** The circuit diagram in a page, which it finds by itself, or in a notebook: what anywidget and pages load. */

import { mount } from "./mount.js";
import { type Model, pageSource, widgetSource } from "./source.js";

/** For anywidget. */
function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  return mount(el, widgetSource(model));
}

const embedded = document.querySelector('script[type="application/json"]#circuit');
const place = document.getElementById("diagram");
if (embedded && place) {
  mount(place, pageSource(embedded.textContent ?? ""));
  document.documentElement.dataset.ready = "true";
}

export default { render, mount };
