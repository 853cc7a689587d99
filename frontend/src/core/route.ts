/** The paths of edges: cubic pieces that leave and arrive horizontally and pass between the items of a column. */

import type { Glyph, SceneEdge } from "./scene-types.js";

/** A piece of a path as numbers: x, y, then six for each cubic. */
export function through(stops: { x: number; y: number }[]): number[] {
  const [first, ...rest] = stops;
  const points = [first!.x, first!.y];
  let from = first!;
  for (const to of rest) {
    const bend = (to.x - from.x) * 0.5;
    points.push(from.x + bend, from.y, to.x - bend, to.y, to.x, to.y);
    from = to;
  }
  return points;
}

/** Points as an SVG path; straight pieces as lines. */
export function toPath(points: number[]): string {
  let path = `M${short(points[0]!)} ${short(points[1]!)}`;
  for (let i = 2; i < points.length; i += 6) {
    const [ax, ay, bx, by, x, y] = points.slice(i, i + 6).map(short);
    path += ay === by && by === y && ay === short(points[i - 1]!) ? `L${x} ${y}` : `C${ax} ${ay} ${bx} ${by} ${x} ${y}`;
  }
  return path;
}

/** A number for a path, rounded to hundredths and written as short as possible. */
export function short(value: number): string {
  return String(Math.round(value * 100) / 100 || 0);
}

/** The point at `t` of the piece that begins at or right of `left`, first of those. */
export function at(points: number[], t: number, left: number): { x: number; y: number } {
  let from = 0;
  while (points[from]! < left - 0.01 && from + 14 <= points.length) from += 6;
  const piece = points.slice(from, from + 8);
  const s = 1 - t;
  const [a, b, c, d] = [s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t];
  return {
    x: a * piece[0]! + b * piece[2]! + c * piece[4]! + d * piece[6]!,
    y: a * piece[1]! + b * piece[3]! + c * piece[5]! + d * piece[7]!,
  };
}

/** Offsets from a side's middle at which edges of these widths, from top to bottom, lie side by side within `room`. */
export function ports(widths: number[], room: number): number[] {
  const total = widths.reduce((sum, width) => sum + width, 0);
  const scale = Math.min(1, room / total);
  let end = (-total / 2) * scale;
  return widths.map((width) => {
    end += width * scale;
    return end - (width * scale) / 2;
  });
}

export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

export function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

const ALONG = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82];

/** Heat maps on these edges, the first first, where they cover neither each other nor `taken`. */
export function placeGlyphs(
  edges: {
    edge: SceneEdge;
    index: number;
    kernel: number;
    width: number;
    height: number;
    most: number;
    gap: [number, number];
  }[],
  taken: Box[],
): Glyph[] {
  const glyphs: Glyph[] = [];
  const boxes = [...taken];
  const placed = new Map<number, number>(); // how many a gap, by its left end, has
  for (const { edge, index, kernel, width, height, most, gap } of edges) {
    if ((placed.get(gap[0]) ?? 0) >= most) continue;
    for (const t of ALONG) {
      const { x, y } = at(edge.points, t, edge.gap[0]);
      const box = {
        left: x - width / 2 - 1,
        right: x + width / 2 + 1,
        top: y - height / 2 - 1,
        bottom: y + height / 2 + 1,
      };
      if (box.left < gap[0] || box.right > gap[1] || boxes.some((other) => overlap(box, other))) continue;
      boxes.push(box);
      glyphs.push({ edge: index, kernel, x, y, width, height });
      placed.set(gap[0], (placed.get(gap[0]) ?? 0) + 1);
      break;
    }
  }
  return glyphs;
}
