/** Names of nodes and edges, in full. */

import type { Graph } from "./decode.js";
import { percent, significant } from "./format.js";
import { plain } from "./text.js";
import { EdgeKind, NodeKind, type View } from "./types.js";

/** The name of a circuit: "the circuit" as such, but where two are compared it says which, as "progressive 5 %". */
export function circuitName({ document }: Graph, variant: number, { compare }: Pick<View, "compare">): string {
  const { name, kept, relevant } = document.variants[variant]!;
  if (compare === null || name !== THE_CIRCUIT) return plain(name);
  return plain(
    `${document.meta.criterion ?? "circuit"} ${significant((100 * kept) / relevant)} %`.replaceAll("_", " "),
  );
}

const THE_CIRCUIT = "the circuit"; // what Python calls the first one, unless it has a better name

/** "features.14", or "conv3_3 (features.14)" where papers have a name for it. */
export function layerName(graph: Graph, layer: number): string {
  const { layers, columns } = graph.document;
  const { name = "", column = -1 } = layers[layer] ?? {};
  const alias = columns[column]?.alias;
  return plain(alias ? `${alias} (${name})` : name);
}

/** What readers call nodes. */
export type Labels = ReadonlyMap<number, string>;

export function labelsOf({ notes }: Pick<View, "notes">): Labels {
  return new Map(notes.flatMap(({ node, label }) => (label ? [[node, label] as const] : [])));
}

/** "filter 37 of conv3_1", followed by the node's own name and by its label if it has them. */
export function nodeName(graph: Graph, node: number, labels?: Labels): string {
  const layer = layerName(graph, graph.layer[node]!) || plain(graph.document.columns[graph.column[node]!]?.label ?? "");
  const unit = graph.unit[node]!;
  const given = graph.document.nodes.names[node];
  const name = {
    [NodeKind.filter]: `filter ${unit} of ${layer}`,
    [NodeKind.image]: `channel ${unit} of the image`,
    [NodeKind.add]: `sum ${unit} in ${layer}`,
    [NodeKind.gate]: `gated channel ${unit} of ${layer}`,
    [NodeKind.mix]: `mixture ${unit} in ${layer}`,
    [NodeKind.target]: unit >= 0 ? `target ${unit} in ${layer}` : `target in ${layer}`,
  }[graph.kind[node]!];
  return [name!, given, labels?.get(node)]
    .filter((part) => part !== undefined)
    .map(plain)
    .join(", ");
}

const CONNECTIONS: Record<number, string> = {
  [EdgeKind.identity]: "passed on unchanged",
  [EdgeKind.gate]: "scaled by a gate",
  [EdgeKind.mix]: "mixed with other channels",
  [EdgeKind.readout]: "read by the target",
};

/** "conv3_1, 12 \u2190 37", or what happens in a connection. */
export function edgeName(graph: Graph, edge: number): string {
  if (graph.out[edge]! < 0)
    return `${nodeName(graph, graph.source[edge]!)}, ${CONNECTIONS[graph.edgeKind[edge]!] ?? "connected"}`;
  return `${layerName(graph, graph.edgeLayer[edge]!)}, ${graph.out[edge]} \u2190 ${graph.in[edge]}`;
}

/** "excites", "inhibits", or what happens in a connection. */
export function signName(graph: Graph, edge: number): string {
  return graph.sign[edge]! > 0
    ? "excites"
    : graph.sign[edge]! < 0
      ? "inhibits"
      : (CONNECTIONS[graph.edgeKind[edge]!] ?? "connected");
}

/** For screen readers: "filter 37 of conv3_1, 12 % of the flow, excited by ...". */
export function spokenNode(graph: Graph, node: number, flow: number, strongest: number[], labels: Labels): string {
  const by = (sign: number) =>
    strongest.filter((edge) => graph.sign[edge] === sign).map((edge) => nodeShort(graph, graph.source[edge]!, labels));
  const [up, down] = [by(1), by(-1)];
  return [
    nodeName(graph, node, labels),
    `${percent(flow)} of the flow`,
    ...(up.length ? [`excited by ${up.join(" and ")}`] : []),
    ...(down.length ? [`inhibited by ${down.join(" and ")}`] : []),
  ].join(", ");
}

/** "37 of conv3_1". */
export function nodeShort(graph: Graph, node: number, labels: Labels): string {
  return graph.kind[node] === NodeKind.image
    ? `the image's channel ${graph.unit[node]}`
    : nodeName(graph, node, labels).replace(/^filter /, "");
}
