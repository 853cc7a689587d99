/** The toolbar, and the row below it that says what is isolated, chosen, pinned or grouped. */

import { useSignal } from "@preact/signals";
import { useMemo, useRef } from "preact/hooks";
import { blocksOf, opensTo, spanAt, spanName } from "../core/blocks.js";
import { fewestKernels } from "../core/flow.js";
import { count, decimal, percent, plural, significant } from "../core/format.js";
import { circuitName, layerName } from "../core/names.js";
import { mainNote } from "../core/scene.js";
import { SIMILAR, suggestions } from "../core/similar.js";
import { plain } from "../core/text.js";
import { LONGEST_NAME, NodeKind, PATHS, SHARES, type Span, type View } from "../core/types.js";
import { imagesOf } from "../core/view.js";
import { clear, collapse, group, open, renameGroup, stepBack, ungroup } from "./actions.js";
import { brief } from "./brief.js";
import { download, exportPng, exportSvg, openView, saved, savedPage, saveView } from "./exports.js";
import type { Store } from "./store.js";
import { spokenTarget } from "./target.js";
import { Pop } from "./ui.js";

const MODES: { mode: View["mode"]; label: string }[] = [
  { mode: "diagram", label: "diagram" },
  { mode: "all", label: "all kernels" },
  { mode: "table", label: "table" },
];
const NODES = [4, 6, 8, 12, 16, 24, 40];
const KERNELS = [1, 2, 3, 4, 6, 8, 12, 20];
const STEPS = 200; // of the slider

export function Toolbar({ store }: { store: Store }) {
  const { graph, view } = store;
  const { variants, pictures, images } = graph.document;
  const now = view.value;
  // The circuit at other sizes is reached by the slider.
  const rivals = variants.flatMap(({ role }, i) => (role === "level" ? [] : { name: circuitName(graph, i, now), i }));
  const blocks = useMemo(() => blocksOf(graph), [graph]);
  const sets = pictures.filter(({ name }, i) => pictures.findIndex((other) => other.name === name) === i);
  return (
    <div class="bar" role="toolbar" aria-label="view">
      <div class="cluster" role="group" aria-label="show">
        <span class="label">Show</span>
        {rivals.length > 1 && (
          <>
            <label class="field">
              <span class="hidden">circuit</span>
              <select
                part="variant"
                value={variants[now.variant]!.role === "level" ? 0 : now.variant}
                onChange={(event) =>
                  store.change(
                    { variant: Number(event.currentTarget.value), isolate: null },
                    `${circuitName(graph, Number(event.currentTarget.value), now)} is drawn`,
                  )
                }
              >
                {rivals.map(({ name, i }) => (
                  <option value={i}>{name}</option>
                ))}
              </select>
            </label>
            <label class="field">
              <span>compare with</span>
              <select
                part="compare"
                value={now.compare ?? ""}
                onChange={(event) =>
                  store.change(
                    {
                      compare: event.currentTarget.value === "" ? null : Number(event.currentTarget.value),
                      isolate: null,
                    },
                    "comparison changed",
                  )
                }
              >
                <option value="">none</option>
                {rivals.map(({ name, i }) => i !== now.variant && <option value={i}>{name}</option>)}
              </select>
            </label>
          </>
        )}
        {images && (
          <Pop
            label={now.image === null ? "image" : `image: ${brief(images.names, images.names[now.image]!)[0]}`}
            name="image"
          >
            {(close) => (
              <div class="thumbs">
                {imagesOf(graph, now).map((i) => {
                  const of = images.variants[i];
                  const name =
                    now.compare === null || of === undefined
                      ? images.names[i]!
                      : `${images.names[i]!} (${circuitName(graph, of, now)})`;
                  const [file, ...said] = brief(images.names, name);
                  return (
                    <button
                      type="button"
                      title={plain(name)}
                      aria-pressed={now.image === i}
                      data-image={i}
                      onClick={() => {
                        store.change(
                          { image: now.image === i ? null : i },
                          now.image === i
                            ? "no image is chosen"
                            : `${plain(name)} chosen. The target: ${spokenTarget(store, i)}`,
                        );
                        close();
                      }}
                    >
                      <img src={store.pictures.thumbnail(i)} alt="" />
                      <span>{file}</span>
                      <small>{said.join(", ")}</small>
                    </button>
                  );
                })}
                {now.image !== null && (
                  <button
                    type="button"
                    onClick={() => {
                      store.change({ image: null }, "no image is chosen");
                      close();
                    }}
                  >
                    none
                  </button>
                )}
              </div>
            )}
          </Pop>
        )}
      </div>
      <div class="cluster" role="group" aria-label="detail">
        <span class="label">Detail</span>
        {now.mode === "diagram" && (
          <span class="segments" role="group" aria-label="what is lit">
            {PATHS.map((paths) => (
              <button
                type="button"
                data-paths={paths}
                aria-pressed={now.paths === paths}
                onClick={() =>
                  store.change({ paths }, paths === "main" ? "the main paths are lit" : "everything is lit")
                }
              >
                {paths === "main" ? "main paths" : "everything drawn"}
              </button>
            ))}
          </span>
        )}
        <Density store={store} />
        <Pop label="filters" name="budget">
          {() => (
            <>
              {sets.length > 1 && (
                <label class="row">
                  pictures
                  <select
                    part="pictures"
                    value={now.pictures}
                    onChange={(event) => store.change({ pictures: event.currentTarget.value }, "pictures changed")}
                  >
                    {sets.map(({ name, label }) => (
                      <option value={name}>{plain(label)}</option>
                    ))}
                  </select>
                </label>
              )}
              <Choice
                label="filters per column"
                part="nodes-per-column"
                of={NODES}
                value={now.nodesPerColumn}
                change={(nodesPerColumn) =>
                  store.change({ nodesPerColumn }, `up to ${nodesPerColumn} filters per column`)
                }
              />
              <Choice
                label="kernels into each filter"
                part="kernels-per-node"
                of={KERNELS}
                value={now.kernelsPerNode}
                change={(kernelsPerNode) =>
                  store.change({ kernelsPerNode }, `up to ${kernelsPerNode} kernels into each filter`)
                }
              />
              <div class="row">
                <span>flow that a click isolates</span>
                <Shares store={store} />
              </div>
            </>
          )}
        </Pop>
        {blocks.length > 0 && now.mode === "diagram" && (
          <Pop label="blocks" name="blocks">
            {() => <Blocks store={store} blocks={blocks} />}
          </Pop>
        )}
        {now.mode === "diagram" && (
          <Pop label="similar" name="similar" class="about">
            {() => <Suggestions store={store} />}
          </Pop>
        )}
      </div>
    </div>
  );
}

/** The blocks of the network, each to draw as one column or open. */
function Blocks({ store, blocks }: { store: Store; blocks: ReturnType<typeof blocksOf> }) {
  const { collapsed } = store.view.value;
  const isClosed = ({ first }: Span) => spanAt(collapsed, first) !== undefined;
  const drawnAs = (block: Span) => {
    const around = spanAt(collapsed, block.first);
    if (!around) return opensTo(store.graph, block);
    return around.last - around.first > block.last - block.first ? `in ${spanName(store.graph, around)}` : "one column";
  };
  return (
    <>
      <div class="row">
        collapse
        <span>
          <button type="button" part="collapse-all" onClick={() => collapse(store, blocks, "all blocks are collapsed")}>
            all
          </button>
          {store.base.collapsed.length > 0 && (
            <button type="button" part="as-first" onClick={() => collapse(store, store.base.collapsed, "as at first")}>
              as at first
            </button>
          )}
          <button type="button" part="open-all" onClick={() => collapse(store, [], "all blocks are open")}>
            none
          </button>
        </span>
      </div>
      {blocks.map((block) => (
        <button
          type="button"
          role="switch"
          aria-checked={isClosed(block)}
          data-block={block.first}
          onClick={() =>
            isClosed(block)
              ? open(store, block)
              : collapse(store, [...collapsed, block], `${block.name} is drawn as one column`)
          }
        >
          {block.name} <small>{drawnAs(block)}</small>
        </button>
      ))}
    </>
  );
}

/** Groups of the drawn filters whose kernels are alike, to accept one by one. */
function Suggestions({ store }: { store: Store }) {
  const { graph } = store;
  const drawn = store.plan.value.nodes.filter(({ group }) => group === null).flatMap(({ nodes }) => nodes);
  const found = suggestions(graph, store.flow.value, drawn);
  const show = (nodes: number[] | null) => {
    store.hover.value = nodes && { nodes, edges: [] };
  };
  return (
    <>
      <p>
        {found.length ? "Suggested" : "There are no"} groups of drawn filters of one layer whose incoming kernels are
        alike, also if turned or mirrored: their cosine is at least {decimal(SIMILAR, 1)}, over two or more shared
        inputs. One pair in nine is so by chance; you judge whether such filters do the same.
      </p>
      {found.map(({ nodes, similarity, turned }) => (
        <div class="row" onPointerEnter={() => show(nodes)} onPointerLeave={() => show(null)}>
          <span>
            <b>
              {nodes.map((node) => graph.unit[node]).join(", ")} of {layerName(graph, graph.layer[nodes[0]!]!)}
            </b>
            , {turned ? "alike if turned or mirrored" : "alike"}, {nodes.length > 2 ? "every pair at least " : ""}
            {decimal(similarity)}
          </span>
          <button
            type="button"
            data-suggested={nodes.join()}
            onFocus={() => show(nodes)}
            onBlur={() => show(null)}
            onClick={() => group(store, nodes)}
          >
            group
          </button>
        </div>
      ))}
    </>
  );
}

const EXPORTS: [name: string, label: string, write: (store: Store) => unknown][] = [
  ["svg", "SVG", (store) => exportSvg(store, "screen")],
  ["svg-180", "SVG for papers, 180 mm", (store) => exportSvg(store, "180mm")],
  ["svg-88", "SVG for papers, 88 mm", (store) => exportSvg(store, "88mm")],
  ["png", "PNG, double size", exportPng],
  ["json", "JSON, with this view", (store) => download(store, saved(store), ".json", "application/json")],
  ["html", "this page, with this view", (store) => download(store, savedPage(store), ".html", "text/html")],
  ["view", "save this view", saveView],
  ["open", "open a view", openView],
];

/** What concerns the whole page: finding, files, about, colors. */
export function PageMenus({ store }: { store: Store }) {
  return (
    <div class="menus">
      <Search store={store} />
      <Pop label="export" name="export" right>
        {(close) =>
          EXPORTS.map(
            ([name, label, write]) =>
              (name !== "html" || store.source.host === "page") && (
                <button
                  type="button"
                  data-export={name}
                  onClick={() => {
                    void write(store);
                    close();
                  }}
                >
                  {label}
                </button>
              ),
          )
        }
      </Pop>
      <About store={store} />
      <button
        type="button"
        part="theme"
        aria-label={store.theme.value === "dark" ? "use light colors" : "use dark colors"}
        onClick={() => {
          store.theme.value = store.theme.value === "dark" ? "light" : "dark";
        }}
      >
        {store.theme.value === "dark" ? "light" : "dark"}
      </button>
    </div>
  );
}

function Choice({
  label,
  part,
  of,
  value,
  change,
}: {
  label: string;
  part: string;
  of: number[];
  value: number;
  change: (value: number) => void;
}) {
  return (
    <label class="row">
      {label}
      <select part={part} value={value} onChange={(event) => change(Number(event.currentTarget.value))}>
        {[...new Set([...of, value])]
          .sort((a, b) => a - b)
          .map((each) => (
            <option value={each}>{each}</option>
          ))}
      </select>
    </label>
  );
}

function Shares({ store }: { store: Store }) {
  return (
    <span class="segments" role="group" aria-label="share of the drawn flow to isolate">
      {SHARES.map((share) => (
        <button
          type="button"
          data-share={share}
          aria-pressed={store.view.value.share === share}
          onClick={() => store.change({ share }, `${percent(share)} of the drawn flow is isolated`)}
        >
          {percent(share)}
        </button>
      ))}
    </span>
  );
}

/** The density slider: kernels kept by rank, on a logarithmic scale, or the sizes at which the circuit was found
 *  separately. */
function Density({ store }: { store: Store }) {
  const { variants } = store.graph.document;
  const { variant, kernels } = store.view.value;
  const { kept: most, relevant, role, nested } = variants[variant]!;
  const least = Math.min(most, fewestKernels(store.graph, store.view.value)); // with less, nothing is drawn
  if (most < 2) return null;
  const levels = variants.flatMap((each, i) => (each.role === "level" ? i : []));
  const anew =
    levels.length > 0 && (role === "level" || variant === 0)
      ? [0, ...levels].sort((a, b) => variants[a]!.kept - variants[b]!.kept)
      : null;
  const kept = Math.min(kernels ?? most, most);
  const density = (100 * kept) / relevant;
  const slide = (to: number) => {
    if (anew)
      return store.change(
        { variant: anew[to]!, kernels: null },
        `${plural(variants[anew[to]!]!.kept, "kernel")}, found separately at this size`,
        "drag",
      );
    const k = Math.round(least * (most / least) ** (to / STEPS));
    store.change({ kernels: k >= most ? null : k }, `${plural(Math.min(k, most), "kernel")} kept`, "drag");
  };
  const hint = anew
    ? "The criterion finds other kernels at each size; these are the sizes at which it was run."
    : nested
      ? undefined
      : "At a smaller size, the criterion itself might keep other kernels: its rankings are not nested.";
  return (
    <label class="field" title={hint}>
      kernels
      <input
        type="range"
        part="density"
        min={0}
        max={anew ? anew.length - 1 : STEPS}
        value={
          anew
            ? anew.indexOf(variant)
            : Math.round((STEPS * Math.log(kept / least)) / Math.log(most / least || Infinity))
        }
        aria-label="kernels kept"
        aria-valuetext={`${count(kept)} kernels, density ${significant(density)} %`}
        onInput={(event) => slide(Number(event.currentTarget.value))}
      />
      <output part="kept">
        {count(kept)} ({significant(density)} %)
      </output>
    </label>
  );
}

/** Finds filters by layer, number and name. A found filter that is not drawn is pinned, so that it is. */
function Search({ store }: { store: Store }) {
  const { graph } = store;
  const text = useSignal("");
  const at = useSignal(0);
  const input = useRef<HTMLInputElement>(null);
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found: number[] = [];
  if (words.length)
    for (let node = 0; node < graph.nodeCount && found.length < 12; node++) {
      if (graph.kind[node] === NodeKind.image || !store.flow.value.aliveNode[node]) continue;
      const tokens = store.name(node).toLowerCase();
      const hit = words.every((word) =>
        /^\d+$/.test(word)
          ? String(graph.unit[node]) === word || new RegExp(`\\b${word}\\b`).test(tokens)
          : tokens.includes(word),
      );
      if (hit) found.push(node);
    }
  const choose = (node: number) => {
    const drawn = store.scene.value.nodes.some(({ nodes }) => nodes.includes(node));
    text.value = "";
    store.current.value = node;
    store.selection.value = [node];
    store.change(
      { mode: "diagram", isolate: null, ...(drawn ? {} : { pins: [...store.view.value.pins, node] }) },
      `${store.name(node)} ${drawn ? "found" : "found and pinned"}`,
    );
    const root = input.current!.getRootNode() as ShadowRoot;
    setTimeout(() => root.querySelector<SVGGElement>('.node[tabindex="0"]')?.focus(), 0);
  };
  return (
    <div class="pop">
      <input
        ref={input}
        type="text"
        part="search"
        placeholder="find a filter  /"
        aria-label="find a filter by layer, number or name"
        role="combobox"
        aria-expanded={found.length > 0}
        aria-controls="results"
        aria-autocomplete="list"
        aria-activedescendant={found.length ? `result-${found[Math.min(at.value, found.length - 1)]}` : undefined}
        value={text.value}
        onInput={(event) => {
          text.value = event.currentTarget.value;
          at.value = 0;
        }}
        onBlur={() => {
          text.value = "";
        }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") at.value = Math.min(found.length - 1, at.value + 1);
          else if (event.key === "ArrowUp") at.value = Math.max(0, at.value - 1);
          else if (event.key === "Enter" && found.length) choose(found[Math.min(at.value, found.length - 1)]!);
          else if (event.key === "Escape" && text.value) text.value = "";
          else return;
          event.preventDefault();
          event.stopPropagation();
        }}
      />
      <ul
        class={found.length ? "panel right results" : "hidden"}
        id="results"
        role="listbox"
        aria-label="filters found"
      >
        {found.map((node, i) => (
          // Pressing the pointer would move the focus and close the list.
          <li
            id={`result-${node}`}
            role="option"
            aria-selected={i === at.value}
            onPointerDown={(event) => event.preventDefault()}
            onClick={() => choose(node)}
          >
            {store.name(node)} <span>{percent(store.flow.value.node[node]!)}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

function About({ store }: { store: Store }) {
  const { meta, heldOut } = store.graph.document;
  return (
    <Pop label="about" name="about" right class="about">
      {() => (
        <>
          <h2>{plain(meta.title)}</h2>
          <dl>
            <dt>feature</dt>
            <dd>{plain(meta.feature)}</dd>
            <dt>model</dt>
            <dd>{plain(meta.model)}</dd>
            {meta.criterion !== null && (
              <>
                <dt>criterion</dt>
                <dd>
                  {plain(meta.criterion)}, by {meta.granularity}
                </dd>
              </>
            )}
            <dt>held out</dt>
            <dd>{heldOut ? plural(heldOut.count, "image") : "none: nothing was measured"}</dd>
            {Object.entries(meta.versions).map(([name, version]) => (
              <>
                <dt>{plain(name)}</dt>
                <dd>{plain(version)}</dd>
              </>
            ))}
          </dl>
          {meta.notes.map((note) => (
            <p>{plain(note)}</p>
          ))}
          <hr />
          <h2>What flow is</h2>
          <FlowText />
          <hr />
          <h2>Keys</h2>
          <dl>
            <dt>arrows</dt>
            <dd>move left and right along the strongest kernels, up and down within a column</dd>
            <dt>Enter</dt>
            <dd>draw the filter as the target</dd>
            <dt>Space</dt>
            <dd>isolate it; with Shift, choose it for a group</dd>
            <dt>p</dt>
            <dd>pin or unpin it</dd>
            <dt>/</dt>
            <dd>find a filter</dd>
            <dt>Esc</dt>
            <dd>clear, or go back to the previous target</dd>
          </dl>
        </>
      )}
    </Pop>
  );
}

export function FlowText() {
  return (
    <p>
      The target's score is propagated back layer by layer: each filter's share is split among its incoming kernels, in
      proportion to their saliency. Flow decides what is drawn and lit. It is a heuristic for display, not a
      measurement.
    </p>
  );
}

/** What is isolated, chosen, pinned, grouped or drawn as the target, with a button to undo each. */
export function State({ store }: { store: Store }) {
  const { graph } = store;
  const { isolate, root, pins, groups, mode } = store.view.value;
  const selection = store.selection.value;
  const scene = store.scene.value;
  return (
    <div class="state" part="state">
      {store.notice.value && (
        <span class="notice" role="alert" part="notice">
          {store.notice.value}
          <button
            type="button"
            onClick={() => {
              store.notice.value = "";
            }}
          >
            close
          </button>
        </span>
      )}
      {root !== null && (
        <nav class="group" aria-label="targets">
          {store.trail.value.map((each, i, all) =>
            i === all.length - 1 ? (
              <b aria-current="page">{store.name(each ?? graph.document.target)}</b>
            ) : (
              <>
                <button type="button" onClick={() => store.change({ root: each, isolate: null }, "back")}>
                  {store.name(each ?? graph.document.target)}
                </button>
                {" \u203a "}
              </>
            ),
          )}
          <button type="button" title="Esc" onClick={() => stepBack(store)}>
            back
          </button>
        </nav>
      )}
      {isolate !== null && (
        <span class="group">
          the drawn flow through <b>{store.drawnName(isolate)}</b>
          <Shares store={store} />
          <button type="button" part="clear" title="Esc" onClick={() => clear(store)}>
            clear
          </button>
        </span>
      )}
      {isolate === null && selection.length > 0 && (
        <span class="group">
          <b>{selection.length === 1 ? store.drawnName(selection[0]!) : plural(selection.length, "filter")}</b> chosen
          {selection.length > 1 ? (
            <button type="button" part="group" onClick={() => group(store)}>
              group
            </button>
          ) : (
            <span>(shift-click others in its column to group them)</span>
          )}
          <button type="button" title="Esc" onClick={() => clear(store)}>
            clear
          </button>
        </span>
      )}
      {groups.map(({ name, nodes }, i) => (
        <span class="group">
          <input
            type="text"
            aria-label={`name of the group of ${nodes.length} filters`}
            value={name}
            size={Math.max(8, name.length)}
            maxLength={LONGEST_NAME}
            onChange={(event) => renameGroup(store, i, event.currentTarget.value)}
          />
          <button type="button" data-ungroup={i} onClick={() => ungroup(store, i)}>
            ungroup
          </button>
        </span>
      ))}
      {pins.length > 0 && (
        <span class="group">
          {plural(pins.length, "pin")}
          <button type="button" onClick={() => store.change({ pins: [] }, "nothing is pinned")}>
            unpin all
          </button>
        </span>
      )}
      {mode === "diagram" && isolate === null && scene.lit && <span part="note">{mainNote(scene)}</span>}
      {mode === "diagram" && isolate === null && root === null && selection.length === 0 && (
        <span class="hint">Point at a filter or kernel for details; click a filter to see what flows through it.</span>
      )}
      <div class="segments push" role="group" aria-label="mode">
        {MODES.map(({ mode: each, label }) => (
          <button
            type="button"
            data-mode-button={each}
            aria-pressed={mode === each}
            onClick={() => store.change({ mode: each }, `${label} shown`)}
          >
            {label}
          </button>
        ))}
      </div>
    </div>
  );
}
