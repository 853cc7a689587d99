/** The panel at the right: what the target is and how well the circuit keeps it, or the details of a node or an edge.
 *  On narrow screens it is a sheet at the bottom. */

import { useEffect, useRef } from "preact/hooks";
import { setOf } from "../core/decode.js";
import { decimal } from "../core/format.js";
import { circuitName, edgeName } from "../core/names.js";
import { plain } from "../core/text.js";
import { type R2Table, r2Table } from "../core/verdict.js";
import { clear } from "./actions.js";
import { EdgeCard, NodeCard } from "./card.js";
import type { Store } from "./store.js";
import { TargetOnImage } from "./target.js";
import { Picture, WholeImage } from "./ui.js";

const CROP = 64; // px: three to a row, beside the target's own picture and a scroll bar
const CROPS = 9;
const SAMPLES = [
  ["top", "where it is highest"],
  ["median", "where it has its median value"],
  ["near zero", "where it is nearest zero"],
] as const;
const CLEAR = 8; // px between a filter and the sheet

export function Side({ store }: { store: Store }) {
  const { graph } = store;
  const { mode } = store.view.value;
  const spot = store.shown.value;
  const scene = store.scene.value;
  const open = store.sheet.value;
  const table = r2Table(graph, store.view.value, scene.numbers);
  const name = spot
    ? spot.nodes.length
      ? store.drawnName(spot.nodes[0]!)
      : edgeName(graph, spot.edges[0]!)
    : "The target and the numbers";
  const sheet = useRef<HTMLElement>(null);
  const held = store.held.value;
  // The sheet of a narrow screen must not cover what it tells of: what is around scrolls until it is above the sheet.
  useEffect(() => {
    if (!open || !held) return;
    const frame = requestAnimationFrame(() => {
      const side = sheet.current!;
      if (getComputedStyle(side).position !== "sticky") return;
      const of = held.nodes.length ? `[data-node="${held.nodes[0]}"]` : `[data-edge="${held.edges[0]}"]`;
      const told = (side.getRootNode() as ShadowRoot).querySelector(of);
      const over = told ? told.getBoundingClientRect().bottom + CLEAR - side.getBoundingClientRect().top : 0;
      if (over > 0) scrollerOf(side).scrollBy(0, over);
    });
    return () => cancelAnimationFrame(frame);
  }, [open, held]);
  return (
    <section class="side" part="side" ref={sheet} data-open={open}>
      <button
        type="button"
        class="handle"
        part="handle"
        aria-expanded={open}
        onClick={() => {
          store.sheet.value = !open;
        }}
      >
        {name}
      </button>
      {/* It scrolls, so the keyboard has to reach it. */}
      <div class="details" tabIndex={0} role="region" aria-label="details of the target, a filter or a kernel">
        {store.hover.value === null && <WholeImage store={store} />}
        {spot ? (
          <section class="card" part="card" data-card={spot.nodes.length ? "node" : "edge"}>
            {store.hover.value === null && (
              <button type="button" part="back" onClick={() => clear(store)}>
                {"\u2190"} the target
              </button>
            )}
            {spot.nodes.length > 0 ? (
              <NodeCard store={store} nodes={spot.nodes} />
            ) : (
              <EdgeCard store={store} edges={spot.edges} />
            )}
          </section>
        ) : (
          <>
            <TargetOnImage store={store} />
            <Crops store={store} />
            {table && <Numbers store={store} table={table} />}
          </>
        )}
        <details>
          <summary>In full</summary>
          <p part="caption">
            {mode !== "diagram" && "In the diagram: "}
            {scene.numbers.text}
          </p>
        </details>
      </div>
    </section>
  );
}

/** The nearest element around another that scrolls down; the whole page, if none does. */
function scrollerOf(element: Element): Element {
  let at: Node | null = element;
  while (at) {
    at = at.parentNode ?? (at as Partial<ShadowRoot>).host ?? null;
    if (!(at instanceof HTMLElement) || at === document.body || at.scrollHeight <= at.clientHeight) continue;
    if (/auto|scroll/.test(getComputedStyle(at).overflowY)) return at;
  }
  return document.documentElement;
}

/** What drives the node that is drawn as the target: parts of images. Of two compared circuits with groups of their
 *  own, on the images of each. */
function Crops({ store }: { store: Store }) {
  const { graph } = store;
  const { variant, compare } = store.view.value;
  const root = store.flow.value.root;
  const target = root === graph.document.target;
  const circuits = compare === null ? [variant] : [variant, compare];
  const sets = [...new Set(circuits.map((each) => setOf(graph, "patches", each)))];
  const rows = sets
    .map((set, i) => ({
      set,
      name: circuitName(graph, circuits[i]!, store.view.value),
      tiles: {
        top: graph.tilesOf(set, root),
        median: (target && graph.document.pictures[set]?.median) || [],
        "near zero": (target && graph.document.pictures[set]?.nearZero) || [],
      },
    }))
    .filter(({ tiles }) => tiles.top.length > 0);
  const offered = SAMPLES.filter(([sample]) => rows.some(({ tiles }) => tiles[sample].length > 0));
  const [shown, words] = offered.find(([sample]) => sample === store.sample.value) ?? SAMPLES[0];
  if (!rows.length) return <Features store={store} />;
  return (
    <section part="crops">
      {offered.length > 1 && (
        <div class="heads">
          <h2>What drives it</h2>
          <span class="segments" role="group" aria-label="parts of images">
            {offered.map(([sample, where]) => (
              <button
                type="button"
                data-sample={sample}
                title={`one part of each photograph ${where}`}
                aria-pressed={sample === shown}
                onClick={() => {
                  store.sample.value = sample;
                  store.whole.value = null;
                  store.say(`parts of images ${where}`);
                }}
              >
                {sample}
              </button>
            ))}
          </span>
        </div>
      )}
      {rows.map(({ set, name, tiles }, i) => (
        <>
          {offered.length < 2 && (
            <h2>
              What drives {target ? "it" : store.name(root)} most
              {rows.length > 1 && `, ${name}`}
            </h2>
          )}
          {offered.length > 1 && rows.length > 1 && <h3>{name}</h3>}
          <div class="pictures">
            <figure>
              <div class="crops" data-sample={shown}>
                {tiles[shown].slice(0, rows.length > 1 ? 6 : CROPS).map((tile, place) => (
                  <Picture
                    store={store}
                    tile={tile}
                    size={CROP}
                    label={
                      shown === "top"
                        ? `${plain(graph.document.pictures[set]!.label)}: place ${place + 1}`
                        : `a part of an image ${words}`
                    }
                  />
                ))}
              </div>
              <figcaption title={plain(graph.document.pictures[set]!.label)}>
                {sentence(graph.document.pictures[set]!.label.split("; ").pop()!)}
              </figcaption>
            </figure>
            {!i && <Features store={store} />}
          </div>
        </>
      ))}
    </section>
  );
}

/** The target's own pictures, such as what was optimized to drive it. */
function Features({ store: { graph, flow }, store }: { store: Store }) {
  const features = graph.document.pictures.flatMap(({ target }) => target);
  const more = store.picture.value;
  if (flow.value.root !== graph.document.target || !(features.length || more)) return null;
  return (
    <section part="features">
      {features.map(({ label, tile }) => (
        <figure>
          <Picture store={store} tile={tile} size={CROP} label={plain(label)} />
          <figcaption>{plain(label)}</figcaption>
        </figure>
      ))}
      {more && (
        <figure>
          <svg width={CROP} height={CROP} role="img" aria-label={more.label}>
            <image href={more.src} width={CROP} height={CROP} />
          </svg>
          <figcaption>{more.label}</figcaption>
        </figure>
      )}
    </section>
  );
}

function sentence(text: string): string {
  return plain(`${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`);
}

function Numbers({ store, table: { columns, rows } }: { store: Store; table: R2Table }) {
  const { heldOut } = store.graph.document;
  const on = store.graph.document.variants[store.view.value.variant]!.fidelity?.foundOn
    ? "the images that it was found on"
    : "unseen images";
  return (
    <section part="numbers">
      <h2>What is kept{heldOut && `: R² on ${heldOut.count} ${on}`}</h2>
      <table class="figures">
        <thead>
          <tr>
            <td />
            {columns.map(({ short, long }) => (
              <th scope="col" title={`R² ${long}`}>
                {short}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ name, own, values }) => (
            <tr class={own ? "own" : undefined}>
              <th scope="row">{name}</th>
              {values.map((value) =>
                value === null ? <td title="not measured, or not defined">{"\u2013"}</td> : <td>{decimal(value)}</td>,
              )}
            </tr>
          ))}
        </tbody>
      </table>
      <p class="soft">1: the same as the full model; 0: its mean.</p>
    </section>
  );
}
