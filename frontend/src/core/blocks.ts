/** Blocks of a network, such as residual ones, and the ranges of columns that a view draws as one. */

import type { Graph } from "./decode.js";
import { plural } from "./format.js";
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

type Block = Span & { name: string };

/** The ranges of at least two columns, left of the target's, whose layers belong to one block. A sum without layers of
 *  its own belongs to the block before it. */
export function blocksOf(graph: Graph): Block[] {
  const found: Block[] = [];
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

/** The blocks inside a range of columns. */
export function blocksIn(graph: Graph, { first, last }: Span): Block[] {
  return blocksOf(graph).filter((block) => block.first >= first && block.last <= last);
}

/** The module that a block is one of several of: "layer3" of "layer3.1". */
function stageOf({ name }: Block): string {
  return name.replace(/\.[^.]*$/, "");
}

/** The ranges that are drawn as one column each at first, if not all columns have room: all blocks but the target's own
 *  and, while there are still more than `most` columns, neighbors of one stage together, those at the left first. */
export function closedAtFirst(graph: Graph, most: number): Span[] {
  const { columns } = graph.document;
  if (columns.length <= most) return [];
  const own = plain(nameOf(graph, columns.length - 1));
  const blocks = blocksOf(graph).filter(({ name }) => name !== own);
  let count = blocks.reduce((sum, { first, last }) => sum - (last - first), columns.length);
  const found: Block[] = [];
  for (const block of blocks) {
    const before = found.at(-1);
    if (count > most && before?.last === block.first - 1 && stageOf(before) === stageOf(block)) {
      before.last = block.last;
      count--;
    } else found.push({ ...block });
  }
  return found.map(({ first, last }) => ({ first, last }));
}

/** The range, among those drawn as one, that holds a column. */
export function spanAt(spans: readonly Span[], column: number): Span | undefined {
  return spans.find(({ first, last }) => first <= column && column <= last);
}

/** The ranges that a view draws as one: those left of what is drawn as the target. */
export function spansOf(graph: Graph, { collapsed }: Pick<View, "collapsed">, root: number): Span[] {
  return collapsed.filter(({ last }) => last < graph.column[root]!);
}

/** What a range is called: its block, the stage that its blocks are all of, its first and last blocks, or else its
 *  first and last columns. */
export function spanName(graph: Graph, span: Span): string {
  const inside = blocksIn(graph, span);
  const [from, to] = [inside[0], inside.at(-1)];
  if (from?.first !== span.first || to?.last !== span.last) {
    const ends = [span.first, span.last].map((column) => graph.document.columns[column]!.label);
    return plain(ends.join(" to "));
  }
  if (from === to) return from.name;
  const stage = blocksOf(graph).filter((each) => stageOf(each) === stageOf(from));
  const whole = stage.length === inside.length && stage.every(({ first }, i) => first === inside[i]!.first);
  return whole ? stageOf(from) : `${from.name} to ${to.name}`;
}

/** "3 blocks", or "3 columns": what a range is drawn as once it is opened. */
export function opensTo(graph: Graph, span: Span): string {
  const { length } = blocksIn(graph, span);
  return length > 1 ? plural(length, "block") : plural(span.last - span.first + 1, "column");
}
