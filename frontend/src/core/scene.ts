/** Turns a document and a view into a scene. */

import { spansOf } from "./blocks.js";
import { caption } from "./caption.js";
import { type Graph, gainOf, isFitted, setOf } from "./decode.js";
import { type Flow, flowOf, flowsOf } from "./flow.js";
import { count, gainText, percent, plural, significant } from "./format.js";
import { headings, labelBox, legend, line, lineHeight, moreLabels, nodeLines, nodeTitle, unitName } from "./labels.js";
import { type Layers, order } from "./order.js";
import {
  type Columns,
  type Extent,
  type Measures,
  measures,
  neededHeight,
  placeColumns,
  placeThings,
} from "./place.js";
import { type Box, placeGlyphs, ports, short, through, toPath } from "./route.js";
import type { Canvas, Glyph, KernelMap, Label, Lit, Mark, More, Scene, SceneEdge, SceneNode } from "./scene-types.js";
import { carried, insideText, light, of, type Parts, partsOf, pinned, type Selection, select } from "./select.js";
import { mainPaths, type Room, roomIn, type Story } from "./story.js";
import { plain, shorten, textWidth, wrap } from "./text.js";
import { EdgeKind, type View } from "./types.js";
import { cutOf, figureCaptions } from "./verdict.js";

/** The scene of a view. */
export function draw(graph: Graph, view: View, within: Canvas): Scene {
  const flow = flowOf(graph, view);
  const parts = partsOf(graph, flow, view);
  const selection = select(graph, flow, parts, view);
  const numbers = caption(graph, flow, selection, view);
  const sizes = measures(within);
  const shown = [...new Set(parts.column.filter((_, unit) => selection.units[unit]))].sort((a, b) => a - b);
  if (!shown.length) shown.push(graph.column[flow.root]!);
  // In a window a wide drawing is scrolled; elsewhere it has no more room than its width.
  const least = within.height === undefined ? 0 : shown.length * sizes.column;
  const canvas = { ...within, width: Math.max(within.width, least) };
  const columns = placeColumns(shown.length, canvas.width, sizes);
  const slot = (unit: number) => shown.indexOf(parts.column[unit]!);

  const pins = pinned(parts, view);
  const story = storyOf(graph, flow, parts, selection, view, roomIn(shown.length), pins);
  const full = view.paths === "all" ? selection.units : story.units;

  const bundles = strengths(graph, flow, parts, selection, columns.edge, slot);
  const { layers, lanes } = layersOf(parts, selection, bundles, shown.length, slot);
  layers.columns = order(layers);

  const set = setOf(graph, view.pictures, view.variant);
  const inner = innerOf(graph, flow, parts, selection, columns, sizes);
  const head = header(graph, figureCaptions(graph, view, numbers), view, canvas, sizes, {
    bundles,
    hides: selection.kernels < numbers.ofKernels,
    inner: inner.size > 0,
    firsts: parts.members.some(
      ([node, ...more], unit) =>
        selection.units[unit] && parts.seesImage[unit] && !more.length && graph.tilesOf(set, node!).length > 0,
    ),
    grids: graph.document.layers.some(({ kernel: [height, width] }) => height * width > 1),
  });
  const heads = headings(graph, shown, columns, head.bottom, sizes, spansOf(graph, view, flow.root));
  const several = severalLayers(graph, parts, shown.length, slot);
  const lines = new Map<number, string[]>();
  for (let unit = 0; unit < full.length; unit++) {
    if (!full[unit]) continue;
    const room = columns.room - innerWidth(inner.get(unit), sizes);
    const inside = parts.spans[unit] ? insideText(graph, flow, parts.members[unit]!) : "";
    lines.set(unit, nodeLines(graph, parts, unit, several[slot(unit)]!, room, sizes, inside));
  }
  const hidden = hiddenOf(parts, selection, shown.length, slot);
  const moreAt = (end: number) =>
    moreLabels(
      hidden.map(({ count, shown: share }) => ({ count, share })),
      columns,
      end + sizes.gap * (canvas.height === undefined ? 1.6 : 0.8),
      sizes,
    );
  const endOf = (more: Omit<More, "column">[]) =>
    Math.max(0, ...more.map(({ label, bar }) => Math.max(labelBox(label).bottom, bar.y + bar.height)));
  const top = heads.bottom + sizes.gap * (canvas.height === undefined ? 1.4 : 0.8);
  const natural = picturesOf(parts, selection, full, view.paths === "all" ? columns.node : columns.main, columns);
  // What is dimmed gives way first: pictures of main paths stay so large while there is room for that.
  const held = view.paths === "main" ? columns.main[0] : 0;
  const sideAt = (thing: number, scale: number, floor: number) =>
    Math.max(natural[thing]! * scale, full[thing] ? Math.min(natural[thing]!, floor) : 0);
  const unnamed = new Set<number>(); // what has no room for a label
  /** How far a thing extends, its picture and gap scaled. */
  const extent = (thing: number, scale: number, floor: number): Extent => {
    const lane = (sizes.lane * scale) / 2;
    if (thing >= parts.members.length) return { above: lane, below: lane, gap: lane };
    const half = sideAt(thing, scale, floor) / 2;
    const text = lines.get(thing);
    if (!text) {
      const reach = unnamed.has(thing) ? half : Math.max(half, besideSize(sizes) * 0.56);
      // Pictures of four parts need more than the gap between these to be told apart.
      return { above: reach, below: reach, gap: sizes.gap * (0.5 * scale + (held && full[thing] ? 0.36 : 0)) };
    }
    const maps = inner.has(thing) ? innerSide(sizes) + sizes.small * 0.2 : 0;
    const below = Math.max(text.length * lineHeight(sizes.small), maps) + 2;
    return { above: half, below: half + below, gap: sizes.gap * Math.max(scale, 0.36) };
  };
  // Beside a picture, a number of three digits would leave less than half of a column to edges.
  const narrow = held / 2 + textWidth("888", besideSize(sizes)) > columns.room * 0.47;
  const above = Math.min(top, ...heads.labels.map((label) => labelBox(label).top));
  const bar = canvas.width > within.width ? SCROLL_BAR : 0;
  const room = (canvas.height ?? 0) - bar - (top - above) - endOf(moreAt(0));
  const extents = Array.from({ length: parts.members.length + lanes.length }, () => ({ above: 0, below: 0, gap: 0 }));
  const sides = [...natural];
  for (const column of layers.columns) {
    let [scale, floor] = [1, held];
    const fits = () => {
      for (const thing of column) extents[thing] = extent(thing, scale, floor);
      return canvas.height === undefined || neededHeight(column, extents) <= room;
    };
    /** Makes things smaller until they fit, down to a scale; whether they do. */
    const shrunk = (least: number) => {
      for (scale = 1; !fits(); scale -= 0.02) if (scale <= least) return false;
      return true;
    };
    const specks = () => {
      for (const thing of column) if (!full[thing]) unnamed.add(thing);
      return shrunk(SPECK);
    };
    if (!shrunk(held ? SMALLEST : CROWDED) && !(held && narrow && specks())) {
      for (const thing of column) if (!inner.has(thing) && thing !== parts.root) lines.delete(thing);
      if (!shrunk(SMALLEST) && held && !specks()) while (!fits() && floor > 0) floor -= 1;
    }
    for (const thing of column) if (thing < sides.length) sides[thing] = sideAt(thing, scale, floor);
  }
  const { y, height } = placeThings(layers, extents, canvas.height === undefined ? sizes.least : room);
  for (let thing = 0; thing < y.length; thing++) y[thing]! += top;

  const nodes: SceneNode[] = [];
  const nodeOf = new Map<number, number>();
  const otherSet = view.compare === null ? set : setOf(graph, view.pictures, view.compare);
  for (const [c, column] of layers.columns.entries())
    for (const unit of column) {
      if (unit >= parts.members.length) continue;
      const members = parts.members[unit]!;
      const best = members.reduce((a, b) => (flow.node[b]! > flow.node[a]! ? b : a));
      nodeOf.set(unit, nodes.length);
      nodes.push({
        unit,
        nodes: members,
        group: parts.groups[unit] === null ? null : plain(parts.groups[unit]!),
        kind: graph.kind[best]!,
        column: parts.column[unit]!,
        x: columns.x[c]!,
        y: y[unit]!,
        size: sides[unit]!,
        span: parts.spans[unit]!,
        tiles: mosaic(
          parts.spans[unit]
            ? [...members]
                .sort((a, b) => graph.column[b]! - graph.column[a]! || flow.node[b]! - flow.node[a]! || a - b)
                .flatMap((node) => graph.tilesOf(flow.aliveNode[node] === 2 ? otherSet : set, node).slice(0, 1))
            : graph.tilesOf(flow.aliveNode[best] === 2 ? otherSet : set, best),
          // A filter that reads the image is shown as its kernel, a group as its strongest, a block as four of its
          // output.
          (members.length === 1 ? !parts.seesImage[unit] : parts.spans[unit] !== null) && sides[unit]! >= sizes.mosaic,
        ),
        flow: parts.flow[unit]!,
        ...(lines.has(unit)
          ? labelled(
              graph,
              lines.get(unit)!,
              inner.get(unit) ?? [],
              columns.x[c]!,
              y[unit]! + sides[unit]! / 2,
              sizes,
              nodeTitle(graph, parts, unit),
            )
          : {
              label: beside(
                graph,
                parts,
                unit,
                columns.x[c]!,
                y[unit]!,
                sides[unit]!,
                unnamed.has(unit) ? 0 : columns.room * (full[unit] ? 0.6 : 0.42),
                sizes,
              ),
              inner: [],
            }),
        target: unit === parts.root,
        main: full[unit] === 1,
        pinned: pins.has(unit),
        mark: mark(
          view,
          members.reduce((bits, node) => bits | flow.aliveNode[node]!, 0),
        ),
        hiddenIn: null,
        hiddenOut: null,
      });
    }
  const edges = route(parts, bundles, nodes, nodeOf, lanes, y, columns, sizes, slot);
  for (const edge of edges)
    edge.mark = mark(
      view,
      edge.edges.reduce((bits, each) => bits | flow.alive[each]!, 0),
    );
  stubs(parts, selection, nodes, columns, sizes);
  const more = moreAt(top + height).map((each): More => ({ ...each, column: shown[each.column]! }));
  const bottom = Math.max(top + height, endOf(more));
  const scene: Scene = {
    view,
    width: canvas.width,
    height: Math.ceil(bottom + sizes.margin * (canvas.medium === "paper" ? 1 : 0.6)),
    medium: canvas.medium,
    title: head.title,
    caption: head.caption,
    note: head.note,
    legend: head.legend,
    headings: heads.labels,
    nodes,
    edges,
    glyphs: [],
    more,
    lit: null,
    main: litOf({ nodes, edges }, story),
    flow,
    parts,
    selection,
    numbers,
  };
  return isolate(graph, scene, view.isolate, view.share);
}

/** The main paths of a view: of two compared circuits, those of each, while there is room for both. */
function storyOf(
  graph: Graph,
  flow: Flow,
  parts: Parts,
  { bundles }: Selection,
  view: View,
  room: Room,
  pins: Set<number>,
): Story {
  if (view.compare === null) return mainPaths(parts, bundles, room, pins);
  const each = flowsOf(graph, view).map((own, i) => {
    const within = partsOf(graph, { ...own, alive: flow.alive, aliveNode: flow.aliveNode }, view);
    const alive = bundles.map((is, b) => is && +parts.edges[b]!.some((edge) => flow.alive[edge]! & (1 << i)));
    return (units: number) => mainPaths(within, alive, { ...room, units }, pins);
  });
  for (let most = room.units; ; most--) {
    const [story, other] = each.map((paths) => paths(most));
    for (const what of ["units", "bundles"] as const) other![what].forEach((is, i) => (story![what][i]! |= is));
    const columns = parts.column.filter((_, unit) => story!.units[unit]);
    const crowded = columns.some((at) => columns.filter((column) => column === at).length > room.inColumn);
    if (most < 2 || (columns.length <= room.units && !crowded)) return story!;
  }
}

const SCROLL_BAR = 16; // px
// What gives way so that a column fits a height, in this order: pictures shrink, labels stand beside them, and what is
// dimmed loses its number and becomes a speck, which in narrow columns comes before labels beside. Only then do
// pictures of main paths get smaller than their least side.
const CROWDED = 0.6; // of natural sizes: with less, labels stand beside the pictures, if all are lit
const SMALLEST = 0.4; // with labels
const SPECK = 0.1; // of what is dimmed, without

/** The tiles of a picture: four where there are as many and they are wanted, else the best. */
function mosaic(tiles: number[], four: boolean): number[] {
  return tiles.slice(0, four && tiles.length >= 4 ? 4 : 1);
}

function besideSize({ small }: Measures): number {
  return Math.max(6, small * 0.9);
}

/** The label of a unit beside its picture, in some room from its center; without lines where that is too little. */
function beside(
  graph: Graph,
  parts: Parts,
  unit: number,
  x: number,
  y: number,
  side: number,
  room: number,
  sizes: Measures,
): Label {
  const at = x + side / 2 + sizes.gap * 0.3;
  const size = besideSize(sizes);
  const node = parts.members[unit]![0]!;
  const texts = parts.groups[unit] === null ? [parts.labels.get(node) ?? "", String(graph.unit[node])] : [];
  const text = texts.find((each) => each && at - x + textWidth(each, size) < room);
  return line(text ? [text] : [], at, y + size * 0.36, size, "start", nodeTitle(graph, parts, unit));
}

/** The kernels inside single drawn units that are larger than one weight, such as the depthwise ones of chains; none
 *  where they and the units' numbers are too wide. */
function innerOf(
  graph: Graph,
  flow: { alive: Uint8Array },
  parts: Parts,
  selection: Selection,
  { room }: Columns,
  sizes: Measures,
): Map<number, number[]> {
  const found = new Map<number, number[]>();
  for (const [unit, nodes] of parts.members.entries()) {
    if (!selection.units[unit] || nodes.length > 1) continue;
    const kernels = of(graph.inner, nodes[0]!).filter((edge) => flow.alive[edge] && weightsOf(graph, edge) > 1);
    if (kernels.length) found.set(unit, kernels);
  }
  const fits = [...found].every(
    ([unit, kernels]) =>
      innerWidth(kernels, sizes) + textWidth(String(graph.unit[parts.members[unit]![0]!]), sizes.small) <= room,
  );
  return fits ? found : new Map();
}

/** How many weights a kernel has; 0 where they are not known. */
function weightsOf(graph: Graph, edge: number): number {
  if (graph.weightStart[edge]! < 0 || graph.edgeLayer[edge]! < 0) return 0;
  const [height, width] = graph.document.layers[graph.edgeLayer[edge]!]!.kernel;
  return height * width;
}

/** The side of a heat map beside a label, and how much room these take of a line. */
function innerSide({ small }: Measures): number {
  return small * 1.2;
}
function innerWidth(kernels: number[] | undefined, sizes: Measures): number {
  return kernels ? kernels.length * (innerSide(sizes) + sizes.small * 0.35) : 0;
}

/** A node's label below its picture, the heat maps of the kernels inside it before its first line. */
function labelled(
  graph: Graph,
  lines: string[],
  kernels: number[],
  x: number,
  below: number,
  sizes: Measures,
  title: string,
): { label: Label; inner: KernelMap[] } {
  const [side, shift] = [innerSide(sizes), innerWidth(kernels, sizes) / 2];
  const label = line(lines, x + shift, below + sizes.small * 1.05, sizes.small, "middle", title);
  const left = x - shift - (lines.length ? textWidth(lines[0]!, sizes.small) / 2 : 0);
  const inner = kernels.map((kernel, i): KernelMap => {
    const [height, width] = graph.document.layers[graph.edgeLayer[kernel]!]!.kernel;
    const cell = side / Math.max(height, width);
    return {
      kernel,
      x: left + side / 2 + i * (side + sizes.small * 0.35),
      y: below + side / 2 + sizes.small * 0.2,
      width: width * cell,
      height: height * cell,
    };
  });
  return { label, inner };
}

/** The same scene with the nodes and edges lit that carry `share` of a node's flow; with nothing isolated, with the
 *  main paths lit, or everything. Nothing moves. */
export function isolate(graph: Graph, scene: Scene, node: number | null, share: number): Scene {
  const unit = node === null ? -1 : (scene.parts.unitOf[node] ?? -1);
  const isolated =
    unit >= 0 && scene.selection.units[unit]
      ? litOf(scene, light(scene.parts, scene.selection.bundles, unit, share))
      : null;
  const all = scene.view.paths === "all" || [...scene.main.nodes, ...scene.main.edges].every(Boolean);
  const lit = isolated ?? (all ? null : scene.main);
  const note = isolated ? isolatedNote(graph, scene, unit, share) : lit ? mainNote(scene) : "";
  return {
    ...scene,
    view: { ...scene.view, isolate: isolated ? node : null, share: share as View["share"] },
    lit,
    note: {
      ...scene.note,
      lines: note ? [shorten(note, scene.width - 2 * scene.note.x, scene.note.size)] : [],
    },
    glyphs: glyphs(graph, scene, isolated ?? scene.main, isolated ? 14 : 6),
  };
}

function isolatedNote(graph: Graph, scene: Scene, unit: number, share: number): string {
  const through = unitName(graph, scene.parts, unit);
  return `Lit: the paths that carry ${percent(share)} of the drawn flow through ${through}.`;
}

/** "Lit: the main paths, 18 of the 73 drawn filters, 2 % of the score." Blocks that are drawn as one are counted
 *  apart. */
export function mainNote({ main, nodes, edges, parts }: Scene): string {
  const kept = new Uint8Array(parts.edges.length);
  for (const [i, { bundle }] of edges.entries()) kept[bundle] = main.edges[i]!;
  const lit = [0, 0];
  for (const [i, { span }] of nodes.entries()) lit[span ? 1 : 0]! += main.nodes[i]!;
  const blocks = nodes.filter(({ span }) => span).length;
  const beside = blocks ? ` and ${count(lit[1]!)} of ${plural(blocks, "block")}` : "";
  const share = percent(carried(parts, kept)[parts.root] ?? 0);
  const filters = `${count(lit[0]!)} of the ${plural(nodes.length - blocks, "drawn filter")}`;
  return `Lit: the main paths, ${filters}${beside}, ${share} of the score.`;
}

/** What of a scene some units and bundles are. */
function litOf({ nodes, edges }: Pick<Scene, "nodes" | "edges">, { units, bundles }: Story): Lit {
  return {
    nodes: Uint8Array.from(nodes, (node) => units[node.unit]!),
    edges: Uint8Array.from(edges, (edge) => bundles[edge.bundle]!),
  };
}

interface Bundle {
  bundle: number;
  connection: boolean;
  sign: number;
  saliency: number;
  width: number;
}

/** Signs and widths of the drawn bundles. A width grows with the square root of the saliency, relative to the largest
 *  that ends in the same column: saliencies span so many orders that all but the largest would be hairlines. */
function strengths(
  graph: Graph,
  flow: { weight: Float64Array },
  parts: Parts,
  selection: Selection,
  [least, most]: [number, number],
  slot: (unit: number) => number,
): Bundle[] {
  const drawn: Bundle[] = [];
  const largest = new Map<number, number>();
  for (let bundle = 0; bundle < parts.edges.length; bundle++) {
    if (!selection.bundles[bundle]) continue;
    const edges = parts.edges[bundle]!;
    const saliency = edges.reduce((sum, edge) => sum + flow.weight[edge]!, 0);
    const connection = edges.every(
      (edge) => graph.edgeKind[edge] !== EdgeKind.kernel && graph.edgeKind[edge] !== EdgeKind.readout,
    );
    const signed = edges.reduce((sum, edge) => sum + (flow.weight[edge]! || 1e-30) * graph.sign[edge]!, 0);
    drawn.push({ bundle, connection, sign: connection ? 0 : signed < 0 ? -1 : 1, saliency, width: 0 });
    const end = slot(parts.target[bundle]!);
    largest.set(end, Math.max(largest.get(end) ?? 0, saliency));
  }
  for (const each of drawn)
    each.width =
      least + (most - least) * Math.sqrt(each.saliency / (largest.get(slot(parts.target[each.bundle]!)) || 1));
  return drawn;
}

/** What stands in the columns: units, and lanes where edges pass. Edges of one unit and look share a lane. */
function layersOf(
  parts: Parts,
  selection: Selection,
  bundles: Bundle[],
  columnCount: number,
  slot: (unit: number) => number,
) {
  const layers: Layers = {
    columns: Array.from({ length: columnCount }, () => []),
    links: Array.from({ length: columnCount - 1 }, () => []),
  };
  const drawn = Array.from(selection.units.keys()).filter((unit) => selection.units[unit]);
  for (const unit of drawn) layers.columns[slot(unit)]!.push(unit);
  const lanes: { bundles: number[]; width: number }[] = [];
  const laneOf = new Map<string, number>();
  const linkOf = new Map<string, Layers["links"][number][number]>();
  for (const { bundle, sign, width } of bundles) {
    const [from, to] = [parts.source[bundle]!, parts.target[bundle]!];
    let last = from;
    for (let c = slot(from) + 1; c <= slot(to); c++) {
      let next = to;
      if (c < slot(to)) {
        const key = `${from} ${sign} ${c}`;
        if (!laneOf.has(key)) {
          laneOf.set(key, parts.members.length + lanes.length);
          layers.columns[c]!.push(parts.members.length + lanes.length);
          lanes.push({ bundles: [], width: 0 });
        }
        next = laneOf.get(key)!;
        const lane = lanes[next - parts.members.length]!;
        lane.bundles.push(bundle);
        lane.width = Math.max(lane.width, width);
      }
      const key = `${last} ${next}`;
      const link = linkOf.get(key);
      if (link) link.weight = Math.max(link.weight, width);
      else {
        const made = { from: last, to: next, weight: width };
        linkOf.set(key, made);
        layers.links[c - 1]!.push(made);
      }
      last = next;
    }
  }
  return { layers, lanes };
}

/** The sides of the pictures. In full, the area grows with the flow within the column; the root's is the largest. */
function picturesOf(
  parts: Parts,
  selection: Selection,
  full: Uint8Array,
  [least, most]: [number, number],
  { dim, target }: Columns,
): number[] {
  const largest = new Map<number, number>();
  for (let unit = 0; unit < parts.members.length; unit++)
    if (selection.units[unit])
      largest.set(parts.column[unit]!, Math.max(largest.get(parts.column[unit]!) ?? 0, parts.flow[unit]!));
  return parts.members.map((_, unit) =>
    unit === parts.root
      ? target
      : !full[unit]
        ? dim
        : least + (most - least) * Math.sqrt(parts.flow[unit]! / (largest.get(parts.column[unit]!) || 1)),
  );
}

/** For each shown column (one with drawn nodes), whether its filters belong to several layers. */
function severalLayers(graph: Graph, parts: Parts, columnCount: number, slot: (unit: number) => number): boolean[] {
  const seen = Array.from({ length: columnCount }, () => new Set<number>());
  for (const [unit, nodes] of parts.members.entries())
    for (const node of nodes) if (graph.layer[node]! >= 0) seen[slot(unit)]?.add(graph.layer[node]!);
  return seen.map((layers) => layers.size > 1);
}

function header(
  graph: Graph,
  captions: string[],
  view: View,
  canvas: Canvas,
  sizes: Measures,
  what: { bundles: Bundle[]; hides: boolean; inner: boolean; grids: boolean; firsts: boolean },
) {
  const inner = canvas.width - 2 * sizes.margin;
  const cut = cutOf(graph, view);
  const full = plain(graph.document.meta.title) + (cut && `: ${cut}`);
  const { items, beside } = legend(graph, view, canvas, sizes, full, what);
  const titleLines = wrap(full, inner, sizes.title).slice(0, 3);
  const title = line(
    titleLines,
    sizes.margin,
    sizes.margin * (canvas.medium === "paper" ? 1 : 0.5) + sizes.title,
    sizes.title,
    "start",
    full,
  );
  const start = labelBox(title).bottom + sizes.font * 1.3;
  const said = captions.find((text) => textWidth(text, sizes.font) <= inner) ?? captions.at(-1)!;
  const caption = line(wrap(said, inner, sizes.font), sizes.margin, start, sizes.font, "start", "");
  // A line is left for what is lit, so that nothing moves when something is.
  const note = line([], sizes.margin, start + caption.lines.length * lineHeight(sizes.font), sizes.font, "start", "");
  let bottom = labelBox({ ...note, lines: [""] }).bottom;
  const shift = beside ? title.y : bottom + sizes.font * 1.6;
  for (const item of items) {
    item.y += shift;
    item.label.y += shift;
    bottom = Math.max(bottom, labelBox(item.label).bottom);
  }
  return { title, caption, note, legend: items, bottom: bottom + sizes.gap };
}

function mark(view: View, bits: number): Mark {
  return view.compare === null || bits === 3 ? "both" : bits === 1 ? "a" : "b";
}

/** Paths of the drawn bundles, the thin ones first. */
function route(
  parts: Parts,
  bundles: Bundle[],
  nodes: SceneNode[],
  nodeOf: Map<number, number>,
  lanes: { bundles: number[] }[],
  y: Float64Array,
  columns: Columns,
  sizes: Measures,
  slot: (unit: number) => number,
): SceneEdge[] {
  const pad = sizes.gap * 0.4;
  const reach = columns.x.map(() => 0);
  for (const node of nodes) {
    const c = slot(node.unit);
    const box = labelBox(node.label);
    reach[c] = Math.max(reach[c]!, node.size / 2 + pad, Math.min((box.right - box.left) / 2, columns.room * 0.34));
  }
  const passes = new Map<number, number[]>(); // the lanes of each bundle, from left to right
  for (const [lane, { bundles: through }] of lanes.entries())
    for (const b of through) passes.set(b, [...(passes.get(b) ?? []), parts.members.length + lane]);
  const stopsOf = (bundle: number) =>
    [parts.source[bundle]!, ...(passes.get(bundle) ?? []), parts.target[bundle]!].map((thing) => y[thing]!);

  // Where each edge leaves and arrives: side by side, by where it goes.
  const leaves = new Map<number, number>();
  const arrives = new Map<number, number>();
  const byBundle = new Map(bundles.map((each) => [each.bundle, each]));
  for (const node of nodes) {
    for (const [list, map, other] of [
      [parts.outgoing, leaves, 1],
      [parts.incoming, arrives, -2],
    ] as const) {
      const mine = of(list, node.unit).flatMap((bundle) =>
        byBundle.has(bundle) ? { ...byBundle.get(bundle)!, y: stopsOf(bundle).at(other)! } : [],
      );
      mine.sort((a, b) => a.y - b.y || a.bundle - b.bundle);
      const offsets = ports(
        mine.map(({ width }) => width),
        node.size * 0.5,
      );
      for (const [i, { bundle }] of mine.entries()) map.set(bundle, offsets[i]!);
    }
  }
  const edges = bundles.map((each): SceneEdge => {
    const { bundle, width } = each;
    const [from, to] = [nodes[nodeOf.get(parts.source[bundle]!)!]!, nodes[nodeOf.get(parts.target[bundle]!)!]!];
    const ys = stopsOf(bundle);
    ys[0]! += leaves.get(bundle)!;
    ys[ys.length - 1]! += arrives.get(bundle)!;
    const first = slot(from.unit);
    const last = slot(to.unit);
    const inhibits = each.sign < 0;
    const end = to.x - to.size / 2 - pad - (inhibits ? barWidth(sizes) / 2 : 0);
    const stops = [{ x: rightOf(from) + pad, y: ys[0]! }];
    const add = (x: number, height: number) => x - stops[stops.length - 1]!.x > 0.5 && stops.push({ x, y: height });
    for (let c = first; c < last; c++) {
      add(columns.x[c]! + reach[c]!, ys[c - first]!);
      add(columns.x[c + 1]! - reach[c + 1]!, ys[c + 1 - first]!);
    }
    add(end, ys[ys.length - 1]!);
    const points = through(stops);
    const bar = width / 2 + sizes.edge[1] * 0.36;
    return {
      bundle,
      edges: parts.edges[bundle]!,
      source: nodeOf.get(parts.source[bundle]!)!,
      target: nodeOf.get(parts.target[bundle]!)!,
      connection: each.connection,
      sign: each.sign,
      saliency: each.saliency,
      flow: parts.bundleFlow[bundle]!,
      width,
      gap: [columns.x[last - 1]! + reach[last - 1]!, columns.x[last]! - reach[last]!],
      path: toPath(points),
      points,
      bar: inhibits ? `M${short(end)} ${short(ys[ys.length - 1]! - bar)}V${short(ys[ys.length - 1]! + bar)}` : null,
      mark: "both",
    };
  });
  return edges.sort((a, b) => a.width - b.width || a.bundle - b.bundle);
}

/** Where what leaves a node begins: right of its picture and of a label beside it. */
function rightOf({ x, size, label }: SceneNode): number {
  const beside = label.anchor === "start" && label.lines.length > 0;
  return Math.max(x + size / 2, beside ? labelBox(label).right : 0);
}

export function barWidth({ edge }: Measures): number {
  return edge[1] * 0.26;
}

/** Dotted stubs at nodes for the flow through edges that are not drawn. */
function stubs(parts: Parts, selection: Selection, nodes: SceneNode[], columns: Columns, sizes: Measures): void {
  const seenIn = parts.image.slice();
  const seenOut = new Float64Array(parts.members.length);
  for (let bundle = 0; bundle < parts.edges.length; bundle++) {
    if (!selection.bundles[bundle]) continue;
    seenIn[parts.target[bundle]!]! += parts.share[bundle]!;
    seenOut[parts.source[bundle]!]! += parts.bundleFlow[bundle]!;
  }
  const longest = Math.min(sizes.node[1] * 0.3, columns.room * 0.16);
  for (const node of nodes) {
    const stub = (share: number, side: 1 | -1) => {
      if (share < 0.02) return null;
      const x = side < 0 ? node.x - node.size / 2 - sizes.gap * 0.4 : rightOf(node) + sizes.gap * 0.4;
      const y = node.y + node.size * 0.36;
      return { share, path: `M${short(x)} ${short(y)}h${short(side * longest * (0.3 + 0.7 * share))}` };
    };
    node.hiddenIn = stub(1 - seenIn[node.unit]!, -1);
    node.hiddenOut = node.target || !node.flow ? null : stub(1 - seenOut[node.unit]! / node.flow, 1);
  }
}

/** For each shown column, the number of hidden nodes and the share of its flow through the shown ones. */
function hiddenOf(parts: Parts, selection: Selection, columnCount: number, slot: (unit: number) => number) {
  const hidden = Array.from({ length: columnCount }, () => ({ count: 0, all: 0, drawn: 0, shown: 1 }));
  for (const [unit, nodes] of parts.members.entries()) {
    const column = hidden[slot(unit)];
    if (!column) continue;
    column.all += parts.flow[unit]!;
    if (selection.units[unit]) column.drawn += parts.flow[unit]!;
    else column.count += nodes.length;
  }
  for (const column of hidden) column.shown = column.all > 0 ? column.drawn / column.all : column.count ? 0 : 1;
  return hidden;
}

/** Heat maps on lit edges, the strongest first, where there is room beside those that are there; at most so many in a
 *  gap between columns. */
export function glyphs(
  graph: Graph,
  scene: Scene,
  lit: Pick<Lit, "edges">,
  most: number,
  there: Glyph[] = [],
): Glyph[] {
  const sizes = measures(scene);
  const has = new Set(there.map(({ edge }) => edge));
  const candidates = scene.edges
    .map((edge, index) => ({ edge, index, kernel: strongest(graph, scene, edge) }))
    .filter(({ index, kernel }) => kernel >= 0 && lit.edges[index] && !has.has(index))
    .reverse()
    .map((each) => {
      const [height, width] = graph.document.layers[graph.edgeLayer[each.kernel]!]!.kernel;
      const cell = sizes.glyph / Math.max(3, height, width);
      return {
        ...each,
        height: height * cell,
        width: width * cell,
        most,
        gap: [each.edge.gap[0] + 1, each.edge.gap[1] - 1] as [number, number],
      };
    });
  const around = (x: number, y: number, width: number, height: number): Box => ({
    left: x - width / 2,
    right: x + width / 2,
    top: y - height / 2,
    bottom: y + height / 2,
  });
  const boxes = [
    ...scene.nodes.flatMap(({ x, y, size, label }) => [around(x, y, size, size), labelBox(label)]),
    ...there.map(({ x, y, width, height }) => around(x, y, width, height)),
  ];
  return placeGlyphs(candidates, boxes);
}

/** The most salient kernel of an edge, if it is larger than one weight; -1 for none. */
function strongest(graph: Graph, scene: Scene, edge: SceneEdge): number {
  let best = -1;
  for (const each of edge.edges) {
    if (weightsOf(graph, each) > 1 && (best < 0 || scene.flow.weight[each]! > scene.flow.weight[best]!)) best = each;
  }
  return best;
}

/** One line about an edge: its name, its ends, its kind and its strength. */
export function edgeTitle(graph: Graph, scene: Scene, edge: SceneEdge): string {
  const [from, to] = [scene.nodes[edge.source]!, scene.nodes[edge.target]!].map(
    (node) => node.label.lines.join(" ") || node.label.title,
  );
  const kind = edge.connection ? "connection" : edge.sign < 0 ? "inhibitory" : "excitatory";
  const many = edge.edges.length > 1 ? `, ${count(edge.edges.length)} kernels` : "";
  const layer = graph.edgeLayer[edge.edges[0]!]!;
  const name = layer >= 0 ? `${graph.document.layers[layer]!.name}: ` : "";
  const saliency = edge.connection ? "" : `, saliency ${significant(edge.saliency)}`;
  const alone = layer >= 0 && edge.edges.length === 1 && isFitted(graph, scene.view);
  const gain = alone ? `, gain ${gainText(gainOf(graph, scene.view, edge.edges[0]!))}` : "";
  return plain(`${name}${from} \u2192 ${to}, ${kind}${many}${saliency}${gain}, ${percent(edge.flow)} of the flow`);
}
