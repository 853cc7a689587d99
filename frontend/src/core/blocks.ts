/** Blocks of a network, such as residual ones, and the ranges of columns that a view draws as one. */

import type { Graph } from "./decode.js";
import { plain } from "./text.js";
import type { Span, View } from "./types.js";

/** The module that a layer's name says it belongs to, if that is numbered: "layer3.1" of "layer3.1.conv2". A layer that
 *  is itself numbered, as "features.10", is no block. */
export function blockOf(layer: string): string {
  return /^(?:[^.\d]+\.)*(?:(?:[^.]*\d[^.]*|blocks|layers)\.)*[^.]*\d[^.]*(?=\.)/.exec(layer)?.[0] ?? "";
}

/** The name of the block that all layers of a column belong to; "" if there is none. */
function nameOf({ document }: Graph, column: number): string {
  const names = new Set(document.layers.flatMap((layer) => (layer.column === column ? [blockOf(layer.name)] : [])));
  return names.size === 1 ? [...names][0]! : "";
}

/** The ranges of at least two columns, left of the target's, whose layers belong to one block. A sum without layers of
 *  its own belongs to the block before it. */
export function blocksOf(graph: Graph): (Span & { name: string })[] {
  const found: (Span & { name: string })[] = [];
  const { columns, layers } = graph.document;
  for (let column = 0; column < columns.length - 1; column++) {
    const before = found.at(-1);
    const name = nameOf(graph, column);
    const bare = !layers.some((layer) => layer.column === column);
    if (before?.last === column - 1 && before.name && (bare || before.name === name)) before.last = column;
    else found.push({ name, first: column, last: column });
  }
  return found
    .filter(({ name, first, last }) => name && last > first)
    .map((each) => ({ ...each, name: plain(each.name) }));
}

/** The blocks that are drawn as one column at first, if not all columns have room: all but the target's own. */
export function closedAtFirst(graph: Graph): Span[] {
  const { columns } = graph.document;
  const own = plain(nameOf(graph, columns.length - 1));
  return blocksOf(graph).flatMap(({ name, first, last }) => (name === own ? [] : [{ first, last }]));
}

/** The range, among those drawn as one, that holds a column. */
export function spanAt(spans: readonly Span[], column: number): Span | undefined {
  return spans.find(({ first, last }) => first <= column && column <= last);
}

/** The ranges that a view draws as one: those left of what is drawn as the target. */
export function spansOf(graph: Graph, { collapsed }: Pick<View, "collapsed">, root: number): Span[] {
  return collapsed.filter(({ last }) => last < graph.column[root]!);
}

/** What a range is called: its block, or its first and last columns. */
export function spanName(graph: Graph, { first, last }: Span): string {
  const block = blocksOf(graph).find((each) => each.first === first && each.last === last);
  const [from, to] = [first, last].map((column) => graph.document.columns[column]!.label);
  return block?.name ?? plain(`${from} to ${to}`);
}
