/** The measured curve of a circuit's recipe: R² of circuits of several sizes, beside random ones. */

import { useState } from "preact/hooks";
import { count, percent, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import type { Circuit, CurvePoint } from "./api.js";
import { sizedJob } from "./ask.js";
import { chart, measureOf } from "./chart.js";
import { circuits } from "./live.js";
import { go } from "./navigation.js";
import { type CircuitPlace, circuitPlace, formatRoute } from "./route.js";
import { heldOut, r2Text } from "./text.js";
import { To } from "./ui.js";
import { Work } from "./work.js";

const [WIDTH, HEIGHT] = [420, 170];

export function DensityCurve({ circuit }: { circuit: Circuit }) {
  const { curve, kept, granularity } = circuit;
  const [chosen, choose] = useState<number | null>(null);
  if (!curve)
    return (
      <>
        <p class="soft">Not measured: what circuits of other sizes keep, by the same recipe.</p>
        <Work request={{ kind: "sweep", circuit: circuit.id }} label="Measure the curve" quiet />
      </>
    );
  const { points } = curve;
  const measure = measureOf(curve);
  const { x, y, circuitLine, randomLine } = chart(curve, measure, WIDTH, HEIGHT);
  const average = measure === "r2_interior" ? curve.r2_average_map_interior : curve.r2_average_map;
  const [least, most] = [points.at(-1)!, points[0]!];
  const point = points.find(({ kernels }) => kernels === chosen);
  const seen = points.filter((each) => each[measure] !== null);
  return (
    <>
      <svg class="curve" viewBox={`-34 -8 ${WIDTH + 46} ${HEIGHT + 34}`} role="group" aria-label="density curve">
        {[0, 0.5, 1].map((r2) => (
          <g key={r2}>
            <path class="rule" d={`M0 ${y(r2)}H${WIDTH}`} />
            <text x={-6} y={y(r2) + 4} text-anchor="end">
              {r2 === 0 ? "≤0" : r2Text(r2)}
            </text>
          </g>
        ))}
        {average !== null && <path class="average" d={`M0 ${y(average)}H${WIDTH}`} />}
        <path class="random" d={randomLine} />
        <path class="own" d={circuitLine} />
        {kept >= least.kernels && kept <= most.kernels && <path class="zero" d={`M${x(kept)} 0V${HEIGHT}`} />}
        {seen.map((each) => {
          const there = placeOf(each);
          const look = () => choose(each.kernels);
          const name = `${plural(each.kernels, granularity)}: R² ${r2Text(each[measure])}`;
          const dots = [
            <circle key="room" class="room" cx={x(each.kernels)} cy={y(each[measure]!)} r={13} />,
            <circle key="dot" cx={x(each.kernels)} cy={y(each[measure]!)} r={each.kernels === chosen ? 6 : 4} />,
          ];
          return there ? (
            <a
              key={each.kernels}
              class="stop"
              href={formatRoute(there)}
              aria-label={`${name}, open its circuit`}
              onMouseEnter={look}
              onFocus={look}
              onClick={(event) => {
                if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                event.preventDefault();
                go(there);
              }}
            >
              {dots}
            </a>
          ) : (
            <g
              key={each.kernels}
              class="stop"
              role="button"
              tabIndex={0}
              aria-pressed={each.kernels === chosen}
              aria-label={name}
              onClick={look}
              onKeyDown={(event) => {
                if (event.key !== "Enter" && event.key !== " ") return;
                event.preventDefault();
                look();
              }}
            >
              {dots}
            </g>
          );
        })}
        <text x={0} y={HEIGHT + 18}>
          {plural(least.kernels, granularity)}
        </text>
        <text x={WIDTH} y={HEIGHT + 18} text-anchor="end">
          {count(most.kernels)}
        </text>
      </svg>
      <p class="keys">
        <span class="own">this recipe</span> <span class="random">random, as many in each layer</span>
        {average !== null && <span class="average">average map, {r2Text(average)}</span>}
      </p>
      {point ? (
        <Chosen circuit={circuit} point={point} measure={measure} />
      ) : (
        <p class="soft">Point at a circuit of the curve for its figures; a click goes there.</p>
      )}
      <p class="soft">
        R² {measure === "r2_interior" ? "on the interior" : "over all positions"} of{" "}
        {heldOut(curve.images, circuit.report)} of {plural(curve.photographs, "photograph")}; the dotted line is this
        circuit's size. {plain(curve.note)}
      </p>
    </>
  );
}

/** The page of a point's circuit, if it is in the project. */
function placeOf({ circuit }: CurvePoint): CircuitPlace | null {
  return circuits.value?.some(({ id, problem }) => id === circuit && !problem) ? circuitPlace(circuit) : null;
}

/** A point's figures, and the way to its circuit. */
function Chosen(props: { circuit: Circuit; point: CurvePoint; measure: "r2" | "r2_interior" }) {
  const { circuit, point, measure } = props;
  const there = placeOf(point);
  const request = sizedJob(circuit, point.density);
  return (
    <div class="stop-card">
      <p>
        <b>
          {plural(point.kernels, circuit.granularity)} ({percent(point.density)})
        </b>
        : R² <b>{r2Text(point[measure])}</b>, random{" "}
        {r2Text(point[`${measure === "r2" ? "r2_random" : "r2_random_interior"}`])}; {plain(point.verdict)}
        {point.constants > 0 && ", but no controls were fitted"}
      </p>
      {circuit.id === point.circuit ? (
        <p class="soft">It is this circuit.</p>
      ) : there ? (
        <To place={there}>open this circuit</To>
      ) : (
        request && <Work request={request} label="Find this circuit" quiet />
      )}
    </div>
  );
}
