/** Finds the edge under the pointer: the nearest curve, not the one that is painted last. */

import type { SceneEdge } from "../core/scene-types.js";

const STEPS = 16; // straight pieces for each cubic one

const polylines = new WeakMap<SceneEdge, Float32Array>();

/** An edge's curve as points x, y, x, y, ... */
export function polyline(edge: SceneEdge): Float32Array {
  let line = polylines.get(edge);
  if (line) return line;
  const { points } = edge;
  const pieces = (points.length - 2) / 6;
  line = new Float32Array(2 * (pieces * STEPS + 1));
  line[0] = points[0]!;
  line[1] = points[1]!;
  let at = 2;
  for (let piece = 0; piece < pieces; piece++) {
    const p = points.slice(6 * piece, 6 * piece + 8);
    for (let step = 1; step <= STEPS; step++) {
      const t = step / STEPS;
      const u = 1 - t;
      for (const axis of [0, 1])
        line[at++] =
          u * u * u * p[axis]! + 3 * u * u * t * p[2 + axis]! + 3 * u * t * t * p[4 + axis]! + t * t * t * p[6 + axis]!;
    }
  }
  polylines.set(edge, line);
  return line;
}

/** The edge nearest to a point, among those whose painted border is within `reach`; -1 for none. */
export function nearest(
  edges: SceneEdge[],
  x: number,
  y: number,
  reach: number,
  passes: (edge: number) => boolean,
): number {
  let best = -1;
  let least = reach;
  for (let i = edges.length - 1; i >= 0; i--) {
    if (!passes(i)) continue;
    const line = polyline(edges[i]!);
    if (x < line[0]! - reach || x > line[line.length - 2]! + reach) continue;
    const margin = edges[i]!.width / 2;
    for (let at = 0; at + 3 < line.length; at += 2) {
      if (line[at + 2]! < x - reach - margin || line[at]! > x + reach + margin) continue;
      const distance = toPiece(line, at, x, y) - margin;
      if (distance < least) {
        least = distance;
        best = i;
      }
    }
  }
  return best;
}

function toPiece(line: Float32Array, at: number, x: number, y: number): number {
  const [ax, ay, bx, by] = [line[at]!, line[at + 1]!, line[at + 2]!, line[at + 3]!];
  const [dx, dy] = [bx - ax, by - ay];
  const along = Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}
