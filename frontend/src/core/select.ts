/** What is drawn of a flow: the parts of the diagram, those that fit the budget, and those that an isolated one
 *  lights. */

import { spanAt, spanName, spansOf } from "./blocks.js";
import { type Graph, type Lists, lists } from "./decode.js";
import type { Flow } from "./flow.js";
import { plural } from "./format.js";
import { type Labels, labelsOf } from "./names.js";
import { EdgeKind, NodeKind, type Span, type View } from "./types.js";

/** All that could be drawn: units (a node, or a group of nodes) by column, and bundles (the alive edges between two
 *  units). */
export interface Parts {
  root: number; // its unit; -1 where the root is dead
  unitOf: Int32Array; // per node of the document; -1 where it is dead or a channel of the image
  members: number[][];
  groups: (string | null)[];
  spans: (Span | null)[]; // per unit: the range of columns that it stands for
  labels: Labels; // of nodes
  column: Int16Array;
  flow: Float64Array;
  image: Float64Array; // the share of a unit's flow that comes from the image itself
  seesImage: Uint8Array; // whether the image itself feeds it, if only with a share of 0
  source: Int32Array; // per bundle
  target: Int32Array;
  share: Float64Array; // of its target's flow
  bundleFlow: Float64Array;
  edges: number[][];
  incoming: Lists; // bundles by unit
  outgoing: Lists;
}

export interface Selection {
  units: Uint8Array;
  bundles: Uint8Array;
  /** All edges of the document that the drawing stands for: inner kernels and those of the image included. */
  edges: number[];
  /** Those of the filters that have a place of their own, and how many blocks are drawn as one beside them. */
  kernels: number;
  filters: number;
  blocks: number;
  path: number; // the share of the root's flow that complete drawn paths carry
}

/** The parts of a flow. Sources come before their targets, by number. */
export function partsOf(graph: Graph, flow: Flow, view: View): Parts {
  const { unitOf, members, groups, spans } = unitsOf(graph, flow, view);
  const count = members.length;
  const total = members.map((nodes) => nodes.reduce((sum, node) => sum + flow.node[node]!, 0));
  // What flows through a range of columns comes in, and goes on inside it: it counts once.
  const reads = new Int32Array(count);
  for (const [unit, span] of spans.entries()) if (span) total[unit] = 0;
  for (let edge = 0; edge < graph.edgeCount; edge++) {
    const [from, to] = [unitOf[graph.source[edge]!]!, unitOf[graph.target[edge]!]!];
    if (!flow.alive[edge] || from === to) continue;
    if (to >= 0) reads[to]!++;
    if (from >= 0 && spans[from]) total[from]! += flow.edge[edge]!;
  }
  // What a member counts for within its unit: its flow, or as much as the others where none has any.
  const part = (node: number, unit: number) =>
    total[unit]! > 0 ? flow.node[node]! / total[unit]! : 1 / members[unit]!.length;
  const image = new Float64Array(count);
  const seesImage = new Uint8Array(count);
  const [source, target, share, bundleFlow]: number[][] = [[], [], [], []];
  const edges: number[][] = [];
  const seen = new Int32Array(count).fill(-1);
  for (let unit = 0; unit < count; unit++) {
    const first = edges.length;
    for (const node of members[unit]!) {
      for (let i = graph.incoming.start[node]!; i < graph.incoming.start[node + 1]!; i++) {
        const edge = graph.incoming.items[i]!;
        if (!flow.alive[edge]) continue;
        const from = unitOf[graph.source[edge]!]!;
        if (from === unit) continue;
        const portion = spans[unit] && !total[unit] ? 1 / reads[unit]! : flow.split[edge]! * part(node, unit);
        if (from < 0) {
          image[unit]! += portion;
          seesImage[unit] = 1;
          continue;
        }
        if (seen[from]! < first) {
          seen[from] = edges.length;
          source!.push(from);
          target!.push(unit);
          share!.push(0);
          bundleFlow!.push(0);
          edges.push([]);
        }
        const bundle = seen[from]!;
        share![bundle]! += portion;
        bundleFlow![bundle]! += flow.edge[edge]!;
        edges[bundle]!.push(edge);
      }
    }
  }
  return {
    root: unitOf[flow.root]!,
    unitOf,
    members,
    groups,
    spans,
    labels: labelsOf(view),
    column: Int16Array.from(members, (nodes) => graph.column[nodes[0]!]!),
    flow: Float64Array.from(total),
    image,
    seesImage,
    source: Int32Array.from(source!),
    target: Int32Array.from(target!),
    share: Float64Array.from(share!),
    bundleFlow: Float64Array.from(bundleFlow!),
    edges,
    incoming: lists(count, target!, () => true),
    outgoing: lists(count, source!, () => true),
  };
}

function unitsOf(graph: Graph, flow: Flow, view: View) {
  const unitOf = new Int32Array(graph.nodeCount).fill(-1);
  const grouped = new Map<number, { name: string; nodes: number[] }>();
  for (const { name, nodes } of view.groups) {
    const group = { name, nodes: nodes.filter((node) => flow.aliveNode[node] && node !== flow.root) };
    for (const node of group.nodes) grouped.set(node, group);
  }
  const members: number[][] = [];
  const groups: (string | null)[] = [];
  const spans: (Span | null)[] = [];
  const closed = spansOf(graph, view, flow.root);
  const drawn = (node: number) => flow.aliveNode[node] && graph.kind[node] !== NodeKind.image;
  for (const node of graph.leftToRight) {
    if (!drawn(node) || unitOf[node]! >= 0) continue;
    const span = spanAt(closed, graph.column[node]!);
    spans.push(span ?? null);
    if (span) {
      const inside = [...graph.leftToRight].filter((each) => drawn(each) && spanAt([span], graph.column[each]!));
      for (const each of inside) unitOf[each] = members.length;
      members.push(inside);
      groups.push(spanName(graph, span));
      continue;
    }
    const group = grouped.get(node);
    for (const member of group?.nodes ?? [node]) unitOf[member] = members.length;
    members.push(group?.nodes ?? [node]);
    groups.push(group?.name ?? null);
  }
  return { unitOf, members, groups, spans };
}

/** Selects the units and bundles to draw within the view's budget. A circuit that fits it in every layer is drawn
 *  whole, although a column or a node that several layers share may then hold more. */
export function select(graph: Graph, flow: Flow, parts: Parts, view: View): Selection {
  const whole = fits(graph, flow, view);
  const units = whole ? new Uint8Array(parts.members.length).fill(1) : chooseUnits(parts, view);
  const bundles = whole ? new Uint8Array(parts.edges.length).fill(1) : chooseBundles(parts, units, view.kernelsPerNode);
  if (!whole) dropDeadEnds(parts, units, bundles, pinned(parts, view));
  const edges = edgesOf(graph, flow, parts, units, bundles);
  const own = edges.filter((edge) => !parts.spans[parts.unitOf[graph.target[edge]!]!]);
  const blocks = parts.spans.filter((span, unit) => span && units[unit]).length;
  return { units, bundles, edges, ...countOf(graph, own), blocks, path: carried(parts, bundles)[parts.root] ?? 0 };
}

/** The number of kernels among some edges, and of the filters that they belong to. A kernel counts once if its layer
 *  runs several times. */
export function countOf(graph: Graph, edges: Iterable<number>): { kernels: number; filters: number } {
  const kernels = new Set<number>();
  const filters = new Set<number>();
  for (const edge of edges) {
    if (graph.edgeKind[edge] !== EdgeKind.kernel && graph.edgeKind[edge] !== EdgeKind.inner) continue;
    const filter = graph.sameLayer[graph.edgeLayer[edge]!]! * 2 ** 20 + graph.out[edge]!;
    filters.add(filter);
    kernels.add(filter * 2 ** 20 + graph.in[edge]!);
  }
  return { kernels: kernels.size, filters: filters.size };
}

/** Whether no layer has more filters, and no filter more kernels, than the view's budget. */
export function fits(graph: Graph, flow: Flow, view: View): boolean {
  const filters = new Map<number, Map<number, Set<number>>>(); // by layer: the channels that each filter reads
  for (let edge = 0; edge < graph.edgeCount; edge++) {
    if (!flow.alive[edge] || graph.edgeLayer[edge]! < 0) continue;
    const layer = graph.sameLayer[graph.edgeLayer[edge]!]!;
    if (!filters.has(layer)) filters.set(layer, new Map());
    const kernels = filters.get(layer)!;
    if (!kernels.has(graph.out[edge]!)) kernels.set(graph.out[edge]!, new Set());
    kernels.get(graph.out[edge]!)!.add(graph.in[edge]!);
  }
  return [...filters.values()].every(
    (kernels) =>
      kernels.size <= view.nodesPerColumn && [...kernels.values()].every((read) => read.size <= view.kernelsPerNode),
  );
}

/** "3 layers, 34 filters, 120 kernels": what some nodes of a range of columns have of the circuit; "passed by" if
 *  nothing. */
export function insideText(graph: Graph, flow: { alive: Uint8Array }, nodes: number[]): string {
  const edges = nodes.flatMap((node) => [...of(graph.incoming, node), ...of(graph.inner, node)]);
  const alive = edges.filter((edge) => flow.alive[edge]);
  const layers = new Set(alive.flatMap((edge) => (graph.edgeLayer[edge]! >= 0 ? [graph.edgeLayer[edge]!] : [])));
  if (!layers.size) return "passed by";
  const { filters, kernels } = countOf(graph, alive);
  return `${plural(layers.size, "layer")}, ${plural(filters, "filter")}, ${plural(kernels, "kernel")}`;
}

/** The units that are pinned and alive. */
export function pinned(parts: Parts, view: View): Set<number> {
  return new Set(view.pins.map((node) => parts.unitOf[node] ?? -1).filter((unit) => unit >= 0));
}

/** Column by column from the root: the units that receive most flow through those already chosen. */
function chooseUnits(parts: Parts, view: View): Uint8Array {
  const chosen = new Uint8Array(parts.members.length);
  if (parts.root < 0) return chosen;
  const received = new Float64Array(chosen.length).fill(-1); // -1: no chosen unit reads it
  received[parts.root] = 1;
  const pins = pinned(parts, view);
  for (let end = chosen.length; end > 0; ) {
    let begin = end - 1;
    while (begin > 0 && parts.column[begin - 1] === parts.column[begin]) begin--;
    const column = Array.from({ length: end - begin }, (_, i) => begin + i);
    const must = column.filter((unit) => unit === parts.root || pins.has(unit));
    const may = column
      .filter((unit) => received[unit]! >= 0 && !must.includes(unit))
      .sort((a, b) => received[b]! - received[a]! || a - b);
    for (const unit of [...must, ...may.slice(0, Math.max(0, view.nodesPerColumn - must.length))]) {
      chosen[unit] = 1;
      for (const bundle of of(parts.incoming, unit)) {
        const from = parts.source[bundle]!;
        received[from] = Math.max(received[from]!, 0) + Math.max(received[unit]!, 0) * parts.share[bundle]!;
      }
    }
    end = begin;
  }
  return chosen;
}

/** For each unit, the bundles with the most flow from chosen units. Each unit also keeps its best outgoing bundle. */
function chooseBundles(parts: Parts, units: Uint8Array, budget: number): Uint8Array {
  const chosen = new Uint8Array(parts.edges.length);
  const feeds = new Uint8Array(units.length);
  for (let unit = 0; unit < units.length; unit++) {
    if (!units[unit]) continue;
    const candidates = of(parts.incoming, unit).filter((bundle) => units[parts.source[bundle]!]);
    candidates.sort((a, b) => parts.share[b]! - parts.share[a]! || a - b);
    for (const bundle of candidates.slice(0, budget)) chosen[bundle] = feeds[parts.source[bundle]!] = 1;
  }
  for (let unit = 0; unit < units.length; unit++) {
    if (!units[unit] || feeds[unit]) continue;
    const candidates = of(parts.outgoing, unit).filter((bundle) => units[parts.target[bundle]!]);
    candidates.sort(
      (a, b) => parts.bundleFlow[b]! - parts.bundleFlow[a]! || parts.share[b]! - parts.share[a]! || a - b,
    );
    if (candidates.length) chosen[candidates[0]!] = 1;
  }
  return chosen;
}

/** Removes everything that is on no complete path from the image to the root, except the units in `keep`. */
function dropDeadEnds(parts: Parts, units: Uint8Array, bundles: Uint8Array, keep: Set<number>): void {
  const complete = completeUnits(parts, bundles, parts.root);
  for (let unit = 0; unit < units.length; unit++)
    if (!complete[unit] && !keep.has(unit) && unit !== parts.root) units[unit] = 0;
  for (let bundle = 0; bundle < bundles.length; bundle++)
    if (!units[parts.source[bundle]!] || !units[parts.target[bundle]!]) bundles[bundle] = 0;
}

/** The units on a path of these bundles from the image to `end`. */
function completeUnits(parts: Parts, bundles: Uint8Array, end: number): Uint8Array {
  const fed = fedUnits(parts, bundles);
  const on = new Uint8Array(fed.length);
  if (end < 0) return on;
  on[end] = fed[end]!;
  for (let unit = end; unit >= 0; unit--)
    if (on[unit])
      for (const b of of(parts.incoming, unit)) if (bundles[b] && fed[parts.source[b]!]) on[parts.source[b]!] = 1;
  return on;
}

function fedUnits(parts: Parts, bundles: Uint8Array): Uint8Array {
  const fed = new Uint8Array(parts.members.length);
  for (let unit = 0; unit < fed.length; unit++)
    fed[unit] =
      parts.seesImage[unit] || of(parts.incoming, unit).some((b) => bundles[b] && fed[parts.source[b]!]) ? 1 : 0;
  return fed;
}

/** For each unit the share of its flow that complete paths of these bundles bring from the image. */
export function carried(parts: Parts, bundles: Uint8Array): Float64Array {
  const share = parts.image.slice();
  for (let unit = 0; unit < share.length; unit++)
    for (let i = parts.incoming.start[unit]!; i < parts.incoming.start[unit + 1]!; i++) {
      const bundle = parts.incoming.items[i]!;
      if (bundles[bundle]) share[unit]! += parts.share[bundle]! * share[parts.source[bundle]!]!;
    }
  return share;
}

/** For each unit the share of `root`'s flow that these bundles bring to it. */
function received(parts: Parts, bundles: Uint8Array, root: number): Float64Array {
  const share = new Float64Array(parts.members.length);
  share[root] = 1;
  for (let unit = root; unit >= 0; unit--) {
    if (!share[unit]) continue;
    for (let i = parts.incoming.start[unit]!; i < parts.incoming.start[unit + 1]!; i++) {
      const bundle = parts.incoming.items[i]!;
      if (bundles[bundle]) share[parts.source[bundle]!]! += share[unit]! * parts.share[bundle]!;
    }
  }
  return share;
}

/** The bundles, of those drawn, that carry `share` of the flow through a unit: the fewest if taken by their part in it.
 *
 * Upstream and downstream apart. Only what lies on complete kept paths is lit: image -> unit, unit -> root.
 */
export function light(
  parts: Parts,
  drawn: Uint8Array,
  unit: number,
  share: number,
): { units: Uint8Array; bundles: Uint8Array } {
  const units = new Uint8Array(parts.members.length);
  units[unit] = 1;
  const fromImage = carried(parts, drawn);
  const fromUnit = received(parts, drawn, unit);
  const up = fewest(
    drawn,
    share,
    (b) => fromUnit[parts.target[b]!]! * parts.share[b]! * fromImage[parts.source[b]!]!,
    (kept) => carried(parts, kept)[unit]!,
  );
  const toRoot = received(parts, drawn, parts.root);
  const below = brought(parts, drawn, unit);
  const down = fewest(
    drawn,
    share,
    (b) => toRoot[parts.target[b]!]! * parts.share[b]! * below[parts.source[b]!]!,
    (kept) => received(parts, kept, parts.root)[unit]!,
  );
  const fed = completeUnits(parts, up, unit);
  const reached = reachedFrom(parts, down, unit);
  const leads = leadsTo(parts, down, parts.root);
  const bundles = new Uint8Array(drawn.length);
  for (let b = 0; b < bundles.length; b++) {
    const [from, to] = [parts.source[b]!, parts.target[b]!];
    if ((up[b] && fed[from] && fed[to]) || (down[b] && reached[from] && leads[to]))
      bundles[b] = units[from] = units[to] = 1;
  }
  return { units, bundles };
}

/** For each unit the share of its flow that goes on to `unit` by these bundles: what `unit` brings to it. */
function brought(parts: Parts, bundles: Uint8Array, from: number): Float64Array {
  const share = new Float64Array(parts.members.length);
  share[from] = 1;
  for (let unit = from + 1; unit < share.length; unit++)
    for (const b of of(parts.incoming, unit))
      if (bundles[b]) share[unit]! += parts.share[b]! * share[parts.source[b]!]!;
  return share;
}

function reachedFrom(parts: Parts, bundles: Uint8Array, from: number): Uint8Array {
  const on = new Uint8Array(parts.members.length);
  on[from] = 1;
  for (let unit = from + 1; unit < on.length; unit++)
    if (of(parts.incoming, unit).some((b) => bundles[b] && on[parts.source[b]!])) on[unit] = 1;
  return on;
}

function leadsTo(parts: Parts, bundles: Uint8Array, end: number): Uint8Array {
  const on = new Uint8Array(parts.members.length);
  on[end] = 1;
  for (let unit = end; unit >= 0; unit--)
    if (on[unit]) for (const b of of(parts.incoming, unit)) if (bundles[b]) on[parts.source[b]!] = 1;
  return on;
}

/** The fewest bundles, most flow first, that carry `share` of what all of them carry. */
function fewest(
  drawn: Uint8Array,
  share: number,
  flowOf: (bundle: number) => number,
  carry: (kept: Uint8Array) => number,
): Uint8Array {
  const flows = Float64Array.from(drawn, (is, bundle) => (is ? flowOf(bundle) : 0));
  const ranked = [...flows.keys()]
    .filter((bundle) => flows[bundle]! > 0)
    .sort((a, b) => flows[b]! - flows[a]! || a - b);
  const first = (length: number) => {
    const kept = new Uint8Array(drawn.length);
    for (const bundle of ranked.slice(0, length)) kept[bundle] = 1;
    return kept;
  };
  const enough = share * carry(first(ranked.length)) * (1 - 1e-12);
  let [low, high] = [0, ranked.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (carry(first(middle)) >= enough) high = middle;
    else low = middle + 1;
  }
  return first(low);
}

function edgesOf(graph: Graph, flow: Flow, parts: Parts, units: Uint8Array, bundles: Uint8Array): number[] {
  const edges: number[] = [];
  for (let bundle = 0; bundle < bundles.length; bundle++) if (bundles[bundle]) edges.push(...parts.edges[bundle]!);
  for (let unit = 0; unit < units.length; unit++) {
    if (!units[unit]) continue;
    for (const node of parts.members[unit]!) {
      if (!parts.spans[unit]) edges.push(...of(graph.inner, node).filter((edge) => flow.alive[edge]));
      edges.push(
        ...of(graph.incoming, node).filter(
          (edge) => flow.alive[edge] && graph.kind[graph.source[edge]!] === NodeKind.image,
        ),
      );
    }
  }
  return edges.sort((a, b) => a - b);
}

/** The items listed under a key. */
export function of(list: Lists, key: number): number[] {
  return Array.from(list.items.subarray(list.start[key]!, list.start[key + 1]!));
}
