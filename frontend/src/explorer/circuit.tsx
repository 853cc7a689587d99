/** A circuit: its verdict, its numbers beside their controls, its diagram, and how it is found again. */

import { useEffect, useRef } from "preact/hooks";
import { Copied } from "../app/copied.js";
import { count, percent, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Box, type Circuit, type Report } from "./api.js";
import { ContrastSection } from "./contrast.js";
import { DensityCurve } from "./curve.js";
import { Drawing, pictured } from "./drawing.js";
import { FeatureSection } from "./like.js";
import {
  canWrite,
  circuits,
  jobs,
  layers,
  message,
  model,
  notes,
  submit,
  useLoaded,
  useUnit,
  version,
} from "./live.js";
import { Notes } from "./note.js";
import { type CircuitPlace, circuitPlace, photoPlace, unitPlace } from "./route.js";
import {
  asInPapers,
  circuitShort,
  controlsText,
  featureOf,
  figure,
  heldOut,
  measuredBeside,
  r2Rows,
  r2Text,
  seconds,
  sentence,
  verdictText,
} from "./text.js";
import { circuitOf } from "./there.js";
import { Fact, Label, Picture, Problem, To, Verdict } from "./ui.js";
import { AsModule, InTheModel, Share } from "./uses.js";
import { jobOf, Work } from "./work.js";

export function CircuitPage({ place }: { place: CircuitPlace }) {
  const found = useLoaded(place.id, version.circuits.value, (signal) => circuitOf(place.id, signal));
  const circuit = found.value ?? null;
  if (!circuit)
    return (
      <main id="main" class="wide">
        <h1 tabIndex={-1}>Circuit</h1>
        {found.error ? <Problem text={found.error} /> : <p class="soft">Loading …</p>}
      </main>
    );
  if (circuit.problem)
    return (
      <main id="main" class="wide">
        <h1 tabIndex={-1}>{plain(circuit.file)}</h1>
        <Problem text={circuit.problem} />
      </main>
    );
  const { report } = circuit;
  const name = featureOf(circuit, layers.value);
  return (
    <main id="main" class="wide">
      <div class="title">
        <h1 tabIndex={-1}>
          {typeof circuit.unit === "number" ? (
            <To place={unitPlace(circuit.layer, circuit.unit)}>{plain(name)}</To>
          ) : (
            plain(name)
          )}
          <span class="soft"> · {plain(circuitShort(circuit))}</span>
        </h1>
      </div>
      {!report ? (
        <p class="lead">Not measured with this model and these photographs.</p>
      ) : (
        !circuit.diagram && ( // which says it itself, of what it shows
          <p class="lead">
            <Why circuit={circuit} report={report} />
          </p>
        )
      )}
      {report?.sent && (
        <p class="lead">
          <b>Measured by who sent it, not here, perhaps on other photographs.</b>
        </p>
      )}
      {circuit.same_weights === false && <p class="problem">It is of other weights than this model has.</p>}
      {(!report || report.sent) && <Work request={{ kind: "evaluate", circuit: circuit.id }} label="Measure it" />}
      <Drawn circuit={circuit} />
      <Controls circuit={circuit} />
      <ContrastSection circuit={circuit} place={place} />
      <div class="columns">
        <section>
          <h2>Numbers</h2>
          {report && circuit.diagram && (
            <p class="why">
              <Why circuit={circuit} report={report} />
            </p>
          )}
          {report ? <Numbers report={report} /> : <p class="soft">Not measured.</p>}
        </section>
        <section>
          <h2>How it was found</h2>
          <Origin circuit={circuit} />
        </section>
        <section>
          <h2>Label and note</h2>
          <Notes of={{ circuit: circuit.id }} what="this circuit" />
          <p class="soft">
            {canWrite.value
              ? "What you type on a filter in the diagram is saved with this circuit. Notes on a unit"
              : "Nothing is saved here: what you type on a filter in the diagram is in the address. Notes on a unit"}
            , whatever the circuit, are on its page
            {typeof circuit.unit === "number" && (
              <>
                , such as that of <To place={unitPlace(circuit.layer, circuit.unit)}>the target</To>
              </>
            )}
            .
          </p>
          <Others circuit={circuit} />
        </section>
        <section>
          <h2>Smaller and larger</h2>
          <DensityCurve circuit={circuit} />
        </section>
        <section>
          <h2>In the whole model</h2>
          <InTheModel circuit={circuit} />
          {typeof circuit.unit === "number" && <OwnPicture circuit={circuit} unit={circuit.unit} />}
        </section>
        <section>
          <h2>As a module</h2>
          <AsModule circuit={circuit} />
          <h2>Share</h2>
          <Share circuit={circuit} />
        </section>
      </div>
    </main>
  );
}

/** The verdict on a circuit and its reasons. */
function Why({ circuit, report }: { circuit: Circuit; report: Report }) {
  const but = controlsText(circuit);
  return (
    <span part="why">
      <b>{verdictText(asInPapers(report.verdict_sentence, circuit, layers.value))}</b>
      {but && <b> {but.replace("b", "B")}.</b>} <span class="soft">{measuredBeside(report)}</span>
    </span>
  );
}

/** The diagram, which is asked for as soon as the circuit is measured. */
function Drawn({ circuit }: { circuit: Circuit }) {
  const { id, diagram, controls } = circuit;
  const request = { kind: "diagram", circuit: id, controls: false } as const;
  const asked = useRef("");
  const job = jobs.value && jobOf(jobs.value, request);
  const known = jobs.value && job !== null && job?.state !== "done"; // a done one's diagram may have been evicted
  const text = useLoaded(`${id} ${diagram} ${controls}`, 0, async (signal) =>
    diagram ? api.diagram(id, signal) : null,
  );
  useEffect(() => {
    if (diagram || known !== false || !canWrite.value || asked.current === id) return;
    if (!circuit.report || circuit.report.sent) return;
    asked.current = id;
    submit(request).catch((problem: Error) => {
      message.value = problem.message;
    });
  }, [id, diagram, known, canWrite.value]);
  return (
    <>
      {(!diagram || text.value !== null) && <Drawing of={id} text={text.value} request={request} circuit={id} />}
      <Problem text={text.error} />
    </>
  );
}

/** The feature picture of a circuit's unit, which the diagram shows too. */
function OwnPicture({ circuit: { id, layer, same_weights }, unit }: { circuit: Circuit; unit: number }) {
  const found = useUnit(layer, unit);
  const value = same_weights === false ? null : (found.value?.picture?.value ?? null);
  useEffect(() => {
    const label = "optimized to drive it most in the full model";
    pictured.value = value === null ? null : { of: id, value: { src: api.picture(layer, unit), label } };
    return () => {
      pictured.value = null;
    };
  }, [id, value]);
  return found.value && <FeatureSection unit={found.value} title="Feature picture of the unit, in the full model" />;
}

/** Fits controls to a circuit with fitted constants, without which nobody knows whether the constants alone did it. */
function Controls({ circuit }: { circuit: Circuit }) {
  const { id, report, controls } = circuit;
  if (!report || !figure(report, "constants") || controls !== null) return null;
  const request = { kind: "diagram", circuit: id, controls: true } as const;
  const tried = jobOf(jobs.value ?? [], request)?.state === "done";
  return (
    <section class="controls">
      <Work request={request} label="Fit controls" quiet />
      <p class="soft">
        {tried
          ? "No controls could be fitted: the photographs that it was found on are not known to be here."
          : "Circuits of random structure with constants fitted alike show whether its constants alone do as well. " +
            "That takes about four times as long as fitting it."}
      </p>
    </section>
  );
}

// ---------------------------------------- numbers

const SHOWN = 12; // photographs of each role

/** Photographs by what they were used for, so that no figure is read off those that the circuit was found on. */
function Roles({ report }: { report: Report }) {
  const roles = [
    ["Found on", report.found_on],
    ["Its size or constants chosen on", report.validated_on],
    ["Measured on", report.held_out],
  ] as const;
  return (
    <>
      {roles.map(
        ([role, photos]) =>
          photos.length > 0 && (
            <figure key={role} class="role">
              <figcaption>
                {role} {plural(photos.length, "photograph")}
                {photos === report.found_on && !report.found_on_verified && ", as the circuit's file names them"}
                {photos.length > SHOWN && `, of which ${SHOWN} are shown`}
              </figcaption>
              <div>
                {photos.slice(0, SHOWN).map((id) => (
                  <To key={id} place={photoPlace(id)} aria-label={`photograph ${id}`}>
                    <Picture src={api.thumb(id, 96, square())} alt="" side={44} />
                  </To>
                ))}
              </div>
            </figure>
          ),
      )}
    </>
  );
}

function square(): Box | null {
  const [height, width] = model.value?.size ?? [];
  return height && width ? [0, 0, height, width] : null;
}

function Numbers({ report }: { report: Report }) {
  const { figures } = report;
  const central = figures.interior === "central";
  const notes = Array.isArray(figures.notes) ? figures.notes.map(String) : [];
  const whole = (name: string) => {
    const value = figure(report, name);
    return value === null ? "not measured" : count(value);
  };
  return (
    <>
      <table class="figures">
        <caption class="soft">R² on {heldOut(report.images, report)} each</caption>
        <thead>
          <tr>
            <td />
            <th scope="col">all positions</th>
            <th scope="col">{central ? "central" : "interior"}</th>
            <th scope="col">rectified</th>
          </tr>
        </thead>
        <tbody>
          {r2Rows(report).map(({ name, own, values }) => (
            <tr key={name} class={own ? "own" : undefined}>
              <th scope="row">{name}</th>
              {values.map((value, i) => (
                <td key={["all", "inside", "rectified"][i]} class={value === null ? "soft" : undefined}>
                  {r2Text(value)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      <dl>
        <Fact name="kernels" value={`${whole("kernels")}, ${whole("effective_kernels")} on complete paths`} />
        <Fact name="filters" value={`${whole("filters")}, ${whole("effective_filters")} on complete paths`} />
        <Fact name="fitted constants" value={whole("constants")} />
        <Fact name="Pearson r" value={r2Text(figure(report, "pearson"))} />
      </dl>
      {notes.map((note) => (
        <p class="soft" key={note}>
          {sentence(note)}
        </p>
      ))}
      <Roles report={report} />
    </>
  );
}

// ---------------------------------------- provenance

function Origin({ circuit }: { circuit: Circuit }) {
  const { command, python, provenance, report } = circuit;
  const notes = Array.isArray(provenance.notes) ? provenance.notes.map(String) : [];
  return (
    <>
      {report?.whole && <p>It was found on whole photographs, each as the model sees it, and is measured on others.</p>}
      <dl>
        <Fact name="criterion" value={plain(circuit.criterion) || "not recorded"} />
        <Fact
          name="kept"
          value={
            `${plural(circuit.kept, circuit.granularity)} of ${count(circuit.relevant)} relevant ` +
            `(${percent(circuit.density)})`
          }
        />
        <Fact name="positions" value={plain(circuit.position)} />
        {report && <Fact name="took" value={seconds(report.seconds)} />}
        <Fact
          name="file"
          value={
            <a href={api.circuitFile(circuit.id)} download={circuit.file}>
              {plain(circuit.file)}
            </a>
          }
        />
      </dl>
      {notes.map((note) => (
        <p class="soft" key={note}>
          {sentence(note)}
        </p>
      ))}
      {command ? (
        <Code title="The command that finds it again" text={command} />
      ) : (
        <p class="soft">
          No command finds it again: it is of chosen photographs or of a model object, or its recipe was not recorded.
        </p>
      )}
      {python && <Code title="In Python" text={python} lines />}
    </>
  );
}

function Code({ title, text, lines }: { title: string; text: string; lines?: boolean }) {
  return (
    <>
      <div class="line">
        <h3 class="of">{title}</h3>
        <Copied text={() => text} label="copy" />
      </div>
      <pre class={lines ? "lines" : undefined} tabIndex={0} aria-label={title}>
        {plainLines(text)}
      </pre>
    </>
  );
}

function plainLines(text: string): string {
  return text.split("\n").map(plain).join("\n");
}

function Others({ circuit }: { circuit: Circuit }) {
  const others = (circuits.value ?? []).filter(
    ({ id, layer, unit, problem }) =>
      !problem &&
      id !== circuit.id &&
      layer === circuit.layer &&
      unit !== null &&
      String(unit) === String(circuit.unit),
  );
  if (others.length === 0) return null;
  return (
    <>
      <h2>Other circuits of it</h2>
      <ul class="circuits">
        {others.map((other) => (
          <li key={other.id}>
            <To place={circuitPlace(other.id)}>{plain(circuitShort(other))}</To>{" "}
            <Label note={notes.value[`circuit ${other.id}`]} />
            <Verdict circuit={other} />
            <To
              place={{ page: "compare", a: circuit.id, b: other.id }}
              class="beside-it"
              aria-label={`compare with ${circuitShort(other)}`}
            >
              compare
            </To>
          </li>
        ))}
      </ul>
    </>
  );
}
