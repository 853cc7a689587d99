/** The whole app: controls, what they change, and what it says of itself. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { LegendItem } from "../core/scene-types.js";
import { escape } from "./actions.js";
import { AllKernels } from "./all.js";
import { Card } from "./card.js";
import { Diagram, dashes } from "./diagram.js";
import { type Store, titleOf } from "./store.js";
import { Table } from "./table.js";
import { FlowText, State, Toolbar } from "./toolbar.js";
import { Pop } from "./ui.js";

const NARROWEST = 76; // px for a column; where there is less room, the diagram scrolls in a region of its own

export function App({ store }: { store: Store }) {
  const root = useRef<HTMLDivElement>(null);
  const stage = useRef<HTMLDivElement>(null);
  const { host } = store.source;
  const { mode } = store.view.value;
  const theme = store.theme.value;
  const scene = store.scene.value;

  useLayoutEffect(() => {
    const fit = () => {
      const columns = new Set(store.graph.column).size;
      const room = stage.current?.clientWidth ?? 0;
      if (room > 0) store.width.value = Math.max(Math.round(room), columns * NARROWEST);
    };
    fit();
    const observer = new ResizeObserver(fit);
    observer.observe(stage.current!);
    return () => observer.disconnect();
  }, [mode]);

  useEffect(() => {
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => {
      store.theme.value = scheme.matches ? "dark" : "light";
    };
    scheme.addEventListener("change", changed);
    const heard: EventTarget = host === "page" ? document : root.current!;
    const key = (event: Event) => {
      const { key, ctrlKey, metaKey, altKey } = event as KeyboardEvent;
      const typing = (event.composedPath()[0] as Element).matches?.("input, select, textarea");
      if (key === "Escape") escape(store);
      else if (key === "/" && !typing && !ctrlKey && !metaKey && !altKey) {
        event.preventDefault();
        root.current!.querySelector<HTMLInputElement>('[part="search"]')?.focus();
      }
    };
    heard.addEventListener("keydown", key);
    return () => {
      scheme.removeEventListener("change", changed);
      heard.removeEventListener("keydown", key);
    };
  }, [store]);

  // The page around the app has the app's ground, so that a toggled theme leaves no border.
  useEffect(() => {
    if (host !== "page") return;
    document.documentElement.style.colorScheme = theme;
    document.body.style.background = getComputedStyle(root.current!).backgroundColor;
  }, [theme]);

  return (
    <div class="app" ref={root} part="app" data-theme={theme} data-host={host} data-mode={mode}>
      <header>
        <h1>{titleOf(store.graph)}</h1>
        <ul class="legend" aria-label="legend">
          {scene.legend.map((item) => (
            <LegendMark item={item} />
          ))}
          <li>
            <Pop label="(i)" name="flow" right aria="what flow is">
              {() => <FlowText />}
            </Pop>
          </li>
        </ul>
      </header>
      <Toolbar store={store} />
      <State store={store} />
      <div class="stage-frame">
        {mode === "table" ? (
          <Table store={store} />
        ) : (
          <div class="stage" ref={stage} role="region" aria-label={mode === "all" ? "all kernels" : "diagram"} tabIndex={stage.current && store.width.value > stage.current.clientWidth ? 0 : undefined}>
            {mode === "diagram" ? <Diagram store={store} /> : <AllKernels store={store} />}
          </div>
        )}
        <Card store={store} />
      </div>
      <p class="caption" part="caption">
        {scene.numbers.text}
      </p>
      <div class="hidden" role="status" aria-live="polite" part="message">
        {store.message.value}
      </div>
    </div>
  );
}

function LegendMark({ item: { kind, label } }: { item: LegendItem }) {
  const line = { connects: "connects", excites: "excites", inhibits: "inhibits", hidden: "", onlyA: "", onlyB: "", text: "" }[kind];
  return (
    <li data-legend={kind}>
      {kind !== "text" && (
        <svg width="30" height="10" aria-hidden="true">
          {kind === "hidden" ? (
            <path class="stub" d="M2 5H28" />
          ) : (
            <path class={`edge ${line}`} d="M0 5H28" stroke-width={3.5} stroke-dasharray={kind === "onlyA" ? dashes("a", 3) : kind === "onlyB" ? dashes("b", 3) : undefined} />
          )}
          {kind === "inhibits" && <path class="edge inhibits" d="M28 0V10" stroke-width={2} />}
        </svg>
      )}
      {label.title}
    </li>
  );
}
