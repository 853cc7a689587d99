/** All kernels as a sortable table. Only visible rows are in the page, so that large tables stay fast. */

import { useSignal } from "@preact/signals";
import { useMemo, useRef } from "preact/hooks";
import { gainOf, isFitted } from "../core/decode.js";
import { count, gainText, percent, plural, significant } from "../core/format.js";
import { layerName } from "../core/names.js";
import { EdgeKind } from "../core/types.js";
import type { Store } from "./store.js";
import { Kernel } from "./ui.js";

const ROW = 31; // px
const BEYOND = 8; // rows kept above and below the visible ones

type Key = "layer" | "out" | "in" | "sign" | "saliency" | "rank" | "flow" | "gain" | "effect";

export function Table({ store }: { store: Store }) {
  const { graph } = store;
  const scope = useSignal<"drawn" | "all">("drawn");
  const order = useSignal<{ key: Key; down: boolean }>({ key: "flow", down: true });
  const top = useSignal(0);
  const height = useSignal(700);
  const rows = useRef<HTMLDivElement>(null);
  const image = store.image.value;
  const { saliency, rank } = graph.variants[store.view.value.variant]!;
  const flow = store.flow.value;
  const value: Record<Key, (edge: number) => number> = {
    layer: (edge) => graph.edgeLayer[edge]!,
    out: (edge) => graph.out[edge]!,
    in: (edge) => graph.in[edge]!,
    sign: (edge) => graph.sign[edge]!,
    saliency: (edge) => saliency[edge] || 0,
    rank: (edge) => rank[edge]!,
    flow: (edge) => flow.edge[edge]!,
    gain: (edge) => gainOf(graph, store.view.value, edge),
    effect: (edge) => (image === null ? 0 : (store.maps.effect(edge, image) ?? 0)),
  };
  const scene = store.scene.value;
  const edges = useMemo(() => {
    const { alive } = flow;
    const isKernel = (edge: number) =>
      alive[edge] && (graph.edgeKind[edge] === EdgeKind.kernel || graph.edgeKind[edge] === EdgeKind.inner);
    const shown = scope.value === "drawn" ? scene.selection.edges : Array.from(alive.keys());
    const { key, down } = order.value;
    const keyed = shown.filter(isKernel).map((edge) => [value[key](edge), edge] as const);
    return keyed.sort((a, b) => (down ? b[0] - a[0] : a[0] - b[0]) || a[1] - b[1]).map(([, edge]) => edge);
  }, [scope.value, order.value, scene, flow, image]);
  const labels = store.labels.value;
  const labelled = (unit: number, node: number) =>
    [labels.get(node), unit].filter((part) => part !== undefined).join(" \u00b7 ");
  const columns: { key: Key; name: string; cell: (edge: number) => string }[] = [
    { key: "layer", name: "layer", cell: (edge) => layerName(graph, graph.edgeLayer[edge]!) },
    { key: "out", name: "out", cell: (edge) => labelled(graph.out[edge]!, graph.target[edge]!) },
    { key: "in", name: "in", cell: (edge) => labelled(graph.in[edge]!, graph.source[edge]!) },
    { key: "sign", name: "sign", cell: (edge) => (graph.sign[edge]! < 0 ? "inhibits" : "excites") },
    {
      key: "saliency",
      name: "saliency",
      cell: (edge) => (Number.isNaN(saliency[edge]!) ? "\u2013" : significant(saliency[edge]!)),
    },
    { key: "rank", name: "rank", cell: (edge) => (rank[edge]! < 0 ? "\u2013" : count(rank[edge]! + 1)) },
    { key: "flow", name: "flow", cell: (edge) => percent(flow.edge[edge]!) },
  ];
  if (isFitted(graph, store.view.value))
    columns.push({ key: "gain", name: "gain", cell: (edge) => gainText(value.gain(edge)) });
  if (image !== null)
    columns.push({ key: "effect", name: "effect", cell: (edge) => effectText(store.maps.effect(edge, image)) });
  const first = Math.max(0, Math.floor(top.value / ROW) - BEYOND);
  const last = Math.min(edges.length, Math.ceil((top.value + height.value) / ROW) + BEYOND);
  const scopes = { drawn: "drawn kernels", all: "all kernels of the circuit" };
  return (
    <section class="table" aria-label="table of kernels">
      <div class="bar">
        <div class="segments" role="group" aria-label="kernels in the table">
          {(["drawn", "all"] as const).map((each) => (
            <button
              type="button"
              aria-pressed={scope.value === each}
              data-scope={each}
              onClick={() => {
                scope.value = each;
                rows.current!.scrollTop = top.value = 0;
              }}
            >
              {scopes[each]}
            </button>
          ))}
        </div>
        <span class="field">{plural(edges.length, "kernel")}</span>
      </div>
      <div
        class="rows"
        ref={rows}
        role="region"
        tabIndex={0}
        aria-label="rows"
        onScroll={(event) => {
          top.value = event.currentTarget.scrollTop;
          height.value = event.currentTarget.clientHeight;
        }}
      >
        <table aria-rowcount={edges.length + 1}>
          <thead>
            <tr aria-rowindex={1}>
              {columns.map(({ key, name }) => (
                <th
                  scope="col"
                  aria-sort={order.value.key === key ? (order.value.down ? "descending" : "ascending") : undefined}
                >
                  <button
                    type="button"
                    onClick={() => {
                      order.value = {
                        key,
                        down:
                          order.value.key === key
                            ? !order.value.down
                            : key === "saliency" || key === "flow" || key === "effect",
                      };
                      store.say(`sorted by ${name}, ${order.value.down ? "largest" : "smallest"} first`);
                    }}
                  >
                    {name}
                    {order.value.key === key ? (order.value.down ? " \u2193" : " \u2191") : ""}
                  </button>
                </th>
              ))}
              <th scope="col">weights</th>
            </tr>
          </thead>
          <tbody>
            {first > 0 && (
              <tr aria-hidden="true" style={{ height: `${first * ROW}px` }}>
                <td colSpan={columns.length + 1} style={{ height: "auto", border: 0 }} />
              </tr>
            )}
            {edges.slice(first, last).map((edge, i) => (
              <tr key={edge} data-edge={edge} aria-rowindex={first + i + 2}>
                {columns.map(({ key, cell }) => (
                  <td class={key === "sign" ? `${cell(edge)}-text` : undefined}>{cell(edge)}</td>
                ))}
                <td>
                  <Kernel
                    graph={graph}
                    edge={edge}
                    cell={Math.min(8, 26 / (graph.document.layers[graph.edgeLayer[edge]!]?.kernel[0] ?? 1))}
                    numbers={false}
                  />
                </td>
              </tr>
            ))}
            {last < edges.length && (
              <tr aria-hidden="true" style={{ height: `${(edges.length - last) * ROW}px` }}>
                <td colSpan={columns.length + 1} style={{ height: "auto", border: 0 }} />
              </tr>
            )}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function effectText(effect: number | null): string {
  return effect === null ? "\u2013" : significant(effect);
}
