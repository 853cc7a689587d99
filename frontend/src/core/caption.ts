/** The caption of a figure. All of it is computed, and it says what was not measured. */

import type { Graph } from "./decode.js";
import type { Flow } from "./flow.js";
import { count, decimal, percent, plural } from "./format.js";
import { circuitName } from "./names.js";
import { countOf, type Selection } from "./select.js";
import { type Crossed, DEFAULT_VIEW, type Fidelity, type Variant, type View } from "./types.js";

export interface Caption {
  text: string;
  /** The numbers in it; null where it was not measured. */
  filters: number;
  blocks: number;
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

/** Whether the view draws all kernels of its variant, rather than fewer by the slider. */
export function isWhole(graph: Graph, view: View): boolean {
  return view.kernels === null || view.kernels >= graph.document.variants[view.variant]!.kept;
}

/** Whether the view draws what was measured: the default view of one variant. What is isolated or pictured does not
 *  matter. */
export function isMeasured(graph: Graph, view: View): boolean {
  return (
    isWhole(graph, view) &&
    view.compare === null &&
    (view.root === null || view.root === graph.document.target) &&
    view.nodesPerColumn === DEFAULT_VIEW.nodesPerColumn &&
    view.kernelsPerNode === DEFAULT_VIEW.kernelsPerNode &&
    !view.pins.length &&
    !view.groups.length &&
    !view.collapsed.length
  );
}

/** "25 of 528 filters", or "25 filters and 7 closed blocks of 528 filters". */
export function filtersText({ filters, blocks, ofFilters }: Pick<Caption, "filters" | "blocks" | "ofFilters">): string {
  const drawn = blocks ? `${plural(filters, "filter")} and ${plural(blocks, "closed block")}` : count(filters);
  return `${drawn} of ${plural(ofFilters, "filter")}`;
}

/** The cross-test of groups of images, in a view that compares the circuits of two of them; null in others. */
export function crossedOf({ document }: Graph, view: View): Crossed | null {
  const isGroup = (n: number | null) => n !== null && /circuit|against/.test(document.variants[n]!.role);
  return (isGroup(view.variant) && isGroup(view.compare) && document.crossed) || null;
}

function value(r2: number | null): string {
  return r2 === null ? "not defined" : decimal(r2);
}

function reach(r2: number | null): string {
  return r2 === null ? "have no R², as the feature is constant" : `reach R² = ${decimal(r2)}`;
}

/** The reasons in a sentence of a verdict, which names the feature and then, after a colon, gives them; a name may hold
 *  a colon, but no reason does. */
function reasons(sentence: string): string | undefined {
  return sentence
    .replace(/\.$/, "")
    .split(": ")
    .slice(1)
    .at(-1)
    ?.replace(/\bR2\b/g, "R²")
    .replace(/(^|[ (])-(?=\d)/g, "$1\u2212");
}

/** The verdict on a circuit, and why it is no better. */
function verdict(subject: string, { verdict, sentence }: Fidelity): string {
  const found = {
    keeps: `${subject} keeps the feature`,
    "keeps in part": `${subject} keeps the feature in part`,
    "does not keep": `${subject} does not keep the feature`,
    "not decided": `whether ${subject} keeps the feature is not decided`,
  }[verdict];
  const why = reasons(sentence);
  return capital(found) + (verdict === "keeps" || !why ? "" : `: ${why}`);
}

/** Whether a circuit was found, or made by its constants: what its controls say, or that there are none. */
function beside(subject: string, { role, calibration, fidelity }: Variant): string {
  if (!fidelity?.controls)
    return calibration && role !== "control"
      ? " No controls were fitted, so whether its constants made it is not known."
      : "";
  const { sentence, unmeasured } = fidelity.controls;
  const found = {
    found: `${subject} was found`,
    "not found": `${subject} was not found`,
    "not decided": `whether ${subject} was found${calibration ? ", or made by its constants," : ""} is not decided`,
  }[fidelity.controls.verdict];
  return ` ${capital(found)}: ${reasons(sentence)}.${unmeasured ? ` Not measured: ${unmeasured}.` : ""}`;
}

function capital(text: string): string {
  return text[0]!.toUpperCase() + text.slice(1);
}

/** What the random circuit is that one is compared with: whether it is alive, where that is known, and whether it was
 *  fitted where that one was. */
function randomOf({ calibration, fidelity }: Variant, control: Variant | undefined): string {
  const random = "a random circuit of equal size";
  if (control?.effective === 0) return `${random}, in which nothing is on a complete path`;
  if (!calibration) return random;
  return `${random}, ${fidelity?.randomRefitted ? "refitted too" : "not refitted"}`;
}

/** R² of a circuit and of its baselines; of the random circuit only if it is not named as the best control. */
function figures(of: Fidelity, random: string): string {
  const named = random.includes(",") ? `${random},` : random;
  const where = of.interior === "central" ? "the central positions" : "the interior";
  const reaches = (name: string, all: number, inside: number | null) =>
    `${name} reaches ${value(all)} (${value(inside)} on ${where})`;
  const baselines = [
    of.r2AverageMap === null
      ? "there is no baseline, as no average map of the images that it was found on was measured"
      : reaches("the average map, which needs no network,", of.r2AverageMap, of.r2AverageMapInterior),
    ...(of.r2Random === null || of.controls?.best === "random"
      ? []
      : [reaches(named, of.r2Random, of.r2RandomInterior)]),
  ];
  if (of.r2 === null) return "no R², as the feature is constant";
  return [
    `R² = ${decimal(of.r2)}, on ${where} ${value(of.r2Interior)}, of the rectified map ${value(of.r2Rectified)}`,
    ...baselines,
  ].join("; ");
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

  const complete = whole && selection.kernels === ofKernels;
  const measured = isMeasured(graph, view);
  const of = other
    ? ` of "${circuitName(graph, view.variant, view)}" and "${circuitName(graph, view.compare!, view)}" together`
    : variant.role === "circuit"
      ? " of the circuit"
      : variant.role === "level"
        ? ` of ${variant.name}`
        : ` of "${variant.name}"`;
  const sliced = isWhole(graph, view) ? "" : ` at its ${plural(view.kernels!, "most salient kernel")}`;
  const within = `${of}${sliced}${rooted ? " that lead to the chosen filter" : ""}`;
  const scored = rooted ? "chosen filter's" : "target's";
  const drawnKernels = `${count(selection.kernels)} of ${plural(ofKernels, "kernel")}`;
  const drawn = `${filtersText({ ...selection, ofFilters })}, ${drawnKernels}${within} are drawn`;
  const paths = `complete drawn paths carry ${percent(selection.path)} of the ${scored} score (flow, a heuristic)`;

  const { fidelity } = variant;
  const drawnPart = fidelity?.drawn ?? null;
  const controlOf = ({ role }: Variant) =>
    role === "circuit" ? variants.find((each) => each.role === "control") : undefined;
  const control = controlOf(variant);
  const r2ControlDrawn = control?.fidelity?.drawn?.r2 ?? null;
  const random = control?.fidelity?.drawn
    ? ` (${randomOf(variant, control)}, drawn the same way: ${value(r2ControlDrawn)})`
    : "";
  const unmeasured = "as a network of their own they were not measured";
  const own = variant.calibration ? " with its gains and offsets" : "";
  const opened = view.collapsed.length ? ", all blocks open," : "";
  const alone =
    !drawnPart || other
      ? ` (${unmeasured})`
      : measured
        ? ` and, run as a network of their own${own}, ${reach(drawnPart.r2)}${random}`
        : ` (${unmeasured}; those of the default view${opened} ${reach(drawnPart.r2)}${random})`;

  const named = (each: Variant) => {
    if (each.role === "circuit" && !other) return "the circuit";
    const name = circuitName(graph, variants.indexOf(each), view);
    return each.role === "level" ? name : `"${name}"`;
  };
  const on = (each: Fidelity) =>
    each.foundOn
      ? `the very ${plural(heldOut!.count, "image")} that it was found on`
      : plural(heldOut!.count, "held-out image");
  const all = (each: Variant) => figures(each.fidelity!, randomOf(each, controlOf(each)));
  const kept = (each: Variant) =>
    each.role === "control" && each.fidelity && heldOut
      ? `On ${on(each.fidelity)} ${named(each)} has ${all(each)}.`
      : each.fidelity && heldOut
        ? `${verdict(named(each), each.fidelity)}. On ${on(each.fidelity)} it has ${all(each)}.`
        : `How much of the feature ${named(each)} keeps was not measured on held-out images.`;
  const fitted = (each: Variant) => {
    if (!each.calibration) return "";
    const { constants, images } = each.calibration;
    const what = `${plural(constants, "constant")} (gains of kernels, offsets of filters)`;
    return ` ${capital(named(each))} has ${what} fitted${images === null ? "" : ` on ${plural(images, "image")}`}.`;
  };
  const about = (each: Variant) => kept(each) + fitted(each) + beside(named(each), each);
  const crossed = crossedOf(graph, view);
  const said = [...(crossed ? [crossed.sentence] : []), ...[variant, ...(other ? [other] : [])].map(about)].join(" ");
  const subject = variant.role === "circuit" ? "The whole circuit" : `The whole of ${named(variant)}`;
  const dead = variant.kept - variant.effective;
  const aside = dead ? `; it keeps ${plural(dead, "kernel")} more, on no complete path` : "";
  const nested =
    sliced && !variant.nested
      ? " The criterion itself might keep other kernels at this size: its rankings are not nested."
      : "";
  return {
    text: complete
      ? `${said} ${subject} is drawn: ${plural(ofFilters, "filter")} and ${plural(ofKernels, "kernel")}${aside}.`
      : `${said} ${drawn}; ${paths}${alone}.${nested}`,
    filters: selection.filters,
    blocks: selection.blocks,
    ofFilters,
    kernels: selection.kernels,
    ofKernels,
    path: selection.path,
    r2Drawn: complete ? (fidelity?.r2 ?? null) : measured ? (drawnPart?.r2 ?? null) : null,
    r2: fidelity?.r2 ?? null,
    heldOut: heldOut?.count ?? null,
    r2Control: fidelity?.r2Random ?? null,
    r2ControlDrawn,
  };
}

function* aliveEdges({ alive }: Flow): Iterable<number> {
  for (let edge = 0; edge < alive.length; edge++) if (alive[edge]) yield edge;
}
