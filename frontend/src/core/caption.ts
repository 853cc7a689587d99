/** What the figure says about itself: all of it computed, and what was not measured is said to be so. */

import type { Graph } from "./decode.js";
import type { Flow } from "./flow.js";
import { count, decimal, percent, plural } from "./format.js";
import { countOf, type Selection } from "./select.js";
import { DEFAULT_VIEW, type View } from "./types.js";

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
  return view.kernels === null || view.kernels >= graph.document.variants[view.variant]!.kept;
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

function value(r2: number | null): string {
  return r2 === null ? "not defined" : decimal(r2);
}

function reach(r2: number | null): string {
  return r2 === null ? "have no R\u00b2, as the feature is constant" : `reach R\u00b2 = ${decimal(r2)}`;
}

/** The caption of a selection. */
export function caption(graph: Graph, flow: Flow, selection: Selection, view: View): Caption {
  const { variants, heldOut, target } = graph.document;
  const variant = variants[view.variant]!;
  const other = view.compare === null ? null : variants[view.compare]!;
  const rooted = view.root !== null && view.root !== target;
  const whole = isWhole(graph, view) && !other && !rooted;
  const alive = whole ? { filters: variant.filters, kernels: variant.effective } : countOf(graph, aliveEdges(flow));
  const [ofFilters, ofKernels] = [alive.filters, alive.kernels];

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
  const paths = `complete drawn paths carry ${percent(selection.path)} of the ${scored} score (flow, a heuristic)`;

  const { fidelity } = variant;
  const drawnPart = fidelity?.drawn ?? null;
  const r2Drawn = measured ? (drawnPart?.r2 ?? null) : null;
  const r2 = fidelity?.r2 ?? null;
  const control = variants.find((each) => each.role === "control" && (variant.role === "circuit" || (variant.role !== "control" && each.kept === variant.kept)));
  const r2Control = control?.fidelity?.r2 ?? null;
  const r2ControlDrawn = control?.fidelity?.drawn?.r2 ?? null;

  const alone = drawnPart && !other ? (measured ? ` and, run as a network of their own, ${reach(drawnPart.r2)}` : ` (as a network of their own they were not measured; those of the default view ${reach(drawnPart.r2)})`) : " (as a network of their own they were not measured)";
  const subject = other ? `"${variant.name}"` : variant.role === "circuit" ? "the whole circuit" : variant.role === "level" ? "all of it" : `the whole of "${variant.name}"`;
  const random = control?.fidelity
    ? `random circuit of equal size, drawn the same way: ${value(r2Control)}; its drawn part${measured ? "" : " in the default view"} ${control.fidelity.drawn ? value(r2ControlDrawn) : "was not measured"}`
    : "a random circuit of equal size was not measured";
  const images = heldOut && (fidelity?.foundOn ? `the very ${plural(heldOut.count, "image")} that it was found on` : plural(heldOut.count, "held-out image"));
  const kept =
    !fidelity || !heldOut
      ? `how much of the feature ${subject} keeps was not measured on held-out images`
      : `${subject} ${r2 === null ? "has no R\u00b2, as the feature is constant," : `keeps R\u00b2 = ${decimal(r2)} of the feature`} on ${images}${variant.role === "control" ? "" : ` (${random})`}`;
  const compared = !other ? "" : other.fidelity && heldOut ? `; "${other.name}" keeps R\u00b2 = ${value(other.fidelity.r2)}${other.fidelity.foundOn && !fidelity?.foundOn ? " on the very images that it was found on" : ""}` : `; "${other.name}" was not measured`;
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

function* aliveEdges({ alive }: Flow): Iterable<number> {
  for (let edge = 0; edge < alive.length; edge++) if (alive[edge]) yield edge;
}
