/** All that the document knows about a node or an edge. */

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { opensTo } from "../core/blocks.js";
import { gainOf, isFitted, kernel, setOf } from "../core/decode.js";
import { count, gainText, percent, plural, significant } from "../core/format.js";
import { circuitName, edgeName, nodeShort, signName } from "../core/names.js";
import { insideText, of } from "../core/select.js";
import { plain } from "../core/text.js";
import { EdgeKind, LONGEST_LABEL, LONGEST_NOTE, NodeKind, type Note } from "../core/types.js";
import { annotate, open } from "./actions.js";
import { onlyIn, strongest } from "./diagram.js";
import type { Store } from "./store.js";
import { onImage, TargetFigures, TargetMaps } from "./target.js";
import { Kernel, MapPicture, Picture, pure } from "./ui.js";

const PICTURE = 116;
const BESIDE = 88; // if the image is beside two maps
const PATCH = 46;
const ROOM = 272; // px: the width of the panel's content beside a scroll bar
const LEAST_CELL = 26; // px: smaller ones have no room for their numbers
const MOST_CELL = 50; // px: largest square of a weight with its number

function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </>
  );
}

/** A button that measures the circuit without a part of it, where the host can. */
function Without({
  store,
  layer,
  filter,
  input,
}: {
  store: Store;
  layer: number;
  filter: number;
  input: number | null;
}) {
  const [said, say] = useState("");
  const name = store.graph.document.layers[layer]?.name;
  const { ablate } = store.source;
  if (!ablate || name === undefined || store.view.value.variant !== 0 || store.hover.value) return null;
  return said ? (
    <p role="status" part="without">
      {said}
    </p>
  ) : (
    <button type="button" part="ablate" onClick={() => ablate({ layer: name, filter, input }, say)}>
      measure the circuit without it
    </button>
  );
}

export function EdgeCard({ store, edges }: { store: Store; edges: number[] }) {
  const { graph, flow, maps } = store;
  const view = store.view.value;
  const { variant } = view;
  const fitted = isFitted(graph, view);
  const image = store.image.value;
  const edge = edges[0]!;
  const { saliency, rank } = graph.variants[variant]!;
  const kernels = graph.document.variants[variant]!.kept;
  const connection = graph.edgeKind[edge] !== EdgeKind.kernel && graph.edgeKind[edge] !== EdgeKind.inner;
  const given = kernel(graph, edge);
  const effect = image === null ? null : maps.effect(edge, image);
  const pair = store.contrast.value?.(graph.edgeLayer[edge]!, graph.out[edge]!, graph.in[edge]!);
  const presum = image === null || connection ? null : maps.presum(edge, image);
  return (
    <>
      <h2>{edgeName(graph, edge)}</h2>
      {!connection && (
        <p class="soft">
          <span class={`${graph.sign[edge]! < 0 ? "inhibits" : "excites"}-text`}>{signName(graph, edge)}</span>
          {given && `, ${given.height} \u00d7 ${given.width} kernel`}
        </p>
      )}
      {given && (
        <div class="pictures">
          <Kernel
            graph={graph}
            edge={edge}
            cell={Math.min(MOST_CELL, ROOM / given.width)}
            numbers={ROOM / given.width >= LEAST_CELL}
          />
        </div>
      )}
      <dl>
        {!connection && (
          <Fact name="saliency">
            {Number.isNaN(saliency[edge]!) ? "not in this circuit" : significant(saliency[edge]!)}
          </Fact>
        )}
        {graph.edgeKind[edge] === EdgeKind.readout && <Fact name="weight">{significant(saliency[edge]!)}</Fact>}
        {!connection && rank[edge]! >= 0 && (
          <Fact name="rank">
            {count(rank[edge]! + 1)} of {count(kernels)}
          </Fact>
        )}
        {!connection && fitted && <Fact name="gain">{gainText(gainOf(graph, view, edge))} these weights</Fact>}
        <Fact name="flow">{percent(flow.value.edge[edge]!)} of the target's</Fact>
        {image !== null && <Fact name="effect on image">{effect === null ? "unknown" : significant(effect)}</Fact>}
        {pair && <Fact name="adds on A, B">{pair.map(significant).join(", ")}</Fact>}
      </dl>
      {image !== null &&
        !connection &&
        (presum ? (
          <div class="pictures">
            <figure class="wide">
              <MapPicture map={presum} size={PICTURE} label="contribution by position" />
              <figcaption>contribution by position; full color = {significant(presum.top)}</figcaption>
            </figure>
          </div>
        ) : (
          <p class="soft">No map is stored for this kernel.</p>
        ))}
      {!connection && (
        <Without
          key={edge}
          store={store}
          layer={graph.edgeLayer[edge]!}
          filter={graph.out[edge]!}
          input={graph.in[edge]!}
        />
      )}
      {edges.length > 1 && (
        <>
          <h3>drawn as one with {plural(edges.length - 1, "other kernel")}</h3>
          <Kernels store={store} edges={edges.slice(1, 6)} by="both" />
        </>
      )}
    </>
  );
}

/** A few kernels as lines of text, each with its heat map. */
function Kernels({ store, edges, by }: { store: Store; edges: number[]; by: "source" | "target" | "both" }) {
  const { graph, flow } = store;
  return (
    <ol>
      {edges.map((edge) => (
        <li>
          <span class={`swatch ${graph.sign[edge]! < 0 ? "inhibits" : graph.sign[edge]! > 0 ? "excites" : ""}`} />
          <span>
            {by === "both"
              ? edgeName(graph, edge)
              : nodeShort(graph, by === "source" ? graph.source[edge]! : graph.target[edge]!, store.labels.value)}
          </span>
          <span class="share">{percent(flow.value.edge[edge]!)}</span>
        </li>
      ))}
    </ol>
  );
}

/** The kernels inside a node. */
function inner({ graph, flow }: Store, node: number): number[] {
  return of(graph.inner, node).filter((edge) => flow.value.alive[edge] && kernel(graph, edge));
}

/** A node's label and note, to read and to write. Rendered again only if they are others, so that what is being written
 *  stays. */
const Notes = pure(({ store, node, label, note }: Note & { store: Store }) => {
  // Keys that mean something in the diagram are text here; Escape leaves.
  const leave = (event: KeyboardEvent) => {
    event.stopPropagation();
    if (event.key === "Escape" || (event.key === "Enter" && event.currentTarget instanceof HTMLInputElement))
      (event.currentTarget as HTMLElement).blur();
  };
  const unkept = store.source.unkept?.(node);
  return (
    <div class="notes">
      <input
        type="text"
        part="label"
        placeholder="label"
        aria-label="label of this filter"
        maxLength={LONGEST_LABEL}
        value={label}
        onKeyDown={leave}
        onChange={(event) => annotate(store, node, { label: event.currentTarget.value })}
      />
      <textarea
        part="note-text"
        placeholder="note"
        aria-label="note on this filter"
        rows={note ? Math.min(6, note.split("\n").length + 1) : 1}
        maxLength={LONGEST_NOTE}
        value={note}
        onKeyDown={leave}
        onChange={(event) => annotate(store, node, { note: event.currentTarget.value })}
      />
      {unkept && <p class="soft">Kept in this page's address alone: {unkept}.</p>}
    </div>
  );
});

/** The nodes of a group or a block with the largest flow, those without a picture last. */
function strongestFilters({ graph, flow }: Store, nodes: number[], set: number): number[] {
  const weight = (node: number) => (graph.tilesOf(set, node).length ? flow.value.node[node]! : -1);
  return [...nodes].sort((a, b) => weight(b) - weight(a) || a - b).slice(0, 12);
}

export function NodeCard({ store, nodes }: { store: Store; nodes: number[] }) {
  const { graph, flow, maps, pictures } = store;
  const { view } = store;
  const image = store.image.value;
  const node = nodes[0]!;
  const target = node === graph.document.target;
  const { variant, compare } = view.value;
  // Of a filter in both circuits that are compared, the pictures on each one's group are shown.
  const drawn = [variant, ...(compare === null ? [] : [compare])].filter(
    (_, i) => flow.value.aliveNode[node]! & (1 << i),
  );
  const places = drawn.map((each) => setOf(graph, view.value.pictures, each));
  const at = places[0] ?? setOf(graph, view.value.pictures, variant);
  const set = graph.document.pictures[at];
  const byGroup = places.length > 1 && places[0] !== places[1];
  const sides = target ? graph.document.pictures.flatMap((each) => each.target) : [];
  const [best, ...others] = graph.tilesOf(at, node);
  // In the set that shows the target's pictures side by side, the best tile is already one of them.
  const smaller = sides.length > 0 && !set?.target.length && best !== undefined ? [best, ...others] : others;
  const block = store.plan.value.nodes.find((each) => each.span && each.nodes.includes(node) && nodes.length > 1);
  const share = block?.flow ?? nodes.reduce((sum, each) => sum + flow.value.node[each]!, 0);
  const activation = image === null ? null : maps.activation(node, image);
  const beside = image === null || !target ? null : onImage(store, image);
  const filter = nodes.length === 1 && graph.kind[node] === NodeKind.filter;
  const pair = filter && store.contrast.value?.(graph.layer[node]!, graph.unit[node]!, null);
  const noted = view.value.notes.find((each) => each.node === node) ?? { node, label: "", note: "" };
  const named = view.value.groups.find((each) => each.nodes.includes(node));
  return (
    <>
      <h2>
        {block
          ? block.group
          : nodes.length === 1
            ? store.name(node)
            : named
              ? plain(named.name)
              : plural(nodes.length, "filter")}
      </h2>
      <p class="soft">
        {percent(share)} of the flow
        {block && `, collapsed: ${insideText(graph, flow.value, nodes)}`}
        {!block &&
          nodes.length > 1 &&
          `, ${plural(nodes.length, "filter")}: ${nodes.map((each) => graph.unit[each]).join(", ")}`}
        {view.value.pins.includes(node) && ", pinned"}
        {compare !== null && drawn.length === 1 && `, ${onlyIn(store, drawn[0] === variant ? "a" : "b")}`}
      </p>
      {block && store.hover.value === null && (
        <button type="button" part="open" onClick={() => open(store, block.span!)}>
          open its {opensTo(graph, block.span!)}
        </button>
      )}
      {pair && <p>output on A, B: {pair.map(significant).join(", ")}</p>}
      {nodes.length === 1 && store.hover.value === null && <Notes key={node} store={store} {...noted} />}
      {filter && (
        <Without
          key={`without ${node}`}
          store={store}
          layer={graph.layer[node]!}
          filter={graph.unit[node]!}
          input={null}
        />
      )}
      {nodes.length > 1 ? (
        <div class="pictures">
          {strongestFilters(store, nodes, at).map((each) => (
            <Picture store={store} tile={graph.tilesOf(at, each)[0] ?? -1} size={PATCH} label={store.name(each)} />
          ))}
        </div>
      ) : sides.length > 0 ? (
        <div class="pictures">
          {sides.map(({ label, tile }) => (
            <figure>
              <Picture store={store} tile={tile} size={PICTURE} label={plain(label)} />
              <figcaption>{plain(label)}</figcaption>
            </figure>
          ))}
        </div>
      ) : (
        set &&
        (byGroup ? (
          drawn.map((each, i) => (
            <>
              <h3>{circuitName(graph, each, view.value)}</h3>
              <div class="pictures">
                {graph
                  .tilesOf(places[i]!, node)
                  .slice(0, 5)
                  .map((tile, rank) => (
                    <Picture store={store} tile={tile} size={PATCH} label={`picture ${rank + 1}`} />
                  ))}
              </div>
            </>
          ))
        ) : best === undefined ? (
          <p class="soft">No picture of this kind ({plain(set.label)}).</p>
        ) : (
          <div class="pictures">
            <figure class="wide">
              <Picture store={store} tile={best} size={PICTURE} label={plain(set.label)} />
              <figcaption>{plain(set.label)}</figcaption>
            </figure>
          </div>
        ))
      )}
      {nodes.length === 1 && !byGroup && smaller.length > 0 && (
        <div class="pictures">
          {smaller.slice(0, 5).map((tile, i) => (
            <Picture store={store} tile={tile} size={PATCH} label={`picture ${i + 2}`} />
          ))}
        </div>
      )}
      {nodes.length === 1 &&
        inner(store, node).map((edge) => (
          <>
            <h3>
              kernel of this filter alone, {edgeName(graph, edge)}
              {isFitted(graph, view.value) && `, gain ${gainText(gainOf(graph, view.value, edge))}`}
            </h3>
            <div class="pictures">
              <Kernel
                graph={graph}
                edge={edge}
                cell={Math.min(MOST_CELL, ROOM / kernel(graph, edge)!.width)}
                numbers={ROOM / kernel(graph, edge)!.width >= LEAST_CELL}
              />
            </div>
          </>
        ))}
      {image !== null && nodes.length === 1 && (
        <>
          <div class="pictures">
            <img src={pictures.thumbnail(image)} alt="" width={beside ? BESIDE : PICTURE} />
            {beside ? (
              <TargetMaps store={store} found={beside} size={BESIDE} />
            ) : (
              activation && (
                <figure>
                  <MapPicture map={activation} size={PICTURE} label="activation map" />
                  <figcaption>activation on the image; full color = {significant(activation.top)}</figcaption>
                </figure>
              )
            )}
          </div>
          {beside ? (
            <TargetFigures store={store} found={beside} />
          ) : (
            !activation && <p class="soft">No map is stored for this filter.</p>
          )}
        </>
      )}
      {(["incoming", "outgoing"] as const).map((direction) => {
        const edges = strongest(store, nodes, direction, 4);
        return (
          edges.length > 0 && (
            <>
              <h3>{direction === "incoming" ? "strongest inputs" : "strongest outputs"}</h3>
              <Kernels store={store} edges={edges} by={direction === "incoming" ? "source" : "target"} />
            </>
          )
        );
      })}
    </>
  );
}
