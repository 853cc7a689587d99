/** The app's state: the document, the reader's view of it, and everything derived from the two. */

import { computed, effect, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import { decode, type Graph } from "../core/decode.js";
import type { Flow } from "../core/flow.js";
import { type Labels, labelsOf, nodeName } from "../core/names.js";
import { draw, isolate } from "../core/scene.js";
import type { Scene } from "../core/scene-types.js";
import { plain } from "../core/text.js";
import type { View } from "../core/types.js";
import { leftOut, opened, ownView, viewOf } from "../core/view.js";
import { Maps, Pictures } from "./pictures.js";
import { type Contrast, onSystemTheme, type Source, type TargetPicture, type Theme } from "./source.js";

/** What the pointer is on, or the keyboard's focus: nodes (several: a group) or edges (parallel ones). */
export interface Spot {
  nodes: number[];
  edges: number[];
}

export interface Store {
  graph: Graph;
  source: Source;
  base: View;
  view: Signal<View>;
  /** Nodes chosen for a group, or for the notebook. */
  selection: Signal<number[]>;
  /** The stage's width and height. */
  width: Signal<number>;
  height: Signal<number>;
  /** How large the diagram is shown. */
  zoom: Signal<number>;
  /** The layout, and the same with the isolated part lit. */
  plan: ReadonlySignal<Scene>;
  scene: ReadonlySignal<Scene>;
  /** The image whose maps and effects are shown: they are those of the circuit of its group, or of the first, and shown
   *  with no other. */
  image: ReadonlySignal<number | null>;
  /** What a part does on two photographs, by its layer's number, if the circuit is painted by these. */
  contrast: ReadonlySignal<((layer: number, filter: number, input: number | null) => readonly number[] | null) | null>;
  /** A picture of the target that the document has not. */
  picture: ReadonlySignal<TargetPicture | null>;
  flow: ReadonlySignal<Flow>;
  hover: Signal<Spot | null>;
  /** What was clicked last, whose details stay. */
  held: Signal<Spot | null>;
  /** What the panel shows the details of; null: the target. */
  shown: ReadonlySignal<Spot | null>;
  /** The tile whose whole image the panel shows. */
  whole: Signal<number | null>;
  /** Whether the panel is open where it is a sheet. */
  sheet: Signal<boolean>;
  /** Which parts of images the panel shows. */
  sample: Signal<string>;
  /** The node that the Tab key focuses. */
  current: Signal<number>;
  /** The roots on the way to the one that is drawn, for Esc. */
  trail: Signal<(number | null)[]>;
  message: Signal<string>;
  /** What the reader must be told in sight, until the next change. */
  notice: Signal<string>;
  theme: Signal<Theme>;
  pictures: Pictures;
  maps: Maps;
  /** Changes the view. Back undoes it, but not a `drag`, of which there are many in a row. */
  change(part: Partial<View>, message?: string, how?: "drag"): void;
  /** Lets Back undo what was just changed in the panel. */
  step(): void;
  say(message: string): void;
  labels: ReadonlySignal<Labels>;
  name(node: number): string;
  /** The name of a node, or of the collapsed block that it is drawn in. */
  drawnName(node: number): string;
  close(): void;
}

export const AROUND = 8; // px above what is drawn, and below it
const WRITE_AFTER = 150; // ms: browsers refuse a URL that changes with every step of a slider

/** Throws DocumentError if the document cannot be drawn. */
export function createStore(source: Source): Store {
  const graph = decode(JSON.parse(source.document()));
  const base = ownView(graph);
  const first = opened(graph, base, source.view());
  const view = signal(first.view);
  const selection = signal(known(graph, source.selection()));
  const [width, height] = [signal(1100), signal(560)];
  const contrast = signal<Contrast | null>(null);
  const picture = signal<TargetPicture | null>(null);
  const [hover, held] = [signal<Spot | null>(null), signal<Spot | null>(null)];
  // The part of the view that moves nodes. Isolation and images only light or color them, without a new layout.
  const layout = computed(() =>
    JSON.stringify({ ...view.value, isolate: null, share: base.share, image: null, mode: "diagram" }),
  );
  const plan = computed(() =>
    draw(graph, JSON.parse(layout.value) as View, {
      width: width.value,
      medium: "screen",
      height: height.value - 2 * AROUND,
    }),
  );
  const flow = computed(() => plan.value.flow);
  const scene = computed(() => {
    const { isolate: node, share } = view.value;
    return node === null ? plan.value : isolate(graph, plan.value, node, share);
  });
  const store: Store = {
    graph,
    source,
    base,
    view,
    selection,
    width,
    height,
    zoom: signal(1),
    plan,
    scene,
    image: computed(() => {
      const { variant, compare, image } = view.value;
      if (image === null || compare !== null) return null;
      return variant === (graph.document.images?.variants[image] ?? 0) ? image : null;
    }),
    contrast: computed(() => {
      const of = contrast.value;
      const { variant, compare } = view.value;
      if (!of || variant !== 0 || compare !== null || store.image.value !== null) return null;
      return (layer, filter, input) => {
        const name = graph.document.layers[layer]?.name;
        return name === undefined ? null : of({ layer: name, filter, input });
      };
    }),
    picture,
    flow,
    hover,
    held,
    shown: computed(() => hover.value ?? held.value),
    whole: signal(null),
    sheet: signal(false),
    sample: signal(""),
    current: signal(graph.document.target),
    trail: signal(view.value.root === null ? [null] : [null, view.value.root]),
    message: signal(""),
    notice: signal(leftOut(first.left)),
    theme: signal("light"),
    pictures: new Pictures(graph.document),
    maps: new Maps(graph),
    change(part, message, how) {
      if (how !== "drag") {
        flush();
        step = true;
      }
      const next = viewOf(graph, view.value, part);
      if (next.root !== view.value.root) {
        const trail = store.trail.value;
        const before = trail.lastIndexOf(next.root);
        store.trail.value = before >= 0 ? trail.slice(0, before + 1) : [...trail, next.root];
        held.value = null;
      }
      // A node that was pinned only to be isolated is unpinned.
      if (lent !== null && next.isolate !== lent) {
        next.pins = next.pins.filter((node) => node !== lent);
        lent = null;
      }
      view.value = next;
      drawIsolated();
      hover.value = null;
      store.whole.value = null;
      store.notice.value = "";
      if (message !== undefined) store.say(message);
      if (how !== "drag") flush(); // Back undoes it from now on
    },
    step() {
      flush();
      step = true;
      write();
    },
    say(message) {
      store.message.value = message;
    },
    labels: computed(() => labelsOf(view.value)),
    name: (node) => nodeName(graph, node, store.labels.value),
    drawnName: (node) =>
      plan.value.nodes.find(({ span, nodes }) => span && nodes.includes(node))?.group ?? store.name(node),
    close() {
      clearTimeout(timer);
      for (const stop of stops) stop();
      store.pictures.close();
    },
  };

  let lent: number | null = null;
  // An isolated node must be drawn: it is pinned if it is not drawn, and dropped if it is dead.
  const drawIsolated = () => {
    const { isolate: node, pins } = view.value;
    if (node === null || scene.value.view.isolate === node) return;
    view.value = { ...view.value, pins: [...pins, node] };
    lent = node;
    if (scene.value.view.isolate === node) return;
    view.value = { ...view.value, isolate: null, pins };
    lent = null;
  };
  drawIsolated();

  const panel = () => JSON.stringify([held.value, store.whole.value, store.sheet.value, store.sample.value]);
  const closed = panel();
  source.panel?.(closed);

  // What was changed but not yet written, as drags are for a while, and whether by more than a drag.
  let [timer, step, written] = [0, false, view.value];
  const write = () => {
    clearTimeout(timer);
    if (step) source.panel?.(panel());
    source.write(view.value, base, selection.value, step);
    [step, written] = [false, view.value];
  };
  const flush = () => view.value !== written && write();
  const stops = [
    effect(() => {
      view.value;
      selection.value;
      clearTimeout(timer);
      timer = window.setTimeout(write, WRITE_AFTER);
    }),
    (source.onTheme ?? onSystemTheme)((theme) => {
      store.theme.value = theme;
    }),
    source.onContrast?.((found) => {
      contrast.value = found;
    }) ?? (() => {}),
    source.onPicture?.((found) => {
      picture.value = found;
    }) ?? (() => {}),
    source.onNotes?.(() => {
      flush(); // the host has not been told yet of what the reader did last
      view.value = viewOf(graph, view.value, { notes: source.view().notes });
      store.say("notes have changed");
    }) ?? (() => {}),
    source.onView(() => {
      const before = view.value;
      step = false;
      const next = opened(graph, base, source.view());
      store.change(next.view, "the view has changed", "drag");
      const { isolate, notes } = view.value;
      const other = source.host === "page" && JSON.stringify(notes) !== JSON.stringify(before.notes);
      store.notice.value = leftOut(next.left) || (other ? "Labels and notes are those of this address now." : "");
      [held.value, store.whole.value, store.sheet.value, store.sample.value] = JSON.parse(source.panel?.() ?? closed);
      if (isolate !== null) held.value ??= { nodes: [isolate], edges: [] };
      selection.value = known(graph, source.selection());
    }),
  ];
  return store;
}

function known(graph: Graph, nodes: number[]): number[] {
  return nodes.filter((node) => Number.isInteger(node) && node >= 0 && node < graph.nodeCount);
}

/** The document's title, safe to show. */
export function titleOf(graph: Graph): string {
  return plain(graph.document.meta.title);
}
