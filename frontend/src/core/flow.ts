/** Which edges are alive in a view, and how the target's score is propagated back over them.
 *
 * The flow is a display heuristic: 1 at the target, split at every node among what comes into it, in proportion to
 * saliency. It is non-negative and conserved: what comes into the image's channels sums to 1. It measures nothing.
 */

import type { Graph } from "./decode.js";
import { EdgeKind, NodeKind, type View } from "./types.js";

export interface Flow {
  root: number;
  /** Per edge and node: 1 alive in the view's variant, 2 in the one it is compared with, 3 in both. */
  alive: Uint8Array;
  aliveNode: Uint8Array;
  /** Per edge: what it weighs, and the share of its target's flow that comes by it. */
  weight: Float64Array;
  split: Float64Array;
  /** The share of the root's flow, per node and edge (inner kernels carry their node's). */
  node: Float64Array;
  edge: Float64Array;
}

/** The flow in a view; for two compared circuits, the mean of their flows. */
export function flowOf(graph: Graph, view: View): Flow {
  const [first, second] = flowsOf(graph, view);
  return second ? mean(graph, first!, second) : first!;
}

/** The flow of each circuit of a view. */
export function flowsOf(graph: Graph, { root, variant, compare, kernels }: View): Flow[] {
  return [variant, compare].flatMap((each) =>
    each === null ? [] : one(graph, each, kernels, root ?? graph.document.target),
  );
}

function one(graph: Graph, variant: number, kernels: number | null, root: number): Flow {
  const { saliency, rank } = graph.variants[variant]!;
  const { alive, aliveNode } = aliveAt(graph, rank, kernels ?? Infinity, root);
  const { incoming, source, edgeKind, leftToRight, nodeCount, edgeCount } = graph;
  const weight = new Float64Array(edgeCount);
  const into = new Float64Array(nodeCount);
  const split = new Float64Array(edgeCount);
  for (const node of leftToRight) {
    const [begin, end] = [incoming.start[node]!, incoming.start[node + 1]!];
    let present = 0;
    for (let i = begin; i < end; i++) {
      const edge = incoming.items[i]!;
      if (!alive[edge]) continue;
      const weighed = edgeKind[edge] === EdgeKind.kernel || edgeKind[edge] === EdgeKind.readout;
      weight[edge] = weighed ? Math.abs(saliency[edge]!) || 0 : into[source[edge]!]!;
      into[node]! += weight[edge]!;
      present++;
    }
    for (let i = begin; i < end; i++) {
      const edge = incoming.items[i]!;
      if (alive[edge]) split[edge] = into[node]! > 0 ? weight[edge]! / into[node]! : 1 / present;
    }
  }
  const { node, edge } = sendBack(graph, alive, aliveNode, split, root);
  return { root, alive, aliveNode, weight, split, node, edge };
}

function sendBack(graph: Graph, alive: Uint8Array, aliveNode: Uint8Array, split: Float64Array, root: number) {
  const node = new Float64Array(graph.nodeCount);
  const edge = new Float64Array(graph.edgeCount);
  const { incoming, inner, leftToRight } = graph;
  if (aliveNode[root]) node[root] = 1;
  for (let at = leftToRight.length - 1; at >= 0; at--) {
    const here = leftToRight[at]!;
    if (!node[here]) continue;
    for (let i = incoming.start[here]!; i < incoming.start[here + 1]!; i++) {
      const each = incoming.items[i]!;
      if (!alive[each]) continue;
      edge[each] = node[here]! * split[each]!;
      node[graph.source[each]!]! += edge[each]!;
    }
    for (let i = inner.start[here]!; i < inner.start[here + 1]!; i++)
      if (alive[inner.items[i]!]) edge[inner.items[i]!] = node[here]!;
  }
  return { node, edge };
}

/** What is alive with the first `kernels` by rank: present, fed by the image, and read on the way to the root. */
export function aliveAt(
  graph: Graph,
  rank: Int32Array,
  kernels: number,
  root: number,
): { alive: Uint8Array; aliveNode: Uint8Array } {
  const { incoming, inner, source, kind, leftToRight } = graph;
  const live = new Uint8Array(graph.nodeCount);
  const alive = new Uint8Array(graph.edgeCount);
  const aliveNode = new Uint8Array(graph.nodeCount);
  const present = (edge: number) => rank[edge]! >= 0 && rank[edge]! < kernels;
  for (const node of leftToRight) {
    if (kind[node] === NodeKind.image) live[node] = 1;
    for (let i = incoming.start[node]!; i < incoming.start[node + 1]! && !live[node]; i++) {
      const edge = incoming.items[i]!;
      if (present(edge) && live[source[edge]!]) live[node] = 1;
    }
    for (let i = inner.start[node]!; i < inner.start[node + 1]!; i++) if (!present(inner.items[i]!)) live[node] = 0;
  }
  aliveNode[root] = live[root]!;
  for (let at = leftToRight.length - 1; at >= 0; at--) {
    const node = leftToRight[at]!;
    if (!aliveNode[node]) continue;
    for (let i = incoming.start[node]!; i < incoming.start[node + 1]!; i++) {
      const edge = incoming.items[i]!;
      if (present(edge) && live[source[edge]!]) alive[edge] = aliveNode[source[edge]!] = 1;
    }
    for (let i = inner.start[node]!; i < inner.start[node + 1]!; i++) alive[inner.items[i]!] = 1;
  }
  return { alive, aliveNode };
}

/** The fewest kernels by rank of which some are on a complete path to the root. */
export function fewestKernels(graph: Graph, { variant, root }: Pick<View, "variant" | "root">): number {
  const { incoming, inner, source, kind, leftToRight } = graph;
  const { rank } = graph.variants[variant]!;
  const needed = new Float64Array(graph.nodeCount).fill(Infinity);
  const present = (edge: number) => (rank[edge]! < 0 ? Infinity : rank[edge]! + 1);
  for (const node of leftToRight) {
    if (kind[node] === NodeKind.image) needed[node] = 0;
    for (let i = incoming.start[node]!; i < incoming.start[node + 1]!; i++) {
      const edge = incoming.items[i]!;
      needed[node] = Math.min(needed[node]!, Math.max(needed[source[edge]!]!, present(edge)));
    }
    for (let i = inner.start[node]!; i < inner.start[node + 1]!; i++)
      needed[node] = Math.max(needed[node]!, present(inner.items[i]!));
  }
  return needed[root ?? graph.document.target]!;
}

/** The mean of two flows is a flow: conserved, and 1 at the root, or that of the one circuit in which the root is
 *  alive. */
function mean(graph: Graph, a: Flow, b: Flow): Flow {
  const total = a.node[a.root]! + b.node[b.root]!;
  const average = (x: Float64Array, y: Float64Array) => (total ? x.map((value, i) => (value + y[i]!) / total) : x);
  const either = (x: Uint8Array, y: Uint8Array) => x.map((value, i) => value | (y[i]! << 1));
  const split = a.split.map((share, edge) => {
    const to = graph.target[edge]!;
    const [fromA, fromB] = [a.node[to]!, b.node[to]!];
    if (fromA + fromB > 0) return (fromA * share + fromB * b.split[edge]!) / (fromA + fromB);
    const circuits = a.aliveNode[to]! + b.aliveNode[to]!;
    return circuits ? (share + b.split[edge]!) / circuits : 0;
  });
  return {
    root: a.root,
    alive: either(a.alive, b.alive),
    aliveNode: either(a.aliveNode, b.aliveNode),
    weight: a.weight.map((weight, edge) => Math.max(weight, b.weight[edge]!)),
    split,
    node: average(a.node, b.node),
    edge: average(a.edge, b.edge),
  };
}
