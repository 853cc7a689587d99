/** What is being computed, what waits, and what was. */

import { plain } from "../core/text.js";
import type { Job } from "./api.js";
import { circuits, jobs, layers } from "./live.js";
import { circuitPlace, layerPlace, unitPlace } from "./route.js";
import { jobName, seconds } from "./text.js";
import { Progress, To } from "./ui.js";

const GROUPS = [
  ["running", "Running", "Nothing runs."],
  ["queued", "Waiting", ""],
  ["failed", "Failed", ""],
  ["cancelled", "Cancelled", ""],
  ["done", "Done", ""],
] as const;

export function JobsPage() {
  const all = jobs.value;
  return (
    <>
      <main id="main">
        <h1 tabIndex={-1}>Jobs</h1>
        <p class="lead">
          One job runs at a time. What measures a circuit goes first; then diagrams, which take seconds to minutes; then
          circuits and feature pictures; then splits, curves, maps of photographs and correlations; indexing last. Each
          goes between two steps of a later one.
        </p>
        {all === null ? (
          <p class="soft">Loading …</p>
        ) : (
          GROUPS.map(([state, title, none]) => {
            const some = all.filter((job) => job.state === state);
            if (some.length === 0 && !none) return null;
            return (
              <section key={state}>
                <h2>{title}</h2>
                {some.length === 0 && <p class="soft">{none}</p>}
                <ul class="jobs">
                  {some.map((job) => (
                    <li key={job.id}>
                      <JobLine job={job} />
                    </li>
                  ))}
                </ul>
              </section>
            );
          })
        )}
      </main>
      <aside class="side" aria-label="about jobs">
        <section>
          <h2>About jobs</h2>
          <p>
            The same question is the same job: if it was answered for this model and these photographs, its result comes
            at once.
          </p>
          <p>
            A cancelled job stops after the batch that runs, at the latest after 10 s. An index goes on where it
            stopped.
          </p>
        </section>
      </aside>
    </>
  );
}

function JobLine({ job }: { job: Job }) {
  const { parameters } = job;
  const circuit = String(job.result?.circuit ?? parameters.circuit ?? "");
  const feature = parameters.unit === undefined ? parameters.feature : `${parameters.layer}:${parameters.unit}`;
  const [, layer, unit] = /^(.+):(\d+)(?:@.*)?$/.exec(String(feature ?? "")) ?? [];
  const took = job.ended === null || job.state !== "done" ? null : job.ended - job.created;
  return (
    <>
      <p>
        <b>{plain(jobName(job, circuits.value ?? [], layers.value))}</b>{" "}
        {circuit && <To place={circuitPlace(circuit)}>circuit</To>}{" "}
        {layer && <To place={unitPlace(layer, Number(unit))}>unit</To>}{" "}
        {job.kind === "neighbours" && <To place={layerPlace(String(parameters.layer))}>layer</To>}{" "}
        {job.kind === "compare" && (
          <To place={{ page: "compare", a: String(parameters.a), b: String(parameters.b) }}>comparison</To>
        )}{" "}
        {took !== null && <span class="soft">done {seconds(took)} after it was asked for</span>}
      </p>
      {job.state !== "done" && <Progress job={job} />}
    </>
  );
}
