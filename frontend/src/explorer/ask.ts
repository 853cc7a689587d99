/** What the form that finds a circuit asks for. */

import type { JobRequest } from "./api.js";

export const SIZES = {
  density: { name: "density", start: ".05", step: "any", min: 0, max: 1 },
  kernels: { name: "kernels", start: "500", step: "1", min: 1, max: undefined },
  reach_r2: { name: "reach R²", start: ".8", step: "any", min: 0, max: 1 },
  drawable: { name: "drawn whole", start: "", step: "1", min: 0, max: undefined },
} as const;
export type Size = keyof typeof SIZES;

/** What the form asks for; a sentence, if that is not possible. */
export function findJob(
  feature: string,
  of: { criterion: string; size: Size; number: string; position: string; count: string },
): JobRequest | string {
  const crops = Number(of.count);
  if (!Number.isInteger(crops) || crops < 1) return "The number of crops must be a whole number of at least 1.";
  const common = {
    kind: "find" as const,
    feature: of.position === "all" ? feature : `${feature}@${of.position}`,
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
