/** Groups to suggest: filters of one layer whose incoming kernels are alike, also turned or mirrored. */

import type { Graph } from "./decode.js";
import type { Flow } from "./flow.js";
import { of } from "./select.js";
import { EdgeKind } from "./types.js";

/** The least cosine of the incoming kernels of two filters that are suggested as a group, and of how many inputs they
 *  must both read (or all, if the layer has fewer). Measured on diagrams of VGG16 and ResNet-50: of 9,000 pairs of
 *  filters 135 are that similar, and 15 if the weights within each kernel are shuffled. */
export const SIMILAR = 0.9;
const SHARED = 2;

export interface Suggestion {
  nodes: number[];
  similarity: number; // of its least similar pair
  turned: boolean; // whether some are only alike when turned or mirrored
}

interface Reads {
  kernels: Map<number, Float64Array>; // by source
  length: number;
}

/** Suggests groups among nodes, the most similar first; a node is in at most one, in which every pair is similar. */
export function suggestions(graph: Graph, flow: Flow, nodes: number[]): Suggestion[] {
  const layers = new Map<number, number[]>();
  for (const node of nodes) {
    const layer = graph.layer[node]!;
    if (layer >= 0 && node !== flow.root) layers.set(layer, [...(layers.get(layer) ?? []), node]);
  }
  const found = [...layers].flatMap(([layer, members]) => among(graph, flow, layer, members));
  return found.sort((a, b) => b.similarity - a.similarity || a.nodes[0]! - b.nodes[0]!);
}

function among(graph: Graph, flow: Flow, layer: number, nodes: number[]): Suggestion[] {
  const [height, width] = graph.document.layers[layer]!.kernel;
  const orders = turns(height, width);
  const reads = nodes.map((node) => readsOf(graph, flow, layer, node, height * width));
  const inputs = new Set(reads.flatMap(({ kernels }) => [...kernels.keys()])).size;
  const pairs: { a: number; b: number; similarity: number; turned: boolean }[] = [];
  for (let a = 0; a < nodes.length; a++)
    for (let b = a + 1; b < nodes.length; b++) {
      const shared = [...reads[a]!.kernels.keys()].filter((source) => reads[b]!.kernels.has(source));
      if (shared.length < Math.min(SHARED, inputs)) continue;
      const cosines = orders.map((order) => cosine(reads[a]!, reads[b]!, shared, order));
      const similarity = Math.max(...cosines);
      if (similarity >= SIMILAR) pairs.push({ a, b, similarity, turned: cosines[0]! < SIMILAR });
    }
  pairs.sort((x, y) => y.similarity - x.similarity || x.a - y.a || x.b - y.b);
  const alike = new Map(pairs.map((pair) => [pair.a * nodes.length + pair.b, pair]));
  const pairOf = (a: number, b: number) => alike.get(Math.min(a, b) * nodes.length + Math.max(a, b));
  let groups = nodes.map((_, i) => [i]);
  for (const { a, b } of pairs) {
    const [one, other] = [a, b].map((i) => groups.find((group) => group.includes(i))!) as [number[], number[]];
    if (one === other || !one.every((i) => other.every((j) => pairOf(i, j)))) continue;
    groups = [...groups.filter((group) => group !== one && group !== other), [...one, ...other]];
  }
  return groups
    .filter((group) => group.length > 1)
    .map((group) => {
      const inside = group.flatMap((a) => group.flatMap((b) => (a < b ? [pairOf(a, b)!] : [])));
      return {
        nodes: group.map((i) => nodes[i]!).sort((a, b) => a - b),
        similarity: Math.min(...inside.map(({ similarity }) => similarity)),
        turned: inside.some(({ turned }) => turned),
      };
    });
}

/** The kernels of the drawn circuit by which a node reads its sources. */
function readsOf(graph: Graph, flow: Flow, layer: number, node: number, size: number): Reads {
  const kernels = new Map<number, Float64Array>();
  let square = 0;
  for (const edge of of(graph.incoming, node)) {
    const start = graph.weightStart[edge]!;
    if (graph.edgeKind[edge] !== EdgeKind.kernel || !flow.alive[edge] || graph.edgeLayer[edge] !== layer || start < 0)
      continue;
    const weights = Float64Array.from(graph.weights.subarray(start, start + size), (w) => w * graph.scale[edge]!);
    square += weights.reduce((sum, w) => sum + w * w, 0);
    kernels.set(graph.source[edge]!, weights);
  }
  return { kernels, length: Math.sqrt(square) };
}

/** The cosine of the kernels of two filters, those of the second read in an order. */
function cosine(a: Reads, b: Reads, shared: number[], order: number[]): number {
  let sum = 0;
  for (const source of shared) {
    const [one, other] = [a.kernels.get(source)!, b.kernels.get(source)!];
    for (let i = 0; i < one.length; i++) sum += one[i]! * other[order[i]!]!;
  }
  return sum / (a.length * b.length || 1);
}

/** The orders in which a kernel's weights are read as they are, turned and mirrored: eight if it is square, else
 *  four. */
function turns(height: number, width: number): number[][] {
  const at = (place: (y: number, x: number) => number) =>
    Array.from({ length: height * width }, (_, i) => place(Math.floor(i / width), i % width));
  const [bottom, right] = [height - 1, width - 1];
  const kept = [
    at((y, x) => y * width + x),
    at((y, x) => (bottom - y) * width + x),
    at((y, x) => y * width + (right - x)),
    at((y, x) => (bottom - y) * width + (right - x)),
  ];
  return height === width ? [...kept, ...kept.map((order) => at((y, x) => order[x * width + y]!))] : kept;
}
