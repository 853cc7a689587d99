/** The circuit diagram's document, as Python writes it, and what a view of it is. Positions are in pixels, flow is a
 *  share of 1. */

export const SCHEMA = "convcircuits-diagram/1";

export type Dtype = "int8" | "uint8" | "int16" | "int32" | "float32";

/** A typed array: little-endian bytes in base64. */
export interface Buffer {
  dtype: Dtype;
  shape: number[];
  data: string;
}

export const NodeKind = { filter: 0, image: 1, add: 2, gate: 3, mix: 4, target: 5 } as const;
export const EdgeKind = { kernel: 0, inner: 1, identity: 2, gate: 3, mix: 4, readout: 5 } as const;

export interface Document {
  schema: typeof SCHEMA;
  meta: {
    title: string;
    feature: string; // "features.10:9"
    model: string;
    criterion: string | null;
    granularity: "kernel" | "filter" | "weight";
    notes: string[]; // whole sentences, shown under "about"
    versions: Record<string, string>;
  };
  /** Left to right; the target's is the last. A column may hold several layers (the branches of one module). */
  columns: { label: string; detail: string }[];
  layers: { name: string; label: string; column: number; kernel: [number, number]; filters: number }[];
  nodes: {
    /** A filter; a channel of the image (never drawn; its kernels show in the first filters' pictures); what is added
     *  or scaled where no filter does it alone; what mixes channels; what reads several filters (a direction). */
    kind: Buffer; // uint8 (N)
    column: Buffer; // int16 (N); -1 for the image's channels
    layer: Buffer; // int16 (N), the layer of its last filter; -1 where it has none
    unit: Buffer; // int32 (N), number of the filter or channel
    /** Names of nodes, such as a class's, by node number. */
    names: Record<string, string>;
  };
  /** One edge is one kernel, or, grey, a connection without weights.
   *  inner: a kernel inside a node (source = target), as the depthwise kernel of a chain of layers drawn as one step:
   *  it applies to all that comes into the node, which is dead without it. */
  edges: {
    source: Buffer; // int32 (E)
    target: Buffer; // int32 (E)
    kind: Buffer; // uint8 (E)
    layer: Buffer; // int16 (E); -1 for connections without weights
    out: Buffer; // int32 (E); -1 likewise
    in: Buffer; // int32 (E); -1 likewise
    sign: Buffer; // int8 (E): 1 excites, -1 inhibits, 0 neither (a connection)
    /** Where a kernel's weights begin in `weights`, kh * kw of them row by row, right way up; -1 for none. */
    weights: Buffer; // int32 (E)
    /** A weight is its int8 / 127 * scale. */
    scale: Buffer; // float32 (E)
  };
  weights: Buffer; // int8
  target: number; // the node of the feature
  /** Circuits over the same nodes and edges. The first is the circuit itself. */
  variants: Variant[];
  /** Ways to picture the nodes; the first is the default. */
  pictures: PictureSet[];
  tiles: { size: number; pages: { columns: number; count: number; src: string }[] }; // numbered through the pages
  images: Images | null;
  heldOut: { count: number } | null; // what fidelity was measured on; null: it was not measured
  view: Partial<View>; // the saved view
}

export interface Variant {
  name: string;
  role: "circuit" | "against" | "control" | "level"; // level: the circuit found anew with fewer kernels
  saliency: Buffer; // float32 (E); NaN for connections and for kernels that are not in it
  /** The place of each kernel by saliency among all that are kept, 0 the highest; -1 for those that are not in it; 0
   *  for connections. */
  rank: Buffer; // int32 (E)
  kernels: number; // those that have a rank; inner ones and those of the image included
  effective: number; // on a complete path; more than these where some act through a normalisation over channels alone
  filters: number; // filters that have effective kernels
  kept: number; // kernels the circuit keeps, effective or not
  relevant: number; // kernels of the full model that lie on a path to the feature
  nested: boolean; // whether the first k kernels by rank are what the criterion would keep at k
  fidelity: Fidelity | null; // measured on the held-out images; null where it was not
}

/** Of the whole circuit. An R\u00b2 is null where it is not defined, as the feature is constant there, or was not
 *  measured. */
export interface Fidelity {
  r2: number | null;
  r2Interior: number | null;
  r2Rectified: number | null;
  r2AverageMap: number | null; // of the average map of other images, which no network is needed for
  r2AverageMapInterior: number | null;
  r2Random: number | null; // of a random circuit that keeps as many units of each layer
  r2RandomInterior: number | null;
  interior: "inside" | "central" | "unknown"; // central: too few receptive fields lie inside the image
  verdict: "keeps" | "keeps in part" | "does not keep" | "not decided";
  sentence: string; // the verdict and why
  foundOn: boolean; // whether these are the very images that it was found on
  drawn: { kernels: number; r2: number | null; path: number } | null; // of what the default view draws, run alone
}

export interface PictureSet {
  name: string; // "patches", "features"
  label: string; // what it shows, for people
  tiles: Buffer; // int32 (N, K): the best first, -1 where there is none
  /** Pictures of the target to be shown side by side in its details. */
  target: { label: string; tile: number }[];
}

/** The target on each image, in the full model and in each variant. Figures are of the positions that count. */
export interface TargetMaps {
  positions: string; // which count, for people
  shape: [number, number]; // of its map; those below may be smaller, averaged
  /** The part of it whose receptive fields lie inside the image, from the first row to the one after the last; not
   *  exact where too few do: its middle. */
  inside: { rows: [number, number]; columns: [number, number]; exact: boolean } | null;
  fullMean: Buffer; // float32 (I)
  fullMaximum: Buffer; // float32 (I)
  mean: Buffer; // float32 (V, I)
  maximum: Buffer; // float32 (V, I)
  r2: Buffer; // float32 (V, I), on that image alone; NaN: not defined
  r2Inside: Buffer; // float32 (V, I), of the positions inside; NaN likewise, or where these are not known
  /** The maps, int8 / 127 * scale. */
  fullMap: Buffer; // int8 (I, h, w)
  fullScale: Buffer; // float32 (I)
  map: Buffer; // int8 (V, I, h, w)
  scale: Buffer; // float32 (V, I)
}

export interface Images {
  names: string[]; // I of them
  src: string[]; // thumbnails, as data URLs
  target: TargetMaps;
  /** Activation maps in the circuit: for node n and image i, int8 / 127 * activationScale[n, i]. */
  activation: Buffer; // int8, node after node, each (I, h, w)
  activationOffset: Buffer; // int32 (N), -1 for none
  activationShape: Buffer; // int16 (N, 2)
  activationScale: Buffer; // float32 (N, I)
  /** The mean over positions of what each kernel adds to its filter, on each image, in the circuit, turned round where
   *  what follows it in its node does that. NaN: not known. */
  effect: Buffer; // float32 (E, I)
  /** Pre-sum maps of some kernels, what each adds to its filter position by position. */
  presum: Buffer; // int8, edge after edge, each (I, h, w)
  presumOffset: Buffer; // int32 (E), -1 for none
  presumShape: Buffer; // int16 (E, 2)
  presumScale: Buffer; // float32 (E, I)
}

/** What a reader has chosen. All of it stands in the URL's hash; all of it can be saved with the document. */
export interface View {
  variant: number;
  compare: number | null; // a second variant: only this, only that, both
  kernels: number | null; // the first k kept kernels by rank; null for the whole circuit
  nodesPerColumn: number; // 12
  kernelsPerNode: number; // 5
  root: number | null; // a node drawn as the target
  isolate: number | null; // a node whose flow alone is drawn
  share: 0.5 | 0.8 | 0.95; // how much of its flow
  pins: number[]; // nodes that are drawn whatever their flow
  groups: { name: string; nodes: number[] }[]; // nodes of one column drawn as one
  pictures: string; // name of a picture set
  image: number | null;
  mode: "diagram" | "all" | "table";
}

export const DEFAULT_VIEW: View = {
  variant: 0,
  compare: null,
  kernels: null,
  nodesPerColumn: 12,
  kernelsPerNode: 5,
  root: null,
  isolate: null,
  share: 0.8,
  pins: [],
  groups: [],
  pictures: "patches",
  image: null,
  mode: "diagram",
};
