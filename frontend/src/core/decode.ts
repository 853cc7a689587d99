/** The document as typed arrays, with the incoming and outgoing edges of each node. */

import { ARRAYS, type Buffer, type Document, EdgeKind, NodeKind, SCHEMA, type View } from "./types.js";

export class DocumentError extends Error {}

const TYPES = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  int32: Int32Array,
  float32: Float32Array,
} as const;

/** Where the document has an array. */
export type Place = keyof typeof ARRAYS;

type Numbers<P extends Place> = (typeof ARRAYS)[P] extends `${infer D extends keyof typeof TYPES} ${string}`
  ? InstanceType<(typeof TYPES)[D]>
  : never;

/** A list for each of several keys: that of key i is items[start[i]] up to (not including) items[start[i + 1]]. */
export interface Lists {
  start: Int32Array;
  items: Int32Array;
}

export interface Graph {
  document: Document;
  nodeCount: number;
  edgeCount: number;
  kind: Uint8Array;
  column: Int16Array;
  layer: Int16Array;
  unit: Int32Array;
  source: Int32Array;
  target: Int32Array;
  edgeKind: Uint8Array;
  edgeLayer: Int16Array;
  /** The first of the layers that have the same name: one that runs several times is listed as often, and its kernels
   *  are the same. */
  sameLayer: number[];
  out: Int32Array;
  in: Int32Array;
  sign: Int8Array;
  weightStart: Int32Array;
  scale: Float32Array;
  weights: Int8Array;
  variants: { saliency: Float32Array; rank: Int32Array; gain: Float32Array | null }[];
  /** Edges by their target and by their source; inner ones apart, by their node. */
  incoming: Lists;
  outgoing: Lists;
  inner: Lists;
  /** All nodes by column: sources before targets. */
  leftToRight: Int32Array;
  /** The first tile of each node in each picture set. */
  tiles: Int32Array[];
  /** All tiles of a node in a set, the best first. */
  tilesOf(set: number, node: number): number[];
}

/** Decode a document. Raises DocumentError, with a sentence, for what is not one or contradicts itself. */
export function decode(document: Document): Graph {
  if (document?.schema !== SCHEMA)
    throw new DocumentError(`This is not a ${SCHEMA} document: its schema is ${JSON.stringify(document?.schema)}.`);
  checkArrays(document);
  const n = document.nodes.kind.shape[0]!;
  const source = numbers(document, "edges.source");
  const target = numbers(document, "edges.target");
  const edgeKind = numbers(document, "edges.kind");
  const column = numbers(document, "nodes.column");
  const calibrated = document.variants.flatMap(({ calibration }) => calibration ?? []);
  const every = document.pictures.map((pictures, set) => ({
    tiles: numbers(document, "pictures.tiles", set),
    each: pictures.tiles.shape[1]!,
  }));
  const graph: Graph = {
    document,
    nodeCount: n,
    edgeCount: source.length,
    kind: numbers(document, "nodes.kind"),
    column,
    layer: numbers(document, "nodes.layer"),
    unit: numbers(document, "nodes.unit"),
    source,
    target,
    edgeKind,
    edgeLayer: numbers(document, "edges.layer"),
    sameLayer: document.layers.map(({ name }) => document.layers.findIndex((other) => other.name === name)),
    out: numbers(document, "edges.out"),
    in: numbers(document, "edges.in"),
    sign: numbers(document, "edges.sign"),
    weightStart: numbers(document, "edges.weights"),
    scale: numbers(document, "edges.scale"),
    weights: numbers(document, "weights"),
    variants: document.variants.map(({ calibration }, v) => ({
      saliency: numbers(document, "variants.saliency", v),
      rank: numbers(document, "variants.rank", v),
      gain: calibration && numbers(document, "variants.calibration.gain", calibrated.indexOf(calibration)),
    })),
    incoming: lists(n, target, (edge) => edgeKind[edge] !== EdgeKind.inner),
    outgoing: lists(n, source, (edge) => edgeKind[edge] !== EdgeKind.inner),
    inner: lists(n, target, (edge) => edgeKind[edge] === EdgeKind.inner),
    leftToRight: Int32Array.from({ length: n }, (_, node) => node).sort((a, b) => column[a]! - column[b]! || a - b),
    tiles: every.map(({ tiles, each }) => Int32Array.from({ length: n }, (_, i) => (each ? tiles[i * each]! : -1))),
    tilesOf(set, node) {
      const { tiles, each } = every[set] ?? { tiles: new Int32Array(0), each: 0 };
      return [...tiles.subarray(node * each, (node + 1) * each)].filter((tile) => tile >= 0);
    },
  };
  check(graph);
  return graph;
}

/** The buffers that some fields lead to, each with its full name: none where what they belong to is null. */
function buffersAt(value: unknown, fields: string[], name = ""): { buffer: Buffer; name: string }[] {
  const [field, ...rest] = fields;
  if (field === undefined) return [{ buffer: value as Buffer, name }];
  if (value === null) return [];
  if (Array.isArray(value)) return value.flatMap((each, i) => buffersAt(each, fields, `${name}[${i}]`));
  const inner = (value as Record<string, unknown> | undefined)?.[field];
  return buffersAt(inner, rest, name ? `${name}.${field}` : field);
}

/** Checks that every array has its dtype, and that its shape matches the counts it belongs to. Throws DocumentError. */
function checkArrays(document: Document): void {
  const sizes: Record<string, number | undefined> = {
    N: document.nodes?.kind?.shape?.[0],
    E: document.edges?.source?.shape?.[0],
    V: document.variants?.length,
    I: document.images?.names?.length,
    "2": 2,
  };
  for (const [place, type] of Object.entries(ARRAYS)) {
    const [dtype, ...axes] = type.split(" ");
    for (const { buffer, name } of buffersAt(document, place.split("."))) {
      if (buffer?.dtype !== dtype) throw new DocumentError(`${name} should hold ${dtype}, not ${buffer?.dtype}.`);
      const { shape } = buffer;
      if (shape?.length !== axes.length || axes.some((axis, i) => shape[i] !== (sizes[axis] ?? shape[i])))
        throw new DocumentError(
          `${name} has shape [${shape}], not [${axes.map((axis) => sizes[axis] ?? axis)}] (${axes}).`,
        );
    }
  }
}

/** The numbers of the document's array at a place; of a list's, those of one entry. Raises DocumentError where there
 *  are not as many as its shape says. */
export function numbers<P extends Place>(document: Document, place: P, entry = 0): Numbers<P> {
  const { buffer, name } = buffersAt(document, place.split("."))[entry]!;
  const bytes = fromBase64(buffer.data, name);
  const Typed = TYPES[buffer.dtype];
  const size = buffer.shape.reduce((product, length) => product * length, Typed.BYTES_PER_ELEMENT);
  if (bytes.length !== size)
    throw new DocumentError(`${name} holds ${bytes.length} bytes, not the ${size} of its shape [${buffer.shape}].`);
  return new Typed(bytes.buffer) as Numbers<P>;
}

/** The bytes of base64 text. Uses the engine's own decoder if it has one, because documents are large. */
function fromBase64(text: string, name: string): Uint8Array<ArrayBuffer> {
  const { fromBase64: native } = Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };
  try {
    return native ? native.call(Uint8Array, text) : Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  } catch {
    throw new DocumentError(`${name} is not base64.`);
  }
}

/** The place of the picture set that a view shows of one variant: the set of its own group if there are groups. */
export function setOf({ document: { pictures } }: Graph, shown: string, variant: number): number {
  const named = pictures.flatMap(({ name }, set) => (name === shown ? set : []));
  return named.find((set) => pictures[set]!.variant === variant) ?? named[0] ?? 0;
}

/** Lists the items 0, 1, ... that pass by their key, in order. */
export function lists(keys: number, keyOf: ArrayLike<number>, passes: (item: number) => boolean): Lists {
  const start = new Int32Array(keys + 1);
  for (let item = 0; item < keyOf.length; item++)
    if (passes(item) && inside(keyOf[item]!, keys)) start[keyOf[item]! + 1]!++;
  for (let key = 0; key < keys; key++) start[key + 1]! += start[key]!;
  const items = new Int32Array(start[keys]!);
  const next = start.slice();
  for (let item = 0; item < keyOf.length; item++)
    if (passes(item) && inside(keyOf[item]!, keys)) items[next[keyOf[item]!]!++] = item;
  return { start, items };
}

function inside(value: number, length: number): boolean {
  return value >= 0 && value < length;
}

function check(graph: Graph): void {
  const { document, nodeCount, column, kind, layer } = graph;
  const fail = (sentence: string): never => {
    throw new DocumentError(sentence);
  };
  /** Checks that a node or an edge is `at` one of so many things, or has none, which is -1. */
  const has = (what: string, at: number, count: number) => {
    if (at < -1 || at >= count) fail(`${what} ${at} of ${count}.`);
  };
  if (!inside(document.target, nodeCount))
    fail(`The target is node ${document.target}, but there are only ${nodeCount} nodes.`);
  if (!document.variants.length) fail("The document has no variant, so there is no circuit to draw.");
  for (let node = 0; node < nodeCount; node++) {
    if ((kind[node] === NodeKind.image) !== (column[node] === -1))
      fail(`Node ${node}: the image's channels, and they alone, are in column -1.`);
    has(`Node ${node} is in column`, column[node]!, document.columns.length);
    has(`Node ${node} is of layer`, layer[node]!, document.layers.length);
  }
  for (let edge = 0; edge < graph.edgeCount; edge++) {
    const [from, to] = [graph.source[edge]!, graph.target[edge]!];
    if (!inside(from, nodeCount) || !inside(to, nodeCount))
      fail(`Edge ${edge} joins ${from} and ${to}, of ${nodeCount} nodes.`);
    const inner = graph.edgeKind[edge] === EdgeKind.inner;
    if (inner !== (from === to))
      fail(`Edge ${edge}: an inner kernel, and it alone, has its node as source and target.`);
    if (!inner && column[from]! >= column[to]!)
      fail(`Edge ${edge} does not go to the right: from column ${column[from]} to ${column[to]}.`);
    has(`Edge ${edge} is of layer`, graph.edgeLayer[edge]!, document.layers.length);
    const start = graph.weightStart[edge]!;
    if (start >= 0) {
      const [height, width] = graph.edgeLayer[edge]! >= 0 ? document.layers[graph.edgeLayer[edge]!]!.kernel : [1, 1];
      if (start + height * width > graph.weights.length)
        fail(`Edge ${edge}: its weights end after the ${graph.weights.length} there are.`);
    }
  }
}

/** A kernel's weights, row by row, in the network's units; null where it has none. */
export function kernel(graph: Graph, edge: number): { height: number; width: number; weights: Float32Array } | null {
  const start = graph.weightStart[edge]!;
  if (start < 0 || graph.edgeLayer[edge]! < 0) return null;
  const [height, width] = graph.document.layers[graph.edgeLayer[edge]!]!.kernel;
  const scale = graph.scale[edge]! / 127;
  return {
    height,
    width,
    weights: Float32Array.from(graph.weights.subarray(start, start + height * width), (weight) => weight * scale),
  };
}

/** What the drawn circuit multiplies a kernel by: 1 unless it was fitted. Of two that are compared, the first that has
 *  the kernel counts. */
export function gainOf(graph: Graph, { variant, compare }: View, edge: number): number {
  const has = (v: number | null): v is number => v !== null && graph.variants[v]!.rank[edge]! >= 0;
  return graph.variants[[variant, compare].find(has) ?? variant]!.gain?.[edge] ?? 1;
}

/** Whether a drawn circuit has gains of its own. */
export function isFitted(graph: Graph, { variant, compare }: View): boolean {
  return [variant, compare].some((v) => v !== null && graph.variants[v]!.gain !== null);
}

/** Where a tile is: its page and its place there. */
export function tileAt(document: Document, tile: number): { page: number; column: number; row: number } | null {
  let first = 0;
  for (const [page, { columns, count }] of document.tiles.pages.entries()) {
    if (tile >= first && tile < first + count)
      return { page, column: (tile - first) % columns, row: Math.floor((tile - first) / columns) };
    first += count;
  }
  return null;
}
