/** Obviously right, slow: everything by enumeration of paths, on the document's own words. */

import type { Graph } from "../src/core/decode.js";
import { EdgeKind, NodeKind, type View } from "../src/core/types.js";

/** All edges of the graph, none inner, and whether each is present in a variant. */
function present(graph: Graph, view: View): (edge: number) => boolean {
  const { rank } = graph.variants[view.variant]!;
  return (edge) => rank[edge]! >= 0 && rank[edge]! < (view.kernels ?? Infinity);
}

function wholeInside(graph: Graph, node: number, is: (edge: number) => boolean): boolean {
  for (let edge = 0; edge < graph.edgeCount; edge++)
    if (graph.edgeKind[edge] === EdgeKind.inner && graph.target[edge] === node && !is(edge)) return false;
  return true;
}

/** The alive edges that are not inner: those on a path image -> root of present edges and whole nodes. */
export function aliveByPaths(graph: Graph, view: View): Set<number> {
  const is = present(graph, view);
  const alive = new Set<number>();
  const walk = (node: number, path: number[]): void => {
    if (!wholeInside(graph, node, is)) return;
    if (graph.kind[node] === NodeKind.image) for (const edge of path) alive.add(edge);
    for (let edge = 0; edge < graph.edgeCount; edge++)
      if (graph.target[edge] === node && graph.edgeKind[edge] !== EdgeKind.inner && is(edge))
        walk(graph.source[edge]!, [...path, edge]);
  };
  walk(view.root ?? graph.document.target, []);
  return alive;
}

/** The flow of each alive edge, recursively from the definitions. */
export function flowByRecursion(graph: Graph, view: View, alive: Set<number>): Map<number, number> {
  const { saliency } = graph.variants[view.variant]!;
  const into = (node: number) => [...alive].filter((edge) => graph.target[edge] === node);
  const weight = (edge: number): number =>
    graph.edgeKind[edge] === EdgeKind.kernel || graph.edgeKind[edge] === EdgeKind.readout
      ? Number.isNaN(saliency[edge]!)
        ? 0
        : Math.abs(saliency[edge]!)
      : into(graph.source[edge]!).reduce((sum, each) => sum + weight(each), 0);
  const nodeFlow = (node: number): number =>
    node === (view.root ?? graph.document.target)
      ? 1
      : [...alive].filter((edge) => graph.source[edge] === node).reduce((sum, edge) => sum + edgeFlow(edge), 0);
  const edgeFlow = (edge: number): number => {
    const all = into(graph.target[edge]!);
    const total = all.reduce((sum, each) => sum + weight(each), 0);
    return nodeFlow(graph.target[edge]!) * (total > 0 ? weight(edge) / total : 1 / all.length);
  };
  return new Map([...alive].map((edge) => [edge, edgeFlow(edge)]));
}
