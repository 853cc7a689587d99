/** Documents to test with: random ones, and one that looks like a circuit of a real network. */

import { deflateSync } from "node:zlib";
import { type Document, EdgeKind, NodeKind, type Buffer as Numbers, SCHEMA, type Variant } from "../src/core/types.js";

/** A stream of numbers in [0, 1) that a seed determines (mulberry32). */
export function randomness(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

const ARRAYS = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array };

export function pack(dtype: Numbers["dtype"], values: ArrayLike<number>, shape: number[] = [values.length]): Numbers {
  return { dtype, shape, data: Buffer.from(ARRAYS[dtype].from(values).buffer).toString("base64") };
}

interface Edge {
  source: number;
  target: number;
  kind: number;
  layer: number;
  sign: number;
  out: number;
  in: number;
}

interface Node {
  kind: number;
  column: number;
  layer: number;
  unit: number;
}

export interface Wish {
  columns: number;
  width: number; // most nodes of a layer
  readers: number; // most kernels into a node
  spans?: boolean; // sums with identity edges that span columns, inner kernels, dead ends, branches, a direction
  variants?: number;
  kernel?: number;
  pictures?: boolean;
  exact?: boolean; // exactly `width` nodes and `readers` kernels
}

/** A random document, the same for the same seed. */
export function randomDocument(seed: number, wish: Wish): Document {
  const random = randomness(seed);
  const under = (end: number) => Math.floor(random() * end);
  const side = wish.kernel ?? 3;
  const nodes: Node[] = [];
  const edges: Edge[] = [];
  const layers: Document["layers"] = [];
  for (let unit = 0; unit < 3; unit++) nodes.push({ kind: NodeKind.image, column: -1, layer: -1, unit });
  const kernelEdge = (source: number, target: number, kind: number = EdgeKind.kernel) => {
    const layer = nodes[target]!.layer;
    edges.push({
      source,
      target,
      kind,
      layer,
      sign: random() < 0.6 ? 1 : -1,
      out: nodes[target]!.unit,
      in: nodes[source]!.unit,
    });
  };
  const connection = (source: number, target: number, kind: number) =>
    edges.push({ source, target, kind, layer: -1, sign: 0, out: -1, in: -1 });
  const byColumn: number[][] = [];
  for (let column = 0; column < wish.columns; column++) {
    const last = column === wish.columns - 1;
    const branches = wish.spans && !last && random() < 0.3 ? 2 : 1;
    byColumn.push([]);
    for (let branch = 0; branch < branches; branch++) {
      const layer = layers.length;
      layers.push({
        name: `features.${column}.${branch}`,
        label: branches > 1 ? `b${branch}` : `f${column}`,
        column,
        kernel: [side, side],
        filters: 512,
      });
      const several = wish.exact ? wish.width : 1 + under(wish.width);
      const units = new Set<number>();
      while (units.size < (last ? 1 : several)) units.add(under(512));
      for (const unit of units) {
        const node = nodes.length;
        const sum = wish.spans && column > 1 && random() < 0.25;
        nodes.push({ kind: sum ? NodeKind.add : NodeKind.filter, column, layer, unit });
        const before = column === 0 ? [0, 1, 2] : byColumn[column - 1]!;
        const reads = wish.exact ? wish.readers : 1 + under(wish.readers);
        for (const source of pick(before, column === 0 ? 3 : reads, random)) kernelEdge(source, node);
        if (sum) connection(pick(byColumn.slice(0, column - 1).flat(), 1, random)[0]!, node, EdgeKind.identity);
        if (wish.spans && !last && random() < 0.15) kernelEdge(node, node, EdgeKind.inner);
        if (wish.spans && column > 0 && random() < 0.05) kernelEdge(under(3), node);
        byColumn[column]!.push(node);
      }
    }
  }
  const target = byColumn[wish.columns - 1]![0]!;
  if (wish.spans && random() < 0.3) nodes[target]!.kind = NodeKind.target;
  const kernels = edges.filter(({ layer }) => layer >= 0).length;
  const weights: number[] = [];
  const starts = edges.map(({ layer }) =>
    layer < 0
      ? -1
      : weights.push(...Array.from({ length: side * side }, () => Math.round((random() * 2 - 1) ** 3 * 127))) -
        side * side,
  );
  const variants = Array.from({ length: wish.variants ?? 1 }, (_, v): Variant => {
    // Saliencies as real ones are: a few large, most small; some not known, as those of kernels that are not in it.
    const strength = nodes.map(() => random() ** 3 + 0.02);
    const saliency = edges.map(({ layer, source }) =>
      layer < 0 || (wish.spans && random() < 0.03) ? NaN : strength[source]! * random() ** 3,
    );
    const inside = edges.map(
      ({ layer }, edge) => layer >= 0 && (v === 0 || random() < 0.8) && !Number.isNaN(saliency[edge]),
    );
    const ranked = [...edges.keys()]
      .filter((edge) => inside[edge])
      .sort((a, b) => saliency[b]! - saliency[a]! || a - b);
    const rank: number[] = edges.map(({ layer }) => (layer < 0 ? 0 : -1));
    ranked.forEach((edge, place) => (rank[edge] = place));
    return {
      name: ["circuit", "random", "other"][v] ?? `variant ${v}`,
      role: v === 0 ? "circuit" : v === 1 ? "control" : "against",
      saliency: pack("float32", saliency),
      rank: pack("int32", rank),
      kernels: ranked.length,
      effective: ranked.length,
      filters: new Set(ranked.map((edge) => edges[edge]!.layer * 1000 + edges[edge]!.out)).size,
      kept: kernels,
      relevant: kernels,
      calibration: null,
      nested: true,
      fidelity: {
        r2: 0.9 - 0.5 * v,
        r2Interior: 0.75 - 0.5 * v,
        r2Rectified: 0.88 - 0.5 * v,
        r2AverageMap: 0.35,
        r2AverageMapInterior: -0.02,
        r2Random: v ? null : 0.4,
        r2RandomInterior: v ? null : 0.25,
        interior: "inside",
        verdict: v ? "not decided" : "keeps",
        sentence: v
          ? "Whether the circuit keeps a.b:3 is not decided: a random circuit was not measured."
          : "The circuit keeps a.b:3: R2 is 0.90.",
        foundOn: false,
        drawn: { kernels: 193, r2: 0.41 - 0.5 * v, path: 0.35 },
        randomRefitted: false,
        controls: null,
      },
    };
  });
  const names = wish.spans ? { [target]: "golden retriever" } : ({} as Record<string, string>);
  const tiles = wish.pictures
    ? nodes.map(({ kind }, node) => (kind === NodeKind.image ? -1 : node))
    : nodes.map(() => -1);
  return {
    schema: SCHEMA,
    meta: {
      title: `Circuit for features.${wish.columns - 1} \u00b7 filter ${nodes[target]!.unit}`,
      feature: `features.${wish.columns - 1}:${nodes[target]!.unit}`,
      model: "synthetic",
      criterion: "snip",
      granularity: "kernel",
      notes: [],
      versions: {},
      file: "synthetic",
    },
    columns: byColumn.map((_, column) => ({ label: `features.${column}`, detail: `${side}\u00d7${side}` })),
    layers,
    nodes: {
      kind: pack(
        "uint8",
        nodes.map((node) => node.kind),
      ),
      column: pack(
        "int16",
        nodes.map((node) => node.column),
      ),
      layer: pack(
        "int16",
        nodes.map((node) => node.layer),
      ),
      unit: pack(
        "int32",
        nodes.map((node) => node.unit),
      ),
      names,
    },
    edges: {
      source: pack(
        "int32",
        edges.map((edge) => edge.source),
      ),
      target: pack(
        "int32",
        edges.map((edge) => edge.target),
      ),
      kind: pack(
        "uint8",
        edges.map((edge) => edge.kind),
      ),
      layer: pack(
        "int16",
        edges.map((edge) => edge.layer),
      ),
      out: pack(
        "int32",
        edges.map((edge) => edge.out),
      ),
      in: pack(
        "int32",
        edges.map((edge) => edge.in),
      ),
      sign: pack(
        "int8",
        edges.map((edge) => edge.sign),
      ),
      weights: pack("int32", starts),
      scale: pack(
        "float32",
        edges.map(() => 0.5),
      ),
    },
    weights: pack("int8", weights),
    target,
    variants,
    pictures: [
      {
        name: "patches",
        label: "real patches",
        tiles: pack("int32", tiles, [nodes.length, 1]),
        target: [],
        variant: null,
      },
    ],
    tiles: { size: 48, pages: wish.pictures ? gratings(nodes, random) : [] },
    images: null,
    heldOut: { count: 40 },
    view: {},
  };
}

function pick<T>(from: T[], count: number, random: () => number): T[] {
  const rest = [...from];
  return Array.from(
    { length: Math.min(count, rest.length) },
    () => rest.splice(Math.floor(random() * rest.length), 1)[0]!,
  );
}

/** Pages of gratings, one a node, finer and more bent from column to column. */
function gratings(nodes: Node[], random: () => number): Document["tiles"]["pages"] {
  const [size, columns] = [48, 20];
  const rows = Math.ceil(nodes.length / columns);
  const pixels = new Uint8Array(columns * size * rows * size * 3);
  for (const [node, { column }] of nodes.entries()) {
    const [angle, speed, bend, phase] = [
      random() * Math.PI,
      0.15 + random() * 0.3,
      Math.max(0, column) * 0.4 * random(),
      random() * 6,
    ];
    const [low, high] = [0, 1].map(() => [random() * 200, random() * 200, random() * 200]);
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++) {
        const along = x * Math.cos(angle) + y * Math.sin(angle);
        const across = y * Math.cos(angle) - x * Math.sin(angle);
        const share =
          0.5 + 0.5 * Math.sin(along * speed * (1 + Math.max(0, column) * 0.1) + bend * Math.sin(across * 0.2) + phase);
        const at = ((Math.floor(node / columns) * size + y) * columns * size + (node % columns) * size + x) * 3;
        for (let c = 0; c < 3; c++) pixels[at + c] = low![c]! * share + (high![c]! + 40) * (1 - share);
      }
  }
  return [
    {
      columns,
      count: nodes.length,
      src: `data:image/png;base64,${png(pixels, columns * size, rows * size).toString("base64")}`,
    },
  ];
}

/** An RGB picture as PNG. */
function png(pixels: Uint8Array, width: number, height: number): Buffer {
  const rows = Buffer.alloc(height * (width * 3 + 1));
  for (let y = 0; y < height; y++)
    rows.set(pixels.subarray(y * width * 3, (y + 1) * width * 3), y * (width * 3 + 1) + 1);
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2, 0, 0, 0], 8);
  const chunk = (name: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(name), data]);
    const whole = Buffer.alloc(body.length + 8);
    whole.writeUInt32BE(data.length, 0);
    whole.set(body, 4);
    whole.writeUInt32BE(crc(body), body.length + 4);
    return whole;
  };
  return Buffer.concat([
    Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]),
    chunk("IHDR", head),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function crc(bytes: Buffer): number {
  let value = ~0;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return ~value >>> 0;
}

/** A document as large and as skewed as a real circuit's. */
export function specimen(seed = 1): Document {
  return randomDocument(seed, { columns: 8, width: 100, readers: 14, pictures: true, exact: true });
}
