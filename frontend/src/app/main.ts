/** The entry point that pages and anywidget load. In a page, it finds the document and draws it. */

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
