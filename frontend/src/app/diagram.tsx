/** The focus view: the scene as SVG, with the pointer and the keyboard. */

import { useComputed, useSignalEffect } from "@preact/signals";
import { useRef } from "preact/hooks";
import { opensTo } from "../core/blocks.js";
import { gainOf } from "../core/decode.js";
import { labelBox } from "../core/labels.js";
import { circuitName, edgeName, signName, spokenNode } from "../core/names.js";
import { glyphs } from "../core/scene.js";
import type { KernelMap, Label, Mark, Scene, SceneEdge, SceneNode } from "../core/scene-types.js";
import { insideText } from "../core/select.js";
import { DASHES, tilePlaces } from "../core/svg.js";
import { plain } from "../core/text.js";
import { NodeKind } from "../core/types.js";
import { choose, clear, hold, isolateNode, open, pin, reroot } from "./actions.js";
import { nearest } from "./geometry.js";
import type { PositionMap } from "./pictures.js";
import { AROUND, type Store } from "./store.js";
import { spokenTarget } from "./target.js";
import { Kernel, pure, Tile } from "./ui.js";
import { Pan, wheel } from "./zoom.js";

const REACH = 7; // px from an edge at which the pointer is on it
const WIDEST = 8; // px: an edge of the greatest effect
const LABEL =
  "circuit diagram: arrow keys move between filters, Enter draws one as the target, Space isolates it, p pins it";

/** How an edge is painted: by its saliency or, if an image is chosen, by its effect on it. */
interface Paint {
  sign: number;
  width: number;
}

export function LabelText({ label }: { label: Label }) {
  return (
    <text
      font-size={label.size}
      text-anchor={label.anchor}
      transform={label.turned ? `rotate(-90 ${label.x} ${label.y})` : undefined}
    >
      {label.title !== "" && label.title !== label.lines.join(" ") && <title>{label.title}</title>}
      {label.lines.map((line, i) => (
        <tspan x={label.x} y={label.y + i * label.size * 1.25}>
          {line}
        </tspan>
      ))}
    </text>
  );
}

function kindOf(sign: number): string {
  return sign > 0 ? "excites" : sign < 0 ? "inhibits" : "connects";
}

/** "only in group A", of what one of two compared circuits has. */
export function onlyIn({ graph, view }: Store, mark: "a" | "b"): string {
  const { variant, compare } = view.value;
  return `only in ${circuitName(graph, mark === "a" ? variant : compare!, view.value)}`;
}

/** The dash pattern of either side of a comparison. */
export function dashes(mark: Mark, width: number): string | undefined {
  return mark === "both" ? undefined : DASHES[mark].map((part) => part * Math.max(width, 0.8)).join(" ");
}

const EdgePath = pure(({ edge, paint, name }: { edge: SceneEdge; paint: Paint; name: string }) => (
  <g class={kindOf(paint.sign)} stroke-opacity={0.42 + 0.5 * Math.min(1, paint.width / 5)}>
    <path
      class="edge"
      data-edge={edge.edges[0]}
      data-mark={edge.mark}
      role="img"
      aria-label={name}
      d={edge.path}
      stroke-width={paint.width}
      stroke-dasharray={dashes(edge.mark, paint.width)}
    />
    {paint.sign < 0 && <Bar edge={edge} paint={paint} />}
  </g>
));

/** An isolated edge, on top of the dimmed ones: dimming all edges as one layer keeps isolation fast. */
const LitPath = pure(({ edge, paint }: { edge: SceneEdge; paint: Paint }) => (
  <g class={kindOf(paint.sign)}>
    <path
      class="edge"
      data-lit-edge={edge.edges[0]}
      d={edge.path}
      stroke-width={paint.width}
      stroke-dasharray={dashes(edge.mark, paint.width)}
    />
    {paint.sign < 0 && <Bar edge={edge} paint={paint} />}
  </g>
));

function Bar({ edge, paint }: { edge: SceneEdge; paint: Paint }) {
  return <path class="edge" d={edge.bar ?? barOf(edge, paint.width)} stroke-width={Math.max(1.5, paint.width * 0.8)} />;
}

/** The bar at the end of an edge that inhibits on an image, although the sign of its saliency says otherwise. */
function barOf({ points }: SceneEdge, width: number): string {
  const [x, y] = points.slice(-2) as [number, number];
  return `M${x} ${y - width / 2 - 2}V${y + width / 2 + 2}`;
}

const SIGNS: Record<number, string> = {
  [NodeKind.add]: "M-6 0H6M0 -6V6",
  [NodeKind.gate]: "M-5 -5L5 5M5 -5L-5 5",
  [NodeKind.mix]: "M-6 -5H-2L2 5H6M-6 5H-2L2 -5H6",
};

interface NodeProps {
  node: SceneNode;
  lit: boolean;
  chosen: boolean;
  isolated: boolean;
  current: boolean;
  name: string;
  /** A - B of its filter on two photographs, from -1 to 1. */
  tilt: number;
}

/** A node's picture. It lies below the node itself, whose bounds would otherwise be those of the whole atlas. */
const NodePicture = pure(
  ({ store, node, map, lit }: { store: Store; node: SceneNode; map: PositionMap | null; lit: boolean }) => {
    const { size } = node;
    const [x, y] = [node.x - size / 2, node.y - size / 2];
    return (
      <g class={`picture ${lit ? "lit" : ""}`}>
        {node.group !== null &&
          [6, 3].map((shift) => <rect class="under" x={x + shift} y={y - shift} width={size} height={size} />)}
        {map
          ? [
              <image class="map" href={map.url} x={x} y={y} width={size} height={size} preserveAspectRatio="none" />,
              node.tiles.length > 0 && (
                <Tile store={store} tile={node.tiles[0]!} x={x} y={y + size * 0.64} size={size * 0.36} />
              ),
            ]
          : tilePlaces(node).map((place) => <Tile store={store} {...place} />)}
        {node.tiles.length === 0 && !map && SIGNS[node.kind] && (
          <rect class="blank" x={x} y={y} width={size} height={size} />
        )}
        {node.tiles.length === 0 && !map && SIGNS[node.kind] && (
          <path class="sign" d={SIGNS[node.kind]} transform={`translate(${node.x} ${node.y})`} />
        )}
      </g>
    );
  },
);

const NodeMark = pure(({ node, lit, chosen, isolated, current, name, tilt }: NodeProps) => {
  const { size } = node;
  const [x, y] = [node.x - size / 2, node.y - size / 2];
  const classes = [
    "node",
    lit && "lit",
    (chosen || isolated) && "chosen",
    node.target && "target",
    node.mark !== "both" && "marked",
  ]
    .filter(Boolean)
    .join(" ");
  return (
    <g
      class={classes}
      role="button"
      aria-label={name}
      aria-pressed={isolated}
      tabindex={current ? 0 : -1}
      data-node={node.nodes[0]}
      data-group={node.group ?? undefined}
      data-mark={node.mark}
      data-pinned={node.pinned || undefined}
      data-lit={lit || undefined}
    >
      <rect class="frame" x={x} y={y} width={size} height={size} stroke-dasharray={dashes(node.mark, 2)} />
      <rect class="ring" x={x - 3} y={y - 3} width={size + 6} height={size + 6} rx={3} />
      {tilt !== 0 && <circle class={`tilt ${kindOf(tilt)}`} cx={x} cy={y} r={3 + 6 * Math.abs(tilt)} />}
      {node.pinned && <circle class="pin" cx={x + size} cy={y} r={4.5} />}
      <LabelText label={node.label} />
    </g>
  );
});

/** Where the scene begins and ends without its title, legend and caption, which the page shows as its own text. */
export function bodyOf(scene: Scene): { top: number; height: number } {
  const tops = [
    ...scene.headings.map((label) => labelBox(label).top),
    ...scene.nodes.map(({ y, size }) => y - size / 2),
  ];
  const ends = [
    ...[...scene.nodes, ...scene.more].map(({ label }) => labelBox(label).bottom),
    ...scene.nodes.map(({ y, size }) => y + size / 2),
    ...scene.more.map(({ bar }) => bar.y + bar.height),
  ];
  const top = Math.min(...tops, scene.height) - AROUND;
  return { top, height: Math.max(...ends, top + 100) + AROUND - top };
}

/** A spoken name with what is seen of it before it, unless it has that: who speaks to the page says what is seen. */
function withSeen(seen: string, name: string): string {
  const words = (text: string) => ` ${text.replace(/[^\p{L}\p{N}]+/gu, " ").trim()} `;
  return words(name).includes(words(seen)) ? name : `${seen}, ${name}`;
}

/** The strongest edges by flow, drawn or not, by which some nodes read others, or are read by others. */
export function strongest(store: Store, nodes: number[], direction: "incoming" | "outgoing", most: number): number[] {
  const { graph, flow } = store;
  const lists = graph[direction];
  const edges = nodes.flatMap((node) => [...lists.items.subarray(lists.start[node], lists.start[node + 1])]);
  const by = flow.value.edge;
  const inside = new Set(nodes);
  const others = direction === "incoming" ? graph.source : graph.target;
  return edges
    .filter((edge) => flow.value.alive[edge] && by[edge]! > 0 && !inside.has(others[edge]!))
    .sort((a, b) => by[b]! - by[a]!)
    .slice(0, most);
}

export function Diagram({ store }: { store: Store }) {
  const svg = useRef<SVGSVGElement>(null);
  const pan = useRef(new Pan()).current;
  const { graph } = store;
  // Depends on the layout only, and stays the same while nodes are lit.
  const names = useComputed(() => {
    const { nodes, edges } = store.plan.value;
    return {
      nodes: nodes.map((node) =>
        withSeen(
          node.label.lines.join(" "),
          node.group !== null
            ? node.span
              ? `${node.group}, collapsed: ${insideText(graph, store.flow.value, node.nodes)}; ` +
                `Enter opens its ${opensTo(graph, node.span)}`
              : `group ${plain(node.group)}, ${node.nodes.length} filters`
            : spokenNode(
                graph,
                node.nodes[0]!,
                node.flow,
                strongest(store, node.nodes, "incoming", 3),
                store.labels.value,
              ),
        ),
      ),
      edges: edges.map(
        ({ edges: [edge], mark }) =>
          `${edgeName(graph, edge!)}, ${signName(graph, edge!)}${mark === "both" ? "" : `, ${onlyIn(store, mark)}`}`,
      ),
    };
  });
  const paints = useComputed(() => paintsOf(store));
  const tilts = useComputed(() => tiltsOf(store));
  const onImage = useComputed(() =>
    store.view.value.image === null ? "" : spokenTarget(store, store.view.value.image),
  );
  const named = (i: number) => {
    const isTarget = scene.nodes[i]!.nodes[0] === graph.document.target;
    return isTarget && onImage.value
      ? `${names.value.nodes[i]!}, on the image ${onImage.value}`
      : names.value.nodes[i]!;
  };
  const scene = store.scene.value;
  const { isolate } = store.view.value;
  const image = store.image.value;
  const body = bodyOf(scene);
  const zoom = store.zoom.value;
  const lit = scene.lit;
  const selection = store.selection.value;
  const current = scene.nodes.some(({ nodes }) => nodes.includes(store.current.value))
    ? store.current.value
    : graph.document.target;

  // A node that the arrow keys focus may have been drawn only just now.
  useSignalEffect(() => {
    const node = store.current.value;
    store.scene.value;
    const held = (svg.current?.getRootNode() as ShadowRoot | undefined)?.activeElement;
    if (held?.classList.contains("node")) queueMicrotask(() => focusNode(svg.current, node));
  });

  const sceneNode = (target: EventTarget | null) => {
    const number = (target as Element | null)?.closest?.("[data-node]")?.getAttribute("data-node");
    return number === undefined || number === null
      ? null
      : (scene.nodes.find(({ nodes }) => nodes[0] === Number(number)) ?? null);
  };
  const show = (element: Element) => {
    const node = sceneNode(element);
    if (node) store.hover.value = { nodes: node.nodes, edges: [] };
  };
  /** The edges under the pointer: those of the scene's edge, or the kernel of its heat map. */
  const edgesAt = (event: MouseEvent): number[] => {
    const frame = svg.current!.getBoundingClientRect();
    const [x, y] = [(event.clientX - frame.left) / zoom, (event.clientY - frame.top) / zoom + body.top];
    const glyph = scene.glyphs.find(
      (each) =>
        Math.abs(each.x - x) <= each.width / 2 &&
        Math.abs(each.y - y) <= each.height / 2 &&
        (!lit || lit.edges[each.edge]),
    );
    if (glyph) return [glyph.kernel];
    const among = (passes: (edge: number) => boolean) => nearest(scene.edges, x, y, REACH / zoom, passes);
    const onLit = among((edge) => !lit || lit.edges[edge] === 1);
    // What is not on the main paths is dimmed, but can still be looked at.
    const found = onLit < 0 && isolate === null ? among(() => true) : onLit;
    return found < 0 ? [] : scene.edges[found]!.edges;
  };
  const press = (event: PointerEvent) => {
    // Fingers scroll anyway.
    if (event.button === 0 && event.pointerType === "mouse" && !sceneNode(event.target) && !edgesAt(event).length)
      pan.start(event.currentTarget as Element, event);
  };
  const move = (event: PointerEvent) => {
    if (pan.move(event.currentTarget as Element, event)) return;
    const held = (event.target as Element).closest?.("[data-node]");
    if (held) {
      if (store.hover.value?.nodes[0] !== Number(held.getAttribute("data-node"))) show(held);
      return;
    }
    const edges = edgesAt(event);
    const before = store.hover.value;
    if (!edges.length) store.hover.value = null;
    else if (before?.edges.join() !== edges.join()) store.hover.value = { nodes: [], edges };
  };
  const click = (event: MouseEvent) => {
    if (pan.dragged) {
      pan.dragged = false;
      return;
    }
    const node = sceneNode(event.target);
    const edges = node ? [] : edgesAt(event);
    if (edges.length) hold(store, { nodes: [], edges });
    else if (!node) clear(store);
    else if (event.shiftKey && !node.span) choose(store, node.nodes);
    else isolateNode(store, node.nodes[0]!);
    if (node) store.current.value = node.nodes[0]!;
  };
  const key = (event: KeyboardEvent) => {
    const node = sceneNode(event.target);
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const act: Record<string, () => void> = {
      Enter: () => (node.span ? open(store, node.span) : reroot(store, node.nodes[0]!)),
      " ": () => (event.shiftKey && !node.span ? choose(store, node.nodes) : isolateNode(store, node.nodes[0]!)),
      p: () => pin(store, node.nodes[0]!),
      ArrowLeft: () => walk(store, scene, node, "source"),
      ArrowRight: () => walk(store, scene, node, "target"),
      ArrowUp: () => step(store, scene, node, -1),
      ArrowDown: () => step(store, scene, node, 1),
      Home: () => to(store, scene.nodes.filter(({ column }) => column === node.column)[0]),
      End: () => to(store, scene.nodes.filter(({ column }) => column === node.column).at(-1)),
    };
    if (!act[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    act[event.key]!();
    if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End")
      focusNode(svg.current, store.current.value);
  };

  return (
    // The listeners are on a div, because an SVG element with a focus listener takes the focus itself.
    <div
      class={lit ? "drawing isolated" : "drawing"}
      onPointerDown={press}
      onPointerMove={move}
      onPointerUp={() => pan.stop()}
      onPointerCancel={() => pan.stop()}
      onWheel={(event) => wheel(store, event.currentTarget.parentElement!, event)}
      onPointerLeave={() => {
        store.hover.value = null;
      }}
      onClick={click}
      onKeyDown={key}
      onFocusIn={(event) => {
        if ((event.target as Element).matches(":focus-visible")) show(event.target as Element);
      }}
      onFocusOut={() => {
        store.hover.value = null;
      }}
    >
      {/* A separate layer, so that it can be dimmed or drawn over without a repaint. */}
      <svg
        class="edges"
        role="group"
        aria-label="kernels"
        width={scene.width * zoom}
        height={body.height * zoom}
        viewBox={`0 ${body.top} ${scene.width} ${body.height}`}
      >
        {scene.edges.map((edge, i) => (
          <EdgePath key={edge.edges[0]} edge={edge} paint={paints.value[i]!} name={names.value.edges[i]!} />
        ))}
      </svg>
      <svg
        ref={svg}
        part="diagram"
        role="group"
        aria-label={LABEL}
        width={scene.width * zoom}
        height={body.height * zoom}
        viewBox={`0 ${body.top} ${scene.width} ${body.height}`}
        data-isolated={isolate ?? undefined}
      >
        <g class="headings" aria-hidden="true">
          {scene.headings.map((label) => (
            <LabelText label={label} />
          ))}
        </g>
        <g class="lit-edges" aria-hidden="true">
          {lit &&
            scene.edges.map(
              (edge, i) => lit.edges[i] === 1 && <LitPath key={edge.edges[0]} edge={edge} paint={paints.value[i]!} />,
            )}
        </g>
        <Over store={store} paints={paints.value} />
        <g class="stubs">
          {scene.nodes.map(
            ({ hiddenIn, hiddenOut }, i) =>
              (!lit || lit.nodes[i] === 1) && [
                hiddenIn && <path class="stub" d={hiddenIn.path} />,
                hiddenOut && <path class="stub" d={hiddenOut.path} />,
              ],
          )}
        </g>
        <g class="glyphs">
          <GlyphMarks store={store} glyphs={scene.glyphs} />
          <OverGlyphs store={store} />
        </g>
        <g class="pictures" aria-hidden="true">
          {scene.nodes.map((node, i) => (
            <NodePicture
              key={node.nodes.join()}
              store={store}
              node={node}
              map={image === null || node.nodes.length > 1 ? null : store.maps.activation(node.nodes[0]!, image)}
              lit={lit?.nodes[i] === 1}
            />
          ))}
        </g>
        <g class="nodes">
          {scene.nodes.map((node, i) => (
            <NodeMark
              key={node.nodes.join()}
              node={node}
              lit={lit?.nodes[i] === 1}
              chosen={node.nodes.some((each) => selection.includes(each))}
              isolated={isolate !== null && node.nodes.includes(isolate)}
              current={node.nodes.includes(current)}
              name={named(i)}
              tilt={tilts.value[i]!}
            />
          ))}
        </g>
        <g class="inner" aria-hidden="true">
          {scene.nodes.map(({ inner }, i) =>
            inner.map((map) => (
              <GlyphMark
                key={map.kernel}
                store={store}
                kind={lit && !lit.nodes[i] ? "unlit" : ""}
                turn={Math.sign(gainOf(graph, scene.view, map.kernel))}
                {...map}
              />
            )),
          )}
        </g>
        <g class="more">
          {scene.more.map(({ bar, shown, label }) => (
            <g>
              <rect x={bar.x} y={bar.y} width={bar.width} height={bar.height} rx={bar.height / 2} />
              <rect
                class="part"
                x={bar.x}
                y={bar.y}
                width={bar.width * shown}
                height={bar.height}
                rx={bar.height / 2}
              />
              <LabelText label={label} />
            </g>
          ))}
        </g>
      </svg>
    </div>
  );
}

/** A kernel's heat map in a frame, as the circuit uses it: with the sign of its gain. */
const GlyphMark = pure((props: KernelMap & { store: Store; kind: string; turn: number }) => {
  const { store, kind, turn, x, y, width, height, kernel } = props;
  const { graph } = store;
  const [rows, columns] = graph.document.layers[graph.edgeLayer[kernel]!]?.kernel ?? [1, 1];
  return (
    <g class={`glyph ${kind}`} transform={`translate(${x - width / 2} ${y - height / 2})`} aria-hidden="true">
      <rect class="sheet edge" x={-1.5} y={-1.5} width={width + 3} height={height + 3} />
      <g transform={`scale(${width / columns} ${height / rows})`}>
        <Kernel graph={graph} edge={kernel} cell={1} numbers={false} turn={turn} />
      </g>
    </g>
  );
});

function GlyphMarks({ store, glyphs }: { store: Store; glyphs: KernelMap[] }) {
  const { graph } = store;
  const { view } = store.scene.value;
  return (
    <>
      {glyphs.map((glyph) => (
        <GlyphMark
          key={glyph.kernel}
          store={store}
          kind={graph.sign[glyph.kernel]! < 0 ? "inhibits" : "excites"}
          turn={Math.sign(gainOf(graph, view, glyph.kernel))}
          {...glyph}
        />
      ))}
    </>
  );
}

/** The scene's edges of the node or edge under the pointer, or of the edge whose details stay. */
function hovered(store: Store): number[] {
  const spot = store.hover.value ?? (store.held.value?.edges.length ? store.held.value : null);
  const scene = store.scene.value;
  if (!spot) return [];
  const here = new Set(
    scene.nodes.flatMap(({ nodes }, i) => (nodes.some((node) => spot.nodes.includes(node)) ? [i] : [])),
  );
  return scene.edges.flatMap((edge, i) =>
    here.has(edge.source) || here.has(edge.target) || edge.edges.some((each) => spot.edges.includes(each)) ? [i] : [],
  );
}

/** Their heat maps, where they have none yet. */
function OverGlyphs({ store }: { store: Store }) {
  const scene = store.scene.value;
  const edges = hovered(store);
  if (!edges.length) return null;
  const mask = new Uint8Array(scene.edges.length);
  for (const edge of edges) mask[edge] = 1;
  return <GlyphMarks store={store} glyphs={glyphs(store.graph, scene, { edges: mask }, edges.length, scene.glyphs)} />;
}

/** These edges drawn once more on top. */
function Over({ store, paints }: { store: Store; paints: Paint[] }) {
  const scene = store.scene.value;
  const edges = hovered(store);
  return (
    <g class="over" aria-hidden="true">
      {edges.map((i) => {
        const edge = scene.edges[i]!;
        const paint = paints[i]!;
        return (
          <g class={kindOf(paint.sign)}>
            <path
              class="edge"
              d={edge.path}
              stroke-width={paint.width + 1}
              stroke-dasharray={dashes(edge.mark, paint.width)}
            />
          </g>
        );
      })}
    </g>
  );
}

function paintsOf(store: Store): Paint[] {
  const { edges, nodes } = store.plan.value;
  const { graph } = store;
  const [image, contrast] = [store.image.value, store.contrast.value];
  const value = contrast
    ? (edge: number) => more(contrast(graph.edgeLayer[edge]!, graph.out[edge]!, graph.in[edge]!))
    : image !== null && graph.document.images && ((edge: number) => store.maps.effect(edge, image));
  if (!value) return edges.map(({ sign, width }) => ({ sign, width }));
  const effects = edges.map((edge) => edge.edges.reduce<number | null>((sum, each) => add(sum, value(each)), null));
  const gap = (i: number) => `${nodes[edges[i]!.source]!.column} ${nodes[edges[i]!.target]!.column}`;
  const top = new Map<string, number>();
  effects.forEach((effect, i) => top.set(gap(i), Math.max(top.get(gap(i)) ?? 0, Math.abs(effect ?? 0))));
  return effects.map((effect, i) =>
    effect === null
      ? { sign: 0, width: 0.8 }
      : { sign: Math.sign(effect), width: 0.8 + (WIDEST - 0.8) * (Math.abs(effect) / (top.get(gap(i)) || 1)) },
  );
}

/** A - B. */
function more(pair: readonly number[] | null): number | null {
  return pair && pair[0]! - pair[1]!;
}

/** Of each node, A - B of its filter as a share of the largest in its layer. */
function tiltsOf({ graph, plan, contrast }: Store): number[] {
  const of = contrast.value;
  const top = new Map<number, number>();
  const found = plan.value.nodes.map(({ nodes: [node, ...others], kind }) => {
    if (!of || others.length || kind !== NodeKind.filter) return [0, 0] as const;
    const layer = graph.layer[node!]!;
    const value = more(of(layer, graph.unit[node!]!, null)) ?? 0;
    top.set(layer, Math.max(top.get(layer) ?? 0, Math.abs(value)));
    return [value, layer] as const;
  });
  return found.map(([value, layer]) => value && value / top.get(layer)!);
}

function add(sum: number | null, value: number | null): number | null {
  return value === null ? sum : (sum ?? 0) + value;
}

function focusNode(svg: SVGSVGElement | null, node: number): void {
  // The node that Tab focuses is out of date until everything is redrawn, but a node in a group has no other.
  const found =
    svg?.querySelector<SVGGElement>(`[data-node="${node}"]`) ?? svg?.querySelector<SVGGElement>('.node[tabindex="0"]');
  found?.focus({ preventScroll: false });
}

function to(store: Store, node: SceneNode | undefined): void {
  if (node) store.current.value = node.nodes[0]!;
}

/** Moves along the strongest lit edge, or else to the nearest node of the next column on that side. */
function walk(store: Store, scene: Scene, from: SceneNode, side: "source" | "target"): void {
  const here = scene.nodes.indexOf(from);
  const other = side === "source" ? "target" : "source";
  const best = scene.edges.reduce<SceneEdge | null>(
    (found, edge, i) =>
      edge[other] === here && (!scene.lit?.nodes[here] || scene.lit.edges[i]) && (!found || edge.flow > found.flow)
        ? edge
        : found,
    null,
  );
  if (best) {
    to(store, scene.nodes[best[side]]);
    return;
  }
  const beyond = scene.nodes.filter(({ column }) => (side === "source" ? column < from.column : column > from.column));
  const column =
    side === "source" ? Math.max(...beyond.map((node) => node.column)) : Math.min(...beyond.map((node) => node.column));
  const distance = (node: SceneNode) => Math.abs(node.y - from.y);
  to(store, beyond.filter((node) => node.column === column).sort((a, b) => distance(a) - distance(b))[0]);
}

function step(store: Store, scene: Scene, from: SceneNode, by: 1 | -1): void {
  const column = scene.nodes.filter((node) => node.column === from.column);
  to(store, column[column.indexOf(from) + by]);
}
