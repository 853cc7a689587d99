/** A map: points on a canvas, to be pointed at, walked through with keys and, if it takes a lasso, drawn around. */

import type { Signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Theme } from "../app/source.js";
import { INKS } from "./color.js";
import { inside, nearest, type Point } from "./geometry.js";

const DRAGGED = 6; // px

interface PlotProps {
  label: string;
  theme: Theme;
  reach: number; // px from a point that still mean it
  hovered: Signal<number>; // the point that is pointed at; -1: none
  /** Where the points are on a map of this size. */
  place(width: number, height: number): Point[];
  paint(pen: CanvasRenderingContext2D, points: readonly Point[], width: number, height: number): void;
  /** A click on a point, or beside all of them (-1). */
  pick(point: number, add: boolean): void;
  lasso?(points: number[], add: boolean): void;
  /** Returns whether the key meant something. */
  press(key: string): boolean;
}

export function Plot({ label, theme, reach, hovered, place, paint, pick, lasso, press }: PlotProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const points = useRef<Point[]>([]);
  const line = useRef<Point[]>([]); // the lasso that is being drawn
  const draw = () => {
    const area = canvas.current;
    if (!area) return; // it is being removed, which may take its focus and so call for another drawing
    const [width, height] = [area.clientWidth, area.clientHeight];
    const scale = devicePixelRatio || 1;
    area.width = Math.round(scale * width);
    area.height = Math.round(scale * height);
    const pen = area.getContext("2d")!;
    pen.scale(scale, scale);
    points.current = place(width, height);
    paint(pen, points.current, width, height);
    if (line.current.length < 2) return;
    pen.beginPath();
    for (const [x, y] of line.current) pen.lineTo(x, y);
    pen.closePath();
    pen.strokeStyle = INKS[theme].ink;
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    pen.stroke();
  };
  const latest = useRef(draw);
  latest.current = draw;
  useLayoutEffect(draw);
  useEffect(() => {
    const observer = new ResizeObserver(() => latest.current());
    observer.observe(canvas.current!);
    return () => observer.disconnect();
  }, []);

  const at = (event: PointerEvent): Point => [event.offsetX, event.offsetY];
  const forget = () => {
    line.current = [];
    draw();
  };
  return (
    <div class={lasso ? "plot drawn-on" : "plot"}>
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-label={label}
        onPointerDown={(event) => {
          if (event.button !== 0) return;
          if (lasso) event.currentTarget.setPointerCapture(event.pointerId);
          line.current = [at(event)];
        }}
        onPointerMove={(event) => {
          if (!line.current.length || !lasso) {
            hovered.value = nearest(points.current, at(event), reach);
            return;
          }
          line.current.push(at(event));
          draw();
        }}
        onPointerUp={(event) => {
          const [first, ...rest] = line.current;
          if (!first) return;
          const whole = [first, ...rest];
          forget();
          const dragged = rest.some(([x, y]) => Math.hypot(x - first[0], y - first[1]) > DRAGGED);
          if (dragged && lasso) lasso(inside(points.current, whole), event.shiftKey);
          else pick(nearest(points.current, first, reach), event.shiftKey);
        }}
        onPointerCancel={forget}
        onPointerLeave={() => {
          hovered.value = -1;
          if (!lasso) line.current = []; // a lasso's pointer is captured
        }}
        onBlur={() => (hovered.value = -1)}
        onKeyDown={(event) => {
          if (!event.ctrlKey && !event.altKey && !event.metaKey && press(event.key)) event.preventDefault();
        }}
      />
    </div>
  );
}

const STEPS: Record<string, number> = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** Where an arrow key leads in a list that has no end; null: the key leads nowhere. */
export function walked(key: string, from: number, count: number): number | null {
  const step = STEPS[key];
  if (!step || count === 0) return null;
  return from < 0 ? (step > 0 ? 0 : count - 1) : (from + step + count) % count;
}
