/** What was measured, for those who do not read the whole caption: one sentence, and a small table. */

import { type Caption, crossedOf, filtersText, isMeasured, isWhole } from "./caption.js";
import type { Graph } from "./decode.js";
import { decimal, percent, plural } from "./format.js";
import { circuitName, nodeName } from "./names.js";
import { plain, shorten } from "./text.js";
import type { Fidelity, Rival, Variant, View } from "./types.js";

export interface Headline {
  kept: boolean; // whether it may be shown as good news
  verdict: string; // "Keeps the feature in part"
  text: string; // why, and what is drawn
}

const VERDICTS: Record<Fidelity["verdict"], string> = {
  keeps: "Keeps the feature",
  "keeps in part": "Keeps the feature in part",
  "does not keep": "Does not keep the feature",
  "not decided": "Not decided whether it keeps the feature",
};

/** The same in a figure's caption that has less room. */
const SHORT: Record<Fidelity["verdict"], string> = {
  keeps: "Kept",
  "keeps in part": "Kept in part",
  "does not keep": "Not kept",
  "not decided": "Not decided",
};

/** The verdict on a view's circuit and what of it is drawn. */
export function headline(graph: Graph, view: View, numbers: Caption): Headline {
  const { variants } = graph.document;
  const variant = variants[view.variant]!;
  const cut = cutOf(graph, view);
  const drawing = drawn(graph, view, numbers, variant.fidelity, cut);
  const crossed = crossedOf(graph, view);
  if (crossed) {
    const [verdict, ...why] = crossed.sentence.split(": ");
    return { kept: false, verdict: verdict!, text: `${why.join(": ")} ${drawing}` };
  }
  if (view.compare !== null) {
    if (!variant.fidelity && !variants[view.compare]!.fidelity)
      return {
        kept: false,
        verdict: "Not measured",
        text: `how much of the feature these two circuits keep. ${drawing}`,
      };
    const both = [view.variant, view.compare].map((each) => {
      const of = variants[each]!;
      const said = of.fidelity
        ? `${lower(VERDICTS[of.fidelity.verdict]) + found(of)}, ${measured(graph, of, of.fidelity)}`
        : "was not measured";
      return `${circuitName(graph, each, view)} ${said}`;
    });
    return {
      kept: false,
      verdict: cut ? "Two whole circuits" : "Two circuits",
      text: `${both.join("; ")}. ${drawing}`,
    };
  }
  const { fidelity } = variant;
  if (!fidelity || !graph.document.heldOut)
    return {
      kept: false,
      verdict: "Not measured",
      text: `how much of the feature this circuit keeps on held-out images. ${drawing}`,
    };
  const verdict =
    variant.role === "control" ? `This is ${plain(variant.name)}` : VERDICTS[fidelity.verdict] + found(variant);
  return {
    kept: !cut && variant.role !== "control" && fidelity.verdict === "keeps" && found(variant) === "",
    verdict: !cut ? verdict : /^[DK]/.test(verdict) ? `The whole circuit ${lower(verdict)}` : `${verdict}, as a whole`,
    text: `${measured(graph, variant, fidelity)}. ${drawing}`,
  };
}

/** R² of a circuit with its place, its number of images and what it is compared with. */
function measured(graph: Graph, variant: Variant, fidelity: Fidelity): string {
  const { heldOut } = graph.document;
  const images = heldOut?.count ?? 0;
  const on = fidelity.foundOn
    ? `on the very ${plural(images, "image")} that it was found on`
    : `on ${plural(images, "unseen image")}`;
  const [inside, random, average] = baselinesOf(fidelity);
  const baselines = [
    ["random circuit", random],
    ["average map", average],
    ["same graph on other filters", decisiveOf(fidelity, "relabelled")],
    ["with shuffled weights", decisiveOf(fidelity, "redrawn")],
    ["found alike among shuffled kernels", decisiveOf(fidelity, "refound")],
  ] as const;
  const beside = baselines.flatMap(([name, r2]) => (r2 === null ? [] : `${name} ${share(r2)}`));
  const where = inside ? middle(fidelity) + closed(overall(fidelity, share)) : "";
  const listed = beside.length ? ` (${beside.join(", ")})` : "";
  return `${part(decisive(fidelity))}${where} ${on}${listed}${fitted(variant, true)}`;
}

// What the forms of a figure's caption are without, each also without all before it: long words, baselines beside the
// best control, R² of what is drawn, R² over all positions, the best control, the circuit's size, the number of images,
// and constants.
const [WORDS, OTHERS, ALONE, EVERYWHERE, BASELINES, SIZE, IMAGES, CONSTANTS] = [1, 2, 3, 4, 5, 6, 7, 8] as const;

/** A figure's caption in forms from the fullest to the shortest, of which the first that fits one line is printed. Each
 *  is true and has the verdict, which no baseline may contradict, R² and what is drawn. */
export function figureCaptions(graph: Graph, view: View, numbers: Caption): string[] {
  const { variants, heldOut } = graph.document;
  const variant = variants[view.variant]!;
  const { fidelity } = variant;
  const cut = cutOf(graph, view);
  const all = !cut && view.compare === null && numbers.ofKernels > 0 && numbers.kernels >= numbers.ofKernels;
  const drawing = all ? `all ${plural(numbers.ofKernels, "kernel")} drawn` : `${filtersText(numbers)} drawn`;
  if (cut)
    return ["not measured on held-out images", "not measured"].map((said) => `${capitalized(said)}; ${drawing}.`);
  if (view.compare !== null) return compared(graph, view, drawing);
  const size = `${kernelsText(variant)} of kernels, `;
  if (!fidelity || !heldOut)
    return [size, ""].map((before) => `${capitalized(`${before}not measured on held-out images`)}; ${drawing}.`);
  const [inside, random, average] = baselinesOf(fidelity);
  const best = fidelity.controls && decisiveOf(fidelity, fidelity.controls.best);
  const name = variant.role === "control" ? capitalized(plain(variant.name)) : null;
  return Array.from({ length: CONSTANTS + 1 }, (_, without) => {
    const has = (what: number) => without < what;
    const verdict = has(WORDS)
      ? (name ?? VERDICTS[fidelity.verdict]) + found(variant)
      : name === null
        ? shortVerdict(variant)
        : shorten(name, has(SIZE) ? Infinity : 7, 1);
    const images = !fidelity.foundOn
      ? plural(heldOut.count, "unseen image")
      : has(WORDS)
        ? `the ${plural(heldOut.count, "image")} that it was found on`
        : plural(heldOut.count, "training image");
    const beside = [
      ...(random === null || !(has(OTHERS) || best === null) ? [] : [`random ${decimal(random)}`]),
      ...(average === null || !(has(OTHERS) || best === null) ? [] : [`average map ${decimal(average)}`]),
      ...(best === null ? [] : [`best control ${decimal(best)}`]),
    ];
    return [
      `${verdict}: `,
      has(SIZE) ? size : "",
      !has(IMAGES) && fidelity.foundOn ? "training " : "",
      `R² ${r2Text(fidelity)}`,
      placeOf(fidelity, has(WORDS)),
      inside && has(EVERYWHERE) ? closed(overall(fidelity, decimal)) : "",
      has(IMAGES) ? ` on ${images}` : "",
      beside.length && has(BASELINES) ? ` (${beside.join(", ")})` : "",
      has(CONSTANTS) ? fitted(variant, has(WORDS)) : "",
      `; ${drawing}`,
      all || numbers.r2Drawn === null || !has(ALONE) ? "" : `, alone R² ${decimal(numbers.r2Drawn)}`,
      ".",
    ].join("");
  });
}

/** The same of two circuits: without long words, verdicts, the number of images and constants, then with shorter and
 *  shorter names. */
function compared(graph: Graph, view: View, drawing: string): string[] {
  const crossed = crossedOf(graph, view);
  if (crossed) {
    const errors = `error ${decimal(crossed.own)} on own groups, ${decimal(crossed.others)} on others`;
    return [`: relative ${errors}`, `: ${errors}`, ""].map(
      (said) => `${capitalized(crossed.verdict)}${said}; ${drawing}.`,
    );
  }
  const both = [view.variant, view.compare!].map((each) => graph.document.variants[each]!);
  const measured = both.flatMap(({ fidelity }) => fidelity ?? []);
  const unseen = measured.length > 0 && !measured.some(({ foundOn }) => foundOn);
  return [...[0, 0, 0, 0, 0], 10, 8, 6, 4, 2.5].map((room, without) => {
    const places = new Set(measured.map((each) => placeOf(each, !without)));
    const alike = places.size < 2; // they are said once
    const said = both.map((variant, i) => {
      const { fidelity: of } = variant;
      const name = circuitName(graph, i ? view.compare! : view.variant, view);
      const about = [
        room ? shorten(name, room, 1) : name,
        of && without < 3 ? lower(shortVerdict(variant)) : "",
        of?.foundOn ? (without ? "training" : "training images") : "",
      ];
      const r2 = of ? r2Text(of) + (alike ? "" : placeOf(of, !without)) : "not measured";
      return `${r2} (${about.filter(Boolean).join(", ")}${without < 4 ? fitted(variant, !without) : ""})`;
    });
    const on = unseen && without < 4 ? ` on ${plural(graph.document.heldOut!.count, "unseen image")}` : "";
    return `R²${alike ? [...places].join("") : ""}${on}: ${said.join(", ")}; ${drawing}.`;
  });
}

function r2Text(of: Fidelity): string {
  const value = decisive(of);
  return value === null ? "not defined" : decimal(value);
}

/** Where R² that decides is of; "" for all positions. */
function placeOf(of: Fidelity, long: boolean): string {
  if (!baselinesOf(of)[0]) return "";
  return long || of.interior === "central" ? middle(of) : " inside";
}

function shortVerdict(variant: Variant): string {
  const doubt = doubtOf(variant);
  return doubt ? DOUBTS[doubt][1] : SHORT[variant.fidelity!.verdict];
}

/** The share of kernels that a circuit keeps: "5 %", "0.22 %". */
function kernelsText({ kept, relevant }: Variant): string {
  const kernels = kept / relevant;
  if (kernels > 0 && kernels < 1e-4) return "<0.01 %";
  return kernels < 0.1 ? `${Number((100 * kernels).toPrecision(2))} %` : percent(kernels);
}

/** Whether R² away from the border decides, and that of the random circuit and of the average map there. */
function baselinesOf(of: Fidelity): [inside: boolean, random: number | null, average: number | null] {
  const inside = of.r2Interior !== null && decisive(of) === of.r2Interior;
  const random = decisiveOf(of, "random"); // fitted as the circuit was
  return inside
    ? [true, random ?? of.r2RandomInterior, of.r2AverageMapInterior]
    : [false, random ?? of.r2Random, of.r2AverageMap];
}

function rivalOf({ controls }: Fidelity, name: Rival["name"]): Rival | undefined {
  return controls?.rivals.find((rival) => rival.name === name);
}

/** R² of a control where R² of the circuit decides; null: not measured, or not defined. */
function decisiveOf(of: Fidelity, name: Rival["name"]): number | null {
  const rival = rivalOf(of, name);
  return (of.interior === "unknown" ? rival?.r2 : rival?.r2Interior) ?? null;
}

/** What a circuit owes its figures to, besides its kernels. */
function fitted({ calibration }: Variant, long: boolean): string {
  if (!calibration?.constants) return "";
  return long
    ? `, with ${plural(calibration.constants, "fitted constant")}`
    : `, ${plural(calibration.constants, "constant")}`;
}

/** What takes something from a verdict on a circuit that keeps its feature, after it and in place of it. */
const DOUBTS = {
  "no controls": [", but no controls were fitted", "No controls"],
  "not found": [", but not clearly better than its controls", "Not above controls"],
  "not decided": [", but not decided whether better than its controls", "Not decided"],
} as const;

function doubtOf({ fidelity, calibration }: Variant): keyof typeof DOUBTS | null {
  if (!fidelity?.verdict.startsWith("keeps")) return null;
  if (!fidelity.controls) return calibration ? "no controls" : null;
  return fidelity.controls.verdict === "found" ? null : fidelity.controls.verdict;
}

function found(variant: Variant): string {
  const doubt = doubtOf(variant);
  return doubt === null ? "" : DOUBTS[doubt][0];
}

/** R² away from the border where it is known, else over all positions. */
function decisive({ r2, r2Interior, interior }: Fidelity): number | null {
  return interior === "unknown" ? r2 : (r2Interior ?? r2);
}

/** Where R² away from the border is of. */
function middle({ interior }: Fidelity): string {
  return interior === "central" ? " in the middle" : " away from the border";
}

/** R² over all positions, which decides too, where it is the lower one and a circuit does not keep its feature:
 *  ", 35 % over all positions". */
function overall(of: Fidelity, text: (r2: number) => string): string {
  const value = decisive(of);
  const lower = of.verdict !== "keeps" && of.r2 !== null && value !== null && of.r2 < value;
  return lower && text(of.r2!) !== text(value) ? `, ${text(of.r2!)} over all positions` : "";
}

function closed(text: string): string {
  return text && `${text},`;
}

/** "72 % of its variance". */
function part(r2: number | null): string {
  if (r2 === null) return "the feature is constant";
  return r2 >= 0.005
    ? `${Math.round(100 * r2)}\u00a0% of its variance`
    : `none of its variance (R²\u00a0${decimal(r2)})`;
}

/** A baseline's: "25 %", or R² below 0, which is no share. */
function share(r2: number): string {
  return r2 < 0 ? `R²\u00a0${decimal(r2)}` : `${decimal(100 * r2, 0)}\u00a0%`;
}

/** What a view is about instead of whole circuits, of which alone anything was measured: "its 40 most salient kernels",
 *  "what leads to filter 9 of conv3_1"; "" if it is about whole ones. */
export function cutOf(graph: Graph, view: View): string {
  const kernels = isWhole(graph, view) ? "" : `its ${plural(view.kernels!, "most salient kernel")}`;
  if (view.root === null || view.root === graph.document.target) return kernels;
  return `what leads to ${nodeName(graph, view.root)}${kernels && ` in ${kernels}`}`;
}

function drawn(graph: Graph, view: View, numbers: Caption, fidelity: Fidelity | null, cut: string): string {
  if (!numbers.ofKernels) return "Nothing of it is on a complete path.";
  if (numbers.kernels >= numbers.ofKernels && !cut) return `All ${plural(numbers.ofKernels, "kernel")} are drawn.`;
  const shows = `This drawing shows ${cut && `${cut}: `}${filtersText(numbers)}`;
  if (view.compare !== null || !fidelity?.drawn) return `${shows}.`;
  if (!isMeasured(graph, view)) return `${shows}; what they do alone was not measured.`;
  const alone = fidelity.drawn.r2;
  return alone === null
    ? `${shows}.`
    : alone < 0.05
      ? `${shows}; alone they do not reproduce it (R²\u00a0${decimal(alone)}).`
      : `${shows}; alone they keep ${share(alone)}.`;
}

function capitalized(text: string): string {
  return text[0]!.toUpperCase() + text.slice(1);
}

function lower(text: string): string {
  return text[0]!.toLowerCase() + text.slice(1);
}

/** R² on held-out images, of circuits and of what they are compared with; null: not measured, or not defined. */
export interface R2Table {
  columns: { short: string; long: string }[];
  rows: { name: string; own: boolean; values: (number | null)[] }[];
}

/** The table of a view; null where nothing was measured. */
export function r2Table(graph: Graph, view: View, numbers: Caption): R2Table | null {
  const { variants } = graph.document;
  const variant = variants[view.variant]!;
  const shown = [view.variant, ...(view.compare === null ? [] : [view.compare])];
  const { fidelity } = variant;
  if (!fidelity) return null;
  const central = fidelity.interior === "central";
  const rows = shown.map((each) => ({
    name:
      shown.length > 1 || variant.role !== "circuit"
        ? circuitName(graph, each, view)
        : cutOf(graph, view)
          ? "the whole circuit"
          : "this circuit",
    own: true,
    values: (["r2", "r2Interior", "r2Rectified"] as const).map((of) => variants[each]!.fidelity?.[of] ?? null),
  }));
  const beside = (name: string, ...values: (number | null)[]) => rows.push({ name, own: false, values });
  for (const each of shown) {
    const { role, fidelity: of } = variants[each]!;
    if (!of || shown.some((each) => variants[each]!.role === "control")) continue;
    const control = role === "circuit" ? variants.find(({ role }) => role === "control") : undefined;
    const rival = (name: string, rival: Rival["name"]) => {
      const found = rivalOf(of, rival);
      if (found) beside(name, found.r2, found.r2Interior, found.r2Rectified);
      return found;
    };
    const single = shown.length === 1;
    if (single) {
      rival("same graph, other filters", "relabelled");
      rival("same graph, shuffled weights", "redrawn");
      rival("found among shuffled kernels", "refound");
    }
    const random = single ? "random, equal size" : `random, as large as ${circuitName(graph, each, view)}`;
    if (!rival(random, "random"))
      beside(random, of.r2Random, of.r2RandomInterior, single ? (control?.fidelity?.r2Rectified ?? null) : null);
  }
  const average = rivalOf(fidelity, "average_map")?.r2Rectified ?? null;
  beside("average map, no network", fidelity.r2AverageMap, fidelity.r2AverageMapInterior, average);
  if (shown.length === 1 && !cutOf(graph, view) && numbers.kernels < numbers.ofKernels)
    beside("what is drawn, alone", numbers.r2Drawn, null, null);
  return {
    columns: [
      { short: "all", long: "over all positions" },
      central
        ? { short: "middle", long: "over the central positions" }
        : { short: "inside", long: "away from the border, where no padding reaches" },
      { short: "rectified", long: "over all positions, of the map with its negative values set to 0" },
    ],
    rows,
  };
}
