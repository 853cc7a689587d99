/** All kernels at once, on a canvas. A gesture moves the existing picture; when it ends, the picture is redrawn. */

import { useComputed } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { DARK, LIGHT, type Palette } from "../core/color.js";
import { plural } from "../core/format.js";
import { lightAll, type Overview, overview } from "../core/overview.js";
import type { Lit } from "../core/scene-types.js";
import { plain } from "../core/text.js";
import { clear, isolateNode } from "./actions.js";
import type { Store } from "./store.js";

const TOP = 34; // px for the headings
const LEAST = 300; // px: the least height
const NARROWEST = 42; // px for a column; with less room, the drawing scrolls in its own region
const REACH = 14; // px from a node at which the pointer is on it
const REST = 140; // ms without a gesture until the picture is redrawn
const MOST = 16; // largest zoom factor
const BATCH = 64; // edges in one stroke: many are slow alone, and very many are slow together

/** The place of the drawing: a point of it is at scale * point + (x, y). */
interface Place {
  scale: number;
  x: number;
  y: number;
}

const HOME: Place = { scale: 1, x: 0, y: 0 };

export function AllKernels({ store }: { store: Store }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const layout = useComputed(() =>
    JSON.stringify({ ...store.view.value, isolate: null, share: 0.8, image: null, mode: "all", pins: [] }),
  );
  const all = useComputed(() =>
    overview(store.graph, JSON.parse(layout.value), {
      width: Math.max(store.width.value, NARROWEST * store.graph.document.columns.length),
      medium: "screen",
      height: Math.max(LEAST, store.height.value - TOP - 2),
    }),
  );
  const lit = useComputed(() => {
    const { isolate, share } = store.view.value;
    const unit = isolate === null ? -1 : all.value.parts.unitOf[isolate]!;
    return unit < 0 ? null : lightAll(all.value, unit, share);
  });
  const painter = useRef<Painter | null>(null);
  const theme = store.theme.value;
  const shown = all.value;
  const lights = lit.value;

  useEffect(() => {
    painter.current = new Painter(canvas.current!, store);
    return () => painter.current?.close();
  }, [store]);
  useEffect(() => painter.current?.show(shown, lights, theme === "dark" ? DARK : LIGHT), [shown, lights, theme]);

  const zoom = (by: number) => painter.current?.zoom(by, shown.width / 2, (shown.height + TOP) / 2);
  const drawn = `all ${plural(shown.bundle.length, "kernel")} and ${plural(shown.x.length, "filter")}`;
  return (
    <>
      <canvas
        ref={canvas}
        part="all"
        tabIndex={0}
        role="img"
        aria-label={`${drawn}; the table lists them. Plus and minus zoom, arrow keys pan, 0 shows everything`}
        style={{ width: `${shown.width}px`, height: `${shown.height + TOP}px` }}
        onKeyDown={(event) => {
          const act: Record<string, () => void> = {
            "+": () => zoom(1.3),
            "=": () => zoom(1.3),
            "-": () => zoom(1 / 1.3),
            "0": () => painter.current?.home(),
            ArrowLeft: () => painter.current?.move(60, 0),
            ArrowRight: () => painter.current?.move(-60, 0),
            ArrowUp: () => painter.current?.move(0, 60),
            ArrowDown: () => painter.current?.move(0, -60),
          };
          if (!act[event.key] || event.ctrlKey || event.metaKey) return;
          event.preventDefault();
          act[event.key]!();
        }}
      />
      <div class="zoom">
        <button type="button" aria-label="zoom in" onClick={() => zoom(1.5)}>
          +
        </button>
        <button type="button" aria-label="zoom out" onClick={() => zoom(1 / 1.5)}>
          {"\u2212"}
        </button>
        <button type="button" aria-label="show all" onClick={() => painter.current?.home()}>
          all
        </button>
      </div>
    </>
  );
}

class Painter {
  #canvas: HTMLCanvasElement;
  #context: CanvasRenderingContext2D;
  #store: Store;
  #all: Overview | null = null;
  #lit: Lit | null = null;
  #palette: Palette = LIGHT;
  #place: Place = HOME;
  /** The current picture, and the place for which it was drawn. */
  #bitmap = document.createElement("canvas");
  #drawn: Place = HOME;
  #timer = 0;
  #frame = 0;
  #hover = -1;
  #held: { x: number; y: number; moved: boolean } | null = null;
  #ratio = 1;

  constructor(canvas: HTMLCanvasElement, store: Store) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d")!;
    this.#store = store;
    canvas.addEventListener("wheel", this.#wheel, { passive: false });
    canvas.addEventListener("pointerdown", this.#down);
    canvas.addEventListener("pointermove", this.#pointer);
    canvas.addEventListener("pointerup", this.#up);
    canvas.addEventListener("pointerleave", this.#leave);
    for (const { image } of store.pictures.pages) if (!image.complete) image.addEventListener("load", this.#redraw);
  }

  close(): void {
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
    for (const { image } of this.#store.pictures.pages) image.removeEventListener("load", this.#redraw);
  }

  show(all: Overview, lit: Lit | null, palette: Palette): void {
    this.#all = all;
    this.#lit = lit;
    this.#palette = palette;
    this.#hover = -1;
    this.#ratio = Math.min(2, devicePixelRatio || 1);
    for (const each of [this.#canvas, this.#bitmap]) {
      each.width = Math.round(all.width * this.#ratio);
      each.height = Math.round((all.height + TOP) * this.#ratio);
    }
    this.#redraw();
  }

  home(): void {
    this.#to(HOME);
  }

  move(x: number, y: number): void {
    this.#to({ ...this.#place, x: this.#place.x + x, y: this.#place.y + y });
  }

  /** Zooms around a point of the canvas. */
  zoom(by: number, x: number, y: number): void {
    const { scale, x: left, y: top } = this.#place;
    const next = Math.max(1, Math.min(MOST, scale * by));
    this.#to({ scale: next, x: x - ((x - left) * next) / scale, y: y - ((y - top) * next) / scale });
  }

  /** Moves the drawing, but never so far that it leaves the canvas. */
  #to({ scale, x, y }: Place): void {
    const [width, height] = [this.#all!.width, this.#all!.height + TOP];
    this.#place = {
      scale,
      x: Math.min(0, Math.max(x, width * (1 - scale))),
      y: Math.min(0, Math.max(y, height * (1 - scale))),
    };
    this.#store.hover.value = null;
    this.#hover = -1;
    this.#present();
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(this.#redraw, REST);
  }

  /** Shows the current picture at its new place, with the node under the pointer on top. */
  #present(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      const context = this.#context;
      const larger = this.#place.scale / this.#drawn.scale;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
      const shift = (now: number, then: number) => (now - then * larger) * this.#ratio;
      context.drawImage(
        this.#bitmap,
        shift(this.#place.x, this.#drawn.x),
        shift(this.#place.y, this.#drawn.y),
        this.#bitmap.width * larger,
        this.#bitmap.height * larger,
      );
      if (this.#hover >= 0) {
        this.#set(context);
        const all = this.#all!;
        const near = [...all.bundle.keys()].filter(
          (edge) => all.source[edge] === this.#hover || all.target[edge] === this.#hover,
        );
        this.#edges(context, near, 0.9);
        this.#node(context, this.#hover, true);
      }
    });
  }

  #redraw = (): void => {
    const all = this.#all;
    if (!all) return;
    const context = this.#bitmap.getContext("2d")!;
    this.#drawn = this.#place;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#bitmap.width, this.#bitmap.height);
    this.#set(context);
    const { x: left, y: top, scale } = this.#place;
    const [from, to] = [-left / scale, (all.width - left) / scale];
    const [above, below] = [-top / scale - TOP, (all.height + TOP - top) / scale];
    // Only stroke edges that cross the window.
    const inSight = (edge: number) => {
      const at = 4 * edge;
      const [x0, y0, x1, y1] = [all.ends[at]!, all.ends[at + 1]!, all.ends[at + 2]!, all.ends[at + 3]!];
      return x1 > from && x0 < to && Math.max(y0, y1) > above && Math.min(y0, y1) < below;
    };
    const edges = [...all.bundle.keys()].filter(inSight);
    if (this.#lit)
      this.#edges(
        context,
        edges.filter((edge) => !this.#lit!.edges[edge]),
        0.04,
      );
    this.#edges(context, this.#lit ? edges.filter((edge) => this.#lit!.edges[edge]) : edges, this.#lit ? 0.9 : 0.34);
    for (let node = 0; node < all.x.length; node++) {
      context.globalAlpha = this.#lit && !this.#lit.nodes[node] ? 0.15 : 1;
      this.#node(context, node, false);
    }
    context.globalAlpha = 1;
    context.fillStyle = this.#palette.muted;
    context.textAlign = "center";
    context.font = `${12 / scale}px system-ui, sans-serif`;
    for (const { column, x } of all.columns)
      context.fillText(
        plain(this.#store.graph.document.columns[column]!.alias || this.#store.graph.document.columns[column]!.label),
        x,
        8 / scale - TOP / 2 - (TOP / 2 - TOP / 2 / scale),
      );
    this.#present();
  };

  #set(context: CanvasRenderingContext2D): void {
    const { scale, x, y } = this.#place;
    context.setTransform(
      this.#ratio * scale,
      0,
      0,
      this.#ratio * scale,
      this.#ratio * x,
      this.#ratio * (y + TOP * scale),
    );
  }

  /** Draws edges in order, in batches of one color and about the same width. */
  #edges(context: CanvasRenderingContext2D, edges: number[], alpha: number): void {
    const all = this.#all!;
    for (const sign of [0, -1, 1]) {
      const those = edges.filter((edge) => all.sign[edge] === sign);
      context.strokeStyle =
        sign > 0 ? this.#palette.excites : sign < 0 ? this.#palette.inhibits : this.#palette.connects;
      for (let first = 0; first < those.length; first += BATCH) {
        const batch = those.slice(first, first + BATCH);
        const width = all.strength[batch[batch.length >> 1]!]!;
        context.lineWidth = width / Math.sqrt(this.#place.scale);
        context.globalAlpha = Math.min(0.95, alpha * (0.25 + width));
        context.beginPath();
        for (const edge of batch) {
          const at = 4 * edge;
          context.moveTo(all.ends[at]!, all.ends[at + 1]!);
          context.lineTo(all.ends[at + 2]!, all.ends[at + 3]!);
        }
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }

  #node(context: CanvasRenderingContext2D, node: number, framed: boolean): void {
    const all = this.#all!;
    const side = all.size[node]!;
    const [x, y] = [all.x[node]! - side / 2, all.y[node]! - side / 2];
    const { pictures } = this.#store;
    const at = pictures.at(all.tile[node]!);
    const image = at && pictures.pages[at.page]!.image;
    if (image?.complete && image.naturalWidth)
      context.drawImage(image, at!.x, at!.y, pictures.size, pictures.size, x, y, side, side);
    else {
      context.fillStyle = this.#palette.connects;
      context.fillRect(x, y, side, side);
    }
    if (!framed) return;
    context.strokeStyle = this.#palette.text;
    context.lineWidth = 2 / this.#place.scale;
    context.strokeRect(x, y, side, side);
  }

  /** The node nearest to the pointer; -1 if none is near. */
  #at(event: PointerEvent): number {
    const frame = this.#canvas.getBoundingClientRect();
    const { scale, x, y } = this.#place;
    const [px, py] = [(event.clientX - frame.left - x) / scale, (event.clientY - frame.top - y) / scale - TOP];
    const all = this.#all!;
    let best = -1;
    let least = REACH / scale;
    for (let node = 0; node < all.x.length; node++) {
      const distance = Math.max(Math.abs(all.x[node]! - px), Math.abs(all.y[node]! - py)) - all.size[node]! / 2;
      if (distance < least) [best, least] = [node, distance];
    }
    return best;
  }

  #wheel = (event: WheelEvent): void => {
    event.preventDefault();
    const frame = this.#canvas.getBoundingClientRect();
    this.zoom(
      Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015) * (event.ctrlKey ? 5 : 1)),
      event.clientX - frame.left,
      event.clientY - frame.top,
    );
  };

  #down = (event: PointerEvent): void => {
    this.#held = { x: event.clientX, y: event.clientY, moved: false };
    this.#canvas.setPointerCapture(event.pointerId);
  };

  #pointer = (event: PointerEvent): void => {
    if (this.#held) {
      const [x, y] = [event.clientX - this.#held.x, event.clientY - this.#held.y];
      if (!this.#held.moved && Math.hypot(x, y) < 4) return;
      this.#held = { x: event.clientX, y: event.clientY, moved: true };
      this.move(x, y);
      return;
    }
    const node = this.#at(event);
    if (node === this.#hover) return;
    this.#hover = node;
    this.#present();
    if (node < 0) {
      this.#store.hover.value = null;
      return;
    }
    this.#store.hover.value = { nodes: this.#all!.parts.members[node]!, edges: [] };
  };

  #up = (event: PointerEvent): void => {
    const held = this.#held;
    this.#held = null;
    if (held?.moved) return;
    const node = this.#at(event);
    if (node < 0) clear(this.#store);
    else isolateNode(this.#store, this.#all!.parts.members[node]![0]!);
  };

  #leave = (): void => {
    if (this.#held) return;
    this.#hover = -1;
    this.#store.hover.value = null;
    this.#present();
  };
}
