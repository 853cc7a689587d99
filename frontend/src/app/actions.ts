/** The reader's actions, by pointer, key or button. Each announces what changed to screen readers. */

import { blocksIn, spanAt, spanName } from "../core/blocks.js";
import { percent } from "../core/format.js";
import type { Span } from "../core/types.js";
import type { Spot, Store } from "./store.js";

export function isolateNode(store: Store, node: number): void {
  if (store.view.value.isolate === node) {
    clear(store);
    return;
  }
  store.selection.value = [node];
  const drawn = store.plan.value.nodes.find((each) => each.nodes.includes(node));
  hold(store, { nodes: drawn?.nodes ?? [node], edges: [] });
  store.change({ isolate: node });
  const { lit, nodes } = store.scene.value;
  const count = lit ? lit.nodes.reduce((sum, each) => sum + each, 0) : nodes.length;
  const through = `${percent(store.view.value.share)} of the drawn flow through it`;
  store.say(`${store.drawnName(node)} isolated: ${through}, ${count} filters are lit`);
}

/** Keeps the details of nodes or edges in the panel, and opens it where it is a sheet. */
export function hold(store: Store, spot: Spot): void {
  store.held.value = spot;
  store.whole.value = null;
  store.sheet.value = true;
}

/** Clears the isolation, the selection and the details. */
export function clear(store: Store): void {
  store.held.value = null;
  store.whole.value = null;
  if (store.view.value.isolate === null && store.selection.value.length === 0) return;
  store.selection.value = [];
  store.change({ isolate: null }, "nothing is isolated");
}

/** Escape: clears the isolation, the selection and the details; if there are none, goes back to the previous root. */
export function stepBack(store: Store): void {
  if (
    store.view.value.isolate !== null ||
    store.selection.value.length > 0 ||
    store.held.value ||
    store.whole.value !== null
  ) {
    clear(store);
    return;
  }
  const trail = store.trail.value;
  if (trail.length < 2) return;
  const root = trail[trail.length - 2]!;
  store.change({ root, isolate: null }, `back to ${store.name(root ?? store.graph.document.target)} as the target`);
}

export function reroot(store: Store, node: number): void {
  store.selection.value = [];
  store.current.value = node;
  store.change({ root: node, isolate: null }, `${store.name(node)} is drawn as the target; Escape goes back`);
}

export function pin(store: Store, node: number): void {
  const { pins } = store.view.value;
  const pinned = pins.includes(node);
  store.change(
    { pins: pinned ? pins.filter((each) => each !== node) : [...pins, node] },
    `${store.name(node)} ${pinned ? "is no longer pinned" : "is pinned"}`,
  );
}

/** Adds nodes to the selection or, if all are in it, removes them. Nodes of other columns are deselected. */
export function choose(store: Store, nodes: number[]): void {
  const { column } = store.graph;
  const held = store.selection.value.filter((node) => column[node] === column[nodes[0]!]);
  store.selection.value = nodes.every((node) => held.includes(node))
    ? held.filter((node) => !nodes.includes(node))
    : [...new Set([...held, ...nodes])];
  if (store.view.value.isolate !== null) store.change({ isolate: null });
  store.say(`${store.selection.value.length} filters chosen`);
}

/** Draws nodes, by default the selected ones, as one group, in place of the groups that they belonged to. */
export function group(store: Store, nodes = store.selection.value): void {
  if (nodes.length < 2) return;
  const others = store.view.value.groups.filter((each) => !each.nodes.some((node) => nodes.includes(node)));
  const name = `group ${store.view.value.groups.length + 1}`;
  store.selection.value = [];
  store.change(
    { groups: [...others, { name, nodes }], isolate: null },
    `${nodes.length} filters are drawn as one: ${name}`,
  );
}

/** Draws ranges of columns as one each, and opens all others. */
export function collapse(store: Store, collapsed: Span[], message: string): void {
  store.held.value = null;
  store.selection.value = [];
  store.change({ collapsed, isolate: null }, message);
}

/** Opens a range of columns: one of several blocks into these, and a block, which may be one of such, into its
 *  columns. */
export function open(store: Store, span: Span): void {
  const { collapsed } = store.view.value;
  const around = spanAt(collapsed, span.first) ?? span;
  const inside = blocksIn(store.graph, around).filter(({ first, last }) => first !== span.first || last !== span.last);
  collapse(
    store,
    [...collapsed.filter((each) => each !== around), ...inside.map(({ first, last }) => ({ first, last }))],
    `${spanName(store.graph, span)} is open`,
  );
}

/** Writes a node's label or what is noted of it; empty text removes it. */
export function annotate(store: Store, node: number, part: { label: string } | { note: string }): void {
  const { notes } = store.view.value;
  const own = { node, label: "", note: "", ...notes.find((each) => each.node === node), ...part };
  const others = notes.filter((each) => each.node !== node);
  store.source.note?.(own); // first: the change writes all notes into the address, where a host may have them already
  store.change({ notes: own.label || own.note ? [...others, own] : others });
  store.say(`${store.name(node)}: ${"label" in part ? "label" : "note"} written`);
}

export function renameGroup(store: Store, at: number, name: string): void {
  store.change({ groups: store.view.value.groups.map((each, i) => (i === at ? { ...each, name } : each)) });
}

export function ungroup(store: Store, at: number): void {
  const name = store.view.value.groups[at]?.name;
  store.change({ groups: store.view.value.groups.filter((_, i) => i !== at), isolate: null }, `${name} is ungrouped`);
}
