/** The document as typed arrays, with what comes into and goes out of each node. */

import { type Buffer, type Document, type Dtype, EdgeKind, NodeKind, SCHEMA } from "./types.js";

export class DocumentError extends Error {}

const ARRAYS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  int32: Int32Array,
  float32: Float32Array,
} as const;

type Numbers<D extends Dtype> = InstanceType<(typeof ARRAYS)[D]>;

/** For each of some things, a list: those of thing i are items[start[i]] up to items[start[i + 1]]. */
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
  variants: { saliency: Float32Array; rank: Int32Array }[];
  /** Edges by their target and by their source; inner ones apart, by their node. */
  incoming: Lists;
  outgoing: Lists;
  inner: Lists;
  /** All nodes by column: sources before targets. */
  leftToRight: Int32Array;
  /** The first tile of each node, by the picture set's name. */
  tiles: Map<string, Int32Array>;
}

/** Decode a document. Raises DocumentError, with a sentence, for what is not one or contradicts itself. */
export function decode(document: Document): Graph {
  if (document?.schema !== SCHEMA)
    throw new DocumentError(`This is no ${SCHEMA} document: its schema is ${JSON.stringify(document?.schema)}.`);
  const { nodes, edges } = document;
  const n = numbers(nodes.kind, "uint8", "nodes.kind").length;
  const e = numbers(edges.source, "int32", "edges.source").length;
  const ofNodes = <D extends Dtype>(buffer: Buffer, dtype: D, name: string) =>
    numbers(buffer, dtype, `nodes.${name}`, n);
  const ofEdges = <D extends Dtype>(buffer: Buffer, dtype: D, name: string) =>
    numbers(buffer, dtype, `edges.${name}`, e);
  const source = ofEdges(edges.source, "int32", "source");
  const target = ofEdges(edges.target, "int32", "target");
  const edgeKind = ofEdges(edges.kind, "uint8", "kind");
  const column = ofNodes(nodes.column, "int16", "column");
  const graph: Graph = {
    document,
    nodeCount: n,
    edgeCount: e,
    kind: ofNodes(nodes.kind, "uint8", "kind"),
    column,
    layer: ofNodes(nodes.layer, "int16", "layer"),
    unit: ofNodes(nodes.unit, "int32", "unit"),
    source,
    target,
    edgeKind,
    edgeLayer: ofEdges(edges.layer, "int16", "layer"),
    sameLayer: document.layers.map(({ name }) => document.layers.findIndex((other) => other.name === name)),
    out: ofEdges(edges.out, "int32", "out"),
    in: ofEdges(edges.in, "int32", "in"),
    sign: ofEdges(edges.sign, "int8", "sign"),
    weightStart: ofEdges(edges.weights, "int32", "weights"),
    scale: ofEdges(edges.scale, "float32", "scale"),
    weights: numbers(document.weights, "int8", "weights"),
    variants: document.variants.map(({ saliency, rank }, v) => ({
      saliency: numbers(saliency, "float32", `variants[${v}].saliency`, e),
      rank: numbers(rank, "int32", `variants[${v}].rank`, e),
    })),
    incoming: lists(n, target, (edge) => edgeKind[edge] !== EdgeKind.inner),
    outgoing: lists(n, source, (edge) => edgeKind[edge] !== EdgeKind.inner),
    inner: lists(n, target, (edge) => edgeKind[edge] === EdgeKind.inner),
    leftToRight: Int32Array.from({ length: n }, (_, node) => node).sort((a, b) => column[a]! - column[b]! || a - b),
    tiles: new Map(document.pictures.map(({ name, tiles }) => [name, firstTiles(tiles, name, n)])),
  };
  check(graph);
  return graph;
}

/** The numbers of a buffer. Raises DocumentError where its type or length is not what is expected. */
export function numbers<D extends Dtype>(buffer: Buffer, dtype: D, name: string, length?: number): Numbers<D> {
  if (buffer?.dtype !== dtype) throw new DocumentError(`${name} should hold ${dtype}, not ${buffer?.dtype}.`);
  const bytes = fromBase64(buffer.data, name);
  const Typed = ARRAYS[dtype];
  const expected = buffer.shape.reduce((product, size) => product * size, 1);
  const size = expected * Typed.BYTES_PER_ELEMENT;
  if (bytes.length !== size)
    throw new DocumentError(`${name} holds ${bytes.length} bytes, not the ${size} of its shape [${buffer.shape}].`);
  if (length !== undefined && expected !== length)
    throw new DocumentError(`${name} holds ${expected} numbers, not ${length}.`);
  return new Typed(bytes.buffer) as Numbers<D>;
}

/** The bytes of base64 text: by what the engine has for it, where it has it, for documents are large. */
function fromBase64(text: string, name: string): Uint8Array<ArrayBuffer> {
  const { fromBase64: native } = Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };
  try {
    return native ? native.call(Uint8Array, text) : Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  } catch {
    throw new DocumentError(`${name} is not base64.`);
  }
}

function firstTiles(buffer: Buffer, name: string, n: number): Int32Array {
  const tiles = numbers(buffer, "int32", `pictures ${name}`);
  if (buffer.shape[0] !== n) throw new DocumentError(`pictures ${name} are of ${buffer.shape[0]} nodes, not ${n}.`);
  const each = buffer.shape[1] ?? 1;
  return Int32Array.from({ length: n }, (_, node) => (each ? tiles[node * each]! : -1));
}

/** Items 0, 1, ... that pass, listed by their key, in order. */
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
  if (!inside(document.target, nodeCount)) fail(`The target ${document.target} is none of the ${nodeCount} nodes.`);
  if (!document.variants.length) fail("The document holds no variant: there is no circuit to draw.");
  for (let node = 0; node < nodeCount; node++) {
    if ((kind[node] === NodeKind.image) !== (column[node] === -1))
      fail(`Node ${node}: the image's channels, and they alone, are in column -1.`);
    if (column[node]! < -1 || column[node]! >= document.columns.length)
      fail(`Node ${node} is in column ${column[node]} of ${document.columns.length}.`);
    if (layer[node]! < -1 || layer[node]! >= document.layers.length)
      fail(`Node ${node} is of layer ${layer[node]} of ${document.layers.length}.`);
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
    if (graph.edgeLayer[edge]! >= document.layers.length)
      fail(`Edge ${edge} is of layer ${graph.edgeLayer[edge]} of ${document.layers.length}.`);
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
