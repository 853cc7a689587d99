/** The circuit diagram's document and what a view of it is. Written by tools/diagram_types.py from the records of
 *  src/convcircuits/drawing/data.py, where its laws are: change them there and run `make frontend`. */

export const SCHEMA = "convcircuits-diagram/2";
export const SHARES = [0.5, 0.8, 0.95] as const;
export const MODES = ["diagram", "all", "table"] as const;
export const PATHS = ["main", "all"] as const;
export const LONGEST_NAME = 80;
export const LONGEST_LABEL = 40;
export const LONGEST_NOTE = 1000;

/** What a node is. */
export const NodeKind = { filter: 0, image: 1, add: 2, gate: 3, mix: 4, target: 5 } as const;
/** What an edge is: one kernel, or a connection without weights. */
export const EdgeKind = { kernel: 0, inner: 1, identity: 2, gate: 3, mix: 4, readout: 5 } as const;

/** A typed array: little-endian bytes in base64. */
export interface Buffer {
  dtype: "float32" | "int16" | "int32" | "int8" | "uint8";
  shape: number[];
  data: string;
}

/** The dtype and the axes of every array, by where it is; of those in a list, by the list. N nodes, E edges,
 *  V variants, I images; 2 is two, and other axes are of any length. */
export const ARRAYS = {
  "nodes.kind": "uint8 N",
  "nodes.column": "int16 N",
  "nodes.layer": "int16 N",
  "nodes.unit": "int32 N",
  "edges.source": "int32 E",
  "edges.target": "int32 E",
  "edges.kind": "uint8 E",
  "edges.layer": "int16 E",
  "edges.out": "int32 E",
  "edges.in": "int32 E",
  "edges.sign": "int8 E",
  "edges.weights": "int32 E",
  "edges.scale": "float32 E",
  weights: "int8 *",
  "variants.saliency": "float32 E",
  "variants.rank": "int32 E",
  "variants.calibration.gain": "float32 E",
  "pictures.tiles": "int32 N K",
  "images.target.fullMean": "float32 I",
  "images.target.fullMaximum": "float32 I",
  "images.target.mean": "float32 V I",
  "images.target.maximum": "float32 V I",
  "images.target.r2": "float32 V I",
  "images.target.r2Inside": "float32 V I",
  "images.target.fullMap": "int8 I h w",
  "images.target.fullScale": "float32 I",
  "images.target.map": "int8 V I h w",
  "images.target.scale": "float32 V I",
  "images.activation": "int8 *",
  "images.activationOffset": "int32 N",
  "images.activationShape": "int16 N 2",
  "images.activationScale": "float32 N I",
  "images.effect": "float32 E I",
  "images.presum": "int8 *",
  "images.presumOffset": "int32 E",
  "images.presumShape": "int16 E 2",
  "images.presumScale": "float32 E I",
} as const;

/** What the diagram is of. */
export interface Meta {
  title: string;
  feature: string; // "features.10:9"
  model: string;
  criterion: string | null;
  granularity: "kernel" | "filter" | "weight";
  notes: string[]; // whole sentences, shown under "about"
  versions: Record<string, string>;
  file: string; // what its files are named, without a suffix
}

/** What stands over a column, which may hold several layers (the branches of one module). */
export interface Column {
  label: string;
  detail?: string;
  alias?: string; // the name that papers use for its only layer, if they do
  sees?: number | null; // pixels that one position depends on, the longer side; null: not known
}

/** A layer that has kernels, or filters of its own. */
export interface DrawnLayer {
  name: string;
  label: string;
  column: number;
  kernel: [number, number]; // (kh, kw)
  filters: number;
}

/** All nodes, one entry each. */
export interface Nodes {
  kind: Buffer; // uint8 (N); 0 filter, 1 image, 2 add, 3 gate, 4 mix, 5 target
  column: Buffer; // int16 (N); -1 for the image's channels
  layer: Buffer; // int16 (N); the layer of its last filter; -1 where it has none
  unit: Buffer; // int32 (N); number of the filter or channel
  names: Record<string, string>; // of some nodes, such as a class's
}

/** All edges, one entry each. A source's column is left of its target's, but for inner kernels. One edge is one
 *  kernel, or a connection without weights. An inner kernel, such as the depthwise one of a chain of layers that is
 *  drawn as one step, applies to all that comes into its node, which is dead without it. */
export interface Edges {
  source: Buffer; // int32 (E)
  target: Buffer; // int32 (E)
  kind: Buffer; // uint8 (E); 0 kernel, 1 inner, 2 identity, 3 gate, 4 mix, 5 readout
  layer: Buffer; // int16 (E); -1 for connections without weights
  out: Buffer; // int32 (E); -1 likewise
  in: Buffer; // int32 (E); -1 likewise
  sign: Buffer; // int8 (E); 1 excites, -1 inhibits, 0 neither (a connection)
  weights: Buffer; // int32 (E); where its kh * kw weights begin, row by row; -1 for none
  scale: Buffer; // float32 (E); a weight is its int8 / 127 * scale
}

/** What was fitted of a circuit: gains of its kernels, and offsets of its filters. */
export interface Calibration {
  constants: number; // how many gains and offsets that is
  images: number | null; // how many they were fitted on; null: not known
  gain: Buffer; // float32 (E); what the circuit multiplies a kernel by; 1 where it has no gain of its own
  thicker?: string; // what a thicker edge says of its kernel, for people; empty: not known
}

/** What the default view draws, measured as a network of its own. */
export interface Drawn {
  kernels: number;
  r2: number | null;
  path: number; // share of the target's flow that complete drawn paths carry
}

/** R2 of the best draw of a control that was treated as the circuit was. null: not defined. */
export interface Rival {
  name: "relabelled" | "random" | "redrawn" | "refound" | "average_map";
  r2: number | null;
  r2Interior: number | null;
  r2Rectified: number | null;
}

/** A circuit beside controls that were treated alike; margins are on the interior if there is one. */
export interface Controls {
  verdict: "found" | "not found" | "not decided";
  sentence: string; // the verdict and why
  margin: number | null; // R2 of the circuit minus that of the best control, or minus 0 if that is higher
  noise: number | null; // of the margin; null, as of the margin: not defined
  best: "relabelled" | "random" | "redrawn" | "refound" | "average_map"; // the best control
  rivals: Rival[]; // those that could be made
  unmeasured?: string; // a control that the verdict does without, in words; empty: none
}

/** Measured of the whole circuit on the held-out images; null where it is not defined or was not measured. */
export interface Fidelity {
  r2: number | null;
  r2Interior: number | null;
  r2Rectified: number | null;
  r2AverageMap: number | null; // of the average map of other images, which no network is needed for
  r2AverageMapInterior: number | null;
  r2Random: number | null; // of a random circuit that keeps as many elements of each layer
  r2RandomInterior: number | null;
  interior: "inside" | "central" | "unknown"; // central: too few receptive fields lie inside
  verdict: "keeps" | "keeps in part" | "does not keep" | "not decided";
  sentence: string; // the verdict and why
  foundOn: boolean; // whether these are the very images that it was found on
  drawn: Drawn | null;
  randomRefitted: boolean; // whether the random circuit was refitted as this one was
  controls: Controls | null; // null: not measured
}

/** A circuit over the document's nodes and edges. */
export interface Variant {
  name: string;
  role: "circuit" | "against" | "control" | "level"; // level: of its descent, or found anew
  saliency: Buffer; // float32 (E); NaN for connections and for kernels that are not in it
  rank: Buffer; // int32 (E); place by saliency, 0 the highest; -1: not in it; 0 for connections
  kernels: number; // those that have a rank, inner ones and those of the image included
  effective: number; // on a complete path; more, where some act through statistics of channels alone
  filters: number; // filters that have effective kernels
  kept: number; // kernels the circuit keeps, effective or not
  relevant: number; // kernels of the full model that lie on a path to the feature
  calibration: Calibration | null; // null: its kernels are the model's
  nested: boolean; // whether the first k kernels by rank are what the criterion would keep at k
  fidelity: Fidelity | null;
}

/** A picture of the target, shown in its details. */
export interface TargetPicture {
  label: string;
  tile: number;
}

/** A way to picture the nodes. Sets of one name show the same, each on the images of one circuit's group. */
export interface PictureSet {
  name: string; // "patches", "features"
  label: string; // what it shows, for people
  tiles: Buffer; // int32 (N, K); the best first, -1 where there is none
  target: TargetPicture[];
  variant: number | null; // the circuit that runs, on the images of its group; null: there are no groups
  median?: number[]; // tiles of the target where its value is nearest its median, one of each photograph
  nearZero?: number[]; // likewise, where it is nearest zero
}

/** One picture that holds `count` tiles, row by row, `columns` to a row. */
export interface Page {
  columns: number;
  count: number;
  src: string;
}

/** An image that tiles were cut out of. */
export interface Whole {
  name: string;
  src: string; // a thumbnail
  size: [number, number]; // height and width in pixels
}

/** The part of an image that a tile shows. */
export interface Cut {
  tile: number;
  whole: number;
  box: [number, number, number, number]; // top, left, height and width in pixels; it may extend beyond the image
}

/** Square pictures, numbered through the pages. */
export interface Tiles {
  size: number; // pixels
  pages: Page[];
  wholes?: Whole[]; // images that some tiles were cut out of
  cuts?: Cut[]; // of these tiles
}

/** The part of a map whose receptive fields lie inside the image; where too few do, its middle. */
export interface Inside {
  rows: [number, number]; // the first, and the one after the last
  columns: [number, number];
  exact: boolean; // false: too few fields lie inside, and this is the middle
}

/** The target on some images, in the full model and in each variant. Figures are of the positions that count. */
export interface TargetMaps {
  positions: string; // which count, for people
  shape: [number, number]; // of its map; those below may be smaller, averaged
  inside: Inside | null; // null: not known
  fullMean: Buffer; // float32 (I); in the full model
  fullMaximum: Buffer; // float32 (I)
  mean: Buffer; // float32 (V, I); in each variant
  maximum: Buffer; // float32 (V, I)
  r2: Buffer; // float32 (V, I); on that image alone; NaN: not defined
  r2Inside: Buffer; // float32 (V, I); of the positions inside; NaN likewise, or where they are not known
  fullMap: Buffer; // int8 (I, h, w); int8 / 127 * its scale
  fullScale: Buffer; // float32 (I)
  map: Buffer; // int8 (V, I, h, w)
  scale: Buffer; // float32 (V, I)
}

/** What the circuit does on some images; of images in groups, the circuit of each image's group. Maps are int8 /
 *  127 * scale, map after map. */
export interface ImageMaps {
  names: string[];
  src: string[]; // thumbnails
  target: TargetMaps;
  activation: Buffer; // int8 (*); node after node, each (I, h, w), in the circuit
  activationOffset: Buffer; // int32 (N); -1 for none
  activationShape: Buffer; // int16 (N, 2)
  activationScale: Buffer; // float32 (N, I)
  effect: Buffer; // float32 (E, I); mean over positions of what a kernel adds; NaN: not known
  presum: Buffer; // int8 (*); edge after edge, each (I, h, w): what a kernel adds, by position
  presumOffset: Buffer; // int32 (E); -1 for none
  presumShape: Buffer; // int16 (E, 2)
  presumScale: Buffer; // float32 (E, I)
  variants: number[]; // of each image, the variant of its group; empty: there are no groups
}

/** What fidelity was measured on. */
export interface HeldOut {
  count: number; // images
}

/** Nodes of one column, drawn as one. */
export interface Group {
  name: string;
  nodes: number[];
}

/** A range of columns, such as those of a residual block. */
export interface Span {
  first: number;
  last: number; // it belongs to the range
}

/** What a reader calls a node, and has noted of it; plain text. */
export interface Note {
  node: number;
  label: string; // stands beside its number wherever it is named
  note: string;
}

/** What a reader has chosen: all that a page's URL says, too. JSON holds only what differs from the defaults. */
export interface View {
  variant: number;
  compare: number | null; // a second variant: only this, only that, both
  kernels: number | null; // the first k kernels by rank; null: all
  nodesPerColumn: number;
  kernelsPerNode: number;
  paths: "main" | "all"; // what is lit of what is drawn where no node is isolated
  root: number | null; // a node drawn as the target
  isolate: number | null; // a node whose flow alone is drawn
  share: 0.5 | 0.8 | 0.95; // how much of its flow
  pins: number[]; // nodes that are drawn whatever their flow
  groups: Group[];
  collapsed: Span[]; // ranges of columns left of the target's, each drawn as one
  notes: Note[]; // at most one of a node
  pictures: string; // name of a picture set; where there is none of this one, the first is shown
  image: number | null;
  mode: "diagram" | "all" | "table";
}

/** What the circuits of groups of images do on held-out images of each group, at one position of each image. */
export interface Crossed {
  verdict: "selective" | "not selective" | "not decided";
  sentence: string; // the verdict and, after a colon, why
  own: number; // their relative error on their own groups
  others: number; // on the other groups
}

/** A circuit diagram: everything that any host needs to draw it, and nothing that only Python can read. */
export interface Document {
  schema: "convcircuits-diagram/2";
  meta: Meta;
  columns: Column[]; // left to right; the target's is the last
  layers: DrawnLayer[];
  nodes: Nodes;
  edges: Edges;
  weights: Buffer; // int8 (*)
  target: number; // the node of the feature
  variants: Variant[]; // the first is the circuit itself
  pictures: PictureSet[]; // the first is the default
  tiles: Tiles;
  images: ImageMaps | null;
  heldOut: HeldOut | null; // null: fidelity was not measured
  view: Partial<View>;
  crossed?: Crossed | null; // null: not circuits of groups, or not cross-tested
}

export const DEFAULT_VIEW: View = {
  variant: 0,
  compare: null,
  kernels: null,
  nodesPerColumn: 12,
  kernelsPerNode: 6,
  paths: "main",
  root: null,
  isolate: null,
  share: 0.8,
  pins: [],
  groups: [],
  collapsed: [],
  notes: [],
  pictures: "patches",
  image: null,
  mode: "diagram",
};
