/** What the figure says about itself: all of it computed, and what was not measured is said to be so. */

import type { Graph } from "./decode.js";
import type { Flow } from "./flow.js";
import { count, decimal, percent, plural } from "./format.js";
import { filtersOf, type Selection } from "./select.js";
import { DEFAULT_VIEW, EdgeKind, type View } from "./types.js";

export interface Caption {
  text: string;
  /** The numbers in it; null where it was not measured. */
  filters: number;
  ofFilters: number;
  kernels: number;
  ofKernels: number;
  path: number;
  r2Drawn: number | null;
  r2: number | null;
  heldOut: number | null;
  r2Control: number | null;
  r2ControlDrawn: number | null;
}

/** Whether the view draws the whole of its variant, or fewer of its kernels by the slider. */
function isWhole(graph: Graph, view: View): boolean {
  return view.kernels === null || view.kernels >= graph.document.variants[view.variant]!.kernels;
}

/** Whether the view draws what was measured: the default view of one variant. What is isolated or pictured does not matter. */
function isMeasured(graph: Graph, view: View): boolean {
  return (
    isWhole(graph, view) &&
    view.compare === null &&
    (view.root === null || view.root === graph.document.target) &&
    view.nodesPerColumn === DEFAULT_VIEW.nodesPerColumn &&
    view.kernelsPerNode === DEFAULT_VIEW.kernelsPerNode &&
    !view.pins.length &&
    !view.groups.length
  );
}

/** The caption of a selection. */
export function caption(graph: Graph, flow: Flow, selection: Selection, view: View): Caption {
  const { variants, heldOut, target } = graph.document;
  const variant = variants[view.variant]!;
  const other = view.compare === null ? null : variants[view.compare]!;
  const rooted = view.root !== null && view.root !== target;
  const whole = isWhole(graph, view) && !other && !rooted;
  const alive = whole ? [] : aliveKernels(graph, flow);
  const [ofFilters, ofKernels] = whole ? [variant.filters, variant.effective] : [filtersOf(graph, alive), alive.length];

  const measured = isMeasured(graph, view);
  const of = other
    ? ` of "${variant.name}" and "${other.name}" together`
    : variant.role === "circuit"
      ? " of the circuit"
      : variant.role === "level"
        ? ` of ${variant.name}`
        : ` of "${variant.name}"`;
  const sliced = isWhole(graph, view) ? "" : ` at its ${plural(view.kernels!, "most salient kernel")}`;
  const within = `${of}${sliced}${rooted ? " that lead to the chosen filter" : ""}`;
  const scored = rooted ? "chosen filter's" : "target's";
  const drawn = `${count(selection.filters)} of ${plural(ofFilters, "filter")}, ${count(selection.kernels)} of ${plural(ofKernels, "kernel")}${within} are drawn`;
  const paths = `complete drawn paths carry ${percent(selection.path)} of the ${scored} score`;

  const r2Drawn = measured ? (variant.fidelity?.drawn?.r2 ?? null) : null;
  const r2 = variant.fidelity?.r2 ?? null;
  const control = variant.role === "control" ? undefined : variants.find(({ role, kept }) => role === "control" && kept === variant.kept);
  const r2Control = control?.fidelity?.r2 ?? null;
  const r2ControlDrawn = control?.fidelity?.drawn?.r2 ?? null;

  const alone =
    r2Drawn !== null
      ? ` and, run as a network of their own, reach R\u00b2 = ${decimal(r2Drawn)}`
      : variant.fidelity?.drawn?.r2 != null && !other
        ? ` (as a network of their own they were not measured; those of the default view reach R\u00b2 = ${decimal(variant.fidelity.drawn.r2)})`
        : " (as a network of their own they were not measured)";
  const subject = other ? `"${variant.name}"` : variant.role === "circuit" ? "the whole circuit" : variant.role === "level" ? "all of it" : `the whole of "${variant.name}"`;
  const random =
    r2Control === null
      ? "a random circuit of equal size was not measured"
      : `random circuit of equal size, drawn the same way: ${decimal(r2Control)}; its drawn part${measured ? "" : " in the default view"} ${r2ControlDrawn === null ? "was not measured" : decimal(r2ControlDrawn)}`;
  const kept =
    r2 === null || heldOut === null
      ? `how much of the feature ${subject} keeps was not measured on held-out images`
      : `${subject} keeps R\u00b2 = ${decimal(r2)} of the feature on ${plural(heldOut.count, "held-out image")}${variant.role === "control" ? "" : ` (${random})`}`;
  const compared =
    other && other.fidelity?.r2 != null && heldOut ? `; "${other.name}" keeps R\u00b2 = ${decimal(other.fidelity.r2)}` : other ? `; "${other.name}" was not measured` : "";
  const nested = sliced && !variant.nested ? " The criterion itself might keep other kernels at this size: its rankings are not nested." : "";
  return {
    text: `${drawn}; ${paths}${alone}; ${kept}${compared}.${nested}`,
    filters: selection.filters,
    ofFilters,
    kernels: selection.kernels,
    ofKernels,
    path: selection.path,
    r2Drawn,
    r2,
    heldOut: heldOut?.count ?? null,
    r2Control,
    r2ControlDrawn,
  };
}

function aliveKernels(graph: Graph, flow: Flow): number[] {
  const edges: number[] = [];
  for (let edge = 0; edge < graph.edgeCount; edge++)
    if (flow.alive[edge] && (graph.edgeKind[edge] === EdgeKind.kernel || graph.edgeKind[edge] === EdgeKind.inner)) edges.push(edge);
  return edges;
}
