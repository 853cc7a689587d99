/** Puts the app in an element, in a shadow root of its own. */

import { render as renderInto } from "preact";
import { App } from "./app.js";
import type { Source } from "./source.js";
import { createStore, type Store } from "./store.js";
import { STYLES } from "./styles.js";

/** Draws a source's document in `el`, in place of what is there; returns what takes it away. */
export function mount(el: HTMLElement, source: Source): () => void {
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  let store: Store | null = null;
  const show = () => {
    store?.close();
    store = null;
    let failure = "";
    try {
      store = createStore(source);
      store.scene.value; // what cannot be drawn fails here, where it can be said
    } catch (error) {
      failure = error instanceof SyntaxError ? "The document is no JSON." : String((error as Error)?.message ?? error);
    }
    renderInto(null, root);
    renderInto(
      <>
        <style>{STYLES}</style>
        {store ? <App store={store} /> : <Failure host={source.host} text={failure} />}
      </>,
      root,
    );
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
