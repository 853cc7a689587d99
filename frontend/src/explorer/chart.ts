/** Where the points of a density curve lie: by the logarithm of their size, and R² from 0 to 1. */

import type { Curve, CurvePoint } from "./api.js";

export type CurveMeasure = "r2" | "r2_interior";

/** R² on the interior where there is one, as in verdicts. */
export function measureOf(curve: Curve): CurveMeasure {
  return curve.points.some(({ r2_interior }) => r2_interior !== null) ? "r2_interior" : "r2";
}

export interface Chart {
  x(kernels: number): number;
  y(r2: number): number;
  circuitLine: string;
  randomLine: string;
}

/** Scales and lines. What is below 0 is drawn at 0, and a line has a gap where nothing was measured. */
export function chart(curve: Curve, measure: CurveMeasure, width: number, height: number): Chart {
  const sizes = curve.points.map(({ kernels }) => Math.log(Math.max(1, kernels)));
  const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const x = (kernels: number) => (high > low ? (width * (Math.log(Math.max(1, kernels)) - low)) / (high - low) : 0);
  const y = (r2: number) => height * (1 - Math.min(1, Math.max(0, r2)));
  const line = (value: (point: CurvePoint) => number | null) => {
    let draw = false;
    return curve.points
      .map((point) => {
        const at = value(point);
        const command = draw ? "L" : "M";
        draw = at !== null;
        return at === null ? "" : `${command}${x(point.kernels).toFixed(1)} ${y(at).toFixed(1)}`;
      })
      .join("");
  };
  const random = measure === "r2" ? "r2_random" : "r2_random_interior";
  return { x, y, circuitLine: line((point) => point[measure]), randomLine: line((point) => point[random]) };
}
