/** Views from outside (a URL, a notebook, a saved document) against the document: what is not valid is left out. Python
 *  refuses it (`check_view` in data.py), so that a view that is valid there is the same view here. */

import { DocumentError, type Graph } from "./decode.js";
import { flowOf } from "./flow.js";
import { fits } from "./select.js";
import { plain } from "./text.js";
import {
  DEFAULT_VIEW,
  LONGEST_LABEL,
  LONGEST_NAME,
  LONGEST_NOTE,
  MODES,
  NodeKind,
  type Note,
  PATHS,
  SHARES,
  type View,
} from "./types.js";

/** `base` with what is valid in `raw`. */
export function viewOf(graph: Graph, base: View, raw: Partial<Record<keyof View, unknown>>): View {
  const { document } = graph;
  const whole = (value: unknown, from: number, end = Infinity): value is number =>
    Number.isInteger(value) && (value as number) >= from && (value as number) < end;
  const drawable = (value: unknown): value is number =>
    whole(value, 0, graph.nodeCount) && graph.kind[value] !== NodeKind.image;
  const view = { ...base };
  if (whole(raw.variant, 0, document.variants.length)) view.variant = raw.variant;
  if (raw.compare === null || whole(raw.compare, 0, document.variants.length)) view.compare = raw.compare;
  if (view.compare === view.variant) view.compare = null;
  if (raw.kernels === null || whole(raw.kernels, 1)) view.kernels = raw.kernels;
  if (whole(raw.nodesPerColumn, 1)) view.nodesPerColumn = raw.nodesPerColumn;
  if (whole(raw.kernelsPerNode, 1)) view.kernelsPerNode = raw.kernelsPerNode;
  view.paths = PATHS.find((paths) => paths === raw.paths) ?? view.paths;
  if (raw.root === null || drawable(raw.root)) view.root = raw.root === document.target ? null : raw.root;
  if (raw.isolate === null || drawable(raw.isolate)) view.isolate = raw.isolate;
  view.share = SHARES.find((share) => share === raw.share) ?? view.share;
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
      view.groups.push({ name: text(group.name, LONGEST_NAME), nodes });
    }
  }
  if (Array.isArray(raw.collapsed)) {
    view.collapsed = [];
    for (const { first, last } of raw.collapsed.filter(Boolean) as { first?: unknown; last?: unknown }[])
      if (whole(first, 0) && whole(last, first + 1, document.columns.length - 1))
        if (view.collapsed.every((each) => last < each.first || first > each.last))
          view.collapsed.push({ first, last });
  }
  if (Array.isArray(raw.notes)) {
    const noted = new Map<number, Note>();
    for (const each of raw.notes as { node?: unknown; label?: unknown; note?: unknown }[]) {
      if (!drawable(each?.node) || noted.has(each.node)) continue;
      const [label, note] = [text(each.label, LONGEST_LABEL), text(each.note, LONGEST_NOTE, true)];
      if (label || note) noted.set(each.node, { node: each.node, label, note });
    }
    view.notes = [...noted.values()];
  }
  if (document.pictures.some(({ name }) => name === raw.pictures)) view.pictures = raw.pictures as string;
  if (raw.image === null || whole(raw.image, 0, document.images?.names.length ?? 0)) view.image = raw.image;
  if (view.image !== null && !imagesOf(graph, view).includes(view.image)) view.image = null;
  view.mode = MODES.find((mode) => mode === raw.mode) ?? view.mode;
  return view;
}

const FILE = "convcircuits-view/1";

/** A view as the text of a file, with the document that it is of. */
export function viewFile(graph: Graph, view: View): string {
  const { model, feature } = graph.document.meta;
  const of = { model, feature, identity: identity(graph) };
  return `${JSON.stringify({ schema: FILE, document: of, view }, null, 1)}\n`;
}

/** The view of a file on `base`, and the fields of it that do not fit the document and are left out. Raises
 *  DocumentError, with a sentence, if the file is no view, or one of another document. */
export function readViewFile(graph: Graph, base: View, text: string): { view: View; left: string[] } {
  let said: { schema?: unknown; document?: Record<string, unknown>; view?: Record<string, unknown> };
  try {
    said = JSON.parse(text);
  } catch {
    throw new DocumentError("This file is not a saved view: it is not valid JSON.");
  }
  if (said?.schema !== FILE || typeof said.view !== "object" || !said.view)
    throw new DocumentError(`This file is not a saved view: a view has the schema "${FILE}".`);
  const of = said.document;
  if (of?.identity !== identity(graph)) {
    const [other, own] = [of, graph.document.meta].map((each) => `${each?.feature} of ${each?.model}`);
    const which = other === own ? `another diagram of ${own}` : `a diagram of ${other}, and this one is of ${own}`;
    throw new DocumentError(plain(`This view is of ${which}.`.slice(0, 300)));
  }
  return opened(graph, base, said.view);
}

/** The view that is given on `base`, and the fields of it that do not fit the document and are left out. */
export function opened(graph: Graph, base: View, given: Record<string, unknown>): { view: View; left: string[] } {
  const view = viewOf(graph, base, given);
  const differs = (name: string) => JSON.stringify(view[name as keyof View]) !== JSON.stringify(given[name]);
  return { view, left: Object.keys(given).filter(differs).map(plain) };
}

/** What is said of the fields that were left out; "" if there are none. */
export function leftOut(left: string[]): string {
  return left.length ? `The view was opened without what does not fit this diagram: ${left.join(", ")}.` : "";
}

/** A fingerprint of what the numbers of a view refer to: nodes, edges, circuits with their ranks, images (FNV-1a). */
function identity({ document }: Graph): string {
  const { meta, nodes, edges, variants, images, target } = document;
  const { kind, column, layer, unit } = nodes;
  const { source, target: ends, out, in: reads } = edges;
  const ranks = variants.map(({ rank }) => rank);
  const lists = [kind, column, layer, unit, source, ends, out, reads, ...ranks].map(({ data }) => data);
  const text = JSON.stringify([meta.model, meta.feature, target, images?.names, lists]);
  let [a, b] = [0x811c9dc5, 0x01000193];
  for (let i = 0; i < text.length; i++) {
    a = Math.imul(a ^ text.charCodeAt(i), 0x01000193);
    b = Math.imul(b ^ text.charCodeAt(i), 0x85ebca6b);
  }
  return [a, b].map((half) => (half >>> 0).toString(16).padStart(8, "0")).join("");
}

/** A text of at most so many characters, on one line or on several. */
function text(given: unknown, most: number, several = false): string {
  if (typeof given !== "string") return "";
  const lines = several ? given.replace(/\r\n?/g, "\n").split("\n") : [given];
  return [...lines.map(plain).join("\n")].slice(0, most).join("");
}

/** The images that a view lists: those of the groups of its variants, or all. */
export function imagesOf({ document: { images } }: Graph, { variant, compare }: View): number[] {
  const all = [...(images?.names.keys() ?? [])];
  const own = all.filter((image) => [variant, compare].includes(images!.variants[image] ?? null));
  return own.length ? own : all;
}

/** The default view, with pictures that the document has. */
export function defaultView(graph: Graph): View {
  const { pictures } = graph.document;
  const usual = pictures.find(({ name }) => name === DEFAULT_VIEW.pictures) ?? pictures[0];
  return { ...DEFAULT_VIEW, pictures: usual?.name ?? DEFAULT_VIEW.pictures };
}

/** The view that the document itself asks for. */
export function ownView(graph: Graph): View {
  return viewOf(graph, defaultView(graph), graph.document.view ?? {});
}

/** The view with a width's budget instead of the default one. A budget that the reader chose stays, and what is drawn
 *  whole is drawn whole at any width. */
export function onPaper(
  graph: Graph,
  view: View,
  budget: { readonly nodesPerColumn?: number; readonly kernelsPerNode?: number },
): View {
  if (fits(graph, flowOf(graph, view), view)) return view;
  const { nodesPerColumn, kernelsPerNode } = DEFAULT_VIEW;
  return {
    ...view,
    nodesPerColumn:
      view.nodesPerColumn === nodesPerColumn ? (budget.nodesPerColumn ?? nodesPerColumn) : view.nodesPerColumn,
    kernelsPerNode:
      view.kernelsPerNode === kernelsPerNode ? (budget.kernelsPerNode ?? kernelsPerNode) : view.kernelsPerNode,
  };
}
