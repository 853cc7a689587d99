/** The whole app: the verdict, controls, the diagram and its legend, and the panel. */

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { SHARE, THICKER } from "../core/labels.js";
import type { LegendItem } from "../core/scene-types.js";
import { headline } from "../core/verdict.js";
import { stepBack } from "./actions.js";
import { AllKernels } from "./all.js";
import { bodyOf, Diagram, dashes } from "./diagram.js";
import { Side } from "./side.js";
import { type Store, titleOf } from "./store.js";
import { Table } from "./table.js";
import { FlowText, PageMenus, State, Toolbar } from "./toolbar.js";
import { Pop } from "./ui.js";
import { ZoomButtons } from "./zoom.js";

const ON_IMAGE = "color and width = effect on this image";
const BY_TWO: Record<string, string> = {
  excites: "more on A",
  inhibits: "more on B",
  [THICKER]: "width, dot = A − B, beside the largest of its layer",
};
const UNKNOWN = "gray = not measured on this image";

export function App({ store }: { store: Store }) {
  const root = useRef<HTMLDivElement>(null);
  const frame = useRef<HTMLDivElement>(null);
  const menu = useSignal(false); // whether the controls are shown where there is little room
  const { host } = store.source;
  const { mode } = store.view.value;
  const theme = store.theme.value;
  const scene = store.scene.value;
  const zoom = store.zoom.value;
  const scrolls = zoom * scene.width > store.width.value || zoom * bodyOf(scene).height > store.height.value;

  useLayoutEffect(() => {
    const fit = () => {
      const { clientWidth: width, clientHeight: height } = frame.current!;
      if (width > 0) store.width.value = width;
      if (height > 0) store.height.value = height;
    };
    fit();
    const observer = new ResizeObserver(fit);
    observer.observe(frame.current!);
    return () => observer.disconnect();
  }, [store]);

  useEffect(() => {
    const heard: EventTarget = host === "page" ? document : root.current!;
    const key = (event: Event) => {
      const { key, ctrlKey, metaKey, altKey } = event as KeyboardEvent;
      const typing = (event.composedPath()[0] as Element).matches?.("input, select, textarea");
      if (key === "Escape") {
        stepBack(store);
        store.step();
      } else if (key === "/" && !typing && !ctrlKey && !metaKey && !altKey) {
        event.preventDefault();
        root.current!.querySelector<HTMLInputElement>('[part="search"]')?.focus();
      }
    };
    heard.addEventListener("keydown", key);
    root.current!.addEventListener("click", store.step); // after what the click does
    return () => heard.removeEventListener("keydown", key);
  }, [store]);

  // The page around the app gets the app's background, so that a toggled theme leaves no border.
  useEffect(() => {
    if (host !== "page") return;
    document.documentElement.style.colorScheme = theme;
    document.body.style.background = getComputedStyle(root.current!).backgroundColor;
  }, [theme]);

  return (
    <div class="app" ref={root} part="app" data-theme={theme} data-host={host} data-mode={mode}>
      <header data-menu={menu.value}>
        <Heading store={store} />
        <button
          type="button"
          class="burger"
          part="menu"
          aria-expanded={menu.value}
          onClick={() => {
            menu.value = !menu.value;
          }}
        >
          {menu.value ? "hide the controls" : "show the controls"}
        </button>
        <Toolbar store={store} />
        <State store={store} />
      </header>
      <div class="main">
        <div class="stage-frame" ref={frame}>
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
          {mode === "diagram" && <ZoomButtons store={store} />}
        </div>
        <ul class="legend" aria-label="legend">
          {scene.legend.map((item) =>
            mode === "diagram" || item.kind !== "hidden" ? (
              <LegendMark
                item={item}
                image={mode === "diagram" && store.image.value !== null}
                contrast={mode === "diagram" && store.contrast.value !== null}
              />
            ) : null,
          )}
        </ul>
      </div>
      <Side store={store} />
      <div class="hidden" role="status" aria-live="polite" part="message">
        {store.message.value}
      </div>
    </div>
  );
}

/** The title, the verdict in one sentence, and what concerns the whole page. */
function Heading({ store }: { store: Store }) {
  const { kept, verdict, text } = headline(store.graph, store.view.value, store.scene.value.numbers);
  return (
    <div class="heading">
      <div>
        <h1>{titleOf(store.graph)}</h1>
        <p part="verdict">
          <b class={kept ? "kept" : undefined}>{verdict}:</b> {text}
        </p>
      </div>
      <PageMenus store={store} />
    </div>
  );
}

/** A line of the legend. If an image is chosen, or two, kernels are painted by what they do on it, which the core's
 *  legend does not describe. */
function LegendMark({ item, image, contrast }: { item: LegendItem; image?: boolean; contrast?: boolean }) {
  const { kind, label } = item;
  const width = label.title.startsWith(THICKER);
  const other = contrast && BY_TWO[width ? THICKER : kind];
  if (other) return <LegendMark item={{ ...item, label: { ...label, title: other } }} />;
  if (image && width)
    return (
      <>
        <LegendMark item={{ ...item, label: { ...label, title: ON_IMAGE } }} />
        <LegendMark item={{ ...item, kind: "connects", label: { ...label, title: UNKNOWN } }} />
      </>
    );
  return (
    <li data-legend={kind}>
      {kind !== "text" && (
        <svg class={kind === "hidden" ? undefined : kind} width="38" height="10" aria-hidden="true">
          {kind === "hidden" ? (
            <path class="stub" d="M2 5H36" />
          ) : (
            <path
              class="edge"
              d="M0 5H38"
              stroke-width={3.5}
              stroke-dasharray={kind === "onlyA" ? dashes("a", 4) : kind === "onlyB" ? dashes("b", 4) : undefined}
            />
          )}
          {kind === "inhibits" && <path class="edge" d="M37 0V10" stroke-width={2} />}
        </svg>
      )}
      {label.title}
      {label.title === SHARE && (
        <Pop label="(i)" name="flow" right up aria="what flow is">
          {() => <FlowText />}
        </Pop>
      )}
    </li>
  );
}
