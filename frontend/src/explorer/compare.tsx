/** Two circuits of one feature, side by side and drawn in one diagram. */

import { count } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type CircuitCard } from "./api.js";
import { Drawing } from "./drawing.js";
import { circuits, jobs, layers, useLoaded } from "./live.js";
import { circuitPlace, type Place } from "./route.js";
import { circuitShort, featureOf, figure, heldOut, r2Text, sameHeldOut } from "./text.js";
import { Problem, To, Verdict } from "./ui.js";
import { jobOf } from "./work.js";

type Row = [name: string, of: (circuit: CircuitCard) => string];

const of = (circuit: CircuitCard, name: string) => (circuit.report ? r2Text(figure(circuit.report, name)) : "–");
const ROWS: Row[] = [
  ["kept", ({ kept, relevant }) => `${count(kept)} of ${count(relevant)}`],
  ["R², all positions", (circuit) => of(circuit, "r2")],
  ["R², interior", (circuit) => of(circuit, "r2_interior")],
  ["R², rectified", (circuit) => of(circuit, "r2_rectified")],
  ["random circuit of equal size", (circuit) => of(circuit, "r2_random")],
  ["random circuit, interior", (circuit) => of(circuit, "r2_random_interior")],
  ["average map, no network", (circuit) => of(circuit, "r2_average_map")],
  ["average map, interior", (circuit) => of(circuit, "r2_average_map_interior")],
  [
    "measured on",
    ({ report }) =>
      report ? `${heldOut(report.images, report)}${report.sent ? ", of who sent it" : ""}` : "not measured",
  ],
];

export function ComparePage({ place }: { place: Extract<Place, { page: "compare" }> }) {
  const { a, b } = place;
  const request = { kind: "compare", a, b } as const;
  const drawn = jobOf(jobs.value ?? [], request)?.state === "done";
  const found = useLoaded(`${a} ${b} ${drawn}`, 0, async (signal) => (drawn ? api.compared(a, b, signal) : null));
  const both = [a, b].map((id) => circuits.value?.find((each) => each.id === id));
  const missing = circuits.value && both.some((each) => !each || each.problem);
  return (
    <main id="main" class="wide">
      <div class="title">
        <h1 tabIndex={-1}>
          {both[0] ? plain(featureOf(both[0], layers.value)) : "Comparison"}
          <span class="soft"> · two circuits</span>
        </h1>
      </div>
      {missing ? (
        <Problem text="One of these circuits is not in the project, or cannot be used." />
      ) : (
        <>
          {both[0]?.report && both[1]?.report && !sameHeldOut(both[0].report, both[1].report) && (
            <p class="problem">
              The two are measured on different held-out photographs, so part of what differs may be the photographs.
            </p>
          )}
          {(!drawn || found.value !== null || found.error) && (
            <Drawing of={`${a} ${b}`} text={found.value} request={request} circuit={null} />
          )}
          <Problem text={found.error} />
          {both[0] && both[1] && <Beside of={[both[0], both[1]]} />}
        </>
      )}
    </main>
  );
}

function Beside({ of: both }: { of: CircuitCard[] }) {
  return (
    <div class="scroll" role="region" aria-label="figures" tabIndex={0}>
      <table class="figures beside">
        <thead>
          <tr>
            <td />
            {both.map((circuit) => (
              <th scope="col" key={circuit.id}>
                <To place={circuitPlace(circuit.id)}>{plain(circuitShort(circuit))}</To>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          <tr>
            <th scope="row">verdict</th>
            {both.map((circuit) => (
              <td key={circuit.id}>
                <Verdict circuit={circuit} />
              </td>
            ))}
          </tr>
          {ROWS.map(([name, text]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {both.map((circuit) => (
                <td key={circuit.id}>{text(circuit)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
