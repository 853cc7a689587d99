/** Jobs that a page asks for: a button that starts one, and how far it is. */

import { useState } from "preact/hooks";
import type { Job, JobRequest } from "./api.js";
import { canWrite, jobs, submit } from "./live.js";
import { Problem, Progress } from "./ui.js";

/** The job that was asked for with these parameters, among others that it may have. */
export function jobOf(all: readonly Job[], request: JobRequest): Job | null {
  const { kind, ...asked } = request;
  const same = (job: Job) =>
    Object.entries(asked).every(([name, value]) => JSON.stringify(job.parameters[name]) === JSON.stringify(value));
  return all.find((job) => job.kind === kind && same(job)) ?? null;
}

/** A button that starts a job, and how far it is. */
export function Work({ request, label, quiet }: { request: JobRequest; label: string; quiet?: boolean }) {
  const [error, say] = useState("");
  const job = jobOf(jobs.value ?? [], request);
  const active = job?.state === "running" || job?.state === "queued";
  return (
    <div class="work">
      {job && (active || job.error) && <Progress job={job} />}
      {!active && canWrite.value && (
        <button
          type="button"
          class={quiet ? "second-button" : "main-button"}
          part={request.kind}
          onClick={() =>
            submit(request).then(
              () => say(""),
              (problem: Error) => say(problem.message),
            )
          }
        >
          {label}
        </button>
      )}
      <Problem text={error} />
    </div>
  );
}

/** Asks for a job, and tells how far it is until it has ended. Returns it; throws an error with its sentence. */
export async function ended(request: JobRequest, tell: (job: Job) => void): Promise<Job> {
  const { id } = await submit(request);
  return new Promise((done, fail) => {
    let stop: (() => void) | null = null;
    const look = () => {
      const job = jobs.value?.find((each) => each.id === id);
      if (!job) return;
      if (job.state === "running" || job.state === "queued") {
        tell(job);
        return;
      }
      queueMicrotask(() => stop?.());
      if (job.state === "done") done(job);
      else fail(new Error(job.error || `The job was ${job.state}.`));
    };
    stop = jobs.subscribe(look);
  });
}
