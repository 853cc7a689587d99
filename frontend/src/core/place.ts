/** The layout: columns from left to right, and the items of each column from top to bottom. */

import type { Layers } from "./order.js";
import type { Canvas } from "./scene-types.js";

/** The measures of a medium; a paper's are in points. */
export interface Measures {
  margin: number;
  title: number; // sizes of fonts
  font: number;
  small: number;
  node: [number, number]; // the least and the largest side of a picture
  main: [number, number]; // the same on the main paths, while others are dimmed
  dim: number; // the side of these others
  mosaic: number; // the least side of a picture of four parts
  column: number; // the least width of a column where the drawing may be scrolled sideways
  target: number;
  gap: number; // between nodes of a column
  lane: number; // between edges that pass through a column
  edge: [number, number]; // the least and the largest width
  glyph: number;
  least: number; // height of the columns
}

export function measures({ width, medium }: Canvas): Measures {
  if (medium === "paper")
    return {
      margin: 4,
      title: 9,
      font: 6,
      small: 6,
      node: [9, 19],
      main: [13, 19],
      dim: 6,
      mosaic: 24,
      column: 0,
      target: 30,
      gap: 3.5,
      lane: 2.5,
      edge: [0.3, 3],
      glyph: 6.5,
      least: 90,
    };
  return {
    margin: width < 900 ? 20 : 36,
    title: 19,
    font: 12,
    small: 11,
    node: [28, 54],
    main: [48, 60],
    dim: 16,
    mosaic: 32,
    column: 90,
    target: 84,
    gap: 9,
    lane: 7,
    edge: [0.5, 7],
    glyph: 17,
    least: 360,
  };
}

/** Columns side by side: their centers, how wide what stands in one may be, and the sides of pictures and widths of
 *  edges at that. */
export interface Columns {
  x: number[];
  room: number;
  node: [number, number];
  main: [number, number];
  dim: number;
  target: number;
  edge: [number, number];
}

export function placeColumns(count: number, width: number, sizes: Measures): Columns {
  const { margin, node, main, dim, target, edge } = sizes;
  const inner = width - 2 * margin;
  // Outer columns need less room to their outer side, unless all are narrow.
  const half = Math.min(inner / (2 * count), node[1] * 1.2);
  const pitch = count > 1 ? Math.min((inner - 2 * half) / (count - 1), node[1] * 5) : inner;
  const first = width / 2 - (pitch * (count - 1)) / 2;
  const room = Math.min(pitch, count > 1 ? Math.max(2 * half, 2 * (first - margin)) : inner) - node[1] * 0.08;
  const largest = Math.min(node[1], pitch * 0.52);
  return {
    x: Array.from({ length: count }, (_, c) => first + c * pitch),
    room,
    node: [Math.min(node[0], largest * 0.6), largest],
    main: [Math.min(main[0], pitch * 0.58), Math.min(main[1], pitch * 0.58)],
    dim: Math.min(dim, pitch * 0.24),
    edge: [edge[0], Math.min(edge[1], Math.max(edge[0], pitch * 0.05))],
    target: Math.min(target, room * 0.8, Math.max(largest * 1.2, pitch * 0.5)),
  };
}

/** How far an item extends above and below its center, and the gap it keeps to others. */
export interface Extent {
  above: number;
  below: number;
  gap: number;
}

/** The center of each item: close to its neighbors, in order, without overlaps, between 0 and the height. */
export function placeThings(layers: Layers, extents: Extent[], least: number): { y: Float64Array; height: number } {
  const y = new Float64Array(extents.length);
  const needed = layers.columns.map((column) => stack(column, extents).needed);
  const height = Math.max(least, ...needed);
  const slack = layers.columns.map((column, c) => {
    const free = (height - needed[c]!) / Math.max(1, column.length);
    return Math.min(free * 0.7, (extents[column[0] ?? 0]?.gap ?? 0) * 1.6);
  });
  const links = extents.map((): [number, number][] => []);
  for (const { from, to, weight } of layers.links.flat()) {
    links[from]!.push([to, weight]);
    links[to]!.push([from, weight]);
  }
  for (const [c, column] of layers.columns.entries())
    settle(
      column,
      extents,
      column.map(() => height / 2),
      column.map(() => 1),
      slack[c]!,
      height,
      y,
    );
  for (let sweep = 0; sweep < 8; sweep++) {
    const there = layers.columns.map((_, c) => (sweep % 2 ? c : layers.columns.length - 1 - c));
    for (const c of there) {
      const column = layers.columns[c]!;
      const desired = column.map((thing) => mean(links[thing]!, y) ?? y[thing]!);
      const weights = column.map((thing) => 0.2 + links[thing]!.reduce((sum, [, weight]) => sum + weight, 0));
      settle(column, extents, desired, weights, slack[c]!, height, y);
    }
  }
  return { y, height };
}

/** The least height that a column needs. */
export function neededHeight(column: number[], extents: Extent[]): number {
  return stack(column, extents).needed;
}

function mean(links: [number, number][], y: Float64Array): number | null {
  let [sum, total] = [0, 0];
  for (const [thing, weight] of links) {
    sum += weight * y[thing]!;
    total += weight;
  }
  return total > 0 ? sum / total : null;
}

/** The offsets of a column's items from its top if they are packed as closely as allowed. */
function stack(column: number[], extents: Extent[], slack = 0): { offsets: number[]; needed: number } {
  const offsets: number[] = [];
  let end = 0;
  for (const [at, thing] of column.entries()) {
    const { above, below, gap } = extents[thing]!;
    if (at) end += Math.min(gap, extents[column[at - 1]!]!.gap) + slack;
    offsets.push(end + above);
    end += above + below;
  }
  return { offsets, needed: end };
}

/** The places closest to the desired ones (weighted least squares) that keep order, gaps and bounds. */
function settle(
  column: number[],
  extents: Extent[],
  desired: number[],
  weights: number[],
  slack: number,
  height: number,
  y: Float64Array,
): void {
  const { offsets, needed } = stack(column, extents, slack);
  // Without the offsets, the items only need to be in order: isotonic regression by pooling adjacent violators.
  const pools: { value: number; weight: number; count: number }[] = [];
  for (const [at, want] of desired.entries()) {
    let pool = { value: want - offsets[at]!, weight: weights[at]!, count: 1 };
    while (pools.length && pools[pools.length - 1]!.value >= pool.value) {
      const last = pools.pop()!;
      const weight = last.weight + pool.weight;
      pool = {
        value: (last.value * last.weight + pool.value * pool.weight) / weight,
        weight,
        count: last.count + pool.count,
      };
    }
    pools.push(pool);
  }
  let at = 0;
  for (const { value, count } of pools) {
    const shift = Math.min(Math.max(value, 0), height - needed);
    for (let i = 0; i < count; i++, at++) y[column[at]!] = shift + offsets[at]!;
  }
}
