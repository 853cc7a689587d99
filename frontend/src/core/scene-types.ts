/** A scene: everything that a back end (SVG DOM, Canvas, SVG text) needs to draw one view. Positions are in pixels
 *  (points on paper). There are no colors. */

import type { Caption } from "./caption.js";
import type { Flow } from "./flow.js";
import type { Parts, Selection } from "./select.js";
import type { Span, View } from "./types.js";

/** Where and for what medium to draw. */
export interface Canvas {
  width: number;
  medium: "screen" | "paper";
  /** The room from the columns' headings to what they hide; pictures get smaller to fit in, down to a limit. Without
   *  it, the height follows from what is drawn. With it, a drawing may be wider than `width`, and is scrolled. */
  height?: number;
}

/** Which of two compared circuits something belongs to; "both" if nothing is compared. */
export type Mark = "both" | "a" | "b";

/** Lines of text at a point. If they are shortened, the title has the full text. */
export interface Label {
  x: number;
  y: number; // the baseline of its first line
  lines: string[];
  size: number; // of the font
  anchor: "start" | "middle" | "end";
  turned: boolean; // by 90 degrees to the left around (x, y)
  title: string;
}

/** A node, or a group of nodes, as a square picture with its label below. */
export interface SceneNode {
  unit: number; // of the scene's parts
  nodes: number[]; // of the document; several: a group
  group: string | null; // its name, or that of a block
  span: Span | null; // the range of columns that it stands for
  kind: number;
  column: number;
  x: number; // of its center
  y: number;
  size: number;
  tiles: number[]; // its picture: one tile, or four as a square, the best first; none: it has no picture
  flow: number; // share of the target's
  label: Label;
  /** The kernels inside it, as small heat maps beside its label. */
  inner: KernelMap[];
  target: boolean;
  main: boolean; // whether it is drawn in full, and not as one of those that are dimmed at first
  pinned: boolean;
  mark: Mark;
  /** Dotted stubs, as paths, for flow that comes in or goes out by what is not drawn, and its shares of the node's
   *  flow. */
  hiddenIn: { share: number; path: string } | null;
  hiddenOut: { share: number; path: string } | null;
}

/** A kernel or a connection, or the parallel ones between two scene nodes as one. */
export interface SceneEdge {
  bundle: number; // of the scene's parts
  edges: number[]; // of the document
  source: number; // a scene node
  target: number;
  connection: boolean; // no weights: gray
  sign: number; // 1, -1; 0 for connections
  saliency: number; // summed; what a connection weighs in the flow
  flow: number;
  width: number;
  gap: [number, number]; // between which columns, as x, its last piece runs
  path: string; // an SVG path, of M, C and L alone
  points: number[]; // the same as numbers: x, y, then six for every cubic piece
  bar: string | null; // the bar at the end of an inhibitory edge
  mark: Mark;
}

/** A kernel's weights as a small heat map. */
export interface KernelMap {
  kernel: number; // an edge of the document
  x: number; // of its center
  y: number;
  width: number;
  height: number;
}

/** One on its edge. */
export interface Glyph extends KernelMap {
  edge: number; // a scene edge
}

/** A summary of what a column hides: "+88 more · 55 % shown" and its bar. */
export interface More {
  column: number;
  count: number;
  shown: number; // share of the flow through the column that goes through drawn nodes
  label: Label;
  bar: { x: number; y: number; width: number; height: number };
}

export interface LegendItem {
  kind: "excites" | "inhibits" | "connects" | "hidden" | "both" | "onlyA" | "onlyB" | "text";
  x: number; // where its sign begins; the text follows
  y: number;
  label: Label;
}

/** Which scene nodes and edges are lit: 1 or 0 for each. */
export interface Lit {
  nodes: Uint8Array;
  edges: Uint8Array;
}

export interface Scene {
  view: View;
  width: number;
  height: number;
  medium: Canvas["medium"];
  title: Label;
  caption: Label;
  note: Label; // what is lit; without lines where everything is
  legend: LegendItem[];
  headings: Label[]; // one for every column that has nodes
  nodes: SceneNode[]; // by column, top to bottom: the order of the arrow keys
  edges: SceneEdge[]; // the weakest first: the order of drawing
  glyphs: Glyph[];
  more: More[];
  lit: Lit | null; // the paths through an isolated node, or the main ones; null: everything is lit alike
  main: Lit; // the main paths
  /** What was computed on the way, for details and the caption's numbers. */
  flow: Flow;
  parts: Parts;
  selection: Selection;
  numbers: Caption;
}
