/** Zoom and pan of the focus view: buttons, Ctrl with the wheel, and drags on empty ground. What does not fit is
 *  scrolled. */

import { bodyOf } from "./diagram.js";
import type { Store } from "./store.js";

const [LEAST, MOST] = [0.25, 4];
const STEP = 1.25;
const STILL = 4; // px: less is a click

/** Zooms by a factor; the point under the pointer, or the middle, stays where it is. */
export function zoom({ zoom }: Store, stage: Element, by: number, at?: MouseEvent): void {
  const { left, top } = stage.getBoundingClientRect();
  const [x, y] = at ? [at.clientX - left, at.clientY - top] : [stage.clientWidth / 2, stage.clientHeight / 2];
  const before = zoom.value;
  zoom.value = Math.min(MOST, Math.max(LEAST, before * by));
  const grown = zoom.value / before;
  const [right, down] = [(stage.scrollLeft + x) * grown - x, (stage.scrollTop + y) * grown - y];
  requestAnimationFrame(() => stage.scrollTo(right, down)); // it has its new size only then
}

export function wheel(store: Store, stage: Element, event: WheelEvent): void {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(store, stage, STEP ** (-event.deltaY / 100), event);
}

/** Scrolls while the pointer is dragged, and says afterwards whether it was. */
export class Pan {
  #from: [number, number] | null = null;
  dragged = false;

  start(drawing: Element, event: PointerEvent): void {
    const stage = drawing.parentElement!;
    this.dragged = false;
    this.#from = [event.clientX + stage.scrollLeft, event.clientY + stage.scrollTop];
    drawing.setPointerCapture(event.pointerId);
  }

  /** Whether the pointer is held. */
  move(drawing: Element, { clientX, clientY }: PointerEvent): boolean {
    if (!this.#from) return false;
    const stage = drawing.parentElement!;
    const to = [this.#from[0] - clientX, this.#from[1] - clientY] as const;
    this.dragged ||= Math.hypot(to[0] - stage.scrollLeft, to[1] - stage.scrollTop) > STILL;
    if (this.dragged) stage.scrollTo(...to);
    return true;
  }

  stop(): void {
    this.#from = null;
  }
}

export function ZoomButtons({ store }: { store: Store }) {
  const by = (factor: number) => (event: MouseEvent) => {
    const stage = (event.currentTarget as Element).closest(".stage-frame")!.querySelector(".stage")!;
    zoom(store, stage, factor);
    store.say(`${Math.round(100 * store.zoom.value)} % of its size`);
  };
  const scene = store.scene.value;
  const fitting = Math.min(1, store.width.value / scene.width, store.height.value / bodyOf(scene).height);
  return (
    <div class="zoom" role="group" aria-label="zoom">
      <button type="button" data-zoom="in" aria-label="zoom in" onClick={by(STEP)}>
        +
      </button>
      <button type="button" data-zoom="out" aria-label="zoom out" onClick={by(1 / STEP)}>
        {"\u2212"}
      </button>
      <button type="button" data-zoom="fit" onClick={by(fitting / store.zoom.value)}>
        fit
      </button>
    </div>
  );
}
