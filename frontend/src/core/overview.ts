/** All that is alive, as typed arrays for a canvas: every node a small square, every edge a line. */

import { type Graph, setOf } from "./decode.js";
import { type Flow, flowOf } from "./flow.js";
import { measures } from "./place.js";
import type { Canvas, Lit } from "./scene-types.js";
import { light, type Parts, partsOf } from "./select.js";
import { EdgeKind, type View } from "./types.js";

export interface Overview {
  view: View;
  width: number;
  height: number;
  columns: { column: number; x: number }[]; // their centers, for headings
  /** Per node, numbered as the units of `parts`: its center and side, its first tile (-1 for none). */
  x: Float32Array;
  y: Float32Array;
  size: Float32Array;
  tile: Int32Array;
  /** Per edge, the thin ones first: its bundle in `parts`, the nodes it joins, its ends, width and sign (0: a
   *  connection). */
  bundle: Int32Array;
  source: Int32Array;
  target: Int32Array;
  ends: Float32Array; // x0, y0, x1, y1 of each
  strength: Float32Array; // width in pixels
  sign: Int8Array;
  flow: Flow;
  parts: Parts;
}

/** The overview of a view, in which all columns are open; nodes of a column stand in the order of their flow, in as
 *  many sub-columns as they need. */
export function overview(graph: Graph, given: View, canvas: Canvas): Overview {
  const view = { ...given, collapsed: [] };
  const flow = flowOf(graph, view);
  const parts = partsOf(graph, flow, view);
  const { margin } = measures(canvas);
  const shown = [...new Set(parts.column)];
  const count = parts.members.length;
  const height = canvas.height ?? Math.max(480, canvas.width * 0.55);
  const pitch = (canvas.width - 2 * margin) / Math.max(1, shown.length);
  const [x, y, size] = [new Float32Array(count), new Float32Array(count), new Float32Array(count)];
  const columns = shown.map((column, c) => ({ column, x: margin + pitch * (c + 0.5) }));
  for (const [c, column] of shown.entries()) {
    const units = [...parts.column.keys()]
      .filter((unit) => parts.column[unit] === column)
      .sort((a, b) => parts.flow[b]! - parts.flow[a]! || a - b);
    // The largest squares with which the column takes no more than 45 % of its pitch and all of the height.
    let [across, side] = [1, 0];
    for (let tries = 1; tries <= units.length; tries++) {
      const fits = Math.min(24, (pitch * 0.45) / tries, (height - 2 * margin) / Math.ceil(units.length / tries));
      if (fits > side) [across, side] = [tries, fits];
    }
    const down = Math.ceil(units.length / across);
    for (const [place, unit] of units.entries()) {
      x[unit] = columns[c]!.x + ((place % across) - (across - 1) / 2) * side;
      y[unit] = height / 2 + (Math.floor(place / across) - (down - 1) / 2) * side;
      size[unit] = side * 0.86;
    }
  }
  const tiles = graph.tiles[setOf(graph, view.pictures, view.variant)];
  const otherTiles = view.compare === null ? tiles : graph.tiles[setOf(graph, view.pictures, view.compare)];
  return {
    view,
    width: canvas.width,
    height,
    columns,
    x,
    y,
    size,
    tile: Int32Array.from(parts.members, ([node]) => (flow.aliveNode[node!] === 2 ? otherTiles : tiles)?.[node!] ?? -1),
    ...lines(graph, flow, parts, x, y, size),
    flow,
    parts,
  };
}

function lines(graph: Graph, flow: Flow, parts: Parts, x: Float32Array, y: Float32Array, size: Float32Array) {
  const weights = Float64Array.from(parts.edges, (edges) => edges.reduce((sum, edge) => sum + flow.weight[edge]!, 0));
  const largest = new Map<number, number>();
  for (const [b, weight] of weights.entries()) {
    const column = parts.column[parts.target[b]!]!;
    largest.set(column, Math.max(largest.get(column) ?? 0, weight));
  }
  const width = weights.map(
    (weight, b) => 0.3 + 2.7 * Math.sqrt(weight / (largest.get(parts.column[parts.target[b]!]!) || 1)),
  );
  const bundle = Int32Array.from(width.keys()).sort((a, b) => width[a]! - width[b]! || a - b);
  const source = bundle.map((b) => parts.source[b]!);
  const target = bundle.map((b) => parts.target[b]!);
  const ends = new Float32Array(bundle.length * 4);
  for (let i = 0; i < bundle.length; i++)
    ends.set(
      [x[source[i]!]! + size[source[i]!]! / 2, y[source[i]!]!, x[target[i]!]! - size[target[i]!]! / 2, y[target[i]!]!],
      i * 4,
    );
  const sign = Int8Array.from(bundle, (b) => {
    const weighed = parts.edges[b]!.filter(
      (edge) => graph.edgeKind[edge] === EdgeKind.kernel || graph.edgeKind[edge] === EdgeKind.readout,
    );
    return weighed.length
      ? weighed.reduce((sum, edge) => sum + (flow.weight[edge]! || 1e-30) * graph.sign[edge]!, 0) < 0
        ? -1
        : 1
      : 0;
  });
  return { bundle, source, target, ends, strength: Float32Array.from(bundle, (b) => width[b]!), sign };
}

/** The nodes and edges that carry `share` of the flow through a node of the overview, among all alive edges. */
export function lightAll(all: Overview, node: number, share: number): Lit {
  const { units, bundles } = light(all.parts, new Uint8Array(all.parts.edges.length).fill(1), node, share);
  return { nodes: units, edges: Uint8Array.from(all.bundle, (bundle) => bundles[bundle]!) };
}
