/** The order of the items in each column, chosen so that edges, especially heavy ones, rarely cross. */

/** Items in columns, and links from each column to the next. */
export interface Layers {
  columns: number[][]; // the things of each column, from top to bottom
  links: { from: number; to: number; weight: number }[][]; // links[c]: from column c to c + 1
}

/** The best order found by twelve barycenter sweeps; never worse than the given one. */
export function order(layers: Layers, sweeps = 12): number[][] {
  let columns = layers.columns.map((column) => [...column]);
  let best = columns;
  let least = crossings(columns, layers.links);
  for (let sweep = 0; sweep < sweeps && least > 0; sweep++) {
    columns = sweep % 2 ? rightToLeft(columns, layers.links) : leftToRight(columns, layers.links);
    const now = crossings(columns, layers.links);
    if (now < least) [best, least] = [columns, now];
  }
  return best;
}

/** The sum over crossing pairs of links of the product of their weights. */
export function crossings(columns: number[][], links: Layers["links"]): number {
  let total = 0;
  for (const [c, between] of links.entries()) {
    const left = places(columns[c]!);
    const right = places(columns[c + 1]!);
    const sorted = between
      .map(({ from, to, weight }) => ({ x: left.get(from)!, y: right.get(to)!, weight }))
      .sort((a, b) => a.x - b.x || a.y - b.y);
    // The weight so far at each place of the right column, in a Fenwick tree.
    const size = columns[c + 1]!.length;
    const tree = new Float64Array(size + 1);
    let sum = 0;
    for (const { y, weight } of sorted) {
      let above = 0;
      for (let at = y + 1; at > 0; at -= at & -at) above += tree[at]!;
      total += weight * (sum - above);
      for (let at = y + 1; at <= size; at += at & -at) tree[at]! += weight;
      sum += weight;
    }
  }
  return total;
}

function places(column: number[]): Map<number, number> {
  return new Map(column.map((thing, place) => [thing, place]));
}

function leftToRight(columns: number[][], links: Layers["links"]): number[][] {
  const next = columns.slice();
  for (let c = 1; c < next.length; c++) next[c] = byBarycenter(next[c]!, next[c - 1]!, links[c - 1]!, "to", "from");
  return next;
}

function rightToLeft(columns: number[][], links: Layers["links"]): number[][] {
  const next = columns.slice();
  for (let c = next.length - 2; c >= 0; c--) next[c] = byBarycenter(next[c]!, next[c + 1]!, links[c]!, "from", "to");
  return next;
}

/** Sorts a column by the weighted mean place of each item's neighbors. An item without links keeps its place. */
function byBarycenter(
  column: number[],
  fixed: number[],
  links: Layers["links"][number],
  here: "from" | "to",
  there: "from" | "to",
): number[] {
  const place = places(fixed);
  const sums = new Map<number, [number, number]>(column.map((thing) => [thing, [0, 0]]));
  for (const link of links) {
    const sum = sums.get(link[here])!;
    sum[0] += link.weight * (place.get(link[there])! + 0.5);
    sum[1] += link.weight;
  }
  const scale = fixed.length / Math.max(1, column.length);
  const center = new Map(
    column.map((thing, at) => {
      const [sum, weight] = sums.get(thing)!;
      return [thing, weight > 0 ? sum / weight : (at + 0.5) * scale];
    }),
  );
  return [...column].sort((a, b) => center.get(a)! - center.get(b)!);
}
