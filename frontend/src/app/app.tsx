/** The whole app: controls, the diagram, its legend and its caption. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { LegendItem } from "../core/scene-types.js";
import { stepBack } from "./actions.js";
import { AllKernels } from "./all.js";
import { Card } from "./card.js";
import { Diagram, dashes } from "./diagram.js";
import { type Store, titleOf } from "./store.js";
import { Table } from "./table.js";
import { TargetPanel } from "./target.js";
import { FlowText, State, Toolbar } from "./toolbar.js";
import { Pop } from "./ui.js";

const NARROWEST = 42; // px for a column; with less room, the diagram scrolls in its own region

export function App({ store }: { store: Store }) {
  const root = useRef<HTMLDivElement>(null);
  const scrolls = store.width.value > (root.current?.clientWidth ?? Infinity);
  const { host } = store.source;
  const { mode } = store.view.value;
  const theme = store.theme.value;
  const scene = store.scene.value;

  useLayoutEffect(() => {
    const fit = () => {
      const columns = store.graph.document.columns.length;
      const room = root.current!.clientWidth;
      if (room > 0) store.width.value = Math.max(room, columns * NARROWEST);
    };
    fit();
    const observer = new ResizeObserver(fit);
    observer.observe(root.current!);
    return () => observer.disconnect();
  }, [store]);

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
      if (key === "Escape") stepBack(store);
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

  // The page around the app gets the app's background, so that a toggled theme leaves no border.
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
          {scene.legend.map((item) =>
            mode === "diagram" || item.kind !== "hidden" ? (
              <LegendMark item={item} image={mode === "diagram" && store.image.value !== null} />
            ) : null,
          )}
        </ul>
      </header>
      <Toolbar store={store} />
      <State store={store} />
      <TargetPanel store={store} />
      <div class="stage-frame">
        {mode === "table" ? (
          <Table store={store} />
        ) : (
          <div
            class="stage"
            role="region"
            aria-label={mode === "all" ? "all kernels" : "diagram"}
            tabIndex={scrolls ? 0 : undefined}
          >
            {mode === "diagram" ? <Diagram store={store} /> : <AllKernels store={store} />}
          </div>
        )}
        <Card store={store} />
      </div>
      <p class="caption" part="caption">
        {mode !== "diagram" && "In the diagram: "}
        {scene.numbers.text}
      </p>
      <div class="hidden" role="status" aria-live="polite" part="message">
        {store.message.value}
      </div>
    </div>
  );
}

/** A line of the legend. If an image is chosen, kernels are painted by their effect on it, which the core's legend does
 *  not describe. */
function LegendMark({ item: { kind, label }, image }: { item: LegendItem; image: boolean }) {
  return (
    <li data-legend={kind}>
      {kind !== "text" && (
        <svg class={kind === "hidden" ? undefined : kind} width="30" height="10" aria-hidden="true">
          {kind === "hidden" ? (
            <path class="stub" d="M2 5H28" />
          ) : (
            <path
              class="edge"
              d="M0 5H28"
              stroke-width={3.5}
              stroke-dasharray={kind === "onlyA" ? dashes("a", 3) : kind === "onlyB" ? dashes("b", 3) : undefined}
            />
          )}
          {kind === "inhibits" && <path class="edge" d="M28 0V10" stroke-width={2} />}
        </svg>
      )}
      {image && label.title.startsWith("width") ? "color and width: effect on the image; gray: unknown" : label.title}
      {label.title.startsWith("score") && (
        <Pop label="(i)" name="flow" right aria="what flow is">
          {() => <FlowText />}
        </Pop>
      )}
    </li>
  );
}
