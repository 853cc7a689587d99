/** Views from outside (a URL, a notebook, a saved document), checked against the document: what is not valid is
 *  ignored. */

import type { Graph } from "../core/decode.js";
import { plain } from "../core/text.js";
import { DEFAULT_VIEW, NodeKind, type View } from "../core/types.js";

const LONGEST_NAME = 80;

/** `base` with what is valid in `raw`. */
export function checkView(graph: Graph, base: View, raw: Partial<Record<keyof View, unknown>>): View {
  const { document } = graph;
  const whole = (value: unknown, from: number, to: number): value is number =>
    Number.isInteger(value) && (value as number) >= from && (value as number) <= to;
  const drawable = (value: unknown): value is number =>
    whole(value, 0, graph.nodeCount - 1) && graph.kind[value] !== NodeKind.image;
  const view = { ...base };
  if (whole(raw.variant, 0, document.variants.length - 1)) view.variant = raw.variant;
  if (raw.compare === null || whole(raw.compare, 0, document.variants.length - 1)) view.compare = raw.compare;
  if (view.compare === view.variant) view.compare = null;
  if (raw.kernels === null || whole(raw.kernels, 1, graph.edgeCount)) view.kernels = raw.kernels;
  if (whole(raw.nodesPerColumn, 1, 1000)) view.nodesPerColumn = raw.nodesPerColumn;
  if (whole(raw.kernelsPerNode, 1, 1000)) view.kernelsPerNode = raw.kernelsPerNode;
  if (raw.root === null || drawable(raw.root)) view.root = raw.root === document.target ? null : raw.root;
  if (raw.isolate === null || drawable(raw.isolate)) view.isolate = raw.isolate;
  if (raw.share === 0.5 || raw.share === 0.8 || raw.share === 0.95) view.share = raw.share;
  if (Array.isArray(raw.pins)) view.pins = [...new Set(raw.pins.filter(drawable))];
  if (Array.isArray(raw.groups)) {
    const taken = new Set<number>();
    view.groups = [];
    for (const group of raw.groups as { name?: unknown; nodes?: unknown }[]) {
      if (!Array.isArray(group?.nodes) || typeof group.name !== "string") continue;
      const nodes = [...new Set(group.nodes.filter(drawable))];
      if (nodes.length < 2 || nodes.some((node) => taken.has(node) || graph.column[node] !== graph.column[nodes[0]!]))
        continue;
      for (const node of nodes) taken.add(node);
      view.groups.push({ name: plain(group.name).slice(0, LONGEST_NAME), nodes });
    }
  }
  if (document.pictures.some(({ name }) => name === raw.pictures)) view.pictures = raw.pictures as string;
  if (raw.image === null || whole(raw.image, 0, (document.images?.names.length ?? 0) - 1)) view.image = raw.image;
  if (raw.mode === "diagram" || raw.mode === "all" || raw.mode === "table") view.mode = raw.mode;
  return view;
}

/** The view that the document itself asks for. */
export function ownView(graph: Graph): View {
  const { pictures, view } = graph.document;
  return checkView(graph, { ...DEFAULT_VIEW, pictures: pictures[0]?.name ?? DEFAULT_VIEW.pictures }, view ?? {});
}
