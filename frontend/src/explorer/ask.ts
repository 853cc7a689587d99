/** What the form that finds a circuit asks for. */

import type { Circuit, JobRequest } from "./api.js";

export const SIZES = {
  density: { name: "density", start: ".05", step: "any", min: 0, max: 1 },
  kernels: { name: "kernels", start: "500", step: "1", min: 1, max: undefined },
  reach_r2: { name: "reach R²", start: ".8", step: "any", min: 0, max: 1 },
  drawable: { name: "drawn whole", start: "", step: "1", min: 0, max: undefined },
} as const;
export type Size = keyof typeof SIZES;

/** A feature at positions, as the command takes it. */
export function positioned(feature: string, position: string): string {
  return position === "all" ? feature : `${feature}@${position}`;
}

/** What the form asks for; a sentence, if that is not possible. */
export function findJob(
  feature: string,
  of: { criterion: string; size: Size; number: string; position: string; count: string },
): JobRequest | string {
  const crops = Number(of.count);
  if (!Number.isInteger(crops) || crops < 1) return "The number of crops must be a whole number of at least 1.";
  const common = {
    kind: "find" as const,
    feature: positioned(feature, of.position),
    criterion: of.criterion,
    count: crops,
  };
  if (of.size === "drawable") return { ...common, drawable: true };
  const number = of.number.trim() === "" ? Number.NaN : Number(of.number);
  if (of.size === "kernels")
    return Number.isInteger(number) && number >= 1
      ? { ...common, kernels: number }
      : "The number of kernels must be a whole number of at least 1.";
  if (!(number > 0 && number <= 1))
    return of.size === "density"
      ? "The density must be above 0 and at most 1."
      : "The R² to reach must be above 0 and at most 1.";
  return { ...common, [of.size]: number };
}

/** What finds a circuit of another size by the recipe of one; null, if its recipe is not known. */
export function sizedJob({ provenance }: Circuit, density: number): JobRequest | null {
  const recipe = (provenance.recipe ?? provenance.search) as Record<string, unknown> | undefined;
  if (provenance.whole_photographs) return null; // of photographs that were chosen by hand
  if (!recipe || typeof recipe.feature !== "string" || recipe.effective_kernels === true) return null;
  if (recipe.boxes != null) return null; // the server reads no table of boxes
  const given = Object.fromEntries(SAME.flatMap((name) => (recipe[name] == null ? [] : [[name, recipe[name]]])));
  return { kind: "find", feature: recipe.feature, density, ...given };
}

const SAME = ["criterion", "granularity", "refit", "options", "count", "held_out", "seed"];
