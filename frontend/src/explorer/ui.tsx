/** Small components that several pages use. */

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { heat } from "../core/color.js";
import { plural, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Box, type CircuitCard, CRITERIA, type Example, type Job, type Note, type UnitMap } from "./api.js";
import { cancel, canWrite, circuits, jobs, layers, model, notes } from "./live.js";
import { circuitPlace, formatRoute, type Place } from "./route.js";
import {
  around,
  baselines,
  circuitShort,
  coarse,
  controlsText,
  done,
  featureOf,
  jobName,
  listedBeside,
  progress,
  r2Text,
  wanted,
} from "./text.js";

/** A unit that is highest where it sees padding on more than this share of the photographs gets a badge. */
export const BORDER = 0.5;

interface ToProps {
  place: Place;
  children: ComponentChildren;
  class?: string;
  title?: string;
  "aria-label"?: string;
  "aria-current"?: "page" | "true" | undefined;
  onPointerEnter?: (event: PointerEvent) => void;
  onPointerDown?: (event: PointerEvent) => void;
  onClick?: (event: MouseEvent) => void;
  onFocus?: () => void;
  onBlur?: () => void;
}

/** A link to a place. */
export function To({ place, children, ...rest }: ToProps) {
  return (
    <a href={formatRoute(place)} {...rest}>
      {children}
    </a>
  );
}

/** A picture from the server; where there is none, a sign that says so.
 *
 *  Figures come first: a browser opens few connections to one server, so pictures wait, and those of a page that was
 *  left are not asked for any more. */
export function Picture({ src, alt, side, class: name }: { src: string; alt: string; side?: number; class?: string }) {
  const [failed, fail] = useState("");
  const image = useRef<HTMLImageElement>(null);
  useLayoutEffect(
    () => () => {
      if (image.current?.complete === false) image.current.removeAttribute("src");
    },
    [],
  );
  useEffect(() => {
    if (failed !== src) return;
    const timer = setTimeout(() => fail(""), 3000); // the worker may have been busy
    return () => clearTimeout(timer);
  }, [failed, src]);
  if (failed === src)
    return (
      <span class={`nothing ${name ?? ""}`} role="img" aria-label={`${alt}: no picture`}>
        no picture
      </span>
    );
  return (
    <img
      ref={image}
      class={name}
      src={src}
      alt={alt}
      width={side}
      height={side}
      loading="lazy"
      fetchpriority="low"
      decoding="async"
      draggable={false}
      onError={() => fail(src)}
    />
  );
}

const CROP = 192; // px, for screens with two pixels to one

/** A part of a photograph around a receptive field, which is framed. */
export function Context({ example }: { example: Example }) {
  const { part, field } = around(example.box, model.value?.size ?? []);
  return (
    <span class="context">
      <Picture src={api.thumb(example.photo, CROP, part)} alt="" />
      <Frame {...field} />
    </span>
  );
}

export function Frame(field: { top: number; left: number; height: number; width: number }) {
  const share = (value: number) => `${100 * value}%`;
  return (
    <i
      class="frame"
      aria-hidden="true"
      style={{
        top: share(field.top),
        left: share(field.left),
        height: share(field.height),
        width: share(field.width),
      }}
    />
  );
}

/** What the model sees of a photograph, with a receptive field. */
export function Seen({ photo, box, alt }: { photo: string; box: Box | null; alt: string }) {
  const [height, width] = model.value?.size ?? [];
  if (!height || !width) return null;
  return (
    <span class="context">
      <Picture src={api.thumb(photo, 640, [0, 0, height, width])} alt={alt} />
      {box && <Frame top={box[0] / height} left={box[1] / width} height={box[2] / height} width={box[3] / width} />}
    </span>
  );
}

/** A unit's map, full color at its value that is farthest from 0. */
export function MapCanvas({ map, alt }: { map: UnitMap; alt: string }) {
  const most = map.values.reduce((top, value) => Math.max(top, Math.abs(value)), 0);
  const draw = (canvas: HTMLCanvasElement | null) => {
    const context = canvas?.getContext("2d");
    if (!context) return;
    const image = context.createImageData(map.width, map.height);
    map.values.forEach((value, i) => {
      const color = Number.parseInt(heat(most ? value / most : 0).slice(1), 16);
      image.data.set([color >> 16, (color >> 8) & 255, color & 255, 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  };
  const { width, height } = map;
  const named = alt ? ({ role: "img", "aria-label": alt } as const) : ({ "aria-hidden": true } as const);
  return <canvas ref={draw} width={width} height={height} {...named} key={`${height} ${width}`} />;
}

/** A unit's map on a photograph, with its scale. */
export function MapPicture({ map, alt }: { map: UnitMap; alt: string }) {
  const values = [...map.values];
  return (
    <figure class="map">
      <MapCanvas map={map} alt={alt} />
      <figcaption>
        Its map in the full model, from {significant(Math.min(...values))} to {significant(Math.max(...values))}: orange
        above 0, purple below.
      </figcaption>
    </figure>
  );
}

/** A histogram in small. */
export function Sparkline({ counts, zero }: { counts: number[]; zero: number }) {
  const bins = coarse(counts, zero, 36);
  const most = Math.max(1, ...bins.counts);
  const bar = (value: number) => (value ? Math.max(0.6, (20 * value) / most) : 0);
  const path = (from: number, to: number) =>
    bins.counts
      .slice(from, to)
      .map((value, i) => `M${from + i} 20v${(-bar(value)).toFixed(2)}h1V20z`)
      .join("");
  return (
    <svg
      class="spark"
      viewBox={`0 0 ${Math.max(1, bins.counts.length)} 20`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <path class="below" d={path(0, bins.zero)} />
      <path class="above" d={path(bins.zero, bins.counts.length)} />
    </svg>
  );
}

/** A job that waits or runs, with a bar, and a button that ends it. */
export function Progress({ job }: { job: Job }) {
  const part = done(job);
  const active = job.state === "running" || job.state === "queued";
  useSeconds(job.state === "running");
  return (
    <div class="progress">
      <p>
        {plain(progress(job, before(job)))}
        {active && canWrite.value && (
          <button type="button" class="plain" onClick={() => cancel(job)} aria-label={`cancel: ${job.kind}`}>
            cancel
          </button>
        )}
      </p>
      {active && <Bar part={part} label={job.phase || "waiting"} />}
    </div>
  );
}

/** Renders again each second while it is wanted. */
function useSeconds(wanted: boolean) {
  const [, tick] = useState(0);
  useEffect(() => {
    if (!wanted) return;
    const timer = setInterval(() => tick(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [wanted]);
}

/** What a job that has not begun waits for: what the worker is doing. */
function before({ state }: Job): string {
  if (state !== "queued") return "";
  const running = (jobs.value ?? []).filter((each) => each.state === "running");
  const active = running.find(({ phase }) => !phase.startsWith("paused")) ?? running[0];
  return active ? jobName(active, circuits.value ?? [], layers.value) : "";
}

export function Bar({ part, label }: { part: number | null; label: string }) {
  return (
    <div
      class="bar"
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={part === null ? undefined : Math.round(100 * part)}
    >
      <i style={{ width: `${100 * (part ?? 0)}%` }} />
    </div>
  );
}

const KEPT_JOBS = 3; // that ended

/** Jobs that find a circuit: those that wait or run, and those that ended last. */
export function FindJobs({ of }: { of: readonly Job[] }) {
  const active = (job: Job) => job.state === "running" || job.state === "queued";
  const shown = [...of.filter(active), ...of.filter((job) => !active(job)).slice(0, KEPT_JOBS)];
  return (
    <ul class="own-jobs" aria-live="polite">
      {shown.map((job) => {
        const { photographs } = job.parameters;
        const some = Array.isArray(photographs) ? ` for ${plural(photographs.length, "chosen photograph")}` : "";
        return (
          <li key={job.id}>
            {job.state === "done" && job.result?.circuit ? (
              <p>
                Found{some}
                {plain(wanted(job.parameters))}:{" "}
                <To place={circuitPlace(String(job.result.circuit))}>open the circuit</To>
              </p>
            ) : (
              <>
                <p>
                  <b>{plain(String(job.parameters.criterion ?? CRITERIA[0]))}</b>
                  {some}
                  {job.state === "failed" && ": failed"}
                </p>
                <Progress job={job} />
              </>
            )}
          </li>
        );
      })}
    </ul>
  );
}

const SHORT: Record<string, [string, string]> = {
  keeps: ["keeps", "good"],
  "keeps in part": ["in part", "partly"],
  "does not keep": ["does not keep", ""],
  "not decided": ["not decided", ""],
};

/** Circuits, each with its verdict. */
export function Circuits({ of, named }: { of: readonly CircuitCard[]; named?: boolean }) {
  return (
    <ul class="circuits">
      {of.map((circuit) => (
        <li key={circuit.id}>
          <To place={circuitPlace(circuit.id)}>
            {named && !circuit.problem && <b>{plain(featureOf(circuit, layers.value))} </b>}
            {plain(circuit.problem ? circuit.file : circuitShort(circuit))}
          </To>{" "}
          <Label note={notes.value[`circuit ${circuit.id}`]} />
          <Verdict circuit={circuit} />
        </li>
      ))}
    </ul>
  );
}

/** A star and a label, if there are any. */
export function Label({ note }: { note: Note | undefined }) {
  if (!note?.star && !note?.label) return null;
  return (
    <b class="label">
      {note.star && (
        <span role="img" aria-label="starred">
          ★
        </span>
      )}
      {note.label && `“${plain(note.label)}”`}{" "}
    </b>
  );
}

export function Verdict({ circuit }: { circuit: CircuitCard }) {
  const { problem, report, same_weights } = circuit;
  if (problem) return <span class="soft">cannot be used</span>;
  if (same_weights === false) return <span class="soft">of other weights</span>;
  if (!report) return <span class="soft">not measured</span>;
  const [word, tone] = SHORT[report.verdict] ?? [report.verdict, ""];
  const { own } = baselines(report);
  const but = controlsText(circuit);
  return (
    <span>
      <b class={but ? "" : tone}>
        {word}
        {but && `, ${but},`}
      </b>{" "}
      {r2Text(own)}{" "}
      <span class="soft">
        on {plural(report.images, report.whole ? "photograph" : "crop")}
        {report.sent && ", measured by who sent it"} ({listedBeside(report)})
      </span>
    </span>
  );
}

/** What went wrong, as a sentence. */
export function Problem({ text }: { text: string }) {
  return text ? (
    <p class="problem" role="alert">
      {plain(text)}
    </p>
  ) : null;
}

/** A value in a list of facts. */
export function Fact({ name, value }: { name: string; value: ComponentChildren }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </>
  );
}
