/** The explorer's logic: addresses, the window of a long grid, and what is said of numbers. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  api,
  type Box,
  type Circuit,
  type Contrast,
  type Curve,
  EMPTY,
  floats,
  forget,
  type Heard,
  type Job,
  listen,
  otherNotes,
  query,
  type Report,
  sentence,
  unitNotes,
} from "../src/explorer/api.js";
import { findJob, sizedJob } from "../src/explorer/ask.js";
import { chart, measureOf } from "../src/explorer/chart.js";
import { differing, paintOf } from "../src/explorer/contrasted.js";
import { isChanged, readAgain } from "../src/explorer/draft.js";
import { answered, cancel, hear, jobs, withJob } from "../src/explorer/live.js";
import {
  atlasPlace,
  circuitPlace,
  formatRoute,
  layerPlace,
  type Place,
  parseRoute,
  sameObject,
  trajectoryPlace,
  unitPlace,
} from "../src/explorer/route.js";
import {
  ablationText,
  around,
  asInPapers,
  baselines,
  bytes,
  coarse,
  controlsText,
  done,
  featureName,
  heldOut,
  jobName,
  listedBeside,
  measuredBeside,
  photoName,
  progress,
  r2Rows,
  r2Text,
  recent,
  roughly,
  sameHeldOut,
  seconds,
  splitText,
  topText,
  usedFor,
  verdictText,
  withKeys,
} from "../src/explorer/text.js";
import { arrow, pagesOf, rowsOf } from "../src/explorer/window.js";
import { jobOf } from "../src/explorer/work.js";

const ID = "0123456789abcdef";
const parsed = (address: string) => {
  const url = new URL(address, "http://127.0.0.1");
  return parseRoute(url.pathname, url.search);
};

const PLACES: Place[] = [
  { page: "home" },
  { page: "jobs" },
  circuitPlace(ID),
  { ...circuitPlace(ID), a: ID, b: ID.replace("0", "e") } as Place,
  { page: "photo", id: ID, x: null, y: null },
  { page: "photo", id: ID, x: 12.5, y: 0 },
  { page: "compare", a: ID, b: ID.replace("0", "f") },
  layerPlace("features.14"),
  { page: "layer", layer: "a/b c?d#é%2F", sort: "sparsity", lowest: true },
  unitPlace("layer4.1/conv2", 511),
  trajectoryPlace("layer4.1/conv2#2", 3),
  { ...trajectoryPlace("x", 0), at: "a/b&c", colors: "response", pictures: false, chosen: ["01234567", "89abcdef"] },
  atlasPlace(ID),
  { ...atlasPlace(ID), unit: 0, colors: "r2_random", kernel: "features.5[3,1]" },
  { ...unitPlace("x", 0), section: "top", padding: true, photo: ID, split: ID } as Place,
  { ...unitPlace("x", 0), section: "range", low: -0.5, high: 1e-7 } as Place,
];

test("every place has an address that leads back to it", () => {
  for (const place of PLACES) {
    const address = formatRoute(place);
    assert.match(address, /^\/[\x21-\x7e]*$/);
    assert.deepEqual(parsed(address), { ...place, weights: null }, address);
    assert.deepEqual(parsed(formatRoute(place, "c6822618")), { ...place, weights: "c6822618" });
  }
});

test("what is no address of the explorer leads nowhere, and what is no view is left out", () => {
  for (const path of [
    "/x",
    "/l",
    "/l/a/b",
    "/u/a",
    "/u/a/-1",
    "/u/a/1.5",
    "/c/../x",
    "/c/12",
    "/l/%E0%A4%A",
    "/jobs/1",
    "/t/a",
    "/t/a/x",
    "/a/12",
  ])
    assert.equal(parseRoute(path, "").page, "nowhere", path);
  assert.deepEqual(parsed("/l/a?sort=evil&lowest=1"), { ...layerPlace("a"), lowest: true, weights: null });
  assert.deepEqual(parsed("/u/a/3?show=median&padding&low=2&photo=../x&weights=<b>"), {
    ...unitPlace("a", 3),
    section: "median",
    weights: null,
  });
  assert.deepEqual(parsed("/t/a/3?colors=evil&pictures=2&chosen=0123456"), {
    ...trajectoryPlace("a", 3),
    weights: null,
  });
  assert.deepEqual(parsed(`/a/${ID}?unit=-1&colors=group`), { ...atlasPlace(ID), weights: null });
});

test("photographs of a link are those whose ids begin so, and others are counted", () => {
  const photos = ["0123456700000000", "89abcdef00000000", "89abcdef11111111"];
  assert.deepEqual(withKeys(["01234567"], photos), [[0], 0]);
  assert.deepEqual(withKeys(["ffffffff", "89abcdef"], photos), [[], 2]); // of none, and of two
  assert.deepEqual(withKeys([], photos), [[], 0]);
});

test("the query is the view of one object", () => {
  assert.ok(sameObject(layerPlace("a"), { ...layerPlace("a"), lowest: true } as Place));
  assert.ok(!sameObject(unitPlace("a", 1), unitPlace("a", 2)));
});

test("a circuit is painted by what its parts do on two photographs, and what differs most comes first", () => {
  const layer = { layer: "a b", alias: "", positions: [4, 4], filters: [3], outputs: [[1, -2]] as [number, number][] };
  const kernels = { kernels: [[3, 0]] as [number, number][], added: [[0.5, 0.5]] as [number, number][] };
  const paint = paintOf({ layers: [{ ...layer, ...kernels }] } as unknown as Contrast);
  assert.deepEqual(paint({ layer: "a b", filter: 3, input: null }), [1, -2]);
  assert.deepEqual(paint({ layer: "a b", filter: 3, input: 0 }), [0.5, 0.5]);
  assert.equal(paint({ layer: "a b", filter: 3, input: 1 }), null);
  assert.deepEqual(
    differing(
      [
        [1, 1.5],
        [0, -2],
        [3, 4],
      ],
      2,
    ),
    [1, 2],
  );
});

const CELL = { width: 132, height: 196, gap: 12 };

test("the rows that are drawn cover the window, and few others", () => {
  for (const count of [0, 1, 5, 64, 512, 2048])
    for (const width of [100, 390, 800, 1200])
      for (const top of [300, 0, -1, -5_000, -1e6]) {
        const seen = 900;
        const { columns, rows, height, first, last } = rowsOf(count, width, top, seen, CELL);
        assert.equal(rows, Math.ceil(count / columns));
        assert.ok(columns === 1 || columns * (CELL.width + CELL.gap) - CELL.gap <= width);
        assert.ok(first >= 0 && last <= rows && first <= last);
        for (let row = 0; row < rows; row++) {
          const upper = top + row * height;
          if (upper < seen && upper + height > 0)
            assert.ok(row >= first && row < last, `${count} ${width} ${top} ${row}`);
        }
        assert.ok((last - first) * height <= seen + 8 * height);
      }
});

test("pages hold the cells that are drawn", () => {
  assert.deepEqual(pagesOf(0, 0, 64), []);
  assert.deepEqual(pagesOf(0, 64, 64), [0]);
  assert.deepEqual(pagesOf(63, 65, 64), [0, 1]);
  assert.deepEqual(pagesOf(200, 512, 64), [3, 4, 5, 6, 7]);
});

test("arrow keys stay in the grid", () => {
  assert.deepEqual(
    ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End", "a"].map((key) => arrow(key, 7, 5, 12)),
    [8, 6, null, 2, 0, 11, null],
  );
});

test("a receptive field is framed where it is, in a square that stays on the image if it can", () => {
  const size = [224, 224];
  for (const box of [
    [174, 94, 40, 40],
    [-20, -7, 40, 40],
    [210, 216, 40, 40],
    [-60, -30, 400, 400],
    [0, 0, 3, 3],
    [100, 7, 30, 60],
  ] as Box[]) {
    const { part, field } = around(box, size);
    const [top, left, height, width] = part;
    assert.equal(height, width);
    for (const [share, from, extent, at] of [
      [field.top, top, height, box[0]],
      [field.left, left, width, box[1]],
    ] as const)
      assert.ok(Math.abs(from + share * extent - at) < 1e-9);
    assert.ok(field.top >= 0 && field.left >= 0 && field.top + field.height <= 1 && field.left + field.width <= 1);
    if (box[0] >= 0 && box[0] + box[2] <= 224 && box[1] >= 0 && box[1] + box[3] <= 224)
      assert.ok(top >= 0 && left >= 0 && top + height <= 224 && left + width <= 224);
  }
});

test("a coarser histogram has the same counts below and above zero", () => {
  const counts = Array.from({ length: 67 }, (_, i) => (7 * i) % 11);
  const sum = (of: number[]) => of.reduce((total, value) => total + value, 0);
  for (const zero of [0, 1, 33, 62, 67])
    for (const bins of [1, 36, 200]) {
      const small = coarse(counts, zero, bins);
      assert.equal(sum(small.counts.slice(0, small.zero)), sum(counts.slice(0, zero)));
      assert.equal(sum(small.counts), sum(counts));
      assert.ok(small.counts.length <= Math.max(bins, 1) + 1);
    }
});

test("numbers are said, and what was not measured too", () => {
  assert.deepEqual([0.834, -4.424, 1, -0.001, null].map(r2Text), [".83", "\u22124.42", "1.00", ".00", "not measured"]);
  assert.deepEqual([0.4, 60, 75, 3600, 7260].map(seconds), ["0 s", "1 min", "1 min 15 s", "1 h", "2 h 1 min"]);
  assert.deepEqual([0.2, 8.4, 44, 75, 3590].map(roughly), ["1 s", "8 s", "40 s", "1 min", "1 h"]);
  assert.deepEqual([1, 0.9999, 0.997, 0.9, 0.5].map(topText), ["0 %", "<0.1 %", "0.3 %", "10 %", "50 %"]);
  assert.deepEqual([1, 999, 1500, 12_900_000].map(bytes), ["1 byte", "999 bytes", "1.5 kB", "12.9 MB"]);
  assert.deepEqual(["a/b/cat.webp", "flower", "x/v1.0", ".png"].map(photoName), ["cat", "flower", "v1.0", ".png"]);
  assert.deepEqual([query({}), query({ a: null, b: 0, c: "x y" })], ["", "?b=0&c=x+y"]);
});

test("an error is a sentence, whatever the server sent", () => {
  assert.equal(sentence('{"error": "There is no unit 9."}', 404), "There is no unit 9.");
  for (const body of ["", "<html>", "{}", "null", '{"error": 3}'])
    assert.equal(sentence(body, 502), "The explorer answered with the status 502.");
});

test("numbers of a map are read as they were written", () => {
  const values = [0, -1.5, 3.25, 1e-30];
  const text = Buffer.from(Float32Array.from(values).buffer).toString("base64");
  assert.deepEqual([...floats(text)], values.map(Math.fround));
});

const REPORT: Report = {
  images: 24,
  whole: false,
  found_on: [],
  found_on_verified: true,
  sent: false,
  validated_on: [],
  held_out: [],
  verdict: "keeps",
  verdict_sentence: "",
  of_interior: false,
  seconds: 1,
  figures: { r2: 0.7, r2_interior: null, r2_rectified: 0.6, r2_random: -4, r2_average_map: 0.1 },
};

test("the table has every control, and no number for what was not measured", () => {
  assert.deepEqual(
    r2Rows(REPORT).map(({ values }) => values),
    [
      [0.7, null, 0.6],
      [-4, null, null],
      [0.1, null, null],
    ],
  );
});

test("a verdict on fitted constants says what their controls say, or that there are none", () => {
  const card = (constants: number, controls: unknown, verdict = "keeps") =>
    ({ report: { ...REPORT, verdict, figures: { ...REPORT.figures, constants } }, controls }) as never;
  assert.equal(controlsText(card(6, null)), "but no controls were fitted");
  assert.equal(controlsText(card(0, null)), "");
  assert.equal(controlsText(card(6, "found")), "");
  assert.equal(controlsText(card(6, "not found")), "but not clearly better than its controls");
  assert.equal(controlsText(card(6, null, "does not keep")), "");
});

test("R\u00b2 stands beside its baselines where the verdict is about", () => {
  assert.deepEqual(baselines(REPORT), {
    own: 0.7,
    where: "over all positions",
    others: "random circuit \u22124.00, average map .10",
    text: "over all positions: random circuit \u22124.00, average map .10",
  });
  assert.equal(listedBeside(REPORT), baselines(REPORT).text);
  const figures = { ...REPORT.figures, r2_interior: 0.6, interior: "central" };
  const central = baselines({ ...REPORT, figures, of_interior: true });
  assert.equal(central.own, 0.6);
  assert.equal(central.text, "on the central positions: random circuit not measured, average map not measured");
  const known = { ...figures, interior: "exact", r2_random_interior: 0.1, r2_average_map_interior: 0.2 };
  const inside = { ...REPORT, figures: known, of_interior: true };
  assert.equal(listedBeside(inside), "on the interior: random circuit .10, average map .20; over all positions .70");
  assert.equal(
    listedBeside({ ...inside, of_interior: false }),
    "over all positions: random circuit \u22124.00, average map .10; on the interior .60",
  );
  assert.equal(
    measuredBeside(inside), // the sentence before it may be of all positions
    `On ${heldOut(REPORT.images, REPORT)} (on the interior: this circuit .60, random circuit .10, average map .20).`,
  );
});

test("a verdict's sentence has numbers as the page has them, and names as they are", () => {
  for (const [said, shown] of [
    ["R2 on the interior is -0.13, below 0.3.", "R² on the interior is \u2212.13, below .3."],
    ["It keeps 0.5.conv:7@1,0: R2 is -1.66; R2 is 1.00.", "It keeps 0.5.conv:7@1,0: R² is \u22121.66; R² is 1.00."],
    ["so more than 90% of its squared error is left", "so more than 90 % of its squared error is left"],
    ["reaches -0.00 and 0.20, a random circuit 12", "reaches \u2212.00 and .20, a random circuit 12"],
  ])
    assert.equal(verdictText(said!), shown);
});

test("photographs that a circuit was found on, or its size chosen on, are known as used", () => {
  const card = (report: unknown) => ({ report }) as never;
  const used = usedFor([card({ ...REPORT, found_on: ["a", "b"], validated_on: ["c"], held_out: ["d"] }), card(null)]);
  assert.deepEqual([...used].sort(), ["a", "b", "c"]);
});

test("two circuits are compared on the same photographs, in any order", () => {
  const of = (...held_out: string[]): Report => ({ ...REPORT, held_out });
  assert.ok(sameHeldOut(of("a", "b"), of("b", "a")));
  assert.ok(!sameHeldOut(of("a", "b"), of("a", "c")));
  assert.ok(!sameHeldOut(of("a"), { ...of("a"), images: 6 }));
});

const LAYERS = [{ name: "features.14", alias: "conv3_3" }] as never[];
test("a unit is named as in papers and by its layer's own name", () => {
  const of = (layer: string, unit: unknown = 12) => ({ layer, unit }) as never;
  for (const [feature, named] of [
    ["features.14:12", "conv3_3:12 (features.14:12)"],
    ["features.14:12@interior", "conv3_3:12 (features.14:12@interior)"],
    ["features.14#1:12@3,5", "conv3_3:12 (features.14#1:12@3,5)"],
  ])
    assert.equal(asInPapers(`It keeps ${feature}, so far.`, of("features.14"), LAYERS), `It keeps ${named}, so far.`);
  assert.equal(asInPapers("It keeps layer1:12.", of("layer1"), LAYERS), "It keeps layer1:12.");
  assert.equal(asInPapers("It keeps features.14:3,4.", of("features.14", [3, 4]), LAYERS), "It keeps features.14:3,4.");
});

const JOB: Job = {
  id: ID,
  kind: "find",
  parameters: { feature: "features.14:12@interior", criterion: "snip", density: 0.1 },
  state: "running",
  phase: "scoring",
  since: 1000,
  done: 9,
  total: 24,
  rate: 2,
  left: 75,
  error: "",
  result: null,
  created: 0,
  ended: null,
};

test("jobs say what they do and how far they are", () => {
  assert.equal(jobName(JOB, [], LAYERS), "Find a circuit of conv3_3 unit 12, interior (snip, density 0.1)");
  assert.equal(progress(JOB), "scoring 9 / 24 \u00b7 2 per second \u00b7 1 min 15 s left in this step");
  const begun = { ...JOB, done: 0, rate: null, left: null };
  assert.equal(progress(begun, "", 1000.5), "scoring 0 / 24");
  assert.equal(progress(begun, "", 1075), "scoring 0 / 24 \u00b7 for 1 min 15 s now"); // before its first batch is done
  assert.equal(
    progress({ ...JOB, done: 24, left: 0 }, "", 1013.5), // what comes after the last one
    "scoring 24 / 24 \u00b7 2 per second \u00b7 for 13 s now",
  );
  assert.equal(progress({ ...begun, total: null, since: null }, "", 1075), "scoring");
  assert.equal(progress({ ...JOB, state: "failed", error: "Out of memory." }), "Out of memory.");
  assert.equal(progress({ ...JOB, state: "queued" }), "waiting");
  assert.equal(progress({ ...JOB, state: "queued" }, "Draw a"), "waits until this is done: Draw a");
  assert.deepEqual([done(JOB), done({ ...JOB, total: null }), done({ ...JOB, state: "done" })], [9 / 24, null, null]);
  assert.equal(featureName("fc:0,1", LAYERS), "fc:0,1");
  const part = { circuit: "a", layer: "features.14", filter: 3, input: null };
  assert.equal(
    jobName({ ...JOB, kind: "ablate", parameters: part }, [], LAYERS),
    "Measure a without filter 3 of conv3_3",
  );
  assert.equal(
    jobName({ ...JOB, kind: "ablate", parameters: { ...part, input: 7 } }, [], LAYERS),
    "Measure a without conv3_3, 3 \u2190 7",
  );
});

test("a job's event replaces what was known of it, or adds it before the others", () => {
  const other = { ...JOB, id: "f".repeat(16) };
  const later = { ...JOB, done: 10 };
  assert.deepEqual(withJob([other, JOB], later), [other, later]);
  assert.deepEqual(withJob([other], JOB), [JOB, other]);
});

/** A promise, and what fulfils it. */
function awaited<T>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}

test("what events told while an answer was on its way is not undone by it", async () => {
  const before = { ...JOB, done: 9 } as Job;
  const cancelled = { ...JOB, state: "cancelled", ended: 6 } as Job;
  const other = { ...JOB, id: "f".repeat(16) };
  for (const told of [[], [before], [before, cancelled], [other, cancelled]]) {
    hear(before);
    const { promise, resolve } = awaited<Job[]>();
    const asked = answered(promise);
    for (const job of told) hear(job);
    resolve([JOB]);
    const known = (await asked).find(({ id }) => id === JOB.id);
    assert.deepEqual(known, told.includes(cancelled) ? cancelled : told.includes(before) ? before : JOB);
    hear(other); // after the answer: it is of no concern to it
  }
});

test("a job whose end is told before the answer to its cancellation has ended", async (context) => {
  const running = { ...JOB, state: "running" } as Job;
  const ended = { ...JOB, state: "cancelled", ended: 6 } as Job;
  const { promise, resolve } = awaited<Response>();
  context.mock.method(globalThis, "fetch", () => promise);
  jobs.value = [running];
  const asked = cancel(running);
  hear(ended);
  resolve(new Response(JSON.stringify(running)));
  await asked;
  assert.deepEqual(jobs.value, [ended]);
});

test("what is asked for ahead is asked for once, again if it failed, was used or may be another", async (context) => {
  let [answers, fails] = [0, false];
  context.mock.method(globalThis, "fetch", async () =>
    fails ? new Response("", { status: 503 }) : new Response(JSON.stringify({ unit: ++answers })),
  );
  const of = { section: "top", padding: false, low: null, high: null, count: 25 } as const;
  const unit = async () => (await api.unit("a.b", 3)).unit;
  api.unitAhead("a.b", 3, of);
  assert.equal(answers, 2); // with the examples
  assert.equal(await unit(), 1);
  assert.equal(await unit(), 3); // it was used
  api.unitAhead("a.b", 3, of);
  forget();
  assert.equal(await unit(), 6); // it may have changed
  api.unitAhead("a.b", 4, of);
  assert.equal(await unit(), 9); // it was of another unit
  fails = true;
  api.unitAhead("a.b", 3, of);
  fails = false;
  assert.equal(await unit(), 10);
  api.unitAhead("a.b", 3, of);
  const time = performance.now();
  context.mock.method(performance, "now", () => time + 10_000);
  assert.equal(await unit(), 13); // it is old
});

test("the form asks for what can be found, and says what cannot", () => {
  const of = { criterion: "snip", size: "density", number: ".05", position: "interior", count: "24" } as const;
  assert.deepEqual(findJob("a:1", of), {
    kind: "find",
    feature: "a:1@interior",
    criterion: "snip",
    count: 24,
    density: 0.05,
  });
  const kernels = findJob("a:1", { ...of, size: "kernels", number: "500", position: "all" });
  assert.ok(
    typeof kernels !== "string" && kernels.kind === "find" && kernels.kernels === 500 && kernels.feature === "a:1",
  );
  for (const wrong of [
    { ...of, number: "" },
    { ...of, number: "0" },
    { ...of, number: "2" },
    { ...of, number: "x" },
    { ...of, size: "reach_r2", number: "80" },
    { ...of, size: "kernels", number: ".5" },
    { ...of, count: "0" },
    { ...of, count: "1.5" },
  ] as const)
    assert.match(String(findJob("a:1", wrong)), /must be/);
});

test("what another tab wrote replaces nothing that the reader has written", () => {
  const first = { note: EMPTY, tag: '"1"' };
  const second = { note: { ...EMPTY, label: "theirs" }, tag: '"2"' };
  const draft = readAgain(null, first);
  assert.deepEqual(readAgain(draft, second), { read: second, mine: second.note, theirs: null });
  const mine = { ...draft, mine: { ...EMPTY, text: "mine" } };
  assert.ok(isChanged(mine) && !isChanged(draft));
  assert.equal(readAgain(mine, first), mine);
  assert.deepEqual(readAgain(mine, second), { ...mine, theirs: second });
});

test("notes are those of this model's units", () => {
  const notes = {
    "unit a:b:12 of weights c6822618": { ...EMPTY, label: "curve" },
    "unit a:1 of weights 00000000": EMPTY,
    [`circuit ${ID}`]: EMPTY,
  };
  assert.deepEqual(unitNotes(notes, "c6822618626f"), [{ layer: "a:b", unit: 12, note: { ...EMPTY, label: "curve" } }]);
});

test("the circuits that were written last come first", () => {
  const [a, b, c] = [5, 9, 7].map((written) => ({ written })) as never[];
  assert.deepEqual(recent([a!, b!, c!]), [b, c, a]);
});

test("a page finds the job that it asked for, whatever its other parameters", () => {
  const job = { ...JOB, kind: "ablate", parameters: { circuit: ID, layer: "a", filter: 1, input: null } } as Job;
  const asked = { kind: "ablate", circuit: ID, layer: "a", filter: 1, input: null } as const;
  assert.equal(jobOf([JOB, job], asked), job);
  assert.equal(jobOf([JOB, job], { ...asked, input: 0 }), null);
  assert.equal(jobOf([JOB], { kind: "find", feature: "features.14:12@interior" }), JOB);
});

test("a circuit of another size has the same recipe", () => {
  const recipe = { feature: "a:1@max", criterion: "snip", refit: "none", count: 6, seed: 2, density: 0.4, size: 20 };
  const circuit = { provenance: { recipe } } as unknown as Circuit;
  assert.deepEqual(sizedJob(circuit, 0.1), {
    kind: "find",
    feature: "a:1@max",
    density: 0.1,
    criterion: "snip",
    refit: "none",
    count: 6,
    seed: 2,
  });
  assert.equal(sizedJob({ provenance: {} } as unknown as Circuit, 0.1), null);
});

test("a curve is drawn by the logarithm of its sizes, from 0 to 1, with a gap where nothing was measured", () => {
  const point = (kernels: number, r2: number | null) => ({ kernels, r2, r2_interior: null, r2_random: null });
  const curve = { points: [point(1000, 1.2), point(100, null), point(10, -3), point(1, 0.5)] } as unknown as Curve;
  assert.equal(measureOf(curve), "r2");
  const { x, y, circuitLine, randomLine } = chart(curve, "r2", 300, 100);
  assert.deepEqual([1, 10, 1000].map(x).map(Math.round), [0, 100, 300]);
  assert.deepEqual([-3, 0.5, 1.2].map(y), [100, 50, 0]);
  assert.equal(circuitLine, "M300.0 0.0M100.0 100.0L0.0 50.0");
  assert.equal(randomLine, "");
});

test("what a part is worth is said beside what was before", () => {
  const before = { kernels: 9, effective_kernels: 9, r2: 0.8, r2_interior: null, r2_rectified: null, kept: 0.9 };
  const after = { ...before, kernels: 8, effective_kernels: 7, r2: 0.5, kept: null };
  assert.equal(
    ablationText({ images: 6, before, after }),
    "Measured without it, on 6 held-out crops: R\u00b2 .50 instead of .80; its highest value not defined " +
      "instead of 90 % of the model's; 2 kernels fewer on complete paths.",
  );
});

test("a picture that is asked for before the model card is known is not kept by the browser for good", () => {
  assert.equal(api.thumb("0a", 96, [1, 2, 3, 4]), "/api/v1/thumb/0a?w=96&box=1,2,3,4"); // no "of="
});

test("a division's verdict is told before its reason", () => {
  const two = "On these images the network computes 2:0 by 2 mechanisms.";
  assert.deepEqual(splitText(`${two} They do. And so on.`), [two, "They do. And so on."]);
  assert.deepEqual(splitText(two), [two, ""]);
});

test("labels of circuits and photographs are found among all notes", () => {
  const note = { ...EMPTY, star: true };
  assert.deepEqual(
    otherNotes({
      [`circuit ${ID}`]: note,
      [`photo ${ID}`]: note,
      [`filter a:1 of circuit ${ID}`]: note,
      "unit a:1 of weights 01234567": note,
    }),
    [
      { kind: "circuit", id: ID, note },
      { kind: "photo", id: ID, note },
    ],
  );
});

/** An EventSource that does what the test says. */
class Source extends EventTarget {
  static readonly CLOSED = 2;
  static all: Source[] = [];
  readyState = 0;
  constructor() {
    super();
    Source.all.push(this);
  }
  say(name: "open" | "error", state: number): void {
    this.readyState = state;
    this.dispatchEvent(new Event(name));
  }
  close(): void {
    this.readyState = Source.CLOSED;
  }
}

test("a stream that the server refused is asked for again, ever more seldom, and at once when one looks", (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const known = globalThis.EventSource;
  Object.assign(globalThis, { EventSource: Source });
  const said: string[] = [];
  const note = (name: string) => () => void said.push(name);
  const heard = Object.fromEntries(
    ["all", "job", "index", "changed", "note", "model", "found"].map((name) => [name, note(name)]),
  );
  const of = { ...heard, lost: (refused: boolean) => void said.push(refused ? "refused" : "lost") } as unknown as Heard;
  const { again, stop } = listen(of);
  const refuse = () => Source.all.at(-1)!.say("error", Source.CLOSED);
  const asked = () => Source.all.length;

  Source.all[0]!.say("error", 0); // broken off: the browser connects again by itself
  context.mock.timers.tick(60_000);
  again();
  assert.deepEqual([asked(), said], [1, ["lost"]]);

  refuse();
  for (const wait of [2000, 4000, 8000, 16_000, 30_000, 30_000]) {
    const before = asked();
    context.mock.timers.tick(wait - 1);
    assert.equal(asked(), before);
    context.mock.timers.tick(1);
    assert.equal(asked(), before + 1);
    refuse();
  }
  const before = asked();
  again();
  assert.equal(asked(), before + 1);
  context.mock.timers.tick(60_000);
  assert.equal(asked(), before + 1); // the timer is that of the one that was refused before
  Source.all.at(-1)!.say("open", 1);
  assert.deepEqual(said.slice(-2), ["found", "model"]);

  refuse();
  context.mock.timers.tick(2000);
  assert.equal(asked(), before + 2); // soon again, once it was heard
  refuse();
  stop();
  context.mock.timers.tick(60_000);
  assert.equal(asked(), before + 2);
  globalThis.EventSource = known;
});
