/** Mounts the app in an element, in its own shadow root. */

import { render as renderInto } from "preact";
import { App } from "./app.js";
import type { Source } from "./source.js";
import { createStore, type Store } from "./store.js";
import { STYLES } from "./styles.js";

/** Draws a source's document in `el`, replacing its content. Returns a function that removes it. */
export function mount(el: HTMLElement, source: Source): () => void {
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet(); // which needs no permission by a content security policy, as a style element does
  sheet.replaceSync(STYLES);
  root.adoptedStyleSheets = [sheet];
  let store: Store | null = null;
  const show = () => {
    store?.close();
    store = null;
    let failure = "";
    try {
      store = createStore(source);
      store.scene.value; // a document that cannot be drawn fails here, where the error can be shown
    } catch (error) {
      failure =
        error instanceof SyntaxError ? "The document is not valid JSON." : String((error as Error)?.message ?? error);
    }
    renderInto(null, root);
    renderInto(store ? <App store={store} /> : <Failure host={source.host} text={failure} />, root);
  };
  show();
  const stop = source.onDocument(show);
  el.replaceChildren();
  return () => {
    stop();
    store?.close();
    renderInto(null, root);
  };
}

function Failure({ host, text }: { host: string; text: string }) {
  return (
    <div class="app" data-host={host}>
      <div class="failure" role="alert" part="failure">
        <h1>This circuit cannot be drawn</h1>
        <p>{text}</p>
      </div>
    </div>
  );
}
